/* emulated.h - the device of the tests: kernels run on the host, see emulate.h. */
#ifndef QWEN3_GPU_EMULATED_H
#define QWEN3_GPU_EMULATED_H

#include "gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const gpu_api gpu_emulated;

/* What follows draws its orders and its garbage from this. */
void gpu_emulated_seed(uint64_t seed);

/* Runs a kernel that is not in KERNELS, as KERNEL defines it, and says what it did wrong. */
typedef void gpu_emulated_kernel(const void *args, int thread, int threads, int x, int y, int z,
                                 char *shared);
qwen3_status gpu_emulated_run(gpu_emulated_kernel *, gpu_grid, const void *args,
                              qwen3_error *err);

#ifdef __cplusplus
}
#endif

#endif
