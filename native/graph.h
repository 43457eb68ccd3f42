/* graph.h - the forward pass. */
#ifndef QWEN3_GRAPH_H
#define QWEN3_GRAPH_H

#include "step.h"

/* Computes n <= batch tokens at positions pos ..., whose predecessors are in the
 * cache, and appends their keys and values. logits receives float[n_logits][n_vocab]
 * of the last n_logits tokens, 0 to n. QWEN3_ERR_CANCELLED when cancel was seen, without a text;
 * an expert that could not be read is an error, too. */
qwen3_status graph_forward(workspace *, kv_cache *, const int32_t *ids, int n, int pos,
                           int n_logits, float *logits, atomic_bool *cancel, qwen3_error *err);

#endif
