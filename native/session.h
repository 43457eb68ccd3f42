/* session.h - a token sequence, its cache and its logits, for session.c and sample.c. */
#ifndef QWEN3_SESSION_H
#define QWEN3_SESSION_H

#include "step.h"

/* A token that may be drawn. */
typedef struct {
    int32_t id;
    float logit;
} candidate;

struct qwen3_session {
    qwen3_model *model;
    size_t n_ctx, n;
    int32_t *ids;          /* [n_ctx] */
    kv_cache kv;
    workspace work;
    float *logits;         /* [n_vocab] of position n - 1 when has_logits */
    bool has_logits;
    candidate *candidates; /* [n_vocab], scratch of sampling */
    uint8_t *seen;         /* [n_vocab], likewise: bit 0 in the session, bit 1 generated */
    atomic_bool cancel;
};

#endif
