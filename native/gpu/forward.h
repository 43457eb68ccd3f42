/* forward.h - the forward pass of Qwen3 on a device. */
#ifndef QWEN3_GPU_FORWARD_H
#define QWEN3_GPU_FORWARD_H

#include <stdatomic.h>

#include "sequence.h"

typedef struct {
    const int32_t *ids;        /* [n], where all layers are the device's; else NULL and: */
    const float *x;            /* [n][n_embd] the residual stream behind the host's layers */
    const token_place *places; /* [n] in the kv caches of this sequence, or of others of its type */
    int n;                     /* 1 to batch */
    struct workspace *host;    /* of the host's, for what of a pass it computes */
    atomic_bool *cancel; /* ends it behind a layer, or while a read does not come, as
                            QWEN3_ERR_CANCELLED without a text */
} gpu_tokens;

/* Computes tokens: of one sequence in a row, or up to FEW_COLUMNS of different ones. Logits of the
 * last n_logits go to logits[n_logits][n_vocab] on the host; NULL: they stay, up to FEW_COLUMNS
 * rows. Returns when all is done. Pinned memory is read fastest: see staged. */
qwen3_status gpu_forward(gpu_sequence *, const gpu_tokens *, int n_logits, float *logits,
                         qwen3_error *err);

#endif
