/* attention.c - see attention.h. */
#include "attention.h"

#include <math.h>
#include <string.h>

/* Normalizes and rotates the heads of q and k, and appends k and v to the cache. */
static void position_head(const step *s, const layer *l, int index, int t, int h) {
    const workspace *ws = s->work;
    const qwen3_config *c = &ws->model->config;
    const backend *cpu = ws->model->cpu;
    int hd = c->head_dim;
    bool is_q = h < c->n_heads;
    float *x = is_q ? ws->q + ((size_t)t * (size_t)c->n_heads + (size_t)h) * (size_t)hd
                    : ws->k + ((size_t)t * (size_t)c->n_kv_heads + (size_t)(h - c->n_heads)) *
                                 (size_t)hd;
    cpu->rmsnorm(x, x, is_q ? l->q_norm : l->k_norm, hd, c->rms_eps);
    cpu->rope(x, ws->cos + t * (hd / 2), ws->sin + t * (hd / 2), hd);
    if (is_q) return;
    h -= c->n_heads;
    const float *v = ws->v + ((size_t)t * (size_t)c->n_kv_heads + (size_t)h) * (size_t)hd;
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

/* Grouped-query attention: the heads of a group read each key and value once. */
static void attend(const step *s, int index, int t, int h, int tid) {
    const workspace *ws = s->work;
    const qwen3_config *c = &ws->model->config;
    int hd = c->head_dim, group = c->n_heads / c->n_kv_heads;
    size_t head = ((size_t)t * (size_t)c->n_heads + (size_t)h * (size_t)group) * (size_t)hd;
    ws->model->cpu->attend(&(attend_args){
        .n_q = group, .head_dim = hd, .n_kv = s->pos + t + 1, .q = ws->q + head,
        .k = kv_keys(s->kv, index, h), .v = kv_values(s->kv, index, h),
        .kv_is_f32 = s->kv->item == sizeof(float), .scale = 1.0f / sqrtf((float)hd),
        .out = ws->attended.f + head, .scores = ws->scores + (size_t)tid * ws->scores_stride});
}

void attention(const step *s, const layer *l, int index, int tid) {
    const workspace *ws = s->work;
    const qwen3_config *c = &ws->model->config;
    pool *p = ws->model->pool;
    int heads = c->n_heads + c->n_kv_heads, i;
    while ((i = pool_claim(p)) < s->n * heads) position_head(s, l, index, i / heads, i % heads);
    pool_barrier(p, tid);
    while ((i = pool_claim(p)) < s->n * c->n_kv_heads)
        attend(s, index, i / c->n_kv_heads, i % c->n_kv_heads, tid);
    if (!takes_act(&l->o)) return;
    pool_barrier(p, tid);
    while ((i = pool_claim(p)) < s->n) {
        vectors x = vectors_from(ws->attended, i);
        ws->model->cpu->quantize(x.f, x.q, x.n, 0, x.n);
    }
}
