/* resident.h - the layers of a model whose weights lie in a device's memory: its last ones. */
#ifndef QWEN3_GPU_RESIDENT_H
#define QWEN3_GPU_RESIDENT_H

#include <pthread.h>

#include "device.h"
#include "tier.h"

typedef struct resident_model {
    const gpu_api *api;
    gpu *device;
    const qwen3_model *host;
    pthread_mutex_t turn;     /* of a thread to use the device */
    int n_layers;             /* the last of the host's, counted from 0 on here */
    weight embedding, output; /* with data on the device, as in layers; no embedding where the
                                 first layer is the host's */
    layer *layers;            /* [n_layers], of a mixture without gate, up and down */
    gpu_bank *banks;          /* [n_layers] of a mixture */
    gpu_tier *tier;           /* NULL: all experts of these layers are on the device */
    int32_t *every_expert;    /* [n_experts]: their numbers, which are their slots then */
    float *output_norm, *rope_freq;
    struct {
        void *at;    /* of the device's memory, */
        bool mapped; /* or of the host's that it reads in place */
    } *held;
    int n_held;
    qwen3_gpu_stats stats;
} resident_model;

/* Copies the weights of the share to a device, or lets it read them in place; model and device stay
 * open. For copy_share see tier.h. Fails with QWEN3_ERR_MEMORY where the device has too little, with
 * QWEN3_ERR_ARG for too few expert_bytes, and with QWEN3_ERR_UNSUPPORTED for a shape that the
 * kernels do not take. */
qwen3_status resident_open(resident_model *, const gpu_api *, gpu *, const qwen3_model *,
                           const qwen3_gpu_share *, float copy_share, qwen3_error *err);
void resident_close(resident_model *);

#endif
