/* part.c - see part.h. */
#include "part.h"

#include <string.h>

#include "step.h"

typedef struct {
    step step;
    const layer *layer;
    vectors x;
    routing route;
} part;

static void compute(void *arg, int tid, int n_threads) {
    (void)n_threads;
    const part *p = arg;
    const workspace *ws = p->step.work;
    gate_and_up(&p->step, p->layer, &p->x, &p->route, tid);
    pool_barrier(ws->model->pool, tid);
    routing each = p->route;
    each.token = NULL; /* an entry has a row of its own */
    multiply_add(&p->step, &p->layer->down, &ws->hidden, &each, tid);
}

qwen3_status part_compute(workspace *ws, int index, float *x, int n, const int32_t *start,
                          const int32_t *token, float *y, atomic_bool *cancel, qwen3_error *err) {
    const qwen3_model *m = ws->model;
    const qwen3_config *c = &m->config;
    const layer *l = &m->layers[index];
    expert_store *store = m->offload.experts;
    atomic_bool never = false;
    sequence none = {.cancel = cancel ? cancel : &never};
    workspace work = *ws; /* whose residual stream is y */
    work.x = y;
    part p = {{.work = &work, .sequences = &none, .n_sequences = 1, .n = n, .err = err}, l,
              work.normed, {store ? index : -1, ALL, 0, c->n_experts, start, token, NULL}};
    p.x.f = x;
    for (int i = 0; i < n && (takes_act(&l->gate) || takes_act(&l->up)); i++) {
        vectors row = vectors_from(p.x, i);
        m->cpu->quantize(row.f, row.q, row.n, 0, row.n);
    }
    memset(y, 0, (size_t)start[c->n_experts] * (size_t)c->n_embd * sizeof *y);
    pool_run(m->pool, compute, &p);
    qwen3_status status = store ? experts_status(store, err) : QWEN3_OK;
    return status == QWEN3_OK && atomic_load(none.cancel) ? QWEN3_ERR_CANCELLED : status;
}

const int32_t *part_route(const workspace *ws, int layer, int pos) {
    const qwen3_config *c = &ws->model->config;
    if (!ws->routes) return NULL;
    size_t at = (size_t)pos % ws->n_routes * (size_t)c->n_layers + (size_t)layer;
    return ws->routes + at * (size_t)c->n_experts_used;
}
