/* sequence.c - the memory of a sequence on a device. */
#include "error.h"
#include "sequence.h"

#include <stdlib.h>

/* Hands out 256-aligned parts of the arena; a first pass with no base only adds up. */
typedef struct {
    uint8_t *base;
    size_t used;
} carver;

static void *carve(carver *c, size_t count, size_t size) {
    void *part = c->base ? c->base + c->used : NULL;
    c->used += (count * size + 255) & ~(size_t)255;
    return part;
}

static size_t most_penalized(const gpu_sequence *s) {
    int n_vocab = s->model->host->config.n_vocab;
    return (size_t)(s->n_ctx < n_vocab ? s->n_ctx : n_vocab);
}

static void carve_staged(carver *v, gpu_sequence *s) {
    s->staged.ids = carve(v, (size_t)s->batch, sizeof *s->staged.ids);
    s->staged.places = carve(v, (size_t)s->batch, sizeof *s->staged.places);
    s->staged.penalized = carve(v, most_penalized(s), sizeof *s->staged.penalized);
    s->staged.top = carve(v, 1, sizeof *s->staged.top);
}

static void carve_all(carver *v, gpu_sequence *s) {
    const qwen3_config *c = &s->model->host->config;
    size_t n = (size_t)s->batch, few = FEW_COLUMNS, hd = (size_t)c->head_dim;
    size_t used = c->n_experts ? (size_t)c->n_experts_used : 1, entries = n * used;
    size_t n_ff = (size_t)(c->n_experts ? c->n_ff_expert : c->n_ff), embd = (size_t)c->n_embd;
    size_t q = (size_t)c->n_heads * hd, kv = (size_t)c->n_kv_heads * hd;
    s->kv = carve(v, 1, s->kv_bytes);
    s->ids = carve(v, n, sizeof *s->ids);
    s->places = carve(v, n, sizeof *s->places);
    s->x = carve(v, n, embd * sizeof(float));
    s->normed = carve(v, n, embd * sizeof(float));
    s->normed_act = carve(v, n, embd / GROUP_SIZE * sizeof(act_group));
    s->q = carve(v, n, q * sizeof(float));
    s->k = carve(v, n, kv * sizeof(float));
    s->v = carve(v, n, kv * sizeof(float));
    s->attended = carve(v, n, q * sizeof(float));
    s->attended_act = carve(v, n, q / GROUP_SIZE * sizeof(act_group));
    s->parts = carve(v, few * (size_t)c->n_heads * ATTEND_PARTS, (hd + 2) * sizeof(float));
    s->hidden = carve(v, entries, n_ff * sizeof(float));
    s->hidden_act = carve(v, entries, n_ff / GROUP_SIZE * sizeof(act_group));
    s->logits = carve(v, few, (size_t)c->n_vocab * sizeof(float));
    s->penalized = carve(v, most_penalized(s), sizeof *s->penalized);
    s->top_parts = carve(v, TOP_BLOCKS, sizeof *s->top_parts);
    s->top = carve(v, 1, sizeof *s->top);
    if (!c->n_experts) return;
    size_t n_experts = (size_t)c->n_experts;
    s->router = carve(v, n, n_experts * sizeof(float));
    s->weights = carve(v, entries, sizeof(float));
    s->sorted_weights = carve(v, entries, sizeof(float));
    size_t by_host = s->model->tier ? few * used : 0; /* rows that the CPU computes, behind it */
    s->expert_out = carve(v, entries + by_host, embd * sizeof(float));
    s->experts = carve(v, entries, sizeof(int32_t));
    s->start = carve(v, n_experts + 1, sizeof(int32_t));
    s->sorted_token = carve(v, entries, sizeof(int32_t));
    s->position = carve(v, entries, sizeof(int32_t));
    size_t matrices = entries > n_experts ? entries : n_experts;
    s->matrices = carve(v, N_PARTS * matrices, sizeof(uint8_t *));
}

/* Device and pinned memory for all of it. */
static qwen3_status take_memory(gpu_sequence *s, qwen3_error *err) {
    const gpu_api *api = s->model->api;
    gpu *device = s->model->device;
    carver v = {0}, staged = {0};
    carve_all(&v, s);
    carve_staged(&staged, s);
    qwen3_error why;
    s->arena = api->alloc(device, v.used, &why);
    if (s->arena) s->staged.memory = api->alloc_pinned(device, staged.used, &why);
    if (!s->arena || !s->staged.memory)
        return fail(err, why.status, "no room for a context of %d tokens, %.1f MB on the GPU: %s",
                    s->n_ctx, (double)v.used / 1e6, why.text);
    v = (carver){.base = s->arena};
    staged = (carver){.base = s->staged.memory};
    carve_all(&v, s);
    carve_staged(&staged, s);
    return QWEN3_OK;
}

qwen3_status gpu_sequence_open(gpu_sequence *s, resident_model *m, int n_ctx, uint32_t kv_type,
                               int batch, qwen3_error *err) {
    *s = (gpu_sequence){.model = m, .n_ctx = n_ctx, .batch = batch, .kv_type = kv_type};
    if (kv_type != TYPE_F16 && kv_type != TYPE_Q8_0)
        return fail(err, QWEN3_ERR_ARG, "a GPU keeps keys and values as f16 or q8: use one of "
                    "these for the kv cache");
    const qwen3_config *c = &m->host->config;
    s->stream = ((size_t)n_ctx + KV_TILE - 1) / KV_TILE * kv_tile_bytes(kv_type, c->head_dim);
    s->kv_bytes = 2 * (size_t)m->n_layers * (size_t)c->n_kv_heads * s->stream;
    pthread_mutex_lock(&m->turn);
    qwen3_status status = take_memory(s, err);
    pthread_mutex_unlock(&m->turn);
    if (status != QWEN3_OK) gpu_sequence_close(s);
    return status;
}

void gpu_sequence_close(gpu_sequence *s) {
    resident_model *m = s->model;
    if (!m) return;
    pthread_mutex_lock(&m->turn);
    if (s->step) m->api->release_graph(m->device, s->step);
    if (s->staged.memory) m->api->release_pinned(m->device, s->staged.memory);
    if (s->forced.host) m->api->release_pinned(m->device, s->forced.host);
    if (s->forced.experts) m->api->release(m->device, s->forced.experts);
    if (s->arena) m->api->release(m->device, s->arena);
    pthread_mutex_unlock(&m->turn);
    *s = (gpu_sequence){0};
}

/* ---- between host and device ------------------------------------------------------- */

/* The stream is waited for in any case: the host's memory is its owner's again. */
static qwen3_status when_done(resident_model *m, qwen3_status status, qwen3_error *err) {
    qwen3_error why;
    qwen3_status end = m->api->sync(m->device, GPU_COMPUTE, &why);
    if (status == QWEN3_OK && end != QWEN3_OK) status = fail(err, end, "%s", why.text);
    pthread_mutex_unlock(&m->turn);
    return status;
}

qwen3_status gpu_sequence_read(gpu_sequence *s, size_t stream, size_t first, void *to, size_t n,
                               qwen3_error *err) {
    resident_model *m = s->model;
    const uint8_t *from = s->kv + stream * s->stream + first;
    pthread_mutex_lock(&m->turn);
    return when_done(m, m->api->download(m->device, GPU_COMPUTE, to, from, n, err), err);
}

qwen3_status gpu_sequence_write(gpu_sequence *s, size_t stream, size_t first, const void *from,
                                size_t n, qwen3_error *err) {
    resident_model *m = s->model;
    uint8_t *to = s->kv + stream * s->stream + first;
    pthread_mutex_lock(&m->turn);
    return when_done(m, m->api->upload(m->device, GPU_COMPUTE, to, from, n, err), err);
}
