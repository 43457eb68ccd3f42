/* moe.c - the mixture-of-experts feed-forward: route, group by expert, compute,
 * combine. Every (token, slot) has its own output row, so that nothing is added
 * by two threads and the sum over slots has one order. */
#include "moe.h"

#include <math.h>

/* Softmax over the experts, the n_experts_used largest (the lower index wins a tie), and
 * their weights, renormalized when the model asks for it. */
static void route(const step *s, int t) {
    const workspace *ws = s->work;
    const qwen3_config *c = &ws->model->config;
    float *p = ws->router + (size_t)t * (size_t)c->n_experts;
    float *weights = ws->slot_weight + (size_t)t * (size_t)c->n_experts_used;
    int32_t *experts = ws->slot_expert + (size_t)t * (size_t)c->n_experts_used;
    float top = p[0], sum = 0, chosen = 0;
    for (int e = 1; e < c->n_experts; e++) top = p[e] > top ? p[e] : top;
    for (int e = 0; e < c->n_experts; e++) sum += p[e] = expf(p[e] - top);
    for (int slot = 0; slot < c->n_experts_used; slot++) {
        int best = 0;
        for (int e = 1; e < c->n_experts; e++)
            if (p[e] > p[best]) best = e;
        experts[slot] = best;
        weights[slot] = p[best] / sum;
        chosen += weights[slot];
        p[best] = -1; /* taken: below every probability */
    }
    for (int slot = 0; slot < c->n_experts_used && c->norm_topk; slot++) weights[slot] /= chosen;
}

/* Counting sort of all (token, slot) by expert. */
static void group_by_expert(const step *s) {
    workspace *ws = s->work;
    const qwen3_config *c = &ws->model->config;
    int n = s->n * c->n_experts_used;
    for (int e = 0; e <= c->n_experts; e++) ws->expert_start[e] = 0;
    for (int i = 0; i < n; i++) ws->expert_start[ws->slot_expert[i] + 1]++;
    for (int e = 0; e < c->n_experts; e++) ws->expert_start[e + 1] += ws->expert_start[e];
    for (int i = 0; i < n; i++) { /* uses start as the cursor, which shifts it by one expert */
        int at = ws->expert_start[ws->slot_expert[i]]++;
        ws->sorted_token[at] = i / c->n_experts_used;
        ws->sorted_slot[at] = i;
    }
    for (int e = c->n_experts; e > 0; e--) ws->expert_start[e] = ws->expert_start[e - 1];
    ws->expert_start[0] = 0;
}

static weight expert(const weight *all, int e) {
    weight w = *all;
    w.data += (size_t)e * (size_t)w.n_out * w.row_bytes;
    return w;
}

void moe_ffn(const step *s, const layer *l, int tid) {
    workspace *ws = s->work;
    const qwen3_config *c = &ws->model->config;
    const backend *cpu = ws->model->cpu;
    pool *p = ws->model->pool;
    size_t ff = (size_t)c->n_ff_expert, n_embd = (size_t)c->n_embd;
    multiply(s, &l->router, &ws->normed, NULL, ws->router, (size_t)c->n_experts, NULL, s->n, tid);
    pool_barrier(p, tid);
    range r = share(s->n, 1, tid, s->n_threads);
    for (int t = r.first; t < r.last; t++) route(s, t);
    pool_barrier(p, tid);
    if (tid == 0) group_by_expert(s);
    pool_barrier(p, tid);
    for (int e = 0; e < c->n_experts; e++) {
        int first = ws->expert_start[e], n = ws->expert_start[e + 1] - first;
        if (n == 0) continue;
        weight gate = expert(&l->gate, e), up = expert(&l->up, e);
        const int32_t *tokens = ws->sorted_token + first;
        float *gated = ws->hidden.f + (size_t)first * ff;
        multiply(s, &gate, &ws->normed, tokens, gated, ff, NULL, n, tid);
        multiply(s, &up, &ws->normed, tokens, ws->up + (size_t)first * ff, ff, NULL, n, tid);
    }
    pool_barrier(p, tid);
    r = share(s->n * c->n_experts_used, 1, tid, s->n_threads);
    for (int i = r.first; i < r.last; i++) {
        cpu->swiglu(ws->hidden.f + (size_t)i * ff, ws->up + (size_t)i * ff, (int)ff);
        prepare(s, &ws->hidden, i, &l->down);
    }
    pool_barrier(p, tid);
    for (int e = 0; e < c->n_experts; e++) {
        int first = ws->expert_start[e], n = ws->expert_start[e + 1] - first;
        if (n == 0) continue;
        weight down = expert(&l->down, e);
        vectors hidden = ws->hidden;
        hidden.f += (size_t)first * ff;
        if (hidden.q) hidden.q += (size_t)first * hidden.stride;
        multiply(s, &down, &hidden, NULL, ws->expert_out, n_embd, ws->sorted_slot + first, n, tid);
    }
    pool_barrier(p, tid);
    range t = share(s->n, 1, tid, s->n_threads);
    for (int i = t.first; i < t.last; i++)
        for (int slot = 0; slot < c->n_experts_used; slot++) {
            size_t row = (size_t)i * (size_t)c->n_experts_used + (size_t)slot;
            cpu->axpy(ws->x + (size_t)i * n_embd, ws->slot_weight[row],
                      ws->expert_out + row * n_embd, (int)n_embd);
        }
}
