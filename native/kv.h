/* kv.h - the kv cache of a session: keys and values of every position. */
#ifndef QWEN3_KV_H
#define QWEN3_KV_H

#include "model.h"

typedef struct {
    int n_layers, n_kv_heads, head_dim, n_ctx;
    uint32_t type; /* TYPE_F16, TYPE_F32 or TYPE_Q8_0 */
    size_t stream; /* bytes of the keys, or values, of a head: n_ctx positions in whole tiles */
    uint8_t *data;
    size_t bytes;
} kv_cache;

/* Reserves address space for n_ctx positions of n_layers layers; memory is taken as positions
 * fill. */
qwen3_status kv_init(kv_cache *, const qwen3_config *, int n_layers, int n_ctx, qwen3_kv_type,
                     qwen3_error *err);
void kv_free(kv_cache *);

/* The keys of one head of one layer, in tiles (see backend.h): one stream in memory. */
static inline uint8_t *kv_keys(const kv_cache *kv, int layer, int head) {
    return kv->data + kv->stream * 2 * ((size_t)layer * (size_t)kv->n_kv_heads + (size_t)head);
}

static inline uint8_t *kv_values(const kv_cache *kv, int layer, int head) {
    return kv_keys(kv, layer, head) + kv->stream;
}

/* The streams one after the other: keys and values of head after head, layer after layer. */
static inline size_t kv_n_streams(const kv_cache *kv) {
    return 2 * (size_t)kv->n_layers * (size_t)kv->n_kv_heads;
}

static inline uint8_t *kv_stream(const kv_cache *kv, size_t index) {
    return kv->data + kv->stream * index;
}

/* Floats of the scratch of kv_store, a multiple of 16: a vector in any of the types. */
static inline size_t kv_scratch(int head_dim) {
    size_t act = (act_bytes(head_dim) + 63) / 64 * 16, width = (size_t)kv_width(head_dim);
    return act > width ? act : width;
}

/* Puts key and value, float[head_dim], at a position. Not for two threads in one tile.
 * scratch: 64-aligned. */
void kv_store(const kv_cache *, const backend *, int layer, int head, int pos, const float *key,
              const float *value, float *scratch);

#endif
