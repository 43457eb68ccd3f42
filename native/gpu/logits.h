/* logits.h - logits that stay on the device until somebody asks: the last token's, in row 0. */
#ifndef QWEN3_GPU_LOGITS_H
#define QWEN3_GPU_LOGITS_H

#include "sequence.h"

/* [n_vocab], to the host. */
qwen3_status gpu_logits(gpu_sequence *, float *to, qwen3_error *err);

/* Those of another sequence, of any row, become this one's. */
qwen3_status gpu_take_logits(gpu_sequence *, const gpu_sequence *from, int row, qwen3_error *err);

/* What makes the n different ids of staged.penalized less likely: see penalize_args. */
typedef struct {
    int n, n_generated;
    float repetition, presence;
} gpu_penalties;

/* The k best of them, 1 to TOP_MOST, after the penalties, go to staged.top. They stay what they
 * are. */
qwen3_status gpu_best(gpu_sequence *, const gpu_penalties *, int k, qwen3_error *err);

#endif
