/* forward.h - the forward pass of Qwen3 on a device, for one sequence of tokens. */
#ifndef QWEN3_GPU_FORWARD_H
#define QWEN3_GPU_FORWARD_H

#include "sequence.h"

/* Computes n tokens, 1 to batch, at the positions from pos on; logits of the last n_logits go to
 * logits[n_logits][n_vocab] on the host. Returns when they are there. */
qwen3_status gpu_forward(gpu_sequence *, const int32_t *ids, int n, int pos, int n_logits,
                         float *logits, qwen3_error *err);

#endif
