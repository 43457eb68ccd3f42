/* rates.h - what a device of a backend can do, measured. */
#ifndef QWEN3_GPU_RATES_H
#define QWEN3_GPU_RATES_H

#include "device.h"
#include "gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

/* As qwen3_device_probe. On failure *rates is as before. */
qwen3_status gpu_measure(const gpu_api *, int index, qwen3_gpu_rates *rates, qwen3_error *err);

#ifdef __cplusplus
}
#endif
#endif
