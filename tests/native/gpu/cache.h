/* cache.h - a cache of keys and values that the CPU fills, to be copied to the device. */
#ifndef QWEN3_TEST_CACHE_H
#define QWEN3_TEST_CACHE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    int n_layers, n_kv_heads, head_dim, n_ctx;
    uint32_t type;
    size_t stream, bytes; /* as in native/kv.h */
    uint8_t *data;
} cpu_cache;

/* By kv_store with the scalar backend. */
void cpu_store(const cpu_cache *, int layer, int head, int pos, const float *key,
               const float *value);

#ifdef __cplusplus
}

#include "device.h"

/* Garbage (NaN as F16) where nothing is stored. */
class Cache : public cpu_cache {
  public:
    Cache(int layers, int kv_heads, int hd, int ctx, bool q8) : cpu_cache() {
        n_layers = layers;
        n_kv_heads = kv_heads;
        head_dim = hd;
        n_ctx = ctx;
        type = q8 ? TYPE_Q8_0 : TYPE_F16;
        stream = (size_t)(ctx + KV_TILE - 1) / KV_TILE * kv_tile_bytes(type, hd);
        bytes = stream * 2 * (size_t)(layers * kv_heads);
        data = static_cast<uint8_t *>(::operator new(bytes, std::align_val_t(64)));
        std::memset(data, 0xff, bytes);
    }
    Cache(const Cache &) = delete;
    ~Cache() { ::operator delete(data, std::align_val_t(64)); }

    void store(int layer, int head, int pos, const float *key, const float *value) {
        cpu_store(this, layer, head, pos, key, value);
    }
    /* Random keys and values at [0, n) of a layer. */
    void fill(Random *r, int layer, int n) {
        for (int head = 0; head < n_kv_heads; head++)
            for (int pos = 0; pos < n; pos++)
                store(layer, head, pos, r->floats((size_t)head_dim, 2).data(),
                      r->floats((size_t)head_dim, 2).data());
    }
    const uint8_t *keys(int layer, int head) const {
        return data + stream * 2 * (size_t)(layer * n_kv_heads + head);
    }
    std::vector<uint8_t> copy() const { return {data, data + bytes}; }
};

#endif

#endif
