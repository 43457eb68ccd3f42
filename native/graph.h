/* graph.h - the forward pass. */
#ifndef QWEN3_GRAPH_H
#define QWEN3_GRAPH_H

#include "step.h"

/* Computes n <= batch tokens whose predecessors are in the cache, and appends their keys and
 * values: of one sequence those from its position on, and its logits receive those of the last
 * n_logits tokens, 0 to n; of n sequences one token each, n_logits being n. The positions may have
 * changed behind it. QWEN3_ERR_CANCELLED when a cancel was seen, without a text; an expert that
 * could not be read is an error, too. Where a device has the last layers, only those before them,
 * with n_logits 0: the residual stream of every token is in the workspace then. */
qwen3_status graph_forward(workspace *, sequence *, int n_sequences, const int32_t *ids, int n,
                           int n_logits, qwen3_error *err);

#endif
