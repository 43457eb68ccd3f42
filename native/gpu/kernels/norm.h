/* norm.h - RMSNorm (Zhang and Sennrich, 2019). */
#ifndef QWEN3_GPU_NORM_H
#define QWEN3_GPU_NORM_H

#include "act.h"

/* The sum of x over the block. shared: a float for each warp. */
DEVICE float block_sum(float x, place at, SHARED float *shared) {
    x = lane_sum(x);
    if (at.lane == 0) shared[at.warp] = x;
    barrier();
    x = lane_sum(at.lane < at.warps ? shared[at.lane] : 0.0f);
    barrier(); /* shared may be written again */
    return x;
}

/* Grid: a block of up to 1024 threads for each row. Shared: 32 floats. */
KERNEL(rms_norm, norm_args) {
    GLOBAL const float *x = a.x + (size_t)at.x * (size_t)a.n;
    float sum = 0;
    for (int i = at.tid; i < a.n; i += at.threads) sum += x[i] * x[i];
    sum = block_sum(sum, at, (SHARED float *)shared);
    float scale = 1.0f / sqrt(sum / (float)a.n + a.eps);
    for (int i = at.tid; i < a.n; i += at.threads) {
        float y = x[i] * scale * a.w[i];
        if (a.y) a.y[(size_t)at.x * (size_t)a.n + (size_t)i] = y;
        if (a.act) store_group(a.act + ((size_t)at.x * (size_t)a.n + (size_t)i) / 32, y, at.lane);
    }
}

#endif
