/* session.c - sequences of tokens: what of a prefix is computed, and what is reused. */
#include "session.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "gpu/logits.h"
#include "share.h"

/* Tokens of one pass: bounds the working memory of prefill. An expert sees few of them, so a
 * pass of MoE takes more. In the memory of any session some can decode together. */
enum { MIN_BATCH = MOST_SEQUENCES, MAX_BATCH = 512, MAX_BATCH_MOE = 2048 };

static qwen3_status begin_on_device(qwen3_session *s, int batch, qwen3_error *err) {
    gpu_sequence *gpu = malloc(sizeof *gpu);
    if (!gpu) return fail(err, QWEN3_ERR_MEMORY, "out of memory");
    qwen3_status status =
        gpu_sequence_open(gpu, s->model->gpu, (int)s->n_ctx, s->kv.type, batch, err);
    if (status == QWEN3_OK) s->gpu = gpu;
    else free(gpu);
    return status;
}

qwen3_session *qwen3_session_new(qwen3_model *m, int32_t n_ctx, qwen3_kv_type kv,
                                 qwen3_error *err) {
    size_t n_vocab = (size_t)m->config.n_vocab;
    int32_t most = m->config.n_experts ? MAX_BATCH_MOE : MAX_BATCH;
    int32_t batch = n_ctx > most ? most : n_ctx < MIN_BATCH ? MIN_BATCH : n_ctx;
    if (n_ctx < 1 || n_ctx > 1 << 24) {
        fail(err, QWEN3_ERR_ARG, "a context of %d tokens: use 1 to %d", n_ctx, 1 << 24);
        return NULL;
    }
    qwen3_session *s = calloc(1, sizeof *s);
    if (!s) {
        fail(err, QWEN3_ERR_MEMORY, "out of memory");
        return NULL;
    }
    s->model = m;
    atomic_fetch_add(&m->n_sessions, 1);
    s->n_ctx = (size_t)n_ctx;
    atomic_init(&s->cancel, false);
    s->ids = malloc(s->n_ctx * sizeof *s->ids);
    s->logits = malloc(n_vocab * sizeof *s->logits);
    s->candidates = malloc(n_vocab * sizeof *s->candidates);
    s->seen = malloc(n_vocab);
    qwen3_status status = QWEN3_OK;
    if (!s->ids || !s->logits || !s->candidates || !s->seen)
        status = fail(err, QWEN3_ERR_MEMORY, "out of memory for a session of %d tokens", n_ctx);
    if (status == QWEN3_OK)
        status = kv_init(&s->kv, &m->config, m->n_host_layers, n_ctx, kv, err);
    if (status == QWEN3_OK) status = workspace_init(&s->work, m, n_ctx, batch, err);
    if (status == QWEN3_OK && m->gpu) status = begin_on_device(s, batch, err);
    if (status != QWEN3_OK) {
        qwen3_session_free(s);
        return NULL;
    }
    return s;
}

void qwen3_session_free(qwen3_session *s) {
    if (!s) return;
    if (s->gpu) gpu_sequence_close(s->gpu);
    free(s->gpu);
    atomic_fetch_sub(&s->model->n_sessions, 1);
    workspace_free(&s->work);
    kv_free(&s->kv);
    free(s->ids);
    free(s->logits);
    free(s->candidates);
    free(s->seen);
    free(s);
}

sequence session_sequence(qwen3_session *s, float *logits) {
    return (sequence){&s->kv, (int)s->n, logits, s->work.parts, &s->cancel, s->gpu};
}

float *session_logits_place(qwen3_session *s) { return s->gpu ? NULL : s->logits; }

qwen3_status session_fetch_logits(const qwen3_session *s, qwen3_error *err) {
    gpu_sequence *gpu = s->gpu;
    if (!s->has_logits || !gpu || !gpu->logits_wait) return QWEN3_OK;
    qwen3_status status = gpu_logits(gpu, s->logits, err);
    gpu->logits_wait = status != QWEN3_OK;
    return status;
}

void session_has_logits(qwen3_session *s, bool has) {
    s->has_logits = has;
    if (s->gpu) s->gpu->logits_wait = false;
}

/* ---- streams of the cache ---------------------------------------------------------- */

size_t session_n_streams(const qwen3_session *s) {
    return 2 * (size_t)s->model->config.n_layers * (size_t)s->kv.n_kv_heads;
}

uint8_t *session_stream(const qwen3_session *s, size_t stream) {
    return stream < kv_n_streams(&s->kv) ? kv_stream(&s->kv, stream) : NULL;
}

qwen3_status session_read_stream(const qwen3_session *s, size_t stream, size_t first, void *to,
                                 size_t n, qwen3_error *err) {
    const uint8_t *here = session_stream(s, stream);
    if (!here)
        return gpu_sequence_read(s->gpu, stream - kv_n_streams(&s->kv), first, to, n, err);
    memcpy(to, here + first, n);
    return QWEN3_OK;
}

qwen3_status session_write_stream(const qwen3_session *s, size_t stream, size_t first,
                                  const void *from, size_t n, qwen3_error *err) {
    uint8_t *here = session_stream(s, stream);
    if (!here)
        return gpu_sequence_write(s->gpu, stream - kv_n_streams(&s->kv), first, from, n, err);
    memcpy(here + first, from, n);
    return QWEN3_OK;
}

/* ---- computing --------------------------------------------------------------------- */

qwen3_status session_check_owner(const qwen3_session *s, qwen3_error *err) {
    if (getpid() == s->model->owner) return QWEN3_OK;
    return fail(err, QWEN3_ERR_ARG,
                "this process was forked after the model was opened: open it again here");
}

/* Computes ids[keep..n) behind the keep tokens that stay. prompt: exactly, whatever the model's
 * approximation. all: NULL, or where the logits of every one of them go. */
static qwen3_status compute(qwen3_session *s, const int32_t *ids, size_t keep, size_t n,
                            bool prompt, float *all, qwen3_error *err) {
    size_t n_vocab = (size_t)s->model->config.n_vocab;
    qwen3_status status = session_check_owner(s, err);
    if (status != QWEN3_OK) return status;
    s->n = keep;
    s->has_logits = false;
    s->work.approximates = s->model->approximates && !prompt;
    while (s->n < n) {
        size_t count = n - s->n < (size_t)s->work.batch ? n - s->n : (size_t)s->work.batch;
        bool last = s->n + count == n;
        memmove(s->ids + s->n, ids + s->n, count * sizeof *ids); /* ids may be the session's own */
        sequence to = session_sequence(s, all ? all + (s->n - keep) * n_vocab
                                              : session_logits_place(s));
        status = forward(&s->work, &to, 1, s->ids + s->n, (int)count, all ? (int)count : last,
                         err);
        if (status == QWEN3_ERR_CANCELLED)
            fail(err, status, "cancelled after %zu of %zu tokens", s->n, n);
        if (status != QWEN3_OK) return status;
        s->n += count;
        s->has_logits = last;
    }
    if (all) memcpy(s->logits, all + (n - keep - 1) * n_vocab, n_vocab * sizeof *all);
    return QWEN3_OK;
}

qwen3_status session_check(const qwen3_session *s, const int32_t *ids, size_t n, size_t total,
                           qwen3_error *err) {
    if (total > s->n_ctx)
        return fail(err, QWEN3_ERR_CONTEXT,
                    "%zu tokens do not fit the context of %zu: %zu too many", total, s->n_ctx,
                    total - s->n_ctx);
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= s->model->config.n_vocab)
            return fail(err, QWEN3_ERR_ARG, "token %d at index %zu is outside the vocabulary of %d",
                        ids[i], i, s->model->config.n_vocab);
    return QWEN3_OK;
}

int64_t qwen3_sync(qwen3_session *s, const int32_t *ids, size_t n, qwen3_error *err) {
    if (session_check(s, ids, n, n, err) != QWEN3_OK) return -1;
    size_t keep = 0;
    while (keep < n && keep < s->n && ids[keep] == s->ids[keep]) keep++;
    bool unchanged = keep == n && n == s->n && s->has_logits;
    if (keep == n && n > 0 && !unchanged) keep--; /* its logits are not at hand any more */
    if (keep == n) atomic_store(&s->cancel, false); /* nothing runs that it could stop */
    if (!unchanged && compute(s, ids, keep, n, true, NULL, err) != QWEN3_OK) return -1;
    return (int64_t)keep;
}

qwen3_status qwen3_extend_logits(qwen3_session *s, const int32_t *ids, size_t n, float *logits,
                                 qwen3_error *err) {
    if (n == 0) return fail(err, QWEN3_ERR_ARG, "there are no tokens to append");
    if (n > s->n_ctx) return session_check(s, NULL, 0, n, err);
    qwen3_status status = session_check(s, ids, n, s->n + n, err);
    if (status != QWEN3_OK) return status;
    memcpy(s->ids + s->n, ids, n * sizeof *ids);
    return compute(s, s->ids, s->n, s->n + n, n > 1, logits, err);
}

qwen3_status qwen3_extend(qwen3_session *s, const int32_t *ids, size_t n, qwen3_error *err) {
    return qwen3_extend_logits(s, ids, n, NULL, err);
}

qwen3_status qwen3_session_observe(qwen3_session *s, qwen3_importance *im, qwen3_error *err) {
    if (im && s->gpu)
        return fail(err, QWEN3_ERR_ARG, "a GPU does not count what enters the matrices: open the "
                    "model without it");
    if (im && !importance_is_of(im, s->model))
        return fail(err, QWEN3_ERR_ARG, "the importance is of another model than the session");
    s->work.importance = im;
    return QWEN3_OK;
}

size_t qwen3_session_len(const qwen3_session *s) { return s->n; }
size_t qwen3_session_n_ctx(const qwen3_session *s) { return s->n_ctx; }
size_t qwen3_session_kv_bytes(const qwen3_session *s) {
    return s->kv.bytes + (s->gpu ? s->gpu->kv_bytes : 0);
}
const int32_t *qwen3_session_ids(const qwen3_session *s) { return s->ids; }
const float *qwen3_session_logits(const qwen3_session *s) {
    return s->has_logits && session_fetch_logits(s, NULL) == QWEN3_OK ? s->logits : NULL;
}
void qwen3_session_cancel(qwen3_session *s) { atomic_store(&s->cancel, true); }
