/* kv.c - see kv.h. */
#include "kv.h"

#include <sys/mman.h>

#include "error.h"

qwen3_status kv_init(kv_cache *kv, const qwen3_config *c, int n_ctx, qwen3_kv_type type,
                     qwen3_error *err) {
    *kv = (kv_cache){c->n_layers, c->n_kv_heads, c->head_dim, n_ctx,
                     type == QWEN3_KV_F32 ? sizeof(float) : sizeof(f16_t), NULL, 0};
    size_t bytes = 2 * kv->item; /* every factor is bounded, the product may not be */
    if (__builtin_mul_overflow(bytes, (size_t)kv->n_layers, &bytes) ||
        __builtin_mul_overflow(bytes, (size_t)kv->n_kv_heads, &bytes) ||
        __builtin_mul_overflow(bytes, (size_t)kv->head_dim, &bytes) ||
        __builtin_mul_overflow(bytes, (size_t)n_ctx, &bytes))
        return fail(err, QWEN3_ERR_MEMORY, "a context of %d tokens overflows memory", n_ctx);
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
