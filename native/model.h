/* model.h - a validated model: its configuration and the place of every weight. */
#ifndef QWEN3_MODEL_H
#define QWEN3_MODEL_H

#include <stdatomic.h>
#include <sys/types.h>

#include "backend.h"
#include "cpu/pool.h"
#include "offload.h"
#include "qwen3.h"
#include "weights.h"

struct qwen3_model {
    qwen3_file *file;
    qwen3_config config;
    const backend *cpu;
    pool *pool;
    pid_t owner; /* the process that opened it: a fork has the memory, not the threads */
    weight embedding, output; /* [n_vocab][n_embd] */
    const float *output_norm; /* [n_embd] */
    layer *layers;
    offload offload;       /* of which .experts is NULL when all experts are in the mapping */
    qwen3_approximation approximation;
    bool approximates; /* there is a store, and something is given up */
    float *norms;       /* every norm vector, decoded; the pointers above lead here */
    float *rope_freq;   /* [head_dim / 2], radians per position, YaRN applied */
    float rope_scale;   /* factor on cos and sin, 1 without YaRN */
    int n_host_layers;  /* the first so many are the CPU's: all of them, but for */
    struct resident_model *gpu; /* a device's share, if it has one: the others, and the output */
    void (*gpu_release)(struct resident_model *); /* of gpu/use.c, which knows models itself */
    atomic_int n_sessions;
};

#endif
