/* share.h - the forward pass of a model, of which a device may compute a share. */
#ifndef QWEN3_SHARE_H
#define QWEN3_SHARE_H

#include "step.h"

/* As graph_forward. Where a sequence has a device, it computes the last layers and the logits; those
 * of a sequence without room for them, up to 8 rows, stay there: see gpu/logits.h. A cancel of any
 * is seen before and behind the device's layers. */
qwen3_status forward(workspace *, sequence *, int n_sequences, const int32_t *ids, int n,
                     int n_logits, qwen3_error *err);

#endif
