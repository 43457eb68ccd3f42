/* trial.h - finds out which of two ways to do something again and again is faster: both are tried
 * in turns, and the one that won more often is kept for a while. */
#ifndef QWEN3_TRIAL_H
#define QWEN3_TRIAL_H

#include <stdbool.h>
#include <stdint.h>

/* Pairs of the two ways, the first one first in every other pair: neither a slow drift nor a
 * hiccup decides. All 0 at first. */
typedef struct {
    int n;        /* times since the trial began */
    int wins[2];
    int64_t last; /* ns, of the first of a pair */
    bool better;  /* the way that is kept */
} trial;

enum { TRIAL_PAIRS = 16, TRIAL_EVERY = 512 };

/* The way to take now. */
static inline bool trial_way(const trial *t) {
    return t->n < 2 * TRIAL_PAIRS ? (t->n ^ t->n >> 1) & 1 : t->better;
}

/* How long that took. */
static inline void trial_took(trial *t, int64_t ns) {
    if (t->n < 2 * TRIAL_PAIRS) {
        bool way = trial_way(t);
        if (t->n % 2) t->wins[ns < t->last ? way : !way]++;
        t->last = ns;
    }
    t->n++;
    if (t->n == 2 * TRIAL_PAIRS) t->better = t->wins[1] > t->wins[0];
    if (t->n == TRIAL_EVERY) *t = (trial){.better = t->better};
}

#endif
