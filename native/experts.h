/* experts.h - the experts of a model that is larger than memory.
 *
 * A budget of bytes holds the experts that were used most of late; the others are read from the
 * file when a layer has chosen them. Slots are address space: only what an expert takes of its
 * slot is memory and counts.
 */
#ifndef QWEN3_EXPERTS_H
#define QWEN3_EXPERTS_H

#include <stdatomic.h>

#include "larger.h"

typedef struct expert_store expert_store;

typedef enum { EXPERT_GATE, EXPERT_UP, EXPERT_DOWN, EXPERT_PARTS } expert_part;

/* Where a layer has the matrices of one part: expert e's takes bytes from offset + e * bytes on. */
typedef struct {
    int file;
    uint64_t offset;
    size_t bytes;
    uint32_t type;
} expert_extent;

typedef struct {
    int n_layers, n_experts;
    int n_used;                   /* experts that a token chooses in a layer */
    const expert_extent *extents; /* [n_layers][EXPERT_PARTS] */
    const char *const *paths;
    int n_paths;
} expert_bank;

/* The least budget: what one token meets, of the largest layers. */
uint64_t experts_least_budget(const expert_bank *);

/* Copies what it needs of the bank. Refuses a budget below the least one. */
expert_store *experts_open(const expert_bank *, uint64_t budget, int n_readers, qwen3_error *err);
/* NULL is ignored. */
void experts_close(expert_store *);

/* Who leaves is decided by a decayed count of uses: one counts half after so many tokens, > 0. It
 * is 8 if not set; far below one token the count is LRU. Called like experts_want. */
void experts_set_half_life(expert_store *, float tokens);

/* Before an expert is wanted: each slot takes what the largest expert does, and keeps it, for a
 * device that copies out of it. The memory of them all, whole pages; NULL: one was wanted. */
uint8_t *experts_fix_slots(expert_store *, size_t *bytes);

/* How many experts may be wanted in one call. */
int experts_most(const expert_store *);

/* The n experts, each once, that a layer computes with from now on, and n_next others of it that
 * it will want in the next call: those that are not there are read, in this order. None of them
 * leaves before the next call. passing: as in prefill, where nearly all experts pass by and their
 * choice says little of the tokens to come: they push out each other before those that stay.
 * One thread calls it while no other is in the store. */
void experts_want(expert_store *, int layer, const int32_t *experts, int n, const int32_t *next,
                  int n_next, bool passing);
/* Of the n experts of the last call: whether one needed no reading, and how many did. */
bool experts_was_there(const expert_store *, int layer, int expert);
int experts_n_awaited(const expert_store *);
/* Whether an expert is in memory because it was chosen before: not by a guess, so that the answer
 * does not depend on how fast the disk is. Any thread, while none is in experts_want. */
bool experts_holds(const expert_store *, int layer, int expert);
/* What another layer will want by a guess: it is read while no wanted expert waits for the disk,
 * and pushes out wrong guesses before it, nothing more than a right one would have. The one thread
 * calls it, while others may be in experts_matrix. */
void experts_guess(expert_store *, int layer, const int32_t *experts, int n);
/* Whether to guess now: never when every expert has room. By default both ways are tried by turns,
 * on tokens that come one by one, and the faster one is taken for some time; or it is set. */
bool experts_guesses(const expert_store *);
void experts_set_guesses(expert_store *, qwen3_guesses);
/* The matrix of a wanted expert, as soon as it is there. After a failed read, and when *cancel
 * becomes true, what it points to is of no use. Any thread. */
const uint8_t *experts_matrix(expert_store *, int layer, int expert, expert_part,
                              const atomic_bool *cancel);
/* QWEN3_OK, or why a read that experts_matrix waited for has failed since the last call: a guess
 * that fails is none. The expert is read anew when it is wanted again. Called like experts_want. */
qwen3_status experts_status(expert_store *, qwen3_error *err);

qwen3_expert_stats experts_stats(const expert_store *);

#endif
