/* device.h - GPUs, and models of which a GPU computes a share. */
#ifndef QWEN3_DEVICE_H
#define QWEN3_DEVICE_H

#include "qwen3.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    char backend[16]; /* "cuda", "metal"; "emulated" in tests */
    char name[256];
    uint64_t total_bytes, free_bytes; /* of its memory; free: when it was asked */
    int n_units;                      /* multiprocessors, cores */
    bool unified;                     /* its memory is the host's */
} qwen3_device;

/* 0: why there is none; its status tells what gpu/load.h says. The backend is looked for once. */
int qwen3_n_devices(qwen3_error *why);
/* index: below qwen3_n_devices. */
qwen3_status qwen3_device_describe(int index, qwen3_device *, qwen3_error *err);

typedef struct {
    int device;
    int n_layers;          /* the last so many, and the output; all of them: the embedding, too */
    uint64_t expert_bytes; /* of the device's memory for the experts of these layers; 0: all */
} qwen3_gpu_share;

/* Once, before the first session. On failure (QWEN3_ERR_MEMORY: the device has too little) the
 * model is the CPU's as before. A session then has the kv cache of these layers, f16 or q8, and its
 * working memory on the device; it cannot be observed, nor its routes be forced. */
qwen3_status qwen3_model_use_gpu(qwen3_model *, const qwen3_gpu_share *, qwen3_error *err);

/* All 0 for a model without a GPU. */
typedef struct {
    int n_layers;
    uint64_t bytes;        /* of weights and slots on the device */
    uint64_t expert_bytes; /* thereof of slots */
    uint64_t n_slots;      /* an expert each */
    uint64_t hits, misses; /* experts that a layer wanted, and that were on the device or not */
    uint64_t copied, computed; /* misses: by a copy to the device, by the CPU */
    uint64_t bytes_copied;
    double stall_s; /* in which the device waited for a copy or the CPU */
} qwen3_gpu_stats;
qwen3_gpu_stats qwen3_model_gpu_stats(const qwen3_model *);

/* What a device can do at this moment, measured in some tenths of a second. */
typedef struct {
    double read;             /* bytes a second of its memory */
    double upload, download; /* bytes a second, from and to pinned memory */
    double f16, int8;        /* products a second, each added up, of matrix units; 0: none */
} qwen3_gpu_rates;
qwen3_status qwen3_device_probe(int index, qwen3_gpu_rates *, qwen3_error *err);

#ifdef __cplusplus
}
#endif
#endif
