/* kv.h - the kv cache of a session: keys and values of every position. */
#ifndef QWEN3_KV_H
#define QWEN3_KV_H

#include "model.h"

typedef struct {
    int n_layers, n_kv_heads, head_dim, n_ctx;
    size_t item; /* bytes of a value: 2 for f16, 4 for f32 */
    uint8_t *data;
    size_t bytes;
} kv_cache;

/* Reserves address space for n_ctx positions; memory is taken as positions fill. */
qwen3_status kv_init(kv_cache *, const qwen3_config *, int n_ctx, qwen3_kv_type, qwen3_error *err);
void kv_free(kv_cache *);

/* [n_ctx][head_dim] keys of one head of one layer, one stream in memory. */
static inline uint8_t *kv_keys(const kv_cache *kv, int layer, int head) {
    size_t stream = (size_t)kv->n_ctx * (size_t)kv->head_dim * kv->item;
    return kv->data + stream * 2 * ((size_t)layer * (size_t)kv->n_kv_heads + (size_t)head);
}

static inline uint8_t *kv_values(const kv_cache *kv, int layer, int head) {
    return kv_keys(kv, layer, head) + (size_t)kv->n_ctx * (size_t)kv->head_dim * kv->item;
}

#endif
