/* kv.c - see kv.h. */
#include "kv.h"

#include <string.h>
#include <sys/mman.h>

#include "decode.h"
#include "error.h"

qwen3_status kv_init(kv_cache *kv, const qwen3_config *c, int n_layers, int n_ctx,
                     qwen3_kv_type type, qwen3_error *err) {
    static const uint32_t types[] = {
        [QWEN3_KV_F16] = TYPE_F16, [QWEN3_KV_F32] = TYPE_F32, [QWEN3_KV_Q8] = TYPE_Q8_0};
    if ((unsigned)type >= sizeof types / sizeof *types)
        return fail(err, QWEN3_ERR_ARG, "there is no kv cache of type %d", (int)type);
    if (type == QWEN3_KV_Q8 && c->head_dim % 32)
        return fail(err, QWEN3_ERR_UNSUPPORTED,
                    "a q8 kv cache takes heads of whole blocks of 32, not of %d: use f16",
                    c->head_dim);
    *kv = (kv_cache){.n_layers = n_layers, .n_kv_heads = c->n_kv_heads,
                     .head_dim = c->head_dim, .n_ctx = n_ctx, .type = types[type]};
    kv->stream = ((size_t)n_ctx + KV_TILE - 1) / KV_TILE * kv_tile_bytes(kv->type, c->head_dim);
    size_t bytes = 2; /* every factor is bounded, the product may not be */
    if (__builtin_mul_overflow(bytes, kv->stream, &bytes) ||
        __builtin_mul_overflow(bytes, (size_t)kv->n_layers, &bytes) ||
        __builtin_mul_overflow(bytes, (size_t)kv->n_kv_heads, &bytes))
        return fail(err, QWEN3_ERR_MEMORY, "a context of %d tokens overflows memory", n_ctx);
    if (bytes == 0) return QWEN3_OK;
    void *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED)
        return fail(err, QWEN3_ERR_MEMORY,
                    "the kv cache of %d tokens needs %.1f GB, which the system refused: use a "
                    "smaller context", n_ctx, (double)bytes / 1e9);
    kv->data = data;
    kv->bytes = bytes;
    return QWEN3_OK;
}

void kv_free(kv_cache *kv) {
    if (kv->data) munmap(kv->data, kv->bytes);
    kv->data = NULL;
}

/* One vector into a tile: its items step apart from items on, the scales of Q8_0 behind. */
static void store_vector(const kv_cache *kv, const backend *cpu, uint8_t *tile, int in_tile,
                         const float *x, size_t first, size_t step, float *scratch) {
    int n = kv->head_dim;
    if (kv->type == TYPE_F32) {
        float *items = (float *)(void *)tile + first;
        for (int i = 0; i < n; i++) items[(size_t)i * step] = x[i];
    } else if (kv->type == TYPE_F16) {
        f16_t *items = (f16_t *)(void *)tile + first;
        const f16_t *half = (const void *)scratch;
        cpu->to_f16(x, (void *)scratch, n);
        for (int i = 0; i < n; i++) items[(size_t)i * step] = half[i];
    } else {
        int8_t *items = (int8_t *)tile + first;
        act_unit *act = (void *)scratch;
        f16_t *scales = (f16_t *)(void *)(tile + n * KV_TILE);
        cpu->quantize(x, act, n, 0, n);
        for (int i = 0; i < n; i++) items[(size_t)i * step] = act[i / UNIT].q[i % UNIT];
        for (int i = 0; i < n / 32; i++)
            scales[i * KV_TILE + in_tile] = f32_to_f16(act[i / GROUPS].d[i % GROUPS]);
    }
}

void kv_store(const kv_cache *kv, const backend *cpu, int layer, int head, int pos,
              const float *key, const float *value, float *scratch) {
    size_t tile = (size_t)(pos / KV_TILE) * kv_tile_bytes(kv->type, kv->head_dim);
    int at = pos % KV_TILE, width = kv_width(kv->head_dim);
    store_vector(kv, cpu, kv_keys(kv, layer, head) + tile, at, key, (size_t)at, KV_TILE, scratch);
    store_vector(kv, cpu, kv_values(kv, layer, head) + tile, at, value, (size_t)(at * width), 1,
                 scratch);
}
