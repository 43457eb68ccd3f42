/* affine.h - the search for a scale and a minimum: Q4_K, Q5_K; Q4_1, Q5_1 with importances.
 *
 * Ranges a little wider and narrower than the values' own, each end by itself, give levels;
 * those get the scale and minimum of least weighted square error, once more levels and a
 * fit. In a super-block, rounds then alternate between the packed scales and minima of
 * the sub-blocks and the two f16 scales of the super-block.
 */
#ifndef QWEN3_ENCODE_AFFINE_H
#define QWEN3_ENCODE_AFFINE_H

#include "batch.h"

/* Weighted sums over values x and the levels q a scale gives them. The square error
 * of x ~ scale q - min is, less the constant sum of w x^2, a polynomial in them. */
typedef struct { vf q, qq, qx; } affine_sums;

/* x ~ scale q - min of each group; w and wx are the sums of costs, alone and times x. */
typedef struct {
    _Alignas(64) float scale[BATCH], min[BATCH], w[BATCH], wx[BATCH];
} affine_fit;

static inline affine_sums affine_measure(const batch *b, int g, const int n, float top, vf inv,
                                         vf offset) {
    vf zero = {0}, q_max = vf_set1(top);
    affine_sums s = {zero, zero, zero};
    for (int i = 0; i < n; i++) {
        vf x = vf_load(b->x[i] + g), w = vf_load(b->w[i] + g);
        vf q = vf_round(vf_min(vf_max(x * inv + offset, zero), q_max)), wq = w * q;
        s.q += wq;
        s.qq += wq * q;
        s.qx += wq * x;
    }
    return s;
}

static inline vf affine_error(const affine_sums *s, vf w, vf wx, vf scale, vf min) {
    return scale * (scale * s->qq - 2 * (min * s->q + s->qx)) + min * (min * w + 2 * wx);
}

/* The best scale and min for given levels; any_min: min may be negative. */
static inline void affine_solve(const affine_sums *s, vf w, vf wx, bool any_min, vf *scale,
                                vf *min) {
    vf zero = {0}, det = s->qq * w - s->q * s->q;
    vi solvable = det > 1e-5f * s->qq * w; /* not one level alone: that is a constant */
    vf inv = 1 / vf_pick(solvable, det, vf_set1(1));
    *scale = vf_pick(solvable, (s->qx * w - wx * s->q) * inv, zero);
    *min = vf_pick(solvable, (s->qx * s->q - wx * s->qq) * inv, -wx / w);
    if (any_min) return;
    vi negative = *min < 0;
    *scale = vf_pick(negative, s->qx * vf_inverse(s->qq), *scale);
    *min = vf_pick(negative, zero, *min);
}

static inline void affine_search(const batch *b, const int n, float top, bool any_min,
                                 affine_fit *fit) {
    for (int g = 0; g < BATCH; g += LANES) {
        vf zero = {0}, w = zero, wx = zero;
        vf high = vf_load(b->x[0] + g), low = any_min ? high : vf_min(high, zero);
        for (int i = 0; i < n; i++) {
            vf x = vf_load(b->x[i] + g), wi = vf_load(b->w[i] + g);
            low = vf_min(low, x);
            high = vf_max(high, x);
            w += wi;
            wx += wi * x;
        }
        vf best = vf_set1(INFINITY), best_scale = zero, best_min = -low;
        vf width = (high - low) * (1 / top), width_inv = vf_inverse(width);
        for (int try = 0; try < 12; try++) { /* how far the ends move inwards, in levels */
            float from_low = try % 2 ? 0.4f : -0.4f, from_high = 0.6f * (float)(try / 2) - 1.6f;
            vf inv = top / (top - from_low - from_high) * width_inv;
            vf min = -low - from_low * width, scale;
            for (int round = 0; round < 2; round++) {
                affine_sums s = affine_measure(b, g, n, top, inv, min * inv);
                affine_solve(&s, w, wx, any_min, &scale, &min);
                vf error = affine_error(&s, w, wx, scale, min);
                vi better = error < best;
                best = vf_pick(better, error, best);
                best_scale = vf_pick(better, scale, best_scale);
                best_min = vf_pick(better, min, best_min);
                inv = vf_inverse(scale);
            }
        }
        vf_store(fit->scale + g, best_scale);
        vf_store(fit->min + g, best_min);
        vf_store(fit->w + g, w);
        vf_store(fit->wx + g, wx);
    }
}

/* A super-block of 8 affine sub-blocks, their scales and minima in 6 bits. */
typedef struct {
    f16_t d, dmin;
    uint8_t scale[8], min[8];
} affine_super;

/* What the packed scale and min of each group cost, and the sums of their levels. */
typedef struct {
    _Alignas(64) float scale[BATCH], min[BATCH], error[BATCH], q[BATCH], qq[BATCH], qx[BATCH];
} affine_packed;

/* The packed scales and minima near those of the fit that cost least; the fit becomes the best
 * for their levels. d and dmin of each group. */
static inline void affine_pack(const batch *b, const int n, float top, const float *d,
                               const float *dmin, affine_fit *fit, affine_packed *packed) {
    for (int g = 0; g < BATCH; g += LANES) {
        vf zero = {0}, limit = vf_set1(63), dv = vf_load(d + g), mv = vf_load(dmin + g);
        vf w = vf_load(fit->w + g), wx = vf_load(fit->wx + g);
        vf s0 = vf_load(fit->scale + g) * vf_inverse(dv);
        vf m0 = vf_load(fit->min + g) * vf_inverse(mv);
        s0 = vf_floor(vf_min(vf_max(s0, zero), limit));
        m0 = vf_floor(vf_min(vf_max(m0, zero), limit));
        vf best = vf_set1(INFINITY), best_scale = zero, best_min = zero;
        affine_sums best_sums = {zero, zero, zero};
        for (int k = 0; k < 4; k++) {
            vf scale = vf_min(s0 + (float)(k % 2), limit);
            vf min = vf_min(m0 + (float)(k / 2), limit);
            vf inv = vf_inverse(scale * dv);
            affine_sums s = affine_measure(b, g, n, top, inv, min * mv * inv);
            vf error = affine_error(&s, w, wx, scale * dv, min * mv);
            vi better = error < best;
            best = vf_pick(better, error, best);
            best_scale = vf_pick(better, scale, best_scale);
            best_min = vf_pick(better, min, best_min);
            best_sums.q = vf_pick(better, s.q, best_sums.q);
            best_sums.qq = vf_pick(better, s.qq, best_sums.qq);
            best_sums.qx = vf_pick(better, s.qx, best_sums.qx);
        }
        vf scale, min;
        affine_solve(&best_sums, w, wx, false, &scale, &min);
        vf_store(fit->scale + g, scale);
        vf_store(fit->min + g, min);
        vf_store(packed->scale + g, best_scale);
        vf_store(packed->min + g, best_min);
        vf_store(packed->error + g, best);
        vf_store(packed->q + g, best_sums.q);
        vf_store(packed->qq + g, best_sums.qq);
        vf_store(packed->qx + g, best_sums.qx);
    }
}

static inline float largest(const float *x, int n) {
    float max = 0;
    for (int i = 0; i < n; i++) max = x[i] > max ? x[i] : max;
    return max;
}

/* Two super-blocks from value `at` on. */
static inline void affine_supers(const weights *in, size_t at, float top, affine_super best[2]) {
    batch b;
    affine_fit fit;
    affine_packed packed;
    affine_super try[2];
    double best_error[2] = {INFINITY, INFINITY};
    batch_load(&b, in, at, 32, SUPER);
    affine_search(&b, 32, top, false, &fit);
    for (int j = 0; j < 2; j++) {
        try[j].d = f16_above(largest(fit.scale + 8 * j, 8) / 63);
        try[j].dmin = f16_above(largest(fit.min + 8 * j, 8) / 63);
    }
    for (int round = 0; round < PACK_ROUNDS; round++) {
        _Alignas(64) float d[BATCH], dmin[BATCH];
        for (int g = 0; g < BATCH; g++) {
            d[g] = f16_to_f32(try[g / 8].d);
            dmin[g] = f16_to_f32(try[g / 8].dmin);
        }
        affine_pack(&b, 32, top, d, dmin, &fit, &packed);
        for (int j = 0; j < 2; j++) {
            double error = 0, ss = 0, sm = 0, mm = 0, sx = 0, mx = 0;
            for (int k = 0, g = 8 * j; k < 8; k++, g++) {
                double s = packed.scale[g], m = packed.min[g];
                error += packed.error[g];
                ss += s * s * packed.qq[g];
                sm += s * m * packed.q[g];
                mm += m * m * fit.w[g];
                sx += s * packed.qx[g];
                mx += m * fit.wx[g];
                try[j].scale[k] = (uint8_t)s;
                try[j].min[k] = (uint8_t)m;
            }
            if (error < best_error[j]) {
                best_error[j] = error;
                best[j] = try[j];
            }
            double det = ss * mm - sm * sm;
            float new_d = d[8 * j], new_dmin = dmin[8 * j];
            if (det > 1e-6 * ss * mm) {
                new_d = (float)((sx * mm - mx * sm) / det);
                new_dmin = (float)((sx * sm - mx * ss) / det);
            } else if (ss > 0) {
                new_d = (float)(sx / ss);
            }
            try[j].d = f32_to_f16(clampf(new_d, 0, f16_max));
            try[j].dmin = f32_to_f16(clampf(new_dmin, 0, f16_max));
        }
    }
}

static inline void affine_levels(const affine_super *a, const float *x, float top,
                                 uint8_t q[SUPER]) {
    for (int j = 0; j < 8; j++, x += 32, q += 32) {
        float inv = inverse(f16_to_f32(a->d) * a->scale[j]), min = f16_to_f32(a->dmin) * a->min[j];
        for (int i = 0; i < 32; i++)
            q[i] = (uint8_t)(int)(clampf((x[i] + min) * inv, 0, top) + 0.5f);
    }
}

/* The inverse of k4_scale_min. */
static inline void pack_scales(const affine_super *a, uint8_t packed[12]) {
    for (int j = 0; j < 4; j++) {
        packed[j] = (uint8_t)(a->scale[j] | a->scale[j + 4] >> 4 << 6);
        packed[j + 4] = (uint8_t)(a->min[j] | a->min[j + 4] >> 4 << 6);
        packed[j + 8] = (uint8_t)((a->scale[j + 4] & 15) | (a->min[j + 4] & 15) << 4);
    }
}

#endif
