/* session.h - a token sequence, its cache and its logits, for session.c, together.c and sample.c. */
#ifndef QWEN3_SESSION_H
#define QWEN3_SESSION_H

#include "gpu/sequence.h"
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
    gpu_sequence *gpu;     /* its part on a device that has a share of the model, or NULL */
    workspace work;
    float *logits;         /* [n_vocab] of position n - 1 when has_logits, or on the device */
    bool has_logits;
    candidate *candidates; /* [n_vocab], scratch of sampling */
    uint8_t *seen;         /* [n_vocab], likewise: bit 0 in the session, bit 1 generated */
    atomic_bool cancel;
};

/* The session as a pass sees it whose logits go to `logits`. */
sequence session_sequence(qwen3_session *, float *logits);

/* Logits go here; NULL: they stay on the device until somebody asks. */
float *session_logits_place(qwen3_session *);
/* Into s->logits, if the session has logits and they are there. */
qwen3_status session_fetch_logits(const qwen3_session *, qwen3_error *err);
/* That s->logits has them, or that there are none. */
void session_has_logits(qwen3_session *, bool);

/* Streams of the cache in the order of kv.h, those of the device's layers last. Where the host has
 * one, it is this; NULL: the device has it, and bytes of it are copied from there and to there. */
size_t session_n_streams(const qwen3_session *);
uint8_t *session_stream(const qwen3_session *, size_t stream);
qwen3_status session_read_stream(const qwen3_session *, size_t stream, size_t first, void *to,
                                 size_t n, qwen3_error *err);
qwen3_status session_write_stream(const qwen3_session *, size_t stream, size_t first,
                                  const void *from, size_t n, qwen3_error *err);

/* Refuses a total of tokens that does not fit and ids[0..n) outside the vocabulary. */
qwen3_status session_check(const qwen3_session *, const int32_t *ids, size_t n, size_t total,
                           qwen3_error *err);
/* Refuses to compute in a process that was forked after the model was opened. */
qwen3_status session_check_owner(const qwen3_session *, qwen3_error *err);

#endif
