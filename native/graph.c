/* graph.c - the forward pass of Qwen3 (Qwen3 Technical Report, 2025).
 *
 * All threads of the pool run the same code on their share of tokens, heads or
 * rows and meet at barriers; who computes a value never changes how, so results
 * do not depend on the number of threads.
 */
#include "graph.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "codec.h"
#include "error.h"

/* ---- one step ------------------------------------------------------------- */

static void embed(const step *s, int tid) {
    const graph *g = s->g;
    const weight *w = &g->model->embedding;
    const weight_type *type = weight_type_of(w->type);
    int half = g->model->config.head_dim / 2;
    range r = share(s->n, 1, tid, s->n_threads);
    for (int t = r.first; t < r.last; t++) {
        type->decode(w->data + (size_t)s->ids[t] * w->row_bytes, g->x + (size_t)t * (size_t)w->n_in,
                     (size_t)w->n_in);
        for (int i = 0; i < half; i++) {
            float angle = (float)(s->pos + t) * g->model->rope_freq[i];
            g->cos[t * half + i] = cosf(angle) * g->model->rope_scale;
            g->sin[t * half + i] = sinf(angle) * g->model->rope_scale;
        }
    }
}

static bool quantized(const weight *w) { return !type_takes_float(w->type); }

/* RMSNorm of the residual stream into g->normed, in the quantized form too if it is read. */
static void norm(const step *s, const float *norm_weight, bool quantize, int tid) {
    const graph *g = s->g;
    const qwen3_config *c = &g->model->config;
    range r = share(s->n, 1, tid, s->n_threads);
    for (int t = r.first; t < r.last; t++) {
        float *y = g->normed.f + (size_t)t * (size_t)c->n_embd;
        g->model->cpu->rmsnorm(y, g->x + (size_t)t * (size_t)c->n_embd, norm_weight, c->n_embd,
                               c->rms_eps);
        if (quantize)
            g->model->cpu->quantize(y, g->normed.q + (size_t)t * g->normed.stride, c->n_embd);
    }
}

/* Normalizes and rotates the heads of q and k, and appends k and v to the cache. */
static void position_heads(const step *s, const layer *l, int index, int tid) {
    const graph *g = s->g;
    const qwen3_config *c = &g->model->config;
    const backend *cpu = g->model->cpu;
    int hd = c->head_dim, heads = c->n_heads + c->n_kv_heads;
    for (int i = tid; i < s->n * heads; i += s->n_threads) {
        int t = i / heads, h = i % heads;
        bool is_q = h < c->n_heads;
        float *x = is_q ? g->q + ((size_t)t * (size_t)c->n_heads + (size_t)h) * (size_t)hd
                        : g->k + ((size_t)t * (size_t)c->n_kv_heads + (size_t)(h - c->n_heads)) *
                                     (size_t)hd;
        cpu->rmsnorm(x, x, is_q ? l->q_norm : l->k_norm, hd, c->rms_eps);
        cpu->rope(x, g->cos + t * (hd / 2), g->sin + t * (hd / 2), hd);
        if (is_q) continue;
        h -= c->n_heads;
        const float *v = g->v + ((size_t)t * (size_t)c->n_kv_heads + (size_t)h) * (size_t)hd;
        size_t at = (size_t)(s->pos + t) * (size_t)hd * s->kv->item;
        uint8_t *keys = kv_keys(s->kv, index, h) + at, *values = kv_values(s->kv, index, h) + at;
        if (s->kv->item == sizeof(float)) {
            memcpy(keys, x, (size_t)hd * sizeof(float));
            memcpy(values, v, (size_t)hd * sizeof(float));
        } else {
            cpu->to_f16(x, (f16_t *)(void *)keys, hd);
            cpu->to_f16(v, (f16_t *)(void *)values, hd);
        }
    }
}

/* Grouped-query attention: the heads of a group read each key and value once. */
static void attend(const step *s, int index, int tid) {
    const graph *g = s->g;
    const qwen3_config *c = &g->model->config;
    int hd = c->head_dim, group = c->n_heads / c->n_kv_heads;
    for (int i = tid; i < s->n * c->n_kv_heads; i += s->n_threads) {
        int t = i / c->n_kv_heads, h = i % c->n_kv_heads;
        size_t head = ((size_t)t * (size_t)c->n_heads + (size_t)h * (size_t)group) * (size_t)hd;
        g->model->cpu->attend(&(attend_args){
            .n_q = group, .head_dim = hd, .n_kv = s->pos + t + 1, .q = g->q + head,
            .k = kv_keys(s->kv, index, h), .v = kv_values(s->kv, index, h),
            .kv_is_f32 = s->kv->item == sizeof(float), .scale = 1.0f / sqrtf((float)hd),
            .out = g->attended.f + head, .scores = g->scores + (size_t)tid * g->scores_stride});
    }
}

/* The vectors of x that fall to this thread, quantized if w takes that. */
static void prepare_share(const step *s, vectors *x, const weight *w, int tid) {
    range r = share(s->n, 1, tid, s->n_threads);
    for (int t = r.first; t < r.last; t++) prepare(s, x, t, w);
}

/* x += y; the product's rows were written by all, so a barrier stands before. */
static void add_residual(const step *s, const float *y, int tid) {
    const graph *g = s->g;
    range r = share(s->n * g->model->config.n_embd, 64, tid, s->n_threads);
    g->model->cpu->axpy(g->x + r.first, 1.0f, y + r.first, r.last - r.first);
}

static void dense_ffn(step *s, const layer *l, int tid) {
    graph *g = s->g;
    pool *p = g->model->pool;
    size_t ff = (size_t)l->gate.n_out, n_embd = (size_t)l->down.n_out;
    multiply(s, &l->gate, &g->normed, NULL, g->hidden.f, ff, NULL, s->n, tid);
    multiply(s, &l->up, &g->normed, NULL, g->up, ff, NULL, s->n, tid);
    pool_barrier(p, tid);
    range r = share(s->n, 1, tid, s->n_threads);
    for (int t = r.first; t < r.last; t++) {
        g->model->cpu->swiglu(g->hidden.f + (size_t)t * ff, g->up + (size_t)t * ff, (int)ff);
        prepare(s, &g->hidden, t, &l->down);
    }
    pool_barrier(p, tid);
    multiply(s, &l->down, &g->hidden, NULL, g->normed.f, n_embd, NULL, s->n, tid);
    pool_barrier(p, tid);
    add_residual(s, g->normed.f, tid);
}

static void forward(void *arg, int tid, int n_threads) {
    step *s = arg;
    graph *g = s->g;
    const qwen3_model *m = g->model;
    const qwen3_config *c = &m->config;
    size_t n_q = (size_t)c->n_heads * (size_t)c->head_dim;
    size_t n_kv = (size_t)c->n_kv_heads * (size_t)c->head_dim;
    if (tid == 0) s->n_threads = n_threads;
    pool_barrier(m->pool, tid);
    embed(s, tid);
    for (int i = 0; i < c->n_layers; i++) {
        const layer *l = &m->layers[i];
        if (tid == 0) s->cancelled = atomic_exchange(s->cancel, false);
        pool_barrier(m->pool, tid);
        if (s->cancelled) return;
        norm(s, l->attn_norm, quantized(&l->q) || quantized(&l->k) || quantized(&l->v), tid);
        pool_barrier(m->pool, tid);
        multiply(s, &l->q, &g->normed, NULL, g->q, n_q, NULL, s->n, tid);
        multiply(s, &l->k, &g->normed, NULL, g->k, n_kv, NULL, s->n, tid);
        multiply(s, &l->v, &g->normed, NULL, g->v, n_kv, NULL, s->n, tid);
        pool_barrier(m->pool, tid);
        position_heads(s, l, i, tid);
        pool_barrier(m->pool, tid);
        attend(s, i, tid);
        pool_barrier(m->pool, tid);
        prepare_share(s, &g->attended, &l->o, tid);
        pool_barrier(m->pool, tid);
        multiply(s, &l->o, &g->attended, NULL, g->normed.f, (size_t)c->n_embd, NULL, s->n, tid);
        pool_barrier(m->pool, tid);
        add_residual(s, g->normed.f, tid);
        pool_barrier(m->pool, tid);
        norm(s, l->ffn_norm,
             quantized(&l->gate) || quantized(&l->up) || (c->n_experts && quantized(&l->router)), tid);
        pool_barrier(m->pool, tid);
        if (c->n_experts)
            moe_ffn(s, l, tid);
        else
            dense_ffn(s, l, tid);
    }
    pool_barrier(m->pool, tid);
    if (!s->logits) return;
    if (tid == 0) {
        m->cpu->rmsnorm(g->normed.f, g->x + (size_t)(s->n - 1) * (size_t)c->n_embd, m->output_norm,
                        c->n_embd, c->rms_eps);
        prepare(s, &g->normed, 0, &m->output);
    }
    pool_barrier(m->pool, tid);
    multiply(s, &m->output, &g->normed, NULL, s->logits, (size_t)c->n_vocab, NULL, 1, tid);
}

bool graph_forward(graph *g, kv_cache *kv, const int32_t *ids, int n, int pos, float *logits,
                   atomic_bool *cancel) {
    step s = {g, kv, ids, n, pos, logits, cancel, false, 1};
    pool_run(g->model->pool, forward, &s);
    return !s.cancelled;
}

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
    s->g->model->cpu->matmul(
        &(matmul_args){.type = w->type, .n_in = w->n_in, .w = w->data, .row_bytes = w->row_bytes,
                       .x = takes_float ? (const void *)x->f : x->q,
                       .x_stride = takes_float ? (size_t)x->n * sizeof(float) : x->stride,
                       .x_index = rows, .y = y, .y_stride = y_stride, .y_index = y_rows,
                       .n_cols = n},
        r.first, r.last);
}

void prepare(const step *s, vectors *x, int i, const weight *w) {
    if (!type_takes_float(w->type))
        s->g->model->cpu->quantize(x->f + (size_t)i * (size_t)x->n, x->q + (size_t)i * x->stride,
                                   x->n);
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

static void carve_all(carver *c, graph *g, int n_ctx) {
    const qwen3_config *m = &g->model->config;
    size_t batch = (size_t)g->batch, hd = (size_t)m->head_dim, f = sizeof(float);
    size_t heads = (size_t)m->n_heads, kv_heads = (size_t)m->n_kv_heads;
    size_t slots = m->n_experts ? (size_t)m->n_experts_used : 1;
    int ff = m->n_experts ? m->n_ff_expert : m->n_ff;
    g->scores_stride = heads / kv_heads * (size_t)n_ctx;
    g->x = carve(c, batch, (size_t)m->n_embd * f);
    g->q = carve(c, batch, heads * hd * f);
    g->k = carve(c, batch, kv_heads * hd * f);
    g->v = carve(c, batch, kv_heads * hd * f);
    g->cos = carve(c, batch, hd / 2 * f);
    g->sin = carve(c, batch, hd / 2 * f);
    g->scores = carve(c, (size_t)pool_size(g->model->pool), g->scores_stride * f);
    g->up = carve(c, batch * slots, (size_t)ff * f);
    carve_vectors(c, &g->normed, batch, m->n_embd);
    carve_vectors(c, &g->attended, batch, m->n_heads * m->head_dim);
    carve_vectors(c, &g->hidden, batch * slots, ff);
    if (!m->n_experts) return;
    g->router = carve(c, batch, (size_t)m->n_experts * f);
    g->expert_out = carve(c, batch * slots, (size_t)m->n_embd * f);
    g->slot_weight = carve(c, batch, slots * f);
    g->slot_expert = carve(c, batch, slots * sizeof(int32_t));
    g->expert_start = carve(c, (size_t)m->n_experts + 1, sizeof(int32_t));
    g->sorted_token = carve(c, batch, slots * sizeof(int32_t));
    g->sorted_slot = carve(c, batch, slots * sizeof(int32_t));
}

qwen3_status graph_init(graph *g, qwen3_model *m, int n_ctx, int batch, qwen3_error *err) {
    *g = (graph){.model = m, .batch = batch};
    carver c = {0};
    carve_all(&c, g, n_ctx);
    if (!c.overflow) g->arena = aligned_alloc(64, c.used);
    if (!g->arena)
        return fail(err, QWEN3_ERR_MEMORY, "out of memory for %.1f MB of working memory",
                    (double)c.used / 1e6);
    c = (carver){.base = g->arena};
    carve_all(&c, g, n_ctx);
    return QWEN3_OK;
}

void graph_free(graph *g) {
    free(g->arena);
    g->arena = NULL;
}
