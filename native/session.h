/* session.h - a token sequence, its cache and its logits, for session.c, together.c and sample.c. */
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

/* The session as a pass sees it whose logits go to `logits`. */
sequence session_sequence(qwen3_session *, float *logits);

/* Refuses a total of tokens that does not fit and ids[0..n) outside the vocabulary. */
qwen3_status session_check(const qwen3_session *, const int32_t *ids, size_t n, size_t total,
                           qwen3_error *err);
/* Refuses to compute in a process that was forked after the model was opened. */
qwen3_status session_check_owner(const qwen3_session *, qwen3_error *err);

#endif
