/* together.c - see together.h. */
#include "together.h"

#include "error.h"
#include "share.h"
#include "session.h"

_Static_assert((int)QWEN3_TOGETHER <= (int)MOST_SEQUENCES, "any session has memory for so many");

static qwen3_status check_session(qwen3_session *const *sessions, size_t i, int32_t token,
                                  qwen3_error *err) {
    const qwen3_session *s = sessions[i];
    qwen3_error why;
    if (s->model != sessions[0]->model)
        return fail(err, QWEN3_ERR_ARG, "session %zu is of another model than session 0", i);
    for (size_t k = 0; k < i; k++)
        if (s == sessions[k])
            return fail(err, QWEN3_ERR_ARG, "session %zu is session %zu: each takes one token", i,
                        k);
    if (s->work.importance || s->work.routes)
        return fail(err, QWEN3_ERR_ARG,
                    "session %zu is observed or has forced routes: extend it alone", i);
    qwen3_status status = session_check(s, &token, 1, s->n + 1, &why);
    return status == QWEN3_OK ? status : fail(err, status, "session %zu: %s", i, why.text);
}

qwen3_status qwen3_extend_together(qwen3_session *const *sessions, const int32_t *tokens, size_t n,
                                   qwen3_error *err) {
    sequence sequences[QWEN3_TOGETHER];
    if (n < 1 || n > QWEN3_TOGETHER)
        return fail(err, QWEN3_ERR_ARG, "%zu sessions decode together: use 1 to %d", n,
                    QWEN3_TOGETHER);
    qwen3_status status = session_check_owner(sessions[0], err);
    for (size_t i = 0; i < n && status == QWEN3_OK; i++)
        status = check_session(sessions, i, tokens[i], err);
    if (status != QWEN3_OK) return status;
    for (size_t i = 0; i < n; i++) {
        sessions[i]->has_logits = false;
        sequences[i] = session_sequence(sessions[i], session_logits_place(sessions[i]));
    }
    workspace *ws = &sessions[0]->work;
    ws->approximates = ws->model->approximates;
    status = forward(ws, sequences, (int)n, tokens, (int)n, (int)n, err);
    if (status == QWEN3_ERR_CANCELLED) fail(err, status, "cancelled: no session has its token");
    for (size_t i = 0; i < n && status == QWEN3_OK; i++) {
        sessions[i]->ids[sessions[i]->n++] = tokens[i];
        sessions[i]->has_logits = true;
    }
    return status;
}
