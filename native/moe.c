/* moe.c - see moe.h. For a single token every thread chooses for itself, in its own row of the
 * working memory: that takes less time than to wait for another's choice. */
#include "moe.h"

#include <math.h>
#include <string.h>

enum { EXACT = -1 };

/* The most probable expert that is not taken (the lowest index wins a tie); one of a layer that
 * the store holds counts lean times. */
static int likeliest(const qwen3_model *m, int layer, float lean, const float *p) {
    int best = 0;
    float most = -1;
    for (int e = 0; e < m->config.n_experts; e++) {
        bool near = lean > 1 && experts_holds(m->offload.experts, layer, e);
        float rank = near ? lean * p[e] : p[e];
        if (rank > most) best = e, most = rank;
    }
    return best;
}

/* Leaves out what is in the file and weighs little, as -1; returns the sum of the rest. */
static float drop(const qwen3_model *m, int layer, int n, float sum, int32_t *experts,
                  const float *weights) {
    float rest = sum;
    for (int slot = 1; slot < n; slot++) {
        bool light = weights[slot] < m->approximation.drop * sum;
        if (!light || experts_holds(m->offload.experts, layer, experts[slot])) continue;
        experts[slot] = -1;
        rest -= weights[slot];
    }
    return rest;
}

/* Softmax over the experts, the n_experts_used largest, and their weights, renormalized when the
 * model asks for it. p: scratch. layer: EXACT, or the layer for which the model's approximation
 * holds. */
static void choose(const qwen3_model *m, int layer, const float *logits, float *p, int32_t *experts,
                   float *weights) {
    const qwen3_config *c = &m->config;
    float top = logits[0], sum = 0, chosen = 0, lean = expf(m->approximation.prefer);
    int sure = layer == EXACT ? c->n_experts_used : (c->n_experts_used + 3) / 4;
    for (int e = 1; e < c->n_experts; e++) top = logits[e] > top ? logits[e] : top;
    for (int e = 0; e < c->n_experts; e++) sum += p[e] = expf(logits[e] - top);
    for (int slot = 0; slot < c->n_experts_used; slot++) {
        int best = likeliest(m, layer, slot < sure ? 1 : lean, p);
        experts[slot] = best;
        weights[slot] = p[best] / sum;
        chosen += weights[slot];
        p[best] = -1; /* taken: below every probability */
    }
    if (layer != EXACT) chosen = drop(m, layer, c->n_experts_used, chosen, experts, weights);
    for (int slot = 0; slot < c->n_experts_used && c->norm_topk; slot++) weights[slot] /= chosen;
}

/* Counting sort of all (token, slot) by expert, without those left out; the tokens of an expert
 * stay in order. */
static void group_by_expert(const qwen3_config *c, int n, const int32_t *experts,
                            const float *weights, int32_t *start, int32_t *token, float *weight) {
    memset(start, 0, ((size_t)c->n_experts + 1) * sizeof *start);
    for (int i = 0; i < n; i++)
        if (experts[i] >= 0) start[experts[i] + 1]++;
    for (int e = 0; e < c->n_experts; e++) start[e + 1] += start[e];
    for (int i = 0; i < n; i++) { /* uses start as the cursor, which shifts it by one expert */
        if (experts[i] < 0) continue;
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
    size_t at = (size_t)position_of(s, token) % ws->n_routes * (size_t)ws->model->config.n_layers;
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
    const qwen3_model *m = s->work->model;
    const float *logits = s->work->router + (size_t)token * (size_t)m->config.n_experts;
    int layer = s->work->approximates ? (int)(l - m->layers) : EXACT;
    if (s->work->routes) obey(s, l, token, experts, weights);
    else choose(m, layer, logits, scratch, experts, weights);
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
        if (ws->approximates) pool_barrier(p, tid); /* before the store changes */
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
    choose(ws->model, EXACT, ws->router, ws->scratch, ws->slot_expert, ws->slot_weight);
    return ws->slot_expert;
}
