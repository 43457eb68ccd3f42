/* share.h - the forward pass of a model, of which a device may compute a share. */
#ifndef QWEN3_SHARE_H
#define QWEN3_SHARE_H

#include "step.h"

/* As graph_forward. A device computes the layers that are its own and the logits; where a sequence
 * has no place for these (NULL), the last token's stay there: see gpu/logits.h. A cancel is seen
 * before the device's layers and behind them; the first sequence's between them, too. */
qwen3_status forward(workspace *, sequence *, int n_sequences, const int32_t *ids, int n,
                     int n_logits, qwen3_error *err);

#endif
