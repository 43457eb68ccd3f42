/* together.h - sessions of one model that decode side by side: weights are read once for all. */
#ifndef QWEN3_TOGETHER_H
#define QWEN3_TOGETHER_H

#include "qwen3.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { QWEN3_TOGETHER = 8 }; /* most sessions of a call */

/* Appends tokens[i] to sessions[i], as qwen3_extend by one token of each does, with the same bits:
 * n different sessions of one model, 1 to QWEN3_TOGETHER, of any lengths and kinds of cache; none
 * that is observed or has forced routes. All get their token or none does: an error names the
 * session by its index. A cancel of any of them ends the call for all; they are then as after a
 * cancelled qwen3_extend. It allocates nothing: the memory of the first session is worked in. With
 * an approximation (larger.h) the choice of experts, and so the bits, may differ. */
qwen3_status qwen3_extend_together(qwen3_session *const *sessions, const int32_t *tokens, size_t n,
                                   qwen3_error *err);

#ifdef __cplusplus
}
#endif
#endif
