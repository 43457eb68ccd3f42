/* moe.c - see moe.h. For a single token every thread chooses for itself, in its own row of the
 * working memory: that takes less time than to wait for another's choice. */
#include "moe.h"

#include <math.h>
#include <string.h>

/* Softmax over the experts, the n_experts_used largest (the lower index wins a tie), and
 * their weights, renormalized when the model asks for it. p: scratch. */
static void choose(const qwen3_config *c, const float *logits, float *p, int32_t *experts,
                   float *weights) {
    float top = logits[0], sum = 0, chosen = 0;
    for (int e = 1; e < c->n_experts; e++) top = logits[e] > top ? logits[e] : top;
    for (int e = 0; e < c->n_experts; e++) sum += p[e] = expf(logits[e] - top);
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

/* Counting sort of all (token, slot) by expert; the tokens of an expert stay in order. */
static void group_by_expert(const qwen3_config *c, int n, const int32_t *experts,
                            const float *weights, int32_t *start, int32_t *token, float *weight) {
    memset(start, 0, ((size_t)c->n_experts + 1) * sizeof *start);
    for (int i = 0; i < n; i++) start[experts[i] + 1]++;
    for (int e = 0; e < c->n_experts; e++) start[e + 1] += start[e];
    for (int i = 0; i < n; i++) { /* uses start as the cursor, which shifts it by one expert */
        int at = start[experts[i]]++;
        token[at] = i / c->n_experts_used;
        weight[at] = weights[i];
    }
    memmove(start + 1, start, (size_t)c->n_experts * sizeof *start);
    start[0] = 0;
}

/* What a list of routes has for a token of the step: see qwen3_session_force_routes. */
static const int32_t *forced(const step *s, const int32_t *routes, const layer *l, int token) {
    const workspace *ws = s->work;
    size_t at = (size_t)(s->pos + token) % ws->n_routes * (size_t)ws->model->config.n_layers;
    size_t used = (size_t)ws->model->config.n_experts_used;
    return routes + (at + (size_t)(l - ws->model->layers)) * used;
}

static void obey(const step *s, const layer *l, int token, int32_t *experts, float *weights) {
    int slots = s->work->model->config.n_experts_used;
    memcpy(experts, forced(s, s->work->routes, l, token), (size_t)slots * sizeof *experts);
    for (int slot = 0; slot < slots; slot++) weights[slot] = 1 / (float)slots;
}

/* Of one token of the step. */
static void choose_for(const step *s, const layer *l, int token, float *scratch, int32_t *experts,
                       float *weights) {
    const qwen3_config *c = &s->work->model->config;
    const float *logits = s->work->router + (size_t)token * (size_t)c->n_experts;
    if (s->work->routes) obey(s, l, token, experts, weights);
    else choose(c, logits, scratch, experts, weights);
}

routing route(const step *s, const layer *l, const vectors *x, int tid) {
    const workspace *ws = s->work;
    const qwen3_config *c = &ws->model->config;
    pool *p = ws->model->pool;
    int slots = c->n_experts_used, row = s->n == 1 ? tid * ws->own : 0;
    int32_t *start = ws->expert_start + row, *token = ws->sorted_token + row;
    int32_t *experts = ws->slot_expert + row;
    float *weights = ws->slot_weight + row, *weight = ws->sorted_weight + row;
    float *scratch = ws->scratch + (size_t)tid * SCRATCH; /* at least n_experts */
    multiply(s, x, s->n, &(product){&l->router, ws->router}, 1, tid);
    pool_barrier(p, tid);
    if (s->n == 1) {
        choose_for(s, l, 0, scratch, experts, weights);
        group_by_expert(c, slots, experts, weights, start, token, weight);
    } else {
        for (int t; (t = pool_claim(p, tid, s->n)) >= 0;)
            choose_for(s, l, t, scratch, experts + t * slots, weights + t * slots);
        pool_barrier(p, tid);
        if (tid == 0)
            group_by_expert(c, s->n * slots, experts, weights, start, token, weight);
        pool_barrier(p, tid);
    }
    return (routing){-1, ALL, 0, c->n_experts, start, token, weight};
}

void guess(const step *s, const layer *next, const vectors *x, int tid) {
    multiply(s, x, 1, &(product){&next->router, s->work->router}, 1, tid);
}

const int32_t *guessed(const step *s, const layer *next) {
    const workspace *ws = s->work;
    if (ws->guesses) return forced(s, ws->guesses, next, 0);
    choose(&ws->model->config, ws->router, ws->scratch, ws->slot_expert, ws->slot_weight);
    return ws->slot_expert;
}
