/* A mixture of experts on a device that has no room for all of them: at every budget and share of
 * copies, over RAM and over a store, the CPU's logits, and what fails is an error and no more.
 * test_gpu_offload [few]: the emulation is slow, with sanitizers most of all. */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "gpu/forward.h"
#include "probe.h"
#include "session.h"
#include "streams.h"

enum { LAYERS = 2, EXPERTS = 8, USED = 2, PROMPT = 9, CONTEXT = 32, VOCAB = 269 };
enum { THREADS = 2 };
static const char path[] = "tests/data/tiny-gpu-mixed.gguf";

static int failures;
static bool few;

#define CHECK(condition, ...)                                                \
    do {                                                                     \
        if (!(condition) && failures++ < 20) {                               \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);  \
            fprintf(stderr, __VA_ARGS__);                                    \
            fputc('\n', stderr);                                             \
        }                                                                    \
    } while (0)

/* ---- a model in two or three tiers ----------------------------------------------------- */

typedef struct {
    qwen3_model *host;
    qwen3_session *session; /* of the host: a reference, and its working memory */
    gpu *device;
    resident_model model;
    gpu_sequence sequence;
    int n; /* tokens of the sequence */
} machine;

typedef struct {
    uint64_t bytes;  /* for experts on the device */
    float share;     /* of the missing that are copied */
    bool store;      /* those in RAM are some of the file's, too */
    const char *path;
} tiers;

static uint64_t slot_bytes, all_bytes; /* the largest expert; all of them */

static void measure(void) {
    qwen3_error err;
    qwen3_model *host = qwen3_model_open(path, 1, 0, &err);
    if (!host) abort();
    for (int i = 0; i < LAYERS; i++) {
        uint64_t bytes = bank_of(&host->layers[i]).bytes;
        slot_bytes = bytes > slot_bytes ? bytes : slot_bytes;
        all_bytes += EXPERTS * bytes;
    }
    qwen3_model_close(host);
}

static uint64_t least(void) { return (USED + 2) * slot_bytes; }

static void open_host(machine *m, const tiers *t) {
    qwen3_error err;
    uint64_t in_ram = t->store ? LAYERS * USED * 24576 : 0; /* a third of all, in whole pages */
    *m = (machine){.host = qwen3_model_open(t->path ? t->path : path, THREADS, in_ram, &err)};
    if (!m->host) fprintf(stderr, "%s\n", err.text);
    m->session = m->host ? qwen3_session_new(m->host, CONTEXT, QWEN3_KV_F16, &err) : NULL;
    if (!m->session) abort();
}

static qwen3_status open_device(machine *m, const tiers *t, qwen3_error *err) {
    qwen3_gpu_share share = {.n_layers = LAYERS, .expert_bytes = t->bytes};
    if (!m->device) m->device = gpu_streamed.open(0, err);
    qwen3_status status =
        resident_open(&m->model, &gpu_streamed, m->device, m->host, &share, t->share, err);
    if (status != QWEN3_OK) return status;
    status = gpu_sequence_open(&m->sequence, &m->model, CONTEXT, TYPE_F16, PROMPT, err);
    if (status != QWEN3_OK) resident_close(&m->model);
    return status;
}

static void open_all(machine *m, const tiers *t) {
    qwen3_error err;
    open_host(m, t);
    if (open_device(m, t, &err) == QWEN3_OK) return;
    fprintf(stderr, "%s\n", err.text);
    abort();
}

static void close_device(machine *m) {
    gpu_sequence_close(&m->sequence);
    resident_close(&m->model);
}

static void close_all(machine *m) {
    close_device(m);
    gpu_streamed.close(m->device);
    qwen3_session_free(m->session);
    qwen3_model_close(m->host);
}

static int32_t id_of(int pos) { return (pos * 7919 + 13) % VOCAB; }

static atomic_bool cancel;

/* n more tokens: the logits of the last one. */
static qwen3_status extend(machine *m, int n, float *logits, qwen3_error *err) {
    int32_t ids[CONTEXT];
    token_place places[CONTEXT];
    for (int i = 0; i < n; i++) {
        ids[i] = id_of(m->n + i);
        places[i] = (token_place){m->sequence.kv, m->sequence.stream, m->n + i};
    }
    gpu_tokens tokens = {.ids = ids, .places = places, .n = n, .host = &m->session->work,
                         .cancel = &cancel};
    qwen3_status status = gpu_forward(&m->sequence, &tokens, 1, logits, err);
    if (status == QWEN3_OK) m->n += n;
    return status;
}

static void must_extend(machine *m, int n, float *logits) {
    qwen3_error err = {0};
    CHECK(extend(m, n, logits, &err) == QWEN3_OK, "%s", err.text);
}

/* A prompt, tokens one by one, some together, another prompt; few: the first three. */
static const int steps[] = {PROMPT, 1, 1, 3, PROMPT, 1};
enum { STEPS = sizeof steps / sizeof *steps, TOKENS = 2 * PROMPT + 6 };

static int n_steps(void) { return few ? 3 : STEPS; }

typedef struct {
    float logits[STEPS][VOCAB];
    qwen3_gpu_stats stats;
} result;

static void compute(machine *m, result *r) {
    memset(r, 0, sizeof *r);
    for (int i = 0; i < n_steps(); i++) must_extend(m, steps[i], r->logits[i]);
    r->stats = m->model.stats;
}

static void run(const tiers *t, uint64_t seed, result *r) {
    machine m;
    gpu_streamed_seed(seed);
    open_all(&m, t);
    compute(&m, r);
    close_all(&m);
}

/* ---- comparisons ------------------------------------------------------------------------- */

static float reference[STEPS][VOCAB]; /* the CPU's */

static void compute_reference(void) {
    static float all[TOKENS][VOCAB];
    machine m;
    qwen3_error err;
    int32_t ids[TOKENS];
    open_host(&m, &(tiers){0});
    for (int i = 0; i < TOKENS; i++) ids[i] = id_of(i);
    if (qwen3_extend_logits(m.session, ids, TOKENS, all[0], &err) != QWEN3_OK) abort();
    for (int i = 0, n = 0; i < STEPS; i++)
        memcpy(reference[i], all[(n += steps[i]) - 1], sizeof all[0]);
    qwen3_session_free(m.session);
    qwen3_model_close(m.host);
}

static double log_sum(const float *x) {
    double top = x[0], sum = 0;
    for (int i = 1; i < VOCAB; i++) top = x[i] > top ? x[i] : top;
    for (int i = 0; i < VOCAB; i++) sum += exp(x[i] - top);
    return top + log(sum);
}

/* The mean over n rows. */
static double divergence(const float (*wanted)[VOCAB], const float (*got)[VOCAB], int n) {
    double kl = 0;
    for (int t = 0; t < n; t++) {
        double of_wanted = log_sum(wanted[t]), of_got = log_sum(got[t]);
        for (int i = 0; i < VOCAB; i++) {
            double p = wanted[t][i] - of_wanted;
            kl += exp(p) * (p - (got[t][i] - of_got)) / n;
        }
    }
    return kl;
}

/* ---- tests ------------------------------------------------------------------------------- */

static void test_budgets(void) {
    static result all, r, again;
    run(&(tiers){all_bytes, 0, true, NULL}, 1, &all);
    CHECK(divergence(reference, all.logits, n_steps()) <= 1e-4, "all on the device");
    CHECK(!all.stats.misses && !all.stats.bytes_copied, "all on the device");
    const uint64_t budgets[] = {least(), all_bytes / 2, all_bytes - 1};
    static const char ways[][7] = {"012345", "014", "25"}; /* share / 2, with a store or without */
    uint64_t wanted = 0;
    for (int b = 0; b < (few ? 1 : 3); b++)
        for (const char *at = few ? "3" : ways[b]; *at; at++) {
            int way = *at - '0';
            tiers t = {budgets[b], (float)(way / 2) / 2, way % 2, NULL};
            int pinned = gpu_streamed_pinned_copies();
            run(&t, (uint64_t)(10 * b + way), &r);
            const qwen3_gpu_stats *s = &r.stats;
            pinned = gpu_streamed_pinned_copies() - pinned;
            CHECK(t.store ? pinned >= N_PARTS * (int)s->copied : pinned == 0,
                  "%d matrices came from the store, of %d experts", pinned, (int)s->copied);
            double kl = divergence(reference, r.logits, n_steps());
            CHECK(kl <= 1e-4, "budget %d, way %d: KL %g", b, way, kl);
            if (!wanted) wanted = s->hits + s->misses;
            CHECK(s->hits + s->misses == wanted && s->copied + s->computed == s->misses,
                  "%d hits, %d misses, %d copied, %d computed", (int)s->hits, (int)s->misses,
                  (int)s->copied, (int)s->computed);
            CHECK(s->misses > 0 && (t.share == 1 || s->computed > 0), "way %d", way);
            CHECK(s->bytes_copied <= s->copied * slot_bytes, "%d bytes", (int)s->bytes_copied);
            if (s->computed == 0) /* the device computed all of it: the very same */
                CHECK(!memcmp(r.logits, all.logits, sizeof r.logits), "budget %d, way %d", b, way);
            if (at[1]) continue;
            gpu_streamed_pins(false);
            run(&t, (uint64_t)(b + 100), &again);
            gpu_streamed_pins(true);
            CHECK(!memcmp(&r, &again, offsetof(result, stats.stall_s)), "another time, other bits");
        }
}

/* All experts of a layer in turn, the same in every layer. */
static int32_t routes[EXPERTS / USED][LAYERS][USED];

static void make_routes(void) {
    for (int r = 0; r < EXPERTS / USED; r++)
        for (int i = 0; i < LAYERS; i++)
            for (int k = 0; k < USED; k++) routes[r][i][k] = (r * USED + k + i) % EXPERTS;
}

static void force(machine *m, const void *which, size_t n) {
    qwen3_error err;
    CHECK(qwen3_session_force_routes(m->session, which, NULL, n, &err) == QWEN3_OK, "%s", err.text);
}

/* Experts that are used again and again come to the device, at any share but none; a prompt
 * leaves them there. */
static void test_stay(void) {
    float logits[VOCAB];
    for (int share = 0; share <= 2; share++) {
        machine m;
        tiers t = {8 * slot_bytes, (float)share / 2, false, NULL};
        open_all(&m, &t);
        force(&m, routes[EXPERTS / USED - 1], 1);
        for (int i = 0; i < 4; i++) must_extend(&m, 1, logits);
        const qwen3_gpu_stats *s = &m.model.stats;
        uint64_t misses = s->misses;
        CHECK(misses > 0, "nothing was missing");
        must_extend(&m, 1, logits);
        CHECK((s->misses == misses) == (share > 0), "share %d", share);
        force(&m, routes, EXPERTS / USED);
        misses = s->misses;
        must_extend(&m, PROMPT, logits);
        CHECK(s->misses > misses, "the prompt met all of them");
        misses = s->misses;
        force(&m, routes[EXPERTS / USED - 1], 1);
        must_extend(&m, 1, logits);
        CHECK((s->misses == misses) == (share > 0), "share %d, behind a prompt", share);
        close_all(&m);
    }
}

/* As on the CPU: whether all are on the device or not. */
static void test_forced(void) {
    float wanted[PROMPT + 3][VOCAB], got[3][VOCAB];
    for (int all = 0; all <= !few; all++) {
        machine m;
        qwen3_error err;
        int32_t ids[PROMPT + 3];
        tiers t = {all ? 0 : least(), 0.5f, false, NULL};
        open_all(&m, &t);
        force(&m, routes, EXPERTS / USED);
        for (int i = 0; i < PROMPT + 3; i++) ids[i] = id_of(i);
        CHECK(qwen3_extend_logits(m.session, ids, PROMPT + 3, wanted[0], &err) == QWEN3_OK, "%s",
              err.text);
        must_extend(&m, PROMPT, got[0]);
        must_extend(&m, 1, got[1]);
        must_extend(&m, 2, got[2]);
        memcpy(wanted[PROMPT + 1], wanted[PROMPT + 2], sizeof *wanted);
        double kl = divergence(wanted + PROMPT - 1, got, 3), other = divergence(reference, got, 1);
        CHECK(kl <= 1e-4 && other > 1e-3, "KL %g, of the router's choice %g", kl, other);
        close_all(&m);
    }
}

static void test_too_small(void) {
    machine m;
    qwen3_error err = {0};
    tiers t = {least() - 1, 0.5f, false, NULL};
    open_host(&m, &t);
    CHECK(open_device(&m, &t, &err) == QWEN3_ERR_ARG && strstr(err.text, " take "), "%s", err.text);
    t.bytes++;
    CHECK(open_device(&m, &t, &err) == QWEN3_OK, "%s", err.text);
    close_all(&m);
}

/* Wherever memory ends: then the same with enough of it. */
static void test_no_memory(void) {
    static result r;
    machine m;
    tiers t = {least(), 0.5f, true, NULL};
    open_host(&m, &t);
    qwen3_status status = QWEN3_ERR_MEMORY;
    int n = 0;
    for (; status != QWEN3_OK && n < 100; n++) {
        qwen3_error err = {0};
        gpu_streamed_fail(n + 1);
        status = open_device(&m, &t, &err);
        CHECK(status == QWEN3_OK || status == QWEN3_ERR_MEMORY, "%s", err.text);
        CHECK(status == QWEN3_OK || strstr(err.text, "no room"), "%s", err.text);
    }
    gpu_streamed_fail(0);
    CHECK(n > 4, "%d allocations", n - 1);
    if (!few) compute(&m, &r);
    CHECK(few || divergence(reference, r.logits, n_steps()) <= 1e-4, "behind failures");
    close_all(&m);
}

/* Wherever in a step, between two copies, too: what was copied and what was to leave for it. */
static void test_failed_copies(void) {
    machine m;
    tiers t = {least(), 1, false, NULL};
    open_all(&m, &t);
    for (int n = 4; n < 9; n++) {
        float logits[3][VOCAB];
        qwen3_error err = {0};
        gpu_streamed_fail_copy(n);
        m.n = PROMPT;
        CHECK(extend(&m, 1, logits[0], &err) == QWEN3_ERR_IO, "copy %d: %s", n, err.text);
        m.n = 0;
        for (int i = 0; i < 3; i++) must_extend(&m, steps[i], logits[i]);
        CHECK(divergence(reference, logits, 3) <= 1e-4, "behind failed copy %d", n);
    }
    close_all(&m);
}

/* While the slots are filled: no copy runs on, and another opening finds all as it was. */
static void test_failed_opening(void) {
    static result r;
    machine m;
    tiers t = {all_bytes / 2, 1, true, NULL};
    qwen3_status status = QWEN3_ERR_IO;
    open_host(&m, &t);
    int n = 0;
    for (; status != QWEN3_OK && n < 100; n++) {
        qwen3_error err = {0};
        gpu_streamed_seed((uint64_t)n);
        gpu_streamed_fail_copy(n + 1);
        status = open_device(&m, &t, &err);
        CHECK(status == QWEN3_OK || status == QWEN3_ERR_IO, "%s", err.text);
    }
    gpu_streamed_fail_copy(0);
    CHECK(n > N_PARTS * EXPERTS, "%d copies", n - 1);
    compute(&m, &r);
    CHECK(divergence(reference, r.logits, n_steps()) <= 1e-4, "behind failures");
    close_all(&m);
}

/* ---- a file that ends ---------------------------------------------------------------------- */

static char copied[64];
static char *bytes;
static long n_bytes;

static void copy_file(void) {
    FILE *from = fopen(path, "rb");
    snprintf(copied, sizeof copied, "test-offload-%d.gguf", (int)getpid());
    if (!from || fseek(from, 0, SEEK_END) || (n_bytes = ftell(from)) < 0) abort();
    bytes = malloc((size_t)n_bytes);
    rewind(from);
    if (!bytes || fread(bytes, 1, (size_t)n_bytes, from) != (size_t)n_bytes) abort();
    fclose(from);
}

/* The same file, whoever has it open. */
static void write_file(long n) {
    FILE *to = fopen(copied, n == n_bytes ? "wb" : "rb+");
    if (!to || fwrite(bytes, 1, (size_t)n, to) != (size_t)n || fflush(to)) abort();
    if (ftruncate(fileno(to), n)) abort();
    fclose(to);
}

/* In a prompt, in a copy, in what the CPU computes. */
static void test_read_errors(void) {
    static result r;
    copy_file();
    for (int i = 0; i < (few ? 1 : 3); i++) {
        machine m;
        qwen3_error err = {0};
        tiers t = {least(), i == 1 ? 1 : 0, true, copied};
        write_file(n_bytes);
        open_all(&m, &t);
        write_file(8192);
        int n = i == 0 ? PROMPT : 1;
        qwen3_status status = QWEN3_OK;
        for (int k = 0; k < 3 && status == QWEN3_OK; k++) status = extend(&m, n, r.logits[0], &err);
        CHECK(status == QWEN3_ERR_FORMAT && strstr(err.text, copied), "%d: %s", status, err.text);
        write_file(n_bytes);
        m.n = 0;
        compute(&m, &r);
        double kl = divergence(reference, r.logits, n_steps());
        CHECK(kl <= 1e-4, "behind a failed read %d: KL %g", i, kl);
        close_all(&m);
    }
    remove(copied);
    free(bytes);
}

/* ---- a disk that does not come back ------------------------------------------------------- */

static atomic_bool stalls;
static atomic_int n_stalled;

/* What the store's readers call. */
ssize_t pread(int fd, void *to, size_t size, off_t offset) {
    atomic_fetch_add(&n_stalled, 1);
    while (atomic_load(&stalls)) nanosleep(&(struct timespec){0, 1000000}, NULL);
    atomic_fetch_sub(&n_stalled, 1);
    return preadv(fd, &(struct iovec){to, size}, 1, offset);
}

typedef struct {
    machine *m;
    int n; /* tokens of a step */
    qwen3_status status;
    atomic_bool ended;
} job;

/* All experts are wanted in turn, so that some are read. */
static void *run_steps(void *arg) {
    static float logits[VOCAB];
    qwen3_error err = {0};
    job *j = arg;
    for (int i = 0; i < EXPERTS / USED && j->status == QWEN3_OK; i++)
        j->status = extend(j->m, j->n, logits, &err);
    atomic_store(&j->ended, true);
    return NULL;
}

/* A prompt, a copy, what the CPU computes: each waits for a read, and no longer than it shall. */
static void test_cancel(void) {
    static result r;
    for (int i = 0; i < 3; i++) {
        machine m;
        pthread_t thread;
        tiers t = {least(), i == 1 ? 1 : 0, true, NULL};
        open_all(&m, &t);
        force(&m, routes, EXPERTS / USED);
        atomic_store(&stalls, true);
        job j = {.m = &m, .n = i ? 1 : PROMPT};
        if (pthread_create(&thread, NULL, run_steps, &j)) abort();
        while (!atomic_load(&n_stalled) && !atomic_load(&j.ended))
            nanosleep(&(struct timespec){0, 1000000}, NULL);
        atomic_store(&cancel, true);
        pthread_join(thread, NULL); /* for ever, if it waits on */
        CHECK(j.status == QWEN3_ERR_CANCELLED, "way %d: %d", i, j.status);
        atomic_store(&cancel, false);
        atomic_store(&stalls, false);
        force(&m, NULL, 0);
        m.n = 0;
        compute(&m, &r);
        CHECK(divergence(reference, r.logits, n_steps()) <= 1e-4, "behind a cancelled step %d", i);
        close_all(&m);
    }
}

int main(int argc, char **argv) {
    few = argc > 1 && !strcmp(argv[1], "few");
    measure();
    compute_reference();
    make_routes();
    test_budgets();
    if (!few) test_stay();
    if (!few) test_failed_copies();
    if (!few) test_failed_opening();
    test_forced();
    test_too_small();
    test_no_memory();
    test_read_errors();
    test_cancel();
    return failures != 0;
}
