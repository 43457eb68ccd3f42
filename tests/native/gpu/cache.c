/* cache.c - see cache.h: in C, as native/kv.h is. */
#include "cache.h"

#include <stdalign.h>

#include "kv.h"

void cpu_store(const cpu_cache *c, int layer, int head, int pos, const float *key,
               const float *value) {
    alignas(64) float scratch[512];
    kv_cache kv = {.n_layers = c->n_layers, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim,
                   .type = c->type, .stream = c->stream, .data = c->data};
    kv_store(&kv, &backend_scalar, layer, head, pos, key, value, scratch);
}
