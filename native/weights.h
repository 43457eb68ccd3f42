/* weights.h - the matrices of a model: what they are and where they lie. */
#ifndef QWEN3_WEIGHTS_H
#define QWEN3_WEIGHTS_H

#include <stddef.h>
#include <stdint.h>

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

#endif
