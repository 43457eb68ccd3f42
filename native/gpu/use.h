/* use.h - a model of which a device computes a share; device.h has it for the backend of load.h. */
#ifndef QWEN3_GPU_USE_H
#define QWEN3_GPU_USE_H

#include "../device.h"
#include "resident.h"

qwen3_status model_use_device(qwen3_model *, const gpu_api *, const qwen3_gpu_share *,
                              qwen3_error *err);

#endif
