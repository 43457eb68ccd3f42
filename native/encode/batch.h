/* batch.h - sixteen groups of weights side by side, and what an error in them costs. */
#ifndef QWEN3_ENCODE_BATCH_H
#define QWEN3_ENCODE_BATCH_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>

#include "../decode.h"
#include "lanes.h"

enum { BATCH = 16, SUPER = 256 };
/* Rounds that fit the scale of a super-block and those of its sub-blocks to each other. */
enum { PACK_ROUNDS = 3 };

static const float tiny = 0x1p-25f; /* half of the smallest f16: smaller values become 0 */
static const float f16_max = 65504;

/* Value i of group g is x[i][g]; the square of an error there costs w[i][g]. A loop over
 * the batch takes LANES groups at a time. */
typedef struct {
    _Alignas(64) float x[32][BATCH], w[32][BATCH];
} batch;

/* The weights an encoder reads: rows of n_per_row, with an importance for each column. */
typedef struct {
    const float *x;
    size_t n, column, n_per_row; /* the column of the first */
    const float *importance;     /* NULL: all alike */
} weights;

/* The importances of the weights from value `at` on, within a row. */
static inline const float *importance_at(const weights *in, size_t at) {
    return in->importance ? in->importance + (in->column + at) % in->n_per_row : NULL;
}

/* NaN gives low. */
static inline float clampf(float v, float low, float high) {
    v = v > low ? v : low;
    return v < high ? v : high;
}

static inline float inverse(float v) { return fabsf(v) < FLT_MIN ? 0 : 1 / v; }

static inline float largest_magnitude(const float *x, int n) {
    int32_t max = 0; /* magnitudes are ordered as their bits */
    for (int i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffff;
        max = bits > max ? bits : max;
    }
    float magnitude;
    memcpy(&magnitude, &max, sizeof magnitude);
    return magnitude;
}

/* The smallest f16 that is not below v >= 0. */
static inline f16_t f16_above(float v) {
    f16_t h = f32_to_f16(v);
    return f16_to_f32(h) < v ? (f16_t)(h + 1) : h;
}

static float root_mean_square(const float *x, int n) {
    float s[BATCH] = {0};
    for (int i = 0; i < n; i += BATCH)
        for (int l = 0; l < BATCH; l++) s[l] += x[i + l] * x[i + l];
    for (int half = BATCH / 2; half; half /= 2)
        for (int l = 0; l < half; l++) s[l] += s[l + half];
    return sqrtf(s[0] / (float)n);
}

/* The groups of n from value `at` on. Each `extent` values, whole groups, have the cost of an
 * error in common: importance times a growing function of |x|, so that the few large values,
 * which dominate a product, stay exact. What is too small for an f16 scale, and what lies
 * behind the end, becomes zeros. */
static inline void batch_load(batch *b, const weights *in, size_t at, const int n,
                              const int extent) {
    float rms[BATCH], factor[BATCH];
    for (int g = 0; g < BATCH; g += extent / n) {
        size_t start = at + (size_t)(g * n);
        const float *x = in->x + start, *importance = importance_at(in, start);
        bool zero = start >= in->n || largest_magnitude(x, extent) < tiny;
        float max = importance && !zero ? largest_magnitude(importance, extent) : 0;
        float size = zero ? 1 : root_mean_square(x, extent);
        for (int k = g; k < g + extent / n; k++, x += n) {
            rms[k] = size;
            factor[k] = max;
            for (int i = 0; i < n; i++) b->x[i][k] = zero ? 0 : x[i];
        }
    }
    for (int i = 0; i < n; i++)
        for (int g = 0; g < BATCH; g++) b->w[i][g] = rms[g] + fabsf(b->x[i][g]);
    for (int g = 0; in->importance && g < BATCH; g++) {
        const float *importance = importance_at(in, at + (size_t)(g * n));
        for (int i = 0; factor[g] > 0 && i < n; i++)
            b->w[i][g] *= importance[i] / factor[g] + 1e-6f; /* never 0: a fit needs a cost */
    }
}

#endif
