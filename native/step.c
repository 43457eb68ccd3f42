/* step.c - see step.h. */
#include "step.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"

bool cancelled(const step *s) {
    for (int i = 0; i < s->n_sequences; i++)
        if (atomic_load_explicit(s->sequences[i].cancel, memory_order_relaxed)) return true;
    return false;
}

/* What enters the matrices is counted up to the last layer that was computed: it must be right. */
int claim(const step *s, int tid, int n_tasks) {
    if (cancelled(s) && !s->work->importance) return -1;
    return pool_claim(s->work->model->pool, tid, n_tasks);
}

/* ---- stripes of rows ------------------------------------------------------------ */

enum {
    STRIPES = 8,         /* of each thread in a phase, so that others can help one held up; */
    TALL_STRIPES = 3,    /* fewer of many columns, which are read anew for each */
    MIN_BYTES = 1 << 13, /* of weights in a stripe, lest claiming shows ... */
    MAX_BYTES = 1 << 22, /* ... and the tail of a phase */
};

typedef struct {
    int first, last;
} range;

/* Rows of a stripe, a multiple of 32, in a phase that reads phase_bytes of weights, row_bytes
 * of them for a row. A tile of n columns fits the scratch. */
static int stripe_height(const step *s, size_t phase_bytes, size_t row_bytes, int n) {
    size_t stripes = n == 1 ? STRIPES : TALL_STRIPES;
    size_t bytes = phase_bytes / (stripes * (size_t)pool_size(s->work->model->pool));
    bytes = bytes < MIN_BYTES ? MIN_BYTES : bytes > MAX_BYTES ? MAX_BYTES : bytes;
    size_t height = (bytes / row_bytes + 31) & ~(size_t)31;
    size_t most = (SCRATCH / (size_t)(n < TILE_COLUMNS ? n : TILE_COLUMNS)) & ~(size_t)31;
    return (int)(height < 32 ? 32 : height < most ? height : most);
}

static int n_stripes(const weight *w, int height) { return (w->n_out + height - 1) / height; }

/* The rows of a task, and all those around it that are this thread's share of the matrix: they
 * are fetched ahead. */
typedef struct {
    range rows, share;
} stripe;

static range rows_of(const weight *w, int height, int first, int last) {
    int count = n_stripes(w, height);
    first = first < 0 ? 0 : first > count ? count : first;
    last = last < 0 ? 0 : last > count ? count : last;
    return (range){first * height, last * height < w->n_out ? last * height : w->n_out};
}

/* Task number i of n_tasks; those of this matrix begin at base. */
static stripe stripe_of(const step *s, const weight *w, int height, int i, int base, int n_tasks,
                        int tid) {
    pool_share own = pool_share_of(s->work->model->pool, tid, n_tasks);
    range rows = rows_of(w, height, i - base, i - base + 1);
    if (i < own.first || i >= own.last) return (stripe){rows, rows}; /* another's */
    return (stripe){rows, rows_of(w, height, own.first - base, own.last - base)};
}

static size_t matrix_bytes(const weight *w) { return (size_t)w->n_out * w->row_bytes; }

/* ---- products ----------------------------------------------------------------- */

/* y = W x of a stripe, its first row at y[0], y[stride], ... of the n columns. */
static void multiply_rows(const step *s, const weight *w, stripe at, const vectors *x,
                          const int32_t *x_index, int n, float *y, size_t stride) {
    bool act = takes_act(w);
    s->work->model->cpu->matmul(
        &(matmul_args){.type = w->type, .n_in = w->n_in,
                       .w = w->data + (size_t)at.rows.first * w->row_bytes,
                       .row_bytes = w->row_bytes,
                       .x = act ? (const void *)x->q : x->f,
                       .x_stride = act ? act_bytes(x->n) : (size_t)x->n * sizeof(float),
                       .x_index = x_index, .y = y, .y_stride = stride, .n_cols = n,
                       .ahead = w->data + (size_t)at.share.first * w->row_bytes,
                       .ahead_bytes = (size_t)(at.share.last - at.share.first) * w->row_bytes},
        0, at.rows.last - at.rows.first);
}

void multiply(const step *s, const vectors *x, int n, const product *products, int n_products,
              int tid) {
    size_t phase_bytes = 0;
    int n_tasks = 0;
    for (int i = 0; i < n_products; i++) phase_bytes += matrix_bytes(products[i].w);
    for (int i = 0; i < n_products; i++) {
        const weight *w = products[i].w;
        n_tasks += n_stripes(w, stripe_height(s, phase_bytes, w->row_bytes, n));
    }
    for (int task; (task = claim(s, tid, n_tasks)) >= 0;)
        for (int i = 0, base = 0, count; i < n_products; i++, base += count) {
            const weight *w = products[i].w;
            int height = stripe_height(s, phase_bytes, w->row_bytes, n);
            count = n_stripes(w, height);
            if (task < base || task >= base + count) continue;
            stripe at = stripe_of(s, w, height, task, base, n_tasks, tid);
            multiply_rows(s, w, at, x, NULL, n, products[i].y + at.rows.first, (size_t)w->n_out);
        }
}

void multiply_to_logits(const step *s, const vectors *x, const weight *w, int tid) {
    float *y = s->work->scratch + (size_t)tid * SCRATCH;
    int height = stripe_height(s, matrix_bytes(w), w->row_bytes, s->n);
    int n_tasks = n_stripes(w, height);
    for (int task; (task = claim(s, tid, n_tasks)) >= 0;) {
        stripe at = stripe_of(s, w, height, task, 0, n_tasks, tid);
        size_t rows = (size_t)(at.rows.last - at.rows.first);
        multiply_rows(s, w, at, x, NULL, s->n, y, rows);
        for (int i = 0; i < s->n; i++)
            memcpy(s->sequences[i].logits + at.rows.first, y + (size_t)i * rows, rows * sizeof *y);
    }
}

static weight expert(const step *s, const weight *all, const routing *route, expert_part part,
                     int e) {
    weight w = *all;
    if (route->layer < 0) w.data += (size_t)e * matrix_bytes(all);
    else
        w.data = experts_matrix(s->work->model->offload.experts, route->layer, e, part,
                                s->sequences[0].cancel); /* another's ends the wait of a read later */
    return w;
}

/* Entries of an expert that takes part. */
static int entries(const step *s, const routing *route, int e) {
    int n = route->start[e + 1] - route->start[e];
    if (n == 0 || route->which == ALL) return n;
    bool there = experts_was_there(s->work->model->offload.experts, route->layer, e);
    return there == (route->which == THERE) ? n : 0;
}

static size_t experts_bytes(const step *s, const weight *w, const routing *route) {
    size_t bytes = 0;
    for (int e = route->first; e < route->last; e++)
        if (entries(s, route, e)) bytes += matrix_bytes(w);
    return bytes;
}

/* A stripe of hidden for n entries, whose vectors are x[index[0]], ...; act: for a down that
 * takes the quantized form. */
static void gate_and_up_rows(const step *s, const weight *gate, const weight *up, bool act,
                             stripe at, const vectors *x, const int32_t *index, int n,
                             vectors hidden, float *up_y) {
    const backend *cpu = s->work->model->cpu;
    int first = at.rows.first, last = at.rows.last, height = last - first;
    multiply_rows(s, gate, at, x, index, n, hidden.f + first, (size_t)hidden.n);
    multiply_rows(s, up, at, x, index, n, up_y, (size_t)height);
    for (int i = 0; i < n; i++, hidden = vectors_from(hidden, 1)) {
        cpu->swiglu(hidden.f + first, up_y + (size_t)i * (size_t)height, height);
        if (act) cpu->quantize(hidden.f, hidden.q, hidden.n, first, last);
    }
}

/* A stripe for all entries of expert e. */
static void gate_and_up_stripe(const step *s, const layer *l, int e, stripe at, const vectors *x,
                               const routing *route, float *scratch) {
    weight gate = expert(s, &l->gate, route, EXPERT_GATE, e);
    weight up = expert(s, &l->up, route, EXPERT_UP, e);
    int last = route->start[e + 1];
    for (int i = route->start[e]; i < last; i += TILE_COLUMNS) {
        int n = last - i < TILE_COLUMNS ? last - i : TILE_COLUMNS;
        vectors from = route->token ? *x : vectors_from(*x, i);
        gate_and_up_rows(s, &gate, &up, takes_act(&l->down), at, &from,
                         route->token ? route->token + i : NULL, n,
                         vectors_from(s->work->hidden, i), scratch);
    }
}

void gate_and_up(const step *s, const layer *l, const vectors *x, const routing *route, int tid) {
    const workspace *ws = s->work;
    size_t phase_bytes = experts_bytes(s, &l->gate, route) + experts_bytes(s, &l->up, route);
    size_t row_bytes = l->gate.row_bytes + l->up.row_bytes;
    int height[2], count[2], n_tasks = 0; /* of experts with one entry, and with more */
    for (int more = 0; more < 2; more++) {
        height[more] = stripe_height(s, phase_bytes, row_bytes, more ? TILE_COLUMNS : 1);
        count[more] = n_stripes(&l->gate, height[more]);
    }
    for (int e = route->first; e < route->last; e++) {
        int n = entries(s, route, e);
        if (n > 0) n_tasks += count[n > 1];
    }
    for (int task; (task = claim(s, tid, n_tasks)) >= 0;)
        for (int e = route->first, base = 0; e < route->last; e++) {
            int n = entries(s, route, e);
            if (n == 0) continue;
            if (task >= base && task < base + count[n > 1])
                gate_and_up_stripe(s, l, e,
                                   stripe_of(s, &l->gate, height[n > 1], task, base, n_tasks, tid),
                                   x, route, ws->scratch + (size_t)tid * SCRATCH);
            base += count[n > 1];
        }
}

/* A stripe of x += weight * (W h) for the entries of one expert. */
static void add_rows(const step *s, const weight *w, stripe at, const vectors *h,
                     const routing *route, int e, float *y) {
    const workspace *ws = s->work;
    weight own = expert(s, w, route, EXPERT_DOWN, e);
    int height = at.rows.last - at.rows.first, last = route->start[e + 1];
    for (int first = route->start[e]; first < last; first += TILE_COLUMNS) {
        int n = last - first < TILE_COLUMNS ? last - first : TILE_COLUMNS;
        vectors from = vectors_from(*h, first);
        multiply_rows(s, &own, at, &from, NULL, n, y, (size_t)height);
        for (int i = 0; i < n; i++) {
            int token = route->token ? route->token[first + i] : first + i;
            float factor = route->weight ? route->weight[first + i] : 1;
            float *to = ws->x + (size_t)token * (size_t)w->n_out + at.rows.first;
            ws->model->cpu->axpy(to, factor, y + (size_t)i * (size_t)height, height);
        }
    }
}

void multiply_add(const step *s, const weight *w, const vectors *h, const routing *route,
                  int tid) {
    const workspace *ws = s->work;
    size_t phase_bytes = experts_bytes(s, w, route);
    int height = stripe_height(s, phase_bytes, phase_bytes / (size_t)w->n_out, s->n);
    int n_tasks = n_stripes(w, height);
    for (int task; (task = claim(s, tid, n_tasks)) >= 0;) {
        stripe at = stripe_of(s, w, height, task, 0, n_tasks, tid);
        for (int e = route->first; e < route->last; e++) {
            if (!entries(s, route, e)) continue;
            add_rows(s, w, at, h, route, e, ws->scratch + (size_t)tid * SCRATCH);
        }
    }
}

/* ---- working memory ------------------------------------------------------- */

/* Hands out 64-aligned parts of the arena; a first pass with no base only adds up. */
typedef struct {
    uint8_t *base;
    size_t used;
    bool overflow;
} carver;

static void *carve(carver *c, size_t count, size_t size) {
    size_t bytes, end;
    if (__builtin_mul_overflow(count, size, &bytes) || __builtin_add_overflow(bytes, 63, &bytes) ||
        __builtin_add_overflow(c->used, bytes &= ~(size_t)63, &end)) {
        c->overflow = true;
        return NULL;
    }
    void *part = c->base ? c->base + c->used : NULL;
    c->used = end;
    return part;
}

static void carve_vectors(carver *c, vectors *v, size_t count, int n) {
    v->n = n;
    v->units = (n + UNIT - 1) / UNIT;
    v->f = carve(c, count, (size_t)n * sizeof(float));
    v->q = carve(c, n % 32 ? 0 : count, act_bytes(n));
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

static void carve_attention(carver *c, workspace *ws, int n_ctx) {
    const qwen3_config *m = &ws->model->config;
    size_t batch = (size_t)ws->batch, head = (size_t)m->head_dim * sizeof(float);
    size_t heads = (size_t)m->n_heads, kv_heads = (size_t)m->n_kv_heads;
    size_t blocks = ((size_t)n_ctx + KV_BLOCK - 1) / KV_BLOCK;
    ws->q = carve(c, batch, heads * head);
    ws->k = carve(c, batch, kv_heads * head);
    ws->v = carve(c, batch, kv_heads * head);
    ws->attention = carve(c, (size_t)pool_size(ws->model->pool),
                          attention_scratch(m) * sizeof(float));
    ws->parts = carve(c, blocks * heads, attend_part(m->head_dim) * sizeof(float));
    carve_vectors(c, &ws->attended, batch, m->n_heads * m->head_dim);
}

static void carve_ffn(carver *c, workspace *ws) {
    const qwen3_config *m = &ws->model->config;
    size_t n_threads = (size_t)pool_size(ws->model->pool), batch = (size_t)ws->batch;
    if (!m->n_experts) {
        carve_vectors(c, &ws->hidden, batch, m->n_ff);
        return;
    }
    /* Whole cache lines, so that threads do not write to each other's. */
    ws->own = ((m->n_experts + 1) + 31) & ~31;
    size_t slots = batch * (size_t)m->n_experts_used, own = n_threads * (size_t)ws->own;
    carve_vectors(c, &ws->hidden, slots, m->n_ff_expert);
    ws->router = carve(c, batch, (size_t)m->n_experts * sizeof(float));
    ws->expert_start = carve(c, own, sizeof(int32_t));
    ws->slot_expert = carve(c, larger(slots, own), sizeof(int32_t));
    ws->slot_weight = carve(c, larger(slots, own), sizeof(float));
    ws->sorted_token = carve(c, larger(slots, own), sizeof(int32_t));
    ws->sorted_weight = carve(c, larger(slots, own), sizeof(float));
}

static void carve_all(carver *c, workspace *ws, int n_ctx) {
    const qwen3_config *m = &ws->model->config;
    size_t batch = (size_t)ws->batch, n_threads = (size_t)pool_size(ws->model->pool);
    ws->x = carve(c, batch, (size_t)m->n_embd * sizeof(float));
    ws->cos = carve(c, batch, (size_t)m->head_dim / 2 * sizeof(float));
    ws->sin = carve(c, batch, (size_t)m->head_dim / 2 * sizeof(float));
    ws->scratch = carve(c, n_threads, SCRATCH * sizeof(float));
    carve_vectors(c, &ws->normed, larger(batch, n_threads), m->n_embd);
    if (ws->model->offload.experts) carve_vectors(c, &ws->ahead, n_threads, m->n_embd);
    carver ffn = *c;
    carve_attention(c, ws, n_ctx);
    carve_ffn(&ffn, ws);
    c->used = larger(c->used, ffn.used);
    c->overflow |= ffn.overflow;
}

qwen3_status workspace_init(workspace *ws, qwen3_model *m, int n_ctx, int batch, qwen3_error *err) {
    *ws = (workspace){.model = m, .batch = batch};
    carver c = {0};
    carve_all(&c, ws, n_ctx);
    if (c.overflow || posix_memalign(&ws->arena, 64, c.used) != 0)
        return fail(err, QWEN3_ERR_MEMORY, "out of memory for %.1f MB of working memory",
                    (double)c.used / 1e6);
    c = (carver){.base = ws->arena};
    carve_all(&c, ws, n_ctx);
    return QWEN3_OK;
}

void workspace_free(workspace *ws) {
    free(ws->arena);
    ws->arena = NULL;
}
