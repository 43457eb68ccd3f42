/* sample.c - draws the next token: penalties, then temperature, top-k, top-p and
 * min-p in this order, as the reference implementations apply them.
 *
 * The random number is a hash of (seed, position), so that a draw can be repeated
 * without any state: rewinding a session rewinds its luck.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "gpu/logits.h"
#include "grammar.h"
#include "session.h"

enum { FIRST_SORTED = 256 }; /* the nucleus is first looked for among so many */

/* splitmix64 (Steele, Lea, Flood 2014), one step. */
static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* Uniform in [0, 1). */
static double uniform(uint64_t seed, uint64_t position) {
    return (double)(mix(mix(seed) ^ position) >> 11) * 0x1p-53;
}

/* The larger logit first; of equal ones the lower id, so that there is one order. */
static bool before(candidate a, candidate b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static int by_rank(const void *a, const void *b) {
    candidate x = *(const candidate *)a, y = *(const candidate *)b;
    return before(x, y) ? -1 : before(y, x);
}

/* Restores a heap whose root is the last in rank, below i. */
static void sink(candidate *heap, size_t n, size_t i) {
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(heap[child], heap[child + 1])) child++;
        if (before(heap[child], heap[i])) return;
        candidate moved = heap[i];
        heap[i] = heap[child];
        heap[child] = moved;
    }
}

/* Brings the k first in rank to the front, in order. A heap whose root is the last
 * in rank holds the best so far; most of the vocabulary fails against the root. */
static candidate *select_top(candidate *c, size_t n, size_t k) {
    if (k < n) {
        for (size_t i = k / 2; i-- > 0;) sink(c, k, i);
        for (size_t i = k; i < n; i++)
            if (before(c[i], c[0])) {
                candidate out = c[0];
                c[0] = c[i];
                c[i] = out;
                sink(c, k, 0);
            }
    }
    qsort(c, k, sizeof *c, by_rank);
    return c;
}

static bool penalizes(const qwen3_sampling *p) {
    return p->repetition_penalty != 1 || p->presence_penalty != 0;
}

static void mark_seen(qwen3_session *s, size_t generated_from) {
    memset(s->seen, 0, (size_t)s->model->config.n_vocab);
    for (size_t i = 0; i < s->n; i++) s->seen[s->ids[i]] |= i >= generated_from ? 3 : 1;
}

static void penalize(qwen3_session *s, const qwen3_sampling *p, size_t generated_from) {
    size_t n_vocab = (size_t)s->model->config.n_vocab;
    if (!penalizes(p)) return;
    mark_seen(s, generated_from);
    for (size_t i = 0; i < n_vocab; i++) {
        float *logit = &s->candidates[i].logit;
        if (s->seen[i] & 1)
            *logit = *logit > 0 ? *logit / p->repetition_penalty : *logit * p->repetition_penalty;
        if (s->seen[i] & 2) *logit -= p->presence_penalty;
    }
}

static qwen3_status check(const qwen3_session *s, const qwen3_sampling *p, qwen3_error *err) {
    if (!s->has_logits)
        return fail(err, QWEN3_ERR_ARG, "there are no logits to draw from: sync the session first");
    if (!(p->temperature >= 0 && p->temperature <= 100))
        return fail(err, QWEN3_ERR_ARG, "temperature %g: use 0 to 100", (double)p->temperature);
    if (p->top_k < 0) return fail(err, QWEN3_ERR_ARG, "top_k %d: use 0 (off) or more", p->top_k);
    if (!(p->top_p > 0 && p->top_p <= 1))
        return fail(err, QWEN3_ERR_ARG, "top_p %g: use more than 0, up to 1 (off)",
                    (double)p->top_p);
    if (!(p->min_p >= 0 && p->min_p <= 1))
        return fail(err, QWEN3_ERR_ARG, "min_p %g: use 0 (off) to 1", (double)p->min_p);
    if (!(p->repetition_penalty >= 0.01f && p->repetition_penalty <= 100))
        return fail(err, QWEN3_ERR_ARG, "repetition penalty %g: use 0.01 to 100, 1 is off",
                    (double)p->repetition_penalty);
    if (!(p->presence_penalty >= -100 && p->presence_penalty <= 100))
        return fail(err, QWEN3_ERR_ARG, "presence penalty %g: use -100 to 100, 0 is off",
                    (double)p->presence_penalty);
    return QWEN3_OK;
}

/* All tokens, after penalties, as candidates. */
static qwen3_status all_candidates(qwen3_session *s, const qwen3_sampling *p,
                                   size_t generated_from, qwen3_error *err) {
    qwen3_status status = session_fetch_logits(s, err);
    for (int32_t i = 0; i < s->model->config.n_vocab && status == QWEN3_OK; i++) {
        if (!isfinite(s->logits[i]))
            status = fail(err, QWEN3_ERR_FORMAT,
                          "the logit of token %d is not a finite number: the model file is damaged "
                          "or was badly converted", i);
        s->candidates[i] = (candidate){i, s->logits[i]};
    }
    if (status == QWEN3_OK) penalize(s, p, generated_from);
    return status;
}

/* The ids that are penalized, the generated ones first, to where a device takes them from. */
static gpu_penalties penalties_of(qwen3_session *s, const qwen3_sampling *p,
                                  size_t generated_from) {
    gpu_penalties all = {0, 0, p->repetition_penalty, p->presence_penalty};
    if (!penalizes(p)) return all;
    int32_t *to = s->gpu->staged.penalized, n_vocab = s->model->config.n_vocab;
    mark_seen(s, generated_from);
    for (int32_t id = 0; id < n_vocab; id++)
        if (s->seen[id] & 2) to[all.n++] = id;
    all.n_generated = all.n;
    for (int32_t id = 0; id < n_vocab; id++)
        if (s->seen[id] == 1) to[all.n++] = id;
    return all;
}

/* While the logits are a device's: the first in rank of all_candidates, as many as can be drawn, in
 * order. 0: let the host look, as for logits that are not finite. */
static size_t best_candidates(qwen3_session *s, const qwen3_sampling *p, size_t generated_from) {
    int32_t k = p->temperature == 0 ? 1 : p->top_k;
    if (!s->gpu || !s->gpu->logits_wait) return 0;
    if (k < 1 || k > TOP_MOST || k >= s->model->config.n_vocab) return 0;
    const top_result *top = s->gpu->staged.top;
    gpu_penalties penalties = penalties_of(s, p, generated_from);
    if (gpu_best(s->gpu, &penalties, k, NULL) != QWEN3_OK || top->bad >= 0) return 0;
    for (int32_t i = 0; i < k; i++) s->candidates[i] = (candidate){top->id[i], top->logit[i]};
    return (size_t)k;
}

/* The probability of a candidate as a fraction of the best one's. */
static double odds(candidate c, float best, float temperature) {
    return (double)expf((c.logit - best) / temperature);
}

/* Brings to the front what top-p and min-p leave of the first k: at least the best.
 * Their odds add up to *kept. What one of the two needs no order for is not sorted. */
static size_t truncate(candidate *c, size_t n, size_t k, const qwen3_sampling *p, float best,
                       double *kept) {
    size_t count = 0;
    double total = 0;
    *kept = 0;
    if (k < n) select_top(c, n, k);
    for (size_t i = 0; i < k; i++) total += odds(c[i], best, p->temperature);
    if (p->top_p == 1) {
        for (size_t i = 0; i < k; i++) {
            double x = odds(c[i], best, p->temperature);
            if (x < (double)p->min_p) continue;
            *kept += x;
            c[count++] = c[i];
        }
        return count;
    }
    for (size_t sorted = k < FIRST_SORTED ? k : FIRST_SORTED;; sorted *= 4) {
        if (sorted > k) sorted = k;
        select_top(c, k, sorted); /* the first ones stay first: look further only */
        for (; count < sorted; count++) {
            double x = odds(c[count], best, p->temperature);
            if (count && (*kept >= (double)p->top_p * total || x < (double)p->min_p)) return count;
            *kept += x;
        }
        if (sorted == k) return count;
    }
}

/* Leaves the candidates whose bit in the mask is set. */
static size_t keep_allowed(candidate *c, size_t n, const uint64_t *mask, size_t n_mask) {
    size_t kept = 0;
    for (size_t i = 0; i < n && i < n_mask; i++)
        if (mask[i / 64] >> i % 64 & 1) c[kept++] = c[i];
    return kept;
}

/* mask: n_mask bits; NULL allows everything. */
static int32_t draw(qwen3_session *s, const qwen3_sampling *p, size_t generated_from,
                    const uint64_t *mask, size_t n_mask, qwen3_error *err) {
    if (check(s, p, err) != QWEN3_OK) return -1;
    candidate *c = s->candidates;
    size_t n = mask ? 0 : best_candidates(s, p, generated_from);
    if (n == 0) {
        n = (size_t)s->model->config.n_vocab;
        if (all_candidates(s, p, generated_from, err) != QWEN3_OK) return -1;
    }
    if (mask) n = keep_allowed(c, n, mask, n_mask);
    if (n == 0) {
        fail(err, QWEN3_ERR_ARG, "the grammar allows no token here: the text is complete, and "
             "none of its end tokens is a token of this model");
        return -1;
    }
    if (p->temperature == 0) return select_top(c, n, 1)->id;
    float best = c[0].logit;
    for (size_t i = 1; i < n; i++) best = c[i].logit > best ? c[i].logit : best;
    size_t k = p->top_k && (size_t)p->top_k < n ? (size_t)p->top_k : n;
    double kept;
    size_t n_kept = truncate(c, n, k, p, best, &kept);
    double at = uniform(p->seed, s->n) * kept;
    for (size_t i = 0; i < n_kept; i++)
        if ((at -= odds(c[i], best, p->temperature)) < 0) return c[i].id;
    return c[n_kept - 1].id;
}

int32_t qwen3_sample(qwen3_session *s, const qwen3_sampling *p, size_t generated_from,
                     qwen3_error *err) {
    return draw(s, p, generated_from, NULL, 0, err);
}

int32_t qwen3_sample_matching(qwen3_session *s, const qwen3_sampling *p, size_t generated_from,
                              qwen3_matcher *matcher, qwen3_error *err) {
    size_t n_mask;
    const uint64_t *mask = qwen3_matcher_mask(matcher, &n_mask, err);
    return mask ? draw(s, p, generated_from, mask, n_mask, err) : -1;
}
