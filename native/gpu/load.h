/* load.h - the GPU backend of this process, if there is one. */
#ifndef QWEN3_GPU_LOAD_H
#define QWEN3_GPU_LOAD_H

#include "gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The backend, with one device at least, or NULL and why there is none. Looks once: for Metal on
 * Apple Silicon, elsewhere for libqwen3_cuda.so beside the library (or program) that this code is
 * part of, or for the file that the variable QWEN3_GPU_LIBRARY names. From any thread. The status
 * is QWEN3_ERR_UNSUPPORTED where there is nothing to use, another one for a backend that is there
 * and fails. */
const gpu_api *gpu_find(qwen3_error *why);

/* What that file exports, as qwen3_gpu. */
typedef const gpu_api *gpu_entry(void);

#ifdef __cplusplus
}
#endif

#endif
