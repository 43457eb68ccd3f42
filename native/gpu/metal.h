/* metal.h - the GPU of a Mac with Apple Silicon. */
#ifndef QWEN3_GPU_METAL_H
#define QWEN3_GPU_METAL_H

#include "gpu.h"

/* Has no devices before macOS 15 and on Intel. */
extern const gpu_api gpu_metal;

#endif
