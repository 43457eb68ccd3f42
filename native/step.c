/* step.c - see step.h. */
#include "step.h"

#include <stdlib.h>

#include "error.h"

/* ---- shared pieces -------------------------------------------------------- */

range share(int n, int chunk, int tid, int n_threads) {
    int64_t chunks = ((int64_t)n + chunk - 1) / chunk;
    int64_t first = chunks * tid / n_threads * chunk, last = chunks * (tid + 1) / n_threads * chunk;
    return (range){(int)(first < n ? first : n), (int)(last < n ? last : n)};
}

void multiply(const step *s, const weight *w, const vectors *x, const int32_t *rows, float *y,
              size_t y_stride, const int32_t *y_rows, int n, int tid) {
    range r = share(w->n_out, 16, tid, s->n_threads);
    if (r.first == r.last) return;
    bool takes_float = type_takes_float(w->type);
    s->work->model->cpu->matmul(
        &(matmul_args){.type = w->type, .n_in = w->n_in, .w = w->data, .row_bytes = w->row_bytes,
                       .x = takes_float ? (const void *)x->f : x->q,
                       .x_stride = takes_float ? (size_t)x->n * sizeof(float) : x->stride,
                       .x_index = rows, .y = y, .y_stride = y_stride, .y_index = y_rows,
                       .n_cols = n},
        r.first, r.last);
}

void prepare(const step *s, vectors *x, int i, const weight *w) {
    if (!type_takes_float(w->type))
        s->work->model->cpu->quantize(x->f + (size_t)i * (size_t)x->n, x->q + (size_t)i * x->stride,
                                      x->n, 0, x->n);
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
    v->stride = act_bytes(n);
    v->f = carve(c, count, (size_t)n * sizeof(float));
    v->q = carve(c, n % 32 ? 0 : count, v->stride);
}

static void carve_all(carver *c, workspace *ws, int n_ctx) {
    const qwen3_config *m = &ws->model->config;
    size_t batch = (size_t)ws->batch, hd = (size_t)m->head_dim, f = sizeof(float);
    size_t heads = (size_t)m->n_heads, kv_heads = (size_t)m->n_kv_heads;
    size_t slots = m->n_experts ? (size_t)m->n_experts_used : 1;
    int ff = m->n_experts ? m->n_ff_expert : m->n_ff;
    size_t blocks = ((size_t)n_ctx + KV_BLOCK - 1) / KV_BLOCK;
    ws->x = carve(c, batch, (size_t)m->n_embd * f);
    ws->q = carve(c, batch, heads * hd * f);
    ws->k = carve(c, batch, kv_heads * hd * f);
    ws->v = carve(c, batch, kv_heads * hd * f);
    ws->cos = carve(c, batch, hd / 2 * f);
    ws->sin = carve(c, batch, hd / 2 * f);
    ws->attention = carve(c, (size_t)pool_size(ws->model->pool), attention_scratch(m) * f);
    ws->parts = carve(c, blocks * heads, attend_part(m->head_dim) * f);
    ws->up = carve(c, batch * slots, (size_t)ff * f);
    carve_vectors(c, &ws->normed, batch, m->n_embd);
    carve_vectors(c, &ws->attended, batch, m->n_heads * m->head_dim);
    carve_vectors(c, &ws->hidden, batch * slots, ff);
    if (!m->n_experts) return;
    ws->router = carve(c, batch, (size_t)m->n_experts * f);
    ws->expert_out = carve(c, batch * slots, (size_t)m->n_embd * f);
    ws->slot_weight = carve(c, batch, slots * f);
    ws->slot_expert = carve(c, batch, slots * sizeof(int32_t));
    ws->expert_start = carve(c, (size_t)m->n_experts + 1, sizeof(int32_t));
    ws->sorted_token = carve(c, batch, slots * sizeof(int32_t));
    ws->sorted_slot = carve(c, batch, slots * sizeof(int32_t));
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
