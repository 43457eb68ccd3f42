/* scaled.h - the search for a scale alone: Q6_K, IQ4_NL, IQ4_XS; Q4_0, Q5_0 with importances.
 *
 * Scales around the one that just covers the values give levels, those the scale of least
 * weighted square error. In a super-block, rounds then alternate between the packed scales of
 * the sub-blocks and the f16 scale of the super-block.
 */
#ifndef QWEN3_ENCODE_SCALED_H
#define QWEN3_ENCODE_SCALED_H

#include "batch.h"

/* Where the levels of IQ4 meet, and how far apart they are. */
static const float iq4_border[15] = {-115.5, -93.5, -74,   -57,   -42, -28.5, -16, -4.5,
                                     7,      19,    31.5,  45.5,  61,  79,    101};
static const int iq4_gap[15] = {23, 21, 18, 16, 14, 13, 12, 11, 12, 12, 13, 15, 16, 20, 24};

/* The levels a type has for x / scale: whole numbers in [-reach, reach), or those of IQ4. */
typedef struct {
    float reach, width; /* the largest magnitude; how far apart levels are, about */
    bool iq4;
    bool both_ends; /* few levels, one more of one sign: try either sign of the scale */
} grid;

static const grid grid_4 = {8, 1, false, true}, grid_5 = {16, 1, false, true},
                  grid_6 = {32, 1, false, false}, grid_iq4 = {127, 13, true, true};

static inline vf nearest_level(const grid t, vf v) {
    if (!t.iq4) return vf_round(vf_min(vf_max(v, vf_set1(-t.reach)), vf_set1(t.reach - 1)));
    vi q = (vi){0} - 127;
    for (int k = 0; k < 15; k++) q += (v > iq4_border[k]) & iq4_gap[k];
    return __builtin_convertvector(q, vf);
}

/* Weighted sums over values x and the levels q a scale gives them: the square error of
 * x ~ scale q is, less the constant sum of w x^2, scale (scale qq - 2 qx). */
typedef struct { vf qq, qx; } scaled_sums;

static inline scaled_sums scaled_measure(const batch *b, int g, const int n, const grid t, vf inv) {
    vf zero = {0};
    scaled_sums s = {zero, zero};
    for (int i = 0; i < n; i++) {
        vf x = vf_load(b->x[i] + g), w = vf_load(b->w[i] + g);
        vf q = nearest_level(t, x * inv), wq = w * q;
        s.qq += wq * q;
        s.qx += wq * x;
    }
    return s;
}

/* The best scale of each group; first the extreme value at the lowest level. */
static inline void scaled_search(const batch *b, const int n, const grid t, float *fit) {
    for (int g = 0; g < BATCH; g += LANES) {
        vf zero = {0}, low = zero, high = zero, best = zero, best_scale = zero;
        for (int i = 0; i < n; i++) {
            low = vf_min(low, vf_load(b->x[i] + g));
            high = vf_max(high, vf_load(b->x[i] + g));
        }
        vf lowest_inv = vf_inverse(vf_pick(high > -low, -high, -low));
        for (int try = 0; try < (t.both_ends ? 34 : 17); try++) {
            float reach = t.reach + t.width * 0.5f * (float)(try % 17 - 8);
            scaled_sums s = scaled_measure(b, g, n, t, (try < 17 ? reach : -reach) * lowest_inv);
            vf scale = s.qx * vf_inverse(s.qq), gain = scale * s.qx;
            vi better = gain > best;
            best = vf_pick(better, gain, best);
            best_scale = vf_pick(better, scale, best_scale);
        }
        vf_store(fit + g, best_scale);
    }
}

/* What the packed scale of each group costs, and the sums of its levels. */
typedef struct {
    _Alignas(64) float scale[BATCH], error[BATCH], qq[BATCH], qx[BATCH];
} scaled_packed;

/* The packed scales near those of the fit that cost least; the fit becomes the best for
 * their levels. d of each group. */
static inline void scaled_pack(const batch *b, const int n, const grid t, float range,
                               const float *d, float *fit, scaled_packed *packed) {
    for (int g = 0; g < BATCH; g += LANES) {
        vf zero = {0}, dv = vf_load(d + g), low = vf_set1(-range), high = vf_set1(range - 1);
        vf first = vf_floor(vf_min(vf_max(vf_load(fit + g) * vf_inverse(dv), low), high));
        vf best = vf_set1(INFINITY), best_scale = zero;
        scaled_sums best_sums = {zero, zero};
        for (int k = 0; k < 2; k++) {
            vf packed_scale = vf_min(first + (float)k, high), scale = packed_scale * dv;
            scaled_sums s = scaled_measure(b, g, n, t, vf_inverse(scale));
            vf error = scale * (scale * s.qq - 2 * s.qx);
            vi better = error < best;
            best = vf_pick(better, error, best);
            best_scale = vf_pick(better, packed_scale, best_scale);
            best_sums.qq = vf_pick(better, s.qq, best_sums.qq);
            best_sums.qx = vf_pick(better, s.qx, best_sums.qx);
        }
        vf_store(fit + g, best_sums.qx * vf_inverse(best_sums.qq));
        vf_store(packed->scale + g, best_scale);
        vf_store(packed->error + g, best);
        vf_store(packed->qq + g, best_sums.qq);
        vf_store(packed->qx + g, best_sums.qx);
    }
}

/* A super-block of sub-blocks with a scale each in -range .. range - 1. */
typedef struct {
    f16_t d;
    int8_t scale[16];
} scaled_super;

/* The BATCH / n_sub super-blocks from value `at` on. */
static inline void scaled_supers(const weights *in, size_t at, const grid t, const int n_sub,
                                 float range, scaled_super *best) {
    const int n = SUPER / n_sub, n_super = BATCH / n_sub;
    batch b;
    _Alignas(64) float fit[BATCH], d[BATCH];
    scaled_packed packed;
    scaled_super try[2];
    double best_error[2] = {INFINITY, INFINITY};
    batch_load(&b, in, at, n, SUPER);
    scaled_search(&b, n, t, fit);
    for (int j = 0; j < n_super; j++) {
        float extreme = 0;
        for (int g = n_sub * j; g < n_sub * (j + 1); g++)
            extreme = fabsf(fit[g]) > fabsf(extreme) ? fit[g] : extreme;
        /* The scale of the largest magnitude becomes -range, whatever its sign. */
        try[j].d = f16_above(fabsf(extreme) / range);
        if (extreme > 0) try[j].d |= 0x8000;
    }
    for (int round = 0; round < PACK_ROUNDS; round++) {
        for (int g = 0; g < BATCH; g++) d[g] = f16_to_f32(try[g / n_sub].d);
        scaled_pack(&b, n, t, range, d, fit, &packed);
        for (int j = 0; j < n_super; j++) {
            double error = 0, ss = 0, sx = 0;
            for (int k = 0, g = n_sub * j; k < n_sub; k++, g++) {
                double s = packed.scale[g];
                error += packed.error[g];
                ss += s * s * packed.qq[g];
                sx += s * packed.qx[g];
                try[j].scale[k] = (int8_t)s;
            }
            if (error < best_error[j]) {
                best_error[j] = error;
                best[j] = try[j];
            }
            if (ss > 0) try[j].d = f32_to_f16((float)(sx / ss));
        }
    }
}

#endif
