/* dispatch.c - which backends exist, and which one runs. */
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "error.h"

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

const backend *backend_chosen(qwen3_error *err) {
    const char *forced = getenv("QWEN3_ISA");
    const backend *chosen = backend_pick(forced);
    if (!chosen)
        fail(err, QWEN3_ERR_UNSUPPORTED,
             "QWEN3_ISA=%.32s: this build has no such backend, or this processor cannot run it",
             forced);
    return chosen;
}
