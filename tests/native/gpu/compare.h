/* compare.h - checks of the C tests, and logits as they should be. */
#ifndef QWEN3_TEST_COMPARE_H
#define QWEN3_TEST_COMPARE_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static int failures;

#define CHECK(condition, ...)                                               \
    do {                                                                    \
        if (!(condition)) {                                                 \
            failures++;                                                     \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            fprintf(stderr, __VA_ARGS__);                                   \
            fputc('\n', stderr);                                            \
        }                                                                   \
    } while (0)

/* log of the sum of e^x, and the index of the largest. */
static inline double log_sum(const float *x, int n, int *best) {
    double sum = 0;
    *best = 0;
    for (int i = 0; i < n; i++)
        if (x[i] > x[*best]) *best = i;
    for (int i = 0; i < n; i++) sum += exp((double)x[i] - x[*best]);
    return x[*best] + log(sum);
}

static inline double divergence(const float *wanted, const float *got, int n, int *same) {
    int best, best_got;
    double of_wanted = log_sum(wanted, n, &best), of_got = log_sum(got, n, &best_got), kl = 0;
    for (int i = 0; i < n; i++) {
        double p = wanted[i] - of_wanted;
        kl += exp(p) * (p - (got[i] - of_got));
    }
    *same += best == best_got;
    return kl;
}

/* Rows of logits: their mean divergence is at most that, and the best token of each the same. */
static inline void compare_logits(const char *what, const float *wanted, const float *got, int n,
                                  int n_vocab, double most) {
    int same = 0;
    double kl = 0;
    for (int i = 0; i < n; i++) {
        size_t at = (size_t)i * (size_t)n_vocab;
        kl += divergence(wanted + at, got + at, n_vocab, &same) / n;
    }
    CHECK(kl <= most && same == n, "%s: KL %g, the same top in %d of %d", what, kl, same, n);
}

#endif
