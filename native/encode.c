/* encode.c - floats to weight blocks.
 *
 * Without importances the 32-blocks with integer levels take their scale from the
 * largest value, as every writer of the format does: the same bits. All others
 * search: a grid of scales, each scored by the weighted square error of its least
 * squares fit, then rounds that alternate between the packed scales of the
 * sub-blocks and the f16 scale of the super-block.
 *
 * Loops over values accumulate in LANES partial sums, so that a compiler can use
 * vectors without reordering a sum.
 */
#include "encode.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "decode.h"

enum { LANES = 8, SUPER = 256 };

static const float tiny = 0x1p-25f; /* half of the smallest f16: smaller values become 0 */
static const float f16_max = 65504;

/* The searches try the scale that just covers the values, and smaller and larger
 * ones in steps of a fraction of a level; each round fits scale and levels to each other. */
enum { STEPS = 8, FIT_ROUNDS = 3, PACK_ROUNDS = 4 };
static const float step_size = 0.4f;

/* ---- plain floats ---------------------------------------------------------- */

void encode_f32(const float *src, void *dst, size_t n, const float *importance) {
    (void)importance;
    memcpy(dst, src, n * sizeof *src);
}

void encode_f16(const float *src, void *dst, size_t n, const float *importance) {
    (void)importance;
    for (size_t i = 0; i < n; i++) {
        f16_t h = f32_to_f16(src[i]);
        memcpy((char *)dst + i * sizeof h, &h, sizeof h);
    }
}

void encode_bf16(const float *src, void *dst, size_t n, const float *importance) {
    (void)importance;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, src + i, sizeof bits);
        if ((bits & 0x7fffffff) > 0x7f800000) bits |= 0x400000; /* a NaN stays one */
        else bits += 0x7fff + (bits >> 16 & 1);                 /* to nearest even */
        uint16_t h = (uint16_t)(bits >> 16);
        memcpy((char *)dst + i * sizeof h, &h, sizeof h);
    }
}

/* ---- what the searches are made of ----------------------------------------- */

/* NaN gives low. */
static inline float clampf(float v, float low, float high) {
    v = v > low ? v : low;
    return v < high ? v : high;
}

static inline float sum_partials(const float *s) {
    return ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
}

static float largest_magnitude(const float *x, int n) {
    float max = 0;
    for (int i = 0; i < n; i++) max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
    return max;
}

/* The smallest f16 that is not below v >= 0. */
static f16_t f16_above(float v) {
    f16_t h = f32_to_f16(v);
    return f16_to_f32(h) < v ? (f16_t)(h + 1) : h;
}

static float inverse(float v) { return fabsf(v) < FLT_MIN ? 0 : 1 / v; }

/* What the square of an error at x[i] costs: its importance times a growing function
 * of |x[i]|, so that the few large values, which dominate a product, stay exact. */
static void cost(const float *x, const float *importance, int n, float *w) {
    float square = 0, max = 0;
    for (int i = 0; i < n; i++) square += x[i] * x[i];
    for (int i = 0; importance && i < n; i++) max = importance[i] > max ? importance[i] : max;
    float rms = sqrtf(square / (float)n);
    for (int i = 0; i < n; i++) {
        w[i] = rms + fabsf(x[i]);
        if (max > 0) w[i] *= importance[i] / max + 1e-6f; /* never 0: a fit needs a cost */
    }
}

/* Weighted sums over values x and the levels q a scale gives them. The square
 * error of x ~ scale q - min is, less the constant sum of w x^2, a polynomial in
 * them, so one pass over the values scores every scale and min near the one that
 * chose the levels. */
typedef struct { double q, qq, qx; } moments;

/* Levels are base + the integers 0 .. top, of x inv + offset. */
static inline moments measure(const float *x, const float *w, int n, float inv, float offset,
                              float top, float base) {
    float q1[LANES] = {0}, q2[LANES] = {0}, qx[LANES] = {0};
    for (int i = 0; i < n; i += LANES)
        for (int l = 0; l < LANES; l++) {
            float v = clampf(x[i + l] * inv + offset, 0, top);
            float q = (float)(int)(v + 0.5f) + base, wq = w[i + l] * q;
            q1[l] += wq;
            q2[l] += wq * q;
            qx[l] += wq * x[i + l];
        }
    return (moments){sum_partials(q1), sum_partials(q2), sum_partials(qx)};
}

static void pack_nibbles(const uint8_t q[32], uint8_t qs[16]) {
    for (int i = 0; i < 16; i++) qs[i] = (uint8_t)((q[i] & 15) | (q[i + 16] & 15) << 4);
}

static void pack_fifth_bits(const uint8_t q[32], uint8_t qh[4]) {
    for (int i = 0; i < 32; i++) qh[i / 8] |= (uint8_t)(q[i] >> 4 << i % 8);
}

/* encode_TYPE from the function that follows, which encodes one block. */
#define ENCODER(type, count)                                                                 \
    static void type##_block(const float *x, const float *importance, block_##type *b);      \
    void encode_##type(const float *src, void *dst, size_t n, const float *importance) {     \
        char *to = dst;                                                                      \
        for (size_t i = 0; i < n; i += count, to += sizeof(block_##type)) {                  \
            block_##type b = {0};                                                            \
            type##_block(src + i, importance ? importance + i : NULL, &b);                   \
            memcpy(to, &b, sizeof b);                                                        \
        }                                                                                    \
    }                                                                                        \
    static void type##_block(const float *x, const float *importance, block_##type *b)

/* ---- scale and minimum: Q4_1, Q5_1, Q4_K, Q5_K ------------------------------ */

/* x ~ scale q - min over n values; the cost's own sums come along. */
typedef struct {
    const float *x, *w;
    int n;
    float top;            /* the highest level */
    double w_sum, wx_sum;
    float scale, min;
} affine;

static moments affine_measure(const affine *a, float scale, float min) {
    float inv = inverse(scale);
    return measure(a->x, a->w, a->n, inv, min * inv, a->top, 0);
}

static double affine_error(const affine *a, const moments *s, double scale, double min) {
    return scale * (scale * s->qq - 2 * (min * s->q + s->qx)) +
           min * (min * a->w_sum + 2 * a->wx_sum);
}

/* The best scale and min for given levels; any_min: min may be negative. */
static void affine_solve(const affine *a, const moments *s, bool any_min, float *scale,
                         float *min) {
    double det = s->qq * a->w_sum - s->q * s->q;
    if (det > 1e-6 * s->qq * a->w_sum) {
        *scale = (float)((s->qx * a->w_sum - a->wx_sum * s->q) / det);
        *min = (float)((s->qx * s->q - a->wx_sum * s->qq) / det);
    } else { /* one level alone: a constant */
        *scale = 0;
        *min = (float)(-a->wx_sum / a->w_sum);
    }
    if (*min < 0 && !any_min) {
        *scale = s->qq > 0 ? (float)(s->qx / s->qq) : 0;
        *min = 0;
    }
}

static affine affine_fit(const float *x, const float *w, int n, int top, bool any_min) {
    affine a = {.x = x, .w = w, .n = n, .top = (float)top};
    float low = any_min ? x[0] : 0, high = x[0];
    for (int i = 0; i < n; i++) {
        a.w_sum += w[i];
        a.wx_sum += w[i] * x[i];
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    a.min = -low;
    if (high <= low) return a;
    double best = INFINITY;
    for (int step = -STEPS; step <= STEPS; step++) {
        float scale = (high - low) / (a.top + step_size * (float)step), min = -low;
        for (int round = 0; round < FIT_ROUNDS; round++) {
            moments s = affine_measure(&a, scale, min);
            affine_solve(&a, &s, any_min, &scale, &min);
            double error = affine_error(&a, &s, scale, min);
            if (error >= best) break;
            best = error;
            a.scale = scale;
            a.min = min;
        }
    }
    return a;
}

/* A super-block of 8 affine sub-blocks, their scales and minima in 6 bits. */
typedef struct {
    f16_t d, dmin;
    uint8_t scale[8], min[8], q[SUPER];
} affine_super;

/* The packed scale and min near the real ones that cost least; returns the error. */
static double affine_snap(const affine *a, float d, float dmin, uint8_t *scale, uint8_t *min,
                          moments *chosen) {
    int s0 = (int)clampf(a->scale * inverse(d), 0, 63);
    int m0 = (int)clampf(a->min * inverse(dmin), 0, 63);
    double best = INFINITY;
    *chosen = (moments){0};
    for (int s = s0; s <= s0 + 1 && s < 64; s++)
        for (int m = m0; m <= m0 + 1 && m < 64; m++) {
            moments sums = affine_measure(a, d * (float)s, dmin * (float)m);
            double error = affine_error(a, &sums, (double)d * s, (double)dmin * m);
            if (error >= best) continue;
            best = error;
            *scale = (uint8_t)s;
            *min = (uint8_t)m;
            *chosen = sums;
        }
    return best;
}

static affine_super affine_super_fit(const float *x, const float *importance, int top) {
    affine_super best = {0};
    if (largest_magnitude(x, SUPER) < tiny) return best;
    float w[SUPER], scale_max = 0, min_max = 0;
    affine sub[8];
    cost(x, importance, SUPER, w);
    for (int j = 0; j < 8; j++) {
        sub[j] = affine_fit(x + 32 * j, w + 32 * j, 32, top, false);
        scale_max = fmaxf(scale_max, sub[j].scale);
        min_max = fmaxf(min_max, sub[j].min);
    }
    double best_error = INFINITY;
    affine_super try = {.d = f16_above(scale_max / 63), .dmin = f16_above(min_max / 63)};
    for (int round = 0; round < PACK_ROUNDS; round++) {
        float d = f16_to_f32(try.d), dmin = f16_to_f32(try.dmin);
        double error = 0, ss = 0, sm = 0, mm = 0, sx = 0, mx = 0;
        for (int j = 0; j < 8; j++) {
            moments s;
            error += affine_snap(&sub[j], d, dmin, &try.scale[j], &try.min[j], &s);
            affine_solve(&sub[j], &s, false, &sub[j].scale, &sub[j].min);
            double sc = try.scale[j], m = try.min[j];
            ss += sc * sc * s.qq;
            sm += sc * m * s.q;
            mm += m * m * sub[j].w_sum;
            sx += sc * s.qx;
            mx += m * sub[j].wx_sum;
        }
        if (error >= best_error) break;
        best_error = error;
        best = try;
        double det = ss * mm - sm * sm;
        if (det > 1e-6 * ss * mm) {
            d = (float)((sx * mm - mx * sm) / det);
            dmin = (float)((sx * sm - mx * ss) / det);
        } else if (ss > 0) {
            d = (float)(sx / ss);
        }
        try.d = f32_to_f16(clampf(d, 0, f16_max));
        try.dmin = f32_to_f16(clampf(dmin, 0, f16_max));
    }
    for (int i = 0; i < SUPER; i++) {
        float d = f16_to_f32(best.d), dmin = f16_to_f32(best.dmin);
        float scale = d * best.scale[i / 32], min = dmin * best.min[i / 32];
        float v = clampf((x[i] + min) * inverse(scale), 0, (float)top);
        best.q[i] = (uint8_t)(v + 0.5f);
    }
    return best;
}

/* The inverse of k4_scale_min. */
static void pack_scales(const affine_super *a, uint8_t packed[12]) {
    for (int j = 0; j < 4; j++) {
        packed[j] = (uint8_t)(a->scale[j] | a->scale[j + 4] >> 4 << 6);
        packed[j + 4] = (uint8_t)(a->min[j] | a->min[j + 4] >> 4 << 6);
        packed[j + 8] = (uint8_t)((a->scale[j + 4] & 15) | (a->min[j + 4] & 15) << 4);
    }
}

ENCODER(q4_K, SUPER) {
    affine_super a = affine_super_fit(x, importance, 15);
    b->d = a.d;
    b->dmin = a.dmin;
    pack_scales(&a, b->scales);
    for (int i = 0; i < SUPER; i++)
        b->qs[i / 64 * 32 + i % 32] |= (uint8_t)(a.q[i] << i / 32 % 2 * 4);
}

ENCODER(q5_K, SUPER) {
    affine_super a = affine_super_fit(x, importance, 31);
    b->d = a.d;
    b->dmin = a.dmin;
    pack_scales(&a, b->scales);
    for (int i = 0; i < SUPER; i++) {
        b->qs[i / 64 * 32 + i % 32] |= (uint8_t)((a.q[i] & 15) << i / 32 % 2 * 4);
        b->qh[i % 32] |= (uint8_t)(a.q[i] >> 4 << i / 32);
    }
}

/* Q4_1 and Q5_1. The plain choice of scale and minimum spans the values. */
static void affine_levels(const float *x, const float *importance, int top, f16_t *d, f16_t *m,
                          uint8_t q[32]) {
    float low = x[0], high = x[0], w[32];
    for (int i = 0; i < 32; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    float scale = (high - low) / (float)top;
    if (importance && largest_magnitude(x, 32) >= tiny) {
        cost(x, importance, 32, w);
        affine a = affine_fit(x, w, 32, top, true);
        scale = f16_to_f32(f32_to_f16(a.scale));
        low = f16_to_f32(f32_to_f16(clampf(-a.min, -f16_max, f16_max)));
    }
    float inv = inverse(scale);
    *d = f32_to_f16(scale);
    *m = f32_to_f16(low);
    for (int i = 0; i < 32; i++) q[i] = (uint8_t)clampf((x[i] - low) * inv + 0.5f, 0, (float)top);
}

ENCODER(q4_1, 32) {
    uint8_t q[32];
    affine_levels(x, importance, 15, &b->d, &b->m, q);
    pack_nibbles(q, b->qs);
}

ENCODER(q5_1, 32) {
    uint8_t q[32];
    affine_levels(x, importance, 31, &b->d, &b->m, q);
    pack_nibbles(q, b->qs);
    pack_fifth_bits(q, b->qh);
}

/* ---- scale alone: Q8_0, Q4_0, Q5_0, Q6_K, IQ4_NL, IQ4_XS ---------------------- */

static moments measure_4(const float *x, const float *w, int n, float inv) {
    return measure(x, w, n, inv, 8, 15, -8);
}

static moments measure_5(const float *x, const float *w, int n, float inv) {
    return measure(x, w, n, inv, 16, 31, -16);
}

static moments measure_6(const float *x, const float *w, int n, float inv) {
    return measure(x, w, n, inv, 32, 63, -32);
}

/* Where the levels of IQ4 meet, and how far apart they are. */
static const float iq4_border[15] = {-115.5, -93.5, -74,   -57,   -42, -28.5, -16, -4.5,
                                     7,      19,    31.5,  45.5,  61,  79,    101};
static const float iq4_gap[15] = {23, 21, 18, 16, 14, 13, 12, 11, 12, 12, 13, 15, 16, 20, 24};

static moments measure_iq4(const float *x, const float *w, int n, float inv) {
    float q2[LANES] = {0}, qx[LANES] = {0};
    for (int i = 0; i < n; i += LANES)
        for (int l = 0; l < LANES; l++) {
            float v = x[i + l] * inv, q = -127;
            for (int k = 0; k < 15; k++) q += v > iq4_border[k] ? iq4_gap[k] : 0;
            q2[l] += w[i + l] * q * q;
            qx[l] += w[i + l] * q * x[i + l];
        }
    return (moments){0, sum_partials(q2), sum_partials(qx)};
}

static uint8_t iq4_index(float v) {
    uint8_t index = 0;
    for (int k = 0; k < 15; k++) index += v > iq4_border[k];
    return index;
}

typedef struct {
    moments (*measure)(const float *x, const float *w, int n, float inv);
    float reach, level; /* the largest magnitude; the usual width of a level */
} grid;

static const grid grid_4 = {measure_4, 8, 1}, grid_5 = {measure_5, 16, 1},
                  grid_6 = {measure_6, 32, 1}, grid_iq4 = {measure_iq4, 127, 16};

static double scale_error(const moments *s, double scale) {
    return scale * (scale * s->qq - 2 * s->qx);
}

static float scale_fit(const float *x, const float *w, int n, const grid *g) {
    float max = largest_magnitude(x, n), best_scale = 0;
    double best = INFINITY;
    for (int step = -STEPS; max > 0 && step <= STEPS; step++)
        for (int sign = -1; sign <= 1; sign += 2) { /* the grids are not symmetric */
            float scale = (float)sign * max / (g->reach + g->level * step_size * (float)step);
            for (int round = 0; round < FIT_ROUNDS; round++) {
                moments s = g->measure(x, w, n, inverse(scale));
                scale = s.qq > 0 ? (float)(s.qx / s.qq) : 0;
                double error = scale_error(&s, scale);
                if (error >= best) break;
                best = error;
                best_scale = scale;
            }
        }
    return best_scale;
}

/* A super-block of sub-blocks with a scale each in -range .. range - 1. */
typedef struct {
    f16_t d;
    int scale[16];
} scaled_super;

static double scale_snap(const float *x, const float *w, int n, const grid *g, float scale, float d,
                         int range, int *packed, moments *chosen) {
    int first = (int)floorf(clampf(scale * inverse(d), (float)-range, (float)(range - 1)));
    double best = INFINITY;
    *chosen = (moments){0};
    for (int s = first; s <= first + 1 && s < range; s++) {
        moments sums = g->measure(x, w, n, inverse(d * (float)s));
        double error = scale_error(&sums, (double)d * s);
        if (error >= best) continue;
        best = error;
        *packed = s;
        *chosen = sums;
    }
    return best;
}

static scaled_super scaled_super_fit(const float *x, const float *importance, const grid *g,
                                     int n_sub, int range) {
    scaled_super best = {0};
    if (largest_magnitude(x, SUPER) < tiny) return best;
    int n = SUPER / n_sub;
    float w[SUPER], scale[16], extreme = 0;
    cost(x, importance, SUPER, w);
    for (int j = 0; j < n_sub; j++) {
        scale[j] = scale_fit(x + n * j, w + n * j, n, g);
        extreme = fabsf(scale[j]) > fabsf(extreme) ? scale[j] : extreme;
    }
    /* The scale of the largest magnitude becomes -range, whatever its sign. */
    scaled_super try = {.d = f16_above(fabsf(extreme) / (float)range)};
    if (extreme > 0) try.d |= 0x8000;
    double best_error = INFINITY;
    for (int round = 0; round < PACK_ROUNDS; round++) {
        float d = f16_to_f32(try.d);
        double error = 0, ss = 0, sx = 0;
        for (int j = 0; j < n_sub; j++) {
            moments s;
            error += scale_snap(x + n * j, w + n * j, n, g, scale[j], d, range, &try.scale[j], &s);
            scale[j] = s.qq > 0 ? (float)(s.qx / s.qq) : 0;
            ss += (double)try.scale[j] * try.scale[j] * s.qq;
            sx += try.scale[j] * s.qx;
        }
        if (error >= best_error) break;
        best_error = error;
        best = try;
        if (ss > 0) try.d = f32_to_f16((float)(sx / ss));
    }
    return best;
}

ENCODER(q6_K, SUPER) {
    scaled_super s = scaled_super_fit(x, importance, &grid_6, 16, 128);
    b->d = s.d;
    for (int j = 0; j < 16; j++) b->scales[j] = (int8_t)s.scale[j];
    for (int i = 0; i < SUPER; i++) {
        float v = x[i] * inverse(f16_to_f32(s.d) * (float)s.scale[i / 16]);
        int q = (int)clampf(v + 32.5f, 0, 63), quarter = i / 32 % 4;
        b->ql[i / 128 * 64 + i % 64] |= (uint8_t)((q & 15) << quarter / 2 * 4);
        b->qh[i / 128 * 32 + i % 32] |= (uint8_t)(q >> 4 << quarter * 2);
    }
}

ENCODER(iq4_xs, SUPER) {
    scaled_super s = scaled_super_fit(x, importance, &grid_iq4, 8, 32);
    b->d = s.d;
    for (int j = 0; j < 8; j++) {
        int packed = s.scale[j] + 32;
        b->scales_l[j / 2] |= (uint8_t)((packed & 15) << j % 2 * 4);
        b->scales_h |= (uint16_t)(packed >> 4 << j * 2);
        float inv = inverse(f16_to_f32(s.d) * (float)s.scale[j]);
        uint8_t q[32];
        for (int i = 0; i < 32; i++) q[i] = iq4_index(x[32 * j + i] * inv);
        pack_nibbles(q, b->qs + 16 * j);
    }
}

ENCODER(iq4_nl, 32) {
    if (largest_magnitude(x, 32) < tiny) return;
    float w[32];
    cost(x, importance, 32, w);
    b->d = f32_to_f16(scale_fit(x, w, 32, &grid_iq4));
    float inv = inverse(f16_to_f32(b->d));
    uint8_t q[32];
    for (int i = 0; i < 32; i++) q[i] = iq4_index(x[i] * inv);
    pack_nibbles(q, b->qs);
}

/* Q4_0 and Q5_0. The plain choice gives the value of the largest magnitude, the
 * first of them, the lowest level. */
static void scaled_levels(const float *x, const float *importance, const grid *g, f16_t *d,
                          uint8_t q[32]) {
    float extreme = x[0], w[32];
    for (int i = 1; i < 32; i++) extreme = fabsf(x[i]) > fabsf(extreme) ? x[i] : extreme;
    float scale = extreme / -g->reach;
    if (importance && fabsf(extreme) >= tiny) {
        cost(x, importance, 32, w);
        scale = f16_to_f32(f32_to_f16(scale_fit(x, w, 32, g)));
    }
    float inv = inverse(scale);
    *d = f32_to_f16(scale);
    for (int i = 0; i < 32; i++)
        q[i] = (uint8_t)clampf(x[i] * inv + (g->reach + 0.5f), 0, 2 * g->reach - 1);
}

ENCODER(q4_0, 32) {
    uint8_t q[32];
    scaled_levels(x, importance, &grid_4, &b->d, q);
    pack_nibbles(q, b->qs);
}

ENCODER(q5_0, 32) {
    uint8_t q[32];
    scaled_levels(x, importance, &grid_5, &b->d, q);
    pack_nibbles(q, b->qs);
    pack_fifth_bits(q, b->qh);
}

/* Eight bits need no search: importance changes nothing. */
ENCODER(q8_0, 32) {
    (void)importance;
    float d = largest_magnitude(x, 32) / 127, inv = inverse(d);
    b->d = f32_to_f16(d);
    for (int i = 0; i < 32; i++) { /* to nearest, halves away from zero */
        float v = fabsf(x[i] * inv);
        int whole = (int)v, q = whole + (v - (float)whole >= 0.5f);
        b->qs[i] = (int8_t)(x[i] < 0 ? -q : q);
    }
}
