/* sequence.c - the memory of a sequence on a device. */
#include "error.h"
#include "sequence.h"

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

static void carve_all(carver *v, gpu_sequence *s) {
    const qwen3_config *c = &s->model->host->config;
    size_t n = (size_t)s->batch, few = FEW_COLUMNS, hd = (size_t)c->head_dim;
    size_t used = c->n_experts ? (size_t)c->n_experts_used : 1, entries = n * used;
    size_t n_ff = (size_t)(c->n_experts ? c->n_ff_expert : c->n_ff), embd = (size_t)c->n_embd;
    size_t q = (size_t)c->n_heads * hd, kv = (size_t)c->n_kv_heads * hd;
    s->kv = carve(v, 2 * (size_t)c->n_layers * (size_t)c->n_kv_heads, s->stream);
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
    if (!c->n_experts) return;
    size_t n_experts = (size_t)c->n_experts;
    s->router = carve(v, n, n_experts * sizeof(float));
    s->weights = carve(v, entries, sizeof(float));
    s->sorted_weights = carve(v, entries, sizeof(float));
    s->expert_out = carve(v, entries, embd * sizeof(float));
    s->experts = carve(v, entries, sizeof(int32_t));
    s->start = carve(v, n_experts + 1, sizeof(int32_t));
    s->sorted_token = carve(v, entries, sizeof(int32_t));
    s->position = carve(v, entries, sizeof(int32_t));
    s->missing = carve(v, n_experts + 1, sizeof(int32_t));
    s->last_used = carve(v, n_experts, sizeof(int32_t));
    s->matrices = carve(v, N_PARTS * entries, sizeof(uint8_t *));
}

qwen3_status gpu_sequence_open(gpu_sequence *s, const resident_model *m, int n_ctx,
                               uint32_t kv_type, int batch, qwen3_error *err) {
    *s = (gpu_sequence){.model = m, .n_ctx = n_ctx, .batch = batch, .kv_type = kv_type};
    if (kv_type != TYPE_F16 && kv_type != TYPE_Q8_0)
        return fail(err, QWEN3_ERR_UNSUPPORTED, "a GPU keeps keys and values as f16 or q8");
    s->stream = ((size_t)n_ctx + KV_TILE - 1) / KV_TILE *
                kv_tile_bytes(kv_type, m->host->config.head_dim);
    carver v = {0};
    carve_all(&v, s);
    s->arena = m->api->alloc(m->device, v.used, err);
    if (!s->arena) return err->status;
    v = (carver){.base = s->arena};
    carve_all(&v, s);
    return QWEN3_OK;
}

void gpu_sequence_close(gpu_sequence *s) {
    if (s->arena) s->model->api->release(s->model->device, s->arena);
    *s = (gpu_sequence){0};
}
