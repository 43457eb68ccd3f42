/* probe.c - see probe.h. */
#include "probe.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "error.h"
#include "session.h"

enum {
    BLOCK = 256,     /* bytes read of a stream before the next one's turn */
    STREAMS = 8,     /* per thread: one alone leaves a third of the bandwidth unused */
    PREFETCH = 4096, /* bytes ahead: the hardware's stops at the end of a page */
    PASSES = 3,
};
static const double PEAK_SECONDS = 0.02; /* of one measurement: far longer than to wake a thread */

struct qwen3_probe {
    qwen3_model *model;
    uint8_t *pages[2]; /* of the usual and of the huge size, `bytes` of each */
    size_t bytes;      /* whole blocks for every stream of every thread */
    void *mapping;
    size_t mapped;
};

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static qwen3_status check_owner(const qwen3_model *m, qwen3_error *err) {
    if (getpid() == m->owner) return QWEN3_OK;
    return fail(err, QWEN3_ERR_ARG,
                "this process was forked after the model was opened: open it again here");
}

/* ---- reading --------------------------------------------------------------- */

typedef uint64_t lanes __attribute__((vector_size(64)));

typedef struct {
    const uint8_t *data;
    size_t bytes;
} read_job;

static void read_share(void *arg, int tid, int n_threads) {
    const read_job *job = arg;
    size_t stream = job->bytes / (size_t)n_threads / STREAMS;
    const uint8_t *share = job->data + (size_t)tid * STREAMS * stream;
    lanes sum[BLOCK / sizeof(lanes)] = {{0}};
    for (size_t at = 0; at < stream; at += BLOCK)
        for (size_t k = 0; k < STREAMS; k++) {
            const uint8_t *p = share + k * stream + at;
            for (size_t i = 0; i < BLOCK / sizeof(lanes); i++) {
                __builtin_prefetch((const void *)((uintptr_t)p + i * sizeof(lanes) + PREFETCH));
                sum[i] += ((const lanes *)(const void *)p)[i];
            }
        }
    for (size_t i = 1; i < BLOCK / sizeof(lanes); i++) sum[0] += sum[i];
    __asm__ volatile("" : : "r"(&sum[0]) : "memory"); /* the sum counts as used */
}

double qwen3_probe_read(qwen3_probe *p) {
    double best = 0;
    for (int pass = 0; pass < PASSES; pass++)
        for (int i = 0; i < 2; i++) {
            read_job job = {p->pages[i], p->bytes};
            double start = seconds();
            pool_run(p->model->pool, read_share, &job);
            double rate = (double)p->bytes / (seconds() - start);
            best = rate > best ? rate : best;
        }
    return best;
}

/* ---- multiplying ------------------------------------------------------------- */

typedef struct {
    const backend *cpu;
    peak_kind kind;
    int64_t rounds;
    int64_t products; /* of one thread */
} peak_job;

static void peak_share(void *arg, int tid, int n_threads) {
    peak_job *job = arg;
    (void)n_threads;
    int64_t products = job->cpu->peak(job->kind, job->rounds);
    if (tid == 0) job->products = products;
}

/* The last of the growing runs is the first that takes long enough. */
static double peak_rate(const qwen3_probe *p, peak_kind kind) {
    peak_job job = {p->model->cpu, kind, 1000, 0};
    for (;; job.rounds *= 2) {
        double start = seconds();
        pool_run(p->model->pool, peak_share, &job);
        double taken = seconds() - start;
        if (taken >= PEAK_SECONDS)
            return (double)job.products * pool_size(p->model->pool) / taken;
    }
}

double qwen3_probe_int8(qwen3_probe *p) { return peak_rate(p, PEAK_INT8); }
double qwen3_probe_f32(qwen3_probe *p) { return peak_rate(p, PEAK_F32); }

/* ---- life ---------------------------------------------------------------------- */

static void touch_share(void *arg, int tid, int n_threads) {
    const qwen3_probe *p = arg;
    size_t share = p->bytes / (size_t)n_threads;
    for (int i = 0; i < 2; i++) memset(p->pages[i] + (size_t)tid * share, 1, share);
}

qwen3_probe *qwen3_probe_new(qwen3_model *m, size_t bytes, qwen3_error *err) {
    const size_t huge = 2 << 20;
    if (check_owner(m, err) != QWEN3_OK) return NULL;
    size_t unit = (size_t)pool_size(m->pool) * STREAMS * BLOCK;
    if (bytes < 1 << 20 || bytes > SIZE_MAX / 4 || bytes / 2 < unit) {
        fail(err, QWEN3_ERR_ARG, "a probe of %zu bytes for %d threads: too small or too large",
             bytes, pool_size(m->pool));
        return NULL;
    }
    qwen3_probe *p = calloc(1, sizeof *p);
    if (!p) {
        fail(err, QWEN3_ERR_MEMORY, "out of memory");
        return NULL;
    }
    p->model = m;
    p->bytes = bytes / 2 / unit * unit;
    size_t half = (p->bytes + huge - 1) / huge * huge;
    p->mapped = 2 * half + huge; /* room to begin where a huge page may */
    p->mapping = mmap(NULL, p->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p->mapping == MAP_FAILED) {
        fail(err, QWEN3_ERR_MEMORY, "the system refused %.1f MB to measure memory with",
             (double)p->mapped / 1e6);
        free(p);
        return NULL;
    }
    p->pages[0] = (uint8_t *)(((uintptr_t)p->mapping + huge - 1) / huge * huge);
    p->pages[1] = p->pages[0] + half;
#ifdef MADV_HUGEPAGE
    madvise(p->pages[0], half, MADV_NOHUGEPAGE); /* a system without them refuses: no harm */
    madvise(p->pages[1], half, MADV_HUGEPAGE);
#endif
    pool_run(m->pool, touch_share, p);
    return p;
}

void qwen3_probe_free(qwen3_probe *p) {
    if (!p) return;
    munmap(p->mapping, p->mapped);
    free(p);
}

/* ---- a filled session ------------------------------------------------------------ */

enum { ROWS = 61 }; /* different keys and values, repeated through the cache */

typedef struct {
    const qwen3_model *model;
    kv_cache *kv;
    size_t n;
    const float *rows; /* [ROWS][head_dim] */
    float *scratch;    /* [n_threads][kv_scratch] */
} fill_job;

static void fill_share(void *arg, int tid, int n_threads) {
    const fill_job *job = arg;
    kv_cache *kv = job->kv;
    float *scratch = job->scratch + (size_t)tid * kv_scratch(kv->head_dim);
    for (int i = tid; i < kv->n_layers * kv->n_kv_heads; i += n_threads) {
        int layer = i / kv->n_kv_heads, head = i % kv->n_kv_heads;
        for (size_t t = 0; t < job->n; t++) {
            size_t key = (t + (size_t)i) % ROWS, value = (3 * t + (size_t)i) % ROWS;
            kv_store(kv, job->model->cpu, layer, head, (int)t,
                     job->rows + key * (size_t)kv->head_dim,
                     job->rows + value * (size_t)kv->head_dim, scratch);
        }
    }
}

/* Its layers by a copy of one that the host fills. */
static qwen3_status fill_device(const qwen3_session *s, fill_job job, qwen3_error *err) {
    kv_cache layer = s->kv;
    layer.n_layers = 1;
    layer.data = calloc(kv_n_streams(&layer), layer.stream);
    if (!layer.data) return fail(err, QWEN3_ERR_MEMORY, "out of memory");
    job.kv = &layer;
    pool_run(s->model->pool, fill_share, &job);
    qwen3_status status = QWEN3_OK;
    for (size_t i = kv_n_streams(&s->kv); i < session_n_streams(s) && status == QWEN3_OK; i++)
        status = session_write_stream(s, i, 0, kv_stream(&layer, i % kv_n_streams(&layer)),
                                      layer.stream, err);
    free(layer.data);
    return status;
}

qwen3_status qwen3_session_fill(qwen3_session *s, size_t n, qwen3_error *err) {
    const qwen3_model *m = s->model;
    size_t count = ROWS * (size_t)m->config.head_dim;
    qwen3_status status = check_owner(m, err);
    if (status != QWEN3_OK) return status;
    if (n > s->n_ctx)
        return fail(err, QWEN3_ERR_CONTEXT, "%zu tokens do not fit the context of %zu", n,
                    s->n_ctx);
    size_t scratch = (size_t)pool_size(m->pool) * kv_scratch(m->config.head_dim);
    float *rows;
    if (posix_memalign((void **)&rows, 64, (scratch + count) * sizeof *rows) != 0)
        return fail(err, QWEN3_ERR_MEMORY, "out of memory");
    uint32_t state = 1;
    for (size_t i = 0; i < count; i++) { /* evenly in [-1, 1) */
        state = state * 1664525u + 1013904223u;
        rows[scratch + i] = (float)(state >> 8) * 0x1p-23f - 1;
    }
    fill_job job = {m, &s->kv, n, rows + scratch, rows};
    pool_run(m->pool, fill_share, &job);
    if (s->gpu) status = fill_device(s, job, err);
    for (size_t i = 0; i < n; i++) s->ids[i] = (int32_t)(i % (size_t)m->config.n_vocab);
    s->n = status == QWEN3_OK ? n : 0;
    s->has_logits = false;
    free(rows);
    return status;
}

/* ---- forced routes ---------------------------------------------------------------- */

static qwen3_status check_routes(const qwen3_config *c, const int32_t *routes, size_t n_tokens,
                                 qwen3_error *err) {
    size_t used = (size_t)c->n_experts_used, n = n_tokens * (size_t)c->n_layers * used;
    for (size_t i = 0; routes && i < n; i++)
        for (size_t k = i - i % used; k <= i; k++)
            if (routes[i] < 0 || routes[i] >= c->n_experts || (k < i && routes[k] == routes[i]))
                return fail(err, QWEN3_ERR_ARG, "expert %d at index %zu: %zu different ones of %d "
                            "are needed in each layer", routes[i], i, used, c->n_experts);
    return QWEN3_OK;
}

qwen3_status qwen3_session_force_routes(qwen3_session *s, const int32_t *routes,
                                        const int32_t *guesses, size_t n_tokens, qwen3_error *err) {
    const qwen3_config *c = &s->model->config;
    if (!c->n_experts || (routes && n_tokens == 0) || (guesses && !routes))
        return fail(err, QWEN3_ERR_ARG, "routes are for a mixture of experts, of a token at least");
    if (routes && s->gpu)
        return fail(err, QWEN3_ERR_ARG, "a GPU takes no forced routes: open the model without it");
    qwen3_status status = check_routes(c, routes, n_tokens, err);
    if (status == QWEN3_OK) status = check_routes(c, guesses, n_tokens, err);
    if (status != QWEN3_OK) return status;
    s->work.routes = routes;
    s->work.guesses = guesses;
    s->work.n_routes = n_tokens;
    return QWEN3_OK;
}
