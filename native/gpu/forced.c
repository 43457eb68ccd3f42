/* forced.c - experts that are given, and not the router's choice. */
#include <string.h>

#include "error.h"
#include "part.h"
#include "pass.h"

static void allocate(pass *p, size_t bytes) {
    gpu_sequence *s = p->s;
    const gpu_api *api = p->m->api;
    qwen3_error why;
    if (!s->forced.experts) s->forced.experts = api->alloc(p->m->device, bytes, &why);
    if (s->forced.experts && !s->forced.host)
        s->forced.host = api->alloc_pinned(p->m->device, bytes, &why);
    if (!s->forced.experts || !s->forced.host)
        p->status = fail(p->err, why.status, "%s", why.text);
}

/* Of all layers at once, experts and weights behind each other. */
static void upload_routes(pass *p) {
    size_t used = (size_t)p->c->n_experts_used, n = (size_t)p->n, n_layers = (size_t)p->m->n_layers;
    size_t most = n_layers * (size_t)p->s->batch * used;
    int first = p->c->n_layers - p->m->n_layers;
    allocate(p, (most + (size_t)p->s->batch * used) * sizeof(int32_t));
    if (p->status != QWEN3_OK) return;
    int32_t *experts = p->s->forced.host;
    float *weights = (float *)(experts + n_layers * n * used);
    for (size_t i = 0; i < n_layers; i++)
        for (size_t t = 0; t < n; t++)
            memcpy(experts + (i * n + t) * used,
                   part_route(p->host, first + (int)i, p->places[t].pos), used * sizeof *experts);
    for (size_t i = 0; i < n * used; i++) weights[i] = 1 / (float)used;
    upload(p, p->s->forced.experts, experts, (n_layers + 1) * n * used * sizeof *experts);
}

bool is_forced(const pass *p) { return p->host && part_route(p->host, 0, 0); }

void force_experts(pass *p, int layer) {
    const gpu_sequence *s = p->s;
    size_t entries = (size_t)p->n * (size_t)p->c->n_experts_used;
    if (layer == 0) upload_routes(p);
    p->experts = s->forced.experts + (size_t)layer * entries;
    p->weights = (const float *)(s->forced.experts + (size_t)p->m->n_layers * entries);
}
