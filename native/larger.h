/* larger.h - models that are larger than memory: what their store of experts did, and what it may
 * do. For a model that was opened without expert_bytes all of it is without effect. */
#ifndef QWEN3_LARGER_H
#define QWEN3_LARGER_H

#include "qwen3.h"

#ifdef __cplusplus
extern "C" {
#endif

/* All 0 for a model without a store. Not while a session computes. */
typedef struct {
    uint64_t budget, used; /* bytes */
    uint64_t hits, misses; /* experts that a layer wanted, and that were in memory or in the file */
    uint64_t guesses, right_guesses; /* that were read before a layer wanted them */
    uint64_t bytes_read;
    double stall_s;        /* in which a thread waited for a read */
    bool direct;           /* reads go past the page cache */
} qwen3_expert_stats;
qwen3_expert_stats qwen3_model_expert_stats(const qwen3_model *);

/* What decoding may give up to wait less for the file. That is a qwen3_extend by one token; what
 * qwen3_sync computes, and several tokens at once, are exact. 0: nothing. */
typedef struct {
    float prefer; /* an expert in memory is chosen as if its router logit were higher by this; the
                     likeliest quarter of those a token uses is chosen as ever, the weights are the
                     true ones (Skliar et al., Mixture of Cache-Conditional Experts, 2024) */
    float drop;   /* an expert in the file whose weight among the chosen is below this is left
                     out */
} qwen3_approximation;
/* No session of the model computes meanwhile. */
qwen3_status qwen3_model_approximate(qwen3_model *, qwen3_approximation, qwen3_error *err);

/* Whether experts in the file are read by a guess, a layer before they are chosen, while nobody
 * waits for the disk. The answers are the same; by default it is tried, and done where it is
 * faster. With an approximation nothing is guessed. */
typedef enum { QWEN3_GUESS_TRY, QWEN3_GUESS_ON, QWEN3_GUESS_OFF } qwen3_guesses;
/* No session of the model computes meanwhile. */
void qwen3_model_guess(qwen3_model *, qwen3_guesses);

#ifdef __cplusplus
}
#endif
#endif
