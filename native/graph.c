/* graph.c - the forward pass of Qwen3 (Qwen3 Technical Report, 2025).
 *
 * All threads of the pool run the same code on their share of tokens, heads or
 * rows and meet at barriers; who computes a value never changes how, so results
 * do not depend on the number of threads.
 */
#include "graph.h"

#include <math.h>

#include "attention.h"
#include "codec.h"
#include "moe.h"

/* ---- one step ------------------------------------------------------------- */

static void embed(const step *s, int tid) {
    const workspace *ws = s->work;
    const weight *w = &ws->model->embedding;
    const weight_type *type = weight_type_of(w->type);
    int half = ws->model->config.head_dim / 2;
    range r = share(s->n, 1, tid, s->n_threads);
    for (int t = r.first; t < r.last; t++) {
        type->decode(w->data + (size_t)s->ids[t] * w->row_bytes,
                     ws->x + (size_t)t * (size_t)w->n_in, (size_t)w->n_in);
        for (int i = 0; i < half; i++) {
            float angle = (float)(s->pos + t) * ws->model->rope_freq[i];
            ws->cos[t * half + i] = cosf(angle) * ws->model->rope_scale;
            ws->sin[t * half + i] = sinf(angle) * ws->model->rope_scale;
        }
    }
}

static bool quantized(const weight *w) { return !type_takes_float(w->type); }

/* RMSNorm of the residual stream into ws->normed, in the quantized form too if it is read. */
static void norm(const step *s, const float *norm_weight, bool quantize, int tid) {
    const workspace *ws = s->work;
    const qwen3_config *c = &ws->model->config;
    range r = share(s->n, 1, tid, s->n_threads);
    for (int t = r.first; t < r.last; t++) {
        float *y = ws->normed.f + (size_t)t * (size_t)c->n_embd;
        ws->model->cpu->rmsnorm(y, ws->x + (size_t)t * (size_t)c->n_embd, norm_weight, c->n_embd,
                               c->rms_eps);
        if (quantize)
            ws->model->cpu->quantize(y, ws->normed.q + (size_t)t * ws->normed.stride, c->n_embd, 0,
                                    c->n_embd);
    }
}

/* x += y; the product's rows were written by all, so a barrier stands before. */
static void add_residual(const step *s, const float *y, int tid) {
    const workspace *ws = s->work;
    range r = share(s->n * ws->model->config.n_embd, 64, tid, s->n_threads);
    ws->model->cpu->axpy(ws->x + r.first, 1.0f, y + r.first, r.last - r.first);
}

static void dense_ffn(step *s, const layer *l, int tid) {
    workspace *ws = s->work;
    pool *p = ws->model->pool;
    size_t ff = (size_t)l->gate.n_out, n_embd = (size_t)l->down.n_out;
    multiply(s, &l->gate, &ws->normed, NULL, ws->hidden.f, ff, NULL, s->n, tid);
    multiply(s, &l->up, &ws->normed, NULL, ws->up, ff, NULL, s->n, tid);
    pool_barrier(p, tid);
    range r = share(s->n, 1, tid, s->n_threads);
    for (int t = r.first; t < r.last; t++) {
        ws->model->cpu->swiglu(ws->hidden.f + (size_t)t * ff, ws->up + (size_t)t * ff, (int)ff);
        prepare(s, &ws->hidden, t, &l->down);
    }
    pool_barrier(p, tid);
    multiply(s, &l->down, &ws->hidden, NULL, ws->normed.f, n_embd, NULL, s->n, tid);
    pool_barrier(p, tid);
    add_residual(s, ws->normed.f, tid);
}

static void forward(void *arg, int tid, int n_threads) {
    step *s = arg;
    workspace *ws = s->work;
    const qwen3_model *m = ws->model;
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
        multiply(s, &l->q, &ws->normed, NULL, ws->q, n_q, NULL, s->n, tid);
        multiply(s, &l->k, &ws->normed, NULL, ws->k, n_kv, NULL, s->n, tid);
        multiply(s, &l->v, &ws->normed, NULL, ws->v, n_kv, NULL, s->n, tid);
        pool_barrier(m->pool, tid);
        attention(s, l, i, tid);
        pool_barrier(m->pool, tid);
        multiply(s, &l->o, &ws->attended, NULL, ws->normed.f, (size_t)c->n_embd, NULL, s->n, tid);
        pool_barrier(m->pool, tid);
        add_residual(s, ws->normed.f, tid);
        pool_barrier(m->pool, tid);
        norm(s, l->ffn_norm,
             quantized(&l->gate) || quantized(&l->up) || (c->n_experts && quantized(&l->router)),
             tid);
        pool_barrier(m->pool, tid);
        if (c->n_experts)
            moe_ffn(s, l, tid);
        else
            dense_ffn(s, l, tid);
    }
    pool_barrier(m->pool, tid);
    if (!s->logits) return;
    if (tid == 0) {
        const float *last = ws->x + (size_t)(s->n - 1) * (size_t)c->n_embd;
        m->cpu->rmsnorm(ws->normed.f, last, m->output_norm, c->n_embd, c->rms_eps);
        prepare(s, &ws->normed, 0, &m->output);
    }
    pool_barrier(m->pool, tid);
    multiply(s, &m->output, &ws->normed, NULL, s->logits, (size_t)c->n_vocab, NULL, 1, tid);
}

bool graph_forward(workspace *ws, kv_cache *kv, const int32_t *ids, int n, int pos, float *logits,
                   atomic_bool *cancel) {
    step s = {ws, kv, ids, n, pos, logits, cancel, false, 1};
    pool_run(ws->model->pool, forward, &s);
    return !s.cancelled;
}
