/* product.h - what all backends know of products with quantized weights.
 *
 * A unit is 256 weights of a row: one super-block, or up to eight blocks of 32. Each 16
 * or 32 of its weights share a scale and a minimum, w = scale * q - min with q in
 * [-128, 127]. The product of a row with an act row has one definition, down to the
 * order of its float operations:
 *
 *   y = 0; in the order of the weights, for each run of 16 (32) that shares a scale:
 *     y = fma(float(sum of q * x) * scale, d, y)     x, d: the act unit's
 *     y = fma(-min, s, y)                            s: d * (sum of x), of 16 (32)
 *
 * where fma rounds once; the sums of integers are exact and so are scale and min, being
 * an f16 times a few bits. All backends, one column or many, give the same bits.
 */
#ifndef QWEN3_PRODUCT_H
#define QWEN3_PRODUCT_H

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "backend.h"
#include "codec.h"
#include "decode.h"
#ifdef __F16C__
#include <immintrin.h>
#endif

/* The instruction where the target has it: decoding reads one or two a block. */
static inline float half(f16_t h) {
#if defined(__F16C__)
    return _cvtsh_ss(h);
#elif defined(__aarch64__)
    __fp16 f;
    memcpy(&f, &h, sizeof f);
    return f;
#else
    return f16_to_f32(h);
#endif
}

/* Bytes of a whole unit. */
static inline size_t unit_bytes(uint32_t type) {
    const weight_type *t = weight_type_of(type);
    return (size_t)(UNIT / t->block * t->bytes);
}

/* Groups of the unit that starts at weight i of a row of n. */
static inline int groups_at(int i, int n) {
    return n - i < UNIT ? (n - i) / 32 : GROUPS;
}

/* The rule of quantize: d = max|x| / 127, q = x * (127 / max|x|) rounded to nearest even. A
 * group below 2^-100 is zero; a NaN or an infinity makes d NaN and q zero, so that every
 * product shows it. top_bits is the greatest |x| as bits: their order is that of the numbers,
 * NaN last. Sets d and, unless q is zero, the factor of x; returns whether q is not zero. */
static inline bool act_scale(uint32_t top_bits, float *d, float *factor) {
    float top;
    memcpy(&top, &top_bits, sizeof top);
    bool finite = top_bits < 0x7f800000, zero = !finite || top < 0x1p-100f;
    *d = !finite ? NAN : zero ? 0 : top / 127;
    *factor = zero ? 0 : 127 / top;
    return !zero;
}

/* What follows from d and q: the sums of the 16s of group g are given. */
static inline void act_sums(act_unit *u, int g, int sum_a, int sum_b) {
    u->s[g] = u->d[g] * (float)(sum_a + sum_b);
    u->start32[g] = ACT_START - 128 * (sum_a + sum_b);
    u->start16[2 * g] = ACT_START - 128 * sum_a;
    u->start16[2 * g + 1] = ACT_START - 128 * sum_b;
}

/* Zeros behind the last value of a row of n. */
static inline void act_fill(act_unit *act, int n) {
    act_unit *u = act + n / UNIT;
    for (int g = n % UNIT / 32; g && g < GROUPS; g++) {
        memset(u->q + 32 * g, 0, 32);
        u->d[g] = 0;
        act_sums(u, g, 0, 0);
    }
}

/* The sum of the i-th 16 quants, exactly: what it starts from is a float in disguise. */
static inline float act_sum16(const act_unit *u, int i) {
    float start;
    memcpy(&start, &u->start16[i], sizeof start);
    return (0x1.8p23f - start) * 0x1p-7f;
}

static inline const void *column_x(const matmul_args *a, int c) {
    return (const char *)a->x + (size_t)(a->x_index ? a->x_index[c] : c) * a->x_stride;
}

static inline float *column_y(const matmul_args *a, int c) {
    return a->y + (size_t)(a->y_index ? a->y_index[c] : c) * a->y_stride;
}

static inline const uint8_t *row_w(const matmul_args *a, int r) {
    return (const uint8_t *)a->w + (size_t)r * a->row_bytes;
}

#endif
