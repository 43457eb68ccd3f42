/* importance.h - what enters each weight matrix while a model computes, for the quantizer.
 *
 * The error that a quantized weight makes in the output is its own error times the input it
 * meets. So the mean square of the inputs of a column says what the column is worth. A session
 * that is observed adds up the squares, in double precision and in the order of the tokens:
 * the bits depend neither on threads nor on how a text is cut into calls.
 */
#ifndef QWEN3_IMPORTANCE_H
#define QWEN3_IMPORTANCE_H

#include "qwen3.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qwen3_importance qwen3_importance;

/* The inputs of one weight matrix, or of each expert's of a MoE tensor. */
typedef struct {
    char name[64];         /* of the tensor: "blk.0.attn_q.weight" */
    int32_t n_in;
    int32_t n_experts;     /* 1 for a matrix that every token meets */
    const double *sums;    /* [n_experts][n_in]: of x^2 over the tokens that met it */
    const int64_t *counts; /* [n_experts]: these tokens */
} qwen3_inputs;

/* Of every matrix in the layers but the router, all zero. The model outlives it. */
qwen3_importance *qwen3_importance_new(const qwen3_model *, qwen3_error *err);
void qwen3_importance_free(qwen3_importance *);
size_t qwen3_importance_n_matrices(const qwen3_importance *);
/* index < n_matrices, in the order of the layers. What it points to changes while an observed
 * session computes. */
qwen3_inputs qwen3_importance_inputs(const qwen3_importance *, size_t index);

/* From now on every token that the session computes is added (NULL: to nothing), those of a
 * computation that is cancelled in the layers it came to. Tokens that the session reuses are
 * not. One session at a time adds to an importance, which outlives it. Refuses one of
 * another model. */
qwen3_status qwen3_session_observe(qwen3_session *, qwen3_importance *, qwen3_error *err);

/* ---- for the forward pass ----------------------------------------------------- */

typedef enum { INTO_QKV, INTO_O, INTO_GATE_UP, INTO_DOWN, N_SITES } importance_site;

bool importance_is_of(const qwen3_importance *, const qwen3_model *);
/* Adds columns that are this thread's alone: every thread of the pool calls it. Expert e met the
 * vectors x[entry], or x[token[entry]], of the entries [start[e], start[e + 1]). */
void importance_add(qwen3_importance *, int layer, importance_site, const float *x,
                    int n_experts, const int32_t *start, const int32_t *token, int tid);

#ifdef __cplusplus
}
#endif
#endif
