/* moe.c - the mixture-of-experts feed-forward: route, group by expert, compute,
 * combine. Every (token, slot) has its own output row, so that nothing is added
 * by two threads and the sum over slots has one order. */
#include <math.h>

#include "graph.h"

/* Softmax over the experts, the n_experts_used largest (the lower index wins a tie), and
 * their weights, renormalized when the model asks for it. */
static void route(const step *s, int t) {
    const graph *g = s->g;
    const qwen3_config *c = &g->model->config;
    float *p = g->router + (size_t)t * (size_t)c->n_experts;
    float *weights = g->slot_weight + (size_t)t * (size_t)c->n_experts_used;
    int32_t *experts = g->slot_expert + (size_t)t * (size_t)c->n_experts_used;
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
    graph *g = s->g;
    const qwen3_config *c = &g->model->config;
    int n = s->n * c->n_experts_used;
    for (int e = 0; e <= c->n_experts; e++) g->expert_start[e] = 0;
    for (int i = 0; i < n; i++) g->expert_start[g->slot_expert[i] + 1]++;
    for (int e = 0; e < c->n_experts; e++) g->expert_start[e + 1] += g->expert_start[e];
    for (int i = 0; i < n; i++) { /* uses start as the cursor, which shifts it by one expert */
        int at = g->expert_start[g->slot_expert[i]]++;
        g->sorted_token[at] = i / c->n_experts_used;
        g->sorted_slot[at] = i;
    }
    for (int e = c->n_experts; e > 0; e--) g->expert_start[e] = g->expert_start[e - 1];
    g->expert_start[0] = 0;
}

static weight expert(const weight *all, int e) {
    weight w = *all;
    w.data += (size_t)e * (size_t)w.n_out * w.row_bytes;
    return w;
}

void moe_ffn(step *s, const layer *l, int tid) {
    graph *g = s->g;
    const qwen3_config *c = &g->model->config;
    const backend *cpu = g->model->cpu;
    pool *p = g->model->pool;
    size_t ff = (size_t)c->n_ff_expert, n_embd = (size_t)c->n_embd;
    multiply(s, &l->router, &g->normed, NULL, g->router, (size_t)c->n_experts, NULL, s->n, tid);
    pool_barrier(p, tid);
    range r = share(s->n, 1, tid, s->n_threads);
    for (int t = r.first; t < r.last; t++) route(s, t);
    pool_barrier(p, tid);
    if (tid == 0) group_by_expert(s);
    pool_barrier(p, tid);
    for (int e = 0; e < c->n_experts; e++) {
        int first = g->expert_start[e], n = g->expert_start[e + 1] - first;
        if (n == 0) continue;
        weight gate = expert(&l->gate, e), up = expert(&l->up, e);
        multiply(s, &gate, &g->normed, g->sorted_token + first, g->hidden.f + (size_t)first * ff, ff,
                 NULL, n, tid);
        multiply(s, &up, &g->normed, g->sorted_token + first, g->up + (size_t)first * ff, ff, NULL,
                 n, tid);
    }
    pool_barrier(p, tid);
    r = share(s->n * c->n_experts_used, 1, tid, s->n_threads);
    for (int i = r.first; i < r.last; i++) {
        cpu->swiglu(g->hidden.f + (size_t)i * ff, g->up + (size_t)i * ff, (int)ff);
        prepare(s, &g->hidden, i, &l->down);
    }
    pool_barrier(p, tid);
    for (int e = 0; e < c->n_experts; e++) {
        int first = g->expert_start[e], n = g->expert_start[e + 1] - first;
        if (n == 0) continue;
        weight down = expert(&l->down, e);
        vectors hidden = g->hidden;
        hidden.f += (size_t)first * ff;
        if (hidden.q) hidden.q += (size_t)first * hidden.stride;
        multiply(s, &down, &hidden, NULL, g->expert_out, n_embd, g->sorted_slot + first, n, tid);
    }
    pool_barrier(p, tid);
    range t = share(s->n, 1, tid, s->n_threads);
    for (int i = t.first; i < t.last; i++)
        for (int slot = 0; slot < c->n_experts_used; slot++) {
            size_t row = (size_t)i * (size_t)c->n_experts_used + (size_t)slot;
            cpu->axpy(g->x + (size_t)i * n_embd, g->slot_weight[row],
                      g->expert_out + row * n_embd, (int)n_embd);
        }
}
