/* graph.h - the forward pass. */
#ifndef QWEN3_GRAPH_H
#define QWEN3_GRAPH_H

#include "step.h"

/* Computes the CPU's layers, and without a device's behind them the logits, of n <= batch tokens whose predecessors are in the cache, and appends their keys and
 * values: of one sequence those from its position on, and its logits receive those of the last
 * n_logits tokens, 0 to n; of n sequences one token each, n_logits being n. The positions may have
 * changed behind it. QWEN3_ERR_CANCELLED when a cancel was seen, without a text; an expert that
 * could not be read is an error, too. */
qwen3_status graph_forward(workspace *, sequence *, int n_sequences, const int32_t *ids, int n,
                           int n_logits, qwen3_error *err);

#endif
