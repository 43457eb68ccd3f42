/* dispatch.c - which backends exist, and which one runs. */
#include <string.h>

#include "backend.h"

/* scalar first, then from slower to faster */
static const backend *const backends[] = {
    &backend_scalar,
#if defined(__x86_64__) && !defined(QWEN3_SCALAR_ONLY)
    &backend_avx2,
#ifdef QWEN3_AVXVNNI
    &backend_avxvnni,
#endif
    &backend_avx512,
#endif
#if defined(__aarch64__) && !defined(QWEN3_SCALAR_ONLY)
    &backend_neon,
    &backend_i8mm,
#endif
    NULL,
};

const backend *const *backend_all(void) {
    return backends;
}

const backend *backend_pick(const char *forced) {
    const backend *best = NULL;
    for (const backend *const *b = backends; *b; b++)
        if ((!forced || strcmp(forced, (*b)->name) == 0) && (*b)->available()) best = *b;
    return best;
}
