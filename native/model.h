/* model.h - a validated model: its configuration and the place of every weight. */
#ifndef QWEN3_MODEL_H
#define QWEN3_MODEL_H

#include <sys/types.h>

#include "backend.h"
#include "cpu/pool.h"
#include "experts.h"
#include "qwen3.h"

/* A matrix [n_out][n_in] in the file's own layout, or n_experts of them. */
typedef struct {
    const uint8_t *data;
    uint32_t type;
    int n_in, n_out;
    size_t row_bytes;
} weight;

typedef struct {
    const float *attn_norm, *ffn_norm; /* [n_embd] */
    const float *q_norm, *k_norm;      /* [head_dim] */
    weight q, k, v, o;
    weight gate, up, down; /* dense: [n_ff][n_embd], down [n_embd][n_ff]; MoE: of n_ff_expert,
                              n_experts matrices one after the other */
    weight router;         /* MoE: [n_experts][n_embd] */
} layer;

struct qwen3_model {
    qwen3_file *file;
    qwen3_config config;
    const backend *cpu;
    pool *pool;
    pid_t owner; /* the process that opened it: a fork has the memory, not the threads */
    weight embedding, output; /* [n_vocab][n_embd] */
    const float *output_norm; /* [n_embd] */
    layer *layers;
    expert_store *experts; /* NULL: all experts are in the mapping, or there are none */
    uint8_t *dense;        /* with a store: the weights that every token needs, out of the mapping */
    size_t dense_bytes;
    float *norms;       /* every norm vector, decoded; the pointers above lead here */
    float *rope_freq;   /* [head_dim / 2], radians per position, YaRN applied */
    float rope_scale;   /* factor on cos and sin, 1 without YaRN */
};

#endif
