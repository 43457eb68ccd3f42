/* unpack.h - every quantized weight type in one common form, 256 weights at a time.
 *
 * A unit is 256 weights of a row: one super-block, or up to eight blocks of 32.
 * Its weights are quants in groups of 32; everything but the float scales d and
 * dmin of a group is an integer, so a backend sums a group exactly:
 *
 *   SIGNED  w = d * scale * q               q in [-128, 127]
 *   OFFSET  w = d * (scale * q - bias)      q in [0, 63]
 *   MINIMUM w = d * scale * q - dmin * bias q in [0, 31]
 *
 * The product of a row with act row x (scale dx of a group, sums of 16 quants) has
 * one definition, down to the order of its float operations, none of them fused:
 *
 *   a = sum over the group of scale * q * x, b = sum of bias * (sum of x)   [int32]
 *   term = (a - b) * (d * dx)                          SIGNED (b = 0), OFFSET
 *   term = a * (d * dx) - b * (dmin * dx)              MINIMUM
 *   lane[g] += term, g = 0..7 being the group's place in its unit; units in order
 *   y = lanes added by halves: 4 to 0, 5 to 1 ...; then 2 to 0, 3 to 1; then 1 to 0
 *
 * so that all backends, and one column or many, give the same bits.
 */
#ifndef QWEN3_UNPACK_H
#define QWEN3_UNPACK_H

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "backend.h"
#include "decode.h"
#ifdef __F16C__
#include <immintrin.h>
#endif

enum { UNIT = 256, GROUPS = UNIT / 32 };

typedef struct {
    int8_t q[UNIT];
    int16_t scale[UNIT / 16], bias[UNIT / 16]; /* of each 16 weights; bias is 0 if SIGNED */
    float d[GROUPS], dmin[GROUPS];             /* dmin of MINIMUM only */
} unit;

typedef enum { SIGNED, OFFSET, MINIMUM } unit_kind;

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

/* Rows may start at any byte. */
#define UNALIGNED __attribute__((aligned(1)))
typedef block_q4_0 UNALIGNED row_q4_0;
typedef block_q4_1 UNALIGNED row_q4_1;
typedef block_q5_0 UNALIGNED row_q5_0;
typedef block_q5_1 UNALIGNED row_q5_1;
typedef block_q8_0 UNALIGNED row_q8_0;
typedef block_iq4_nl UNALIGNED row_iq4_nl;
typedef block_q2_K UNALIGNED row_q2_K;
typedef block_q3_K UNALIGNED row_q3_K;
typedef block_q4_K UNALIGNED row_q4_K;
typedef block_q5_K UNALIGNED row_q5_K;
typedef block_q6_K UNALIGNED row_q6_K;
typedef block_iq4_xs UNALIGNED row_iq4_xs;

/* ---- scales ------------------------------------------------------------------
 * TYPE_scales(src, n, u) fills scale, bias, d and dmin from n groups at src; of a
 * super-block n is always 8. Groups beyond n keep what u held: zeros. */

static inline void constant_scales(int scale, int bias, unit *u) {
    for (int i = 0; i < UNIT / 16; i++) {
        u->scale[i] = (int16_t)scale;
        u->bias[i] = (int16_t)bias;
    }
}

static inline void q8_0_scales(const void *src, int n, unit *u) {
    const row_q8_0 *b = src;
    constant_scales(1, 0, u);
    for (int g = 0; g < n; g++) u->d[g] = half(b[g].d);
}

static inline void q4_0_scales(const void *src, int n, unit *u) {
    const row_q4_0 *b = src;
    constant_scales(1, 8, u);
    for (int g = 0; g < n; g++) u->d[g] = half(b[g].d);
}

static inline void q5_0_scales(const void *src, int n, unit *u) {
    const row_q5_0 *b = src;
    constant_scales(1, 16, u);
    for (int g = 0; g < n; g++) u->d[g] = half(b[g].d);
}

static inline void iq4_nl_scales(const void *src, int n, unit *u) {
    const row_iq4_nl *b = src;
    constant_scales(1, 0, u);
    for (int g = 0; g < n; g++) u->d[g] = half(b[g].d);
}

static inline void q4_1_scales(const void *src, int n, unit *u) {
    const row_q4_1 *b = src;
    constant_scales(1, 1, u);
    for (int g = 0; g < n; g++) {
        u->d[g] = half(b[g].d);
        u->dmin[g] = -half(b[g].m);
    }
}

static inline void q5_1_scales(const void *src, int n, unit *u) {
    const row_q5_1 *b = src;
    constant_scales(1, 1, u);
    for (int g = 0; g < n; g++) {
        u->d[g] = half(b[g].d);
        u->dmin[g] = -half(b[g].m);
    }
}

static inline void super_scales(float d, float dmin, unit *u) {
    for (int g = 0; g < GROUPS; g++) {
        u->d[g] = d;
        u->dmin[g] = dmin;
    }
}

static inline void q2_K_scales(const void *src, int n, unit *u) {
    (void)n;
    const row_q2_K *b = src;
    super_scales(half(b->d), half(b->dmin), u);
    for (int i = 0; i < 16; i++) {
        u->scale[i] = b->scales[i] & 15;
        u->bias[i] = b->scales[i] >> 4;
    }
}

static inline void q3_K_scales(const void *src, int n, unit *u) {
    (void)n;
    const row_q3_K *b = src;
    super_scales(half(b->d), 0, u);
    for (int i = 0; i < 16; i++) {
        u->scale[i] = (int16_t)k3_scale(b->scales, i);
        u->bias[i] = (int16_t)(4 * u->scale[i]);
    }
}

/* The 6-bit pairs of Q4_K and Q5_K, byte j of each for sub-block j: k4_scale_min, all eight
 * at a time. */
typedef struct {
    uint64_t scale, min;
} k4_pairs;

static inline k4_pairs k4_unpack(const uint8_t packed[12]) {
    uint32_t p[3];
    memcpy(p, packed, 12);
    uint32_t scale = (p[2] & 0x0f0f0f0f) | (p[0] >> 2 & 0x30303030);
    uint32_t min = (p[2] >> 4 & 0x0f0f0f0f) | (p[1] >> 2 & 0x30303030);
    return (k4_pairs){(p[0] & 0x3f3f3f3f) | (uint64_t)scale << 32,
                      (p[1] & 0x3f3f3f3f) | (uint64_t)min << 32};
}

static inline void k4_scales(const uint8_t packed[12], unit *u) {
    k4_pairs p = k4_unpack(packed);
    for (int i = 0; i < 16; i++) {
        u->scale[i] = p.scale >> i / 2 * 8 & 63;
        u->bias[i] = p.min >> i / 2 * 8 & 63;
    }
}

static inline void q4_K_scales(const void *src, int n, unit *u) {
    (void)n;
    const row_q4_K *b = src;
    super_scales(half(b->d), half(b->dmin), u);
    k4_scales(b->scales, u);
}

static inline void q5_K_scales(const void *src, int n, unit *u) {
    (void)n;
    const row_q5_K *b = src;
    super_scales(half(b->d), half(b->dmin), u);
    k4_scales(b->scales, u);
}

static inline void q6_K_scales(const void *src, int n, unit *u) {
    (void)n;
    const row_q6_K *b = src;
    super_scales(half(b->d), 0, u);
    for (int i = 0; i < 16; i++) {
        u->scale[i] = b->scales[i];
        u->bias[i] = (int16_t)(32 * b->scales[i]);
    }
}

static inline void iq4_xs_scales(const void *src, int n, unit *u) {
    (void)n;
    const row_iq4_xs *b = src;
    super_scales(half(b->d), 0, u);
    for (int i = 0; i < 16; i++) {
        u->scale[i] = (int16_t)iq4_xs_scale(b->scales_h, b->scales_l, i / 2);
        u->bias[i] = 0;
    }
}

/* ---- quants: TYPE_quants(src, n, q) writes 32 n of them -------------------------- */

static inline void q8_0_quants(const void *src, int n, int8_t *q) {
    const row_q8_0 *b = src;
    for (int g = 0; g < n; g++) memcpy(q + 32 * g, b[g].qs, 32);
}

/* The low nibbles of count bytes, then the high ones. */
static inline void nibbles(const uint8_t *qs, int count, int8_t *q) {
    for (int i = 0; i < count; i++) {
        q[i] = qs[i] & 15;
        q[i + count] = (int8_t)(qs[i] >> 4);
    }
}

static inline void levels(const uint8_t *qs, int8_t *q) {
    for (int i = 0; i < 16; i++) {
        q[i] = iq4_levels[qs[i] & 15];
        q[i + 16] = iq4_levels[qs[i] >> 4];
    }
}

static inline void q4_0_quants(const void *src, int n, int8_t *q) {
    const row_q4_0 *b = src;
    for (int g = 0; g < n; g++) nibbles(b[g].qs, 16, q + 32 * g);
}

static inline void q4_1_quants(const void *src, int n, int8_t *q) {
    const row_q4_1 *b = src;
    for (int g = 0; g < n; g++) nibbles(b[g].qs, 16, q + 32 * g);
}

static inline void iq4_nl_quants(const void *src, int n, int8_t *q) {
    const row_iq4_nl *b = src;
    for (int g = 0; g < n; g++) levels(b[g].qs, q + 32 * g);
}

/* Adds bit i of qh to quant i as its fifth bit. */
static inline void fifth_bits(const uint8_t qh[4], int8_t *q) {
    for (int i = 0; i < 32; i++) q[i] = (int8_t)(q[i] | (qh[i / 8] >> i % 8 & 1) << 4);
}

static inline void q5_0_quants(const void *src, int n, int8_t *q) {
    const row_q5_0 *b = src;
    for (int g = 0; g < n; g++) {
        nibbles(b[g].qs, 16, q + 32 * g);
        fifth_bits(b[g].qh, q + 32 * g);
    }
}

static inline void q5_1_quants(const void *src, int n, int8_t *q) {
    const row_q5_1 *b = src;
    for (int g = 0; g < n; g++) {
        nibbles(b[g].qs, 16, q + 32 * g);
        fifth_bits(b[g].qh, q + 32 * g);
    }
}

static inline void q2_K_quants(const void *src, int n, int8_t *q) {
    const row_q2_K *b = src;
    for (int g = 0; g < n; g++)
        for (int i = 0; i < 32; i++)
            q[32 * g + i] = b->qs[g / 4 * 32 + i] >> g % 4 * 2 & 3;
}

static inline void q3_K_quants(const void *src, int n, int8_t *q) {
    const row_q3_K *b = src;
    for (int g = 0; g < n; g++)
        for (int i = 0; i < 32; i++)
            q[32 * g + i] = (int8_t)((b->qs[g / 4 * 32 + i] >> g % 4 * 2 & 3) |
                                     (b->hmask[i] >> g & 1) << 2);
}

static inline void q4_K_quants(const void *src, int n, int8_t *q) {
    const row_q4_K *b = src;
    for (int g = 0; g < n; g += 2) nibbles(b->qs + 16 * g, 32, q + 32 * g);
}

static inline void q5_K_quants(const void *src, int n, int8_t *q) {
    const row_q5_K *b = src;
    for (int g = 0; g < n; g += 2) nibbles(b->qs + 16 * g, 32, q + 32 * g);
    for (int g = 0; g < n; g++)
        for (int i = 0; i < 32; i++)
            q[32 * g + i] = (int8_t)(q[32 * g + i] | (b->qh[i] >> g & 1) << 4);
}

static inline void q6_K_quants(const void *src, int n, int8_t *q) {
    const row_q6_K *b = src;
    for (int g = 0; g < n; g++) {
        const uint8_t *ql = b->ql + g / 4 * 64 + g % 2 * 32, *qh = b->qh + g / 4 * 32;
        for (int i = 0; i < 32; i++)
            q[32 * g + i] = (int8_t)((ql[i] >> g % 4 / 2 * 4 & 15) | (qh[i] >> g % 4 * 2 & 3) << 4);
    }
}

static inline void iq4_xs_quants(const void *src, int n, int8_t *q) {
    const row_iq4_xs *b = src;
    for (int g = 0; g < n; g++) levels(b->qs + 16 * g, q + 32 * g);
}

/* ---- the table -------------------------------------------------------------------- */

typedef struct {
    unit_kind kind;
    int bytes; /* of a whole unit */
    void (*scales)(const void *src, int n_groups, unit *u);
    void (*quants)(const void *src, int n_groups, int8_t *q);
} unpacker;

static inline const unpacker *unpacker_of(uint32_t type) {
    static const unpacker table[TYPE_COUNT] = {
        [TYPE_Q8_0] = {SIGNED, 8 * sizeof(block_q8_0), q8_0_scales, q8_0_quants},
        [TYPE_Q4_0] = {OFFSET, 8 * sizeof(block_q4_0), q4_0_scales, q4_0_quants},
        [TYPE_Q4_1] = {MINIMUM, 8 * sizeof(block_q4_1), q4_1_scales, q4_1_quants},
        [TYPE_Q5_0] = {OFFSET, 8 * sizeof(block_q5_0), q5_0_scales, q5_0_quants},
        [TYPE_Q5_1] = {MINIMUM, 8 * sizeof(block_q5_1), q5_1_scales, q5_1_quants},
        [TYPE_IQ4_NL] = {SIGNED, 8 * sizeof(block_iq4_nl), iq4_nl_scales, iq4_nl_quants},
        [TYPE_Q2_K] = {MINIMUM, sizeof(block_q2_K), q2_K_scales, q2_K_quants},
        [TYPE_Q3_K] = {OFFSET, sizeof(block_q3_K), q3_K_scales, q3_K_quants},
        [TYPE_Q4_K] = {MINIMUM, sizeof(block_q4_K), q4_K_scales, q4_K_quants},
        [TYPE_Q5_K] = {MINIMUM, sizeof(block_q5_K), q5_K_scales, q5_K_quants},
        [TYPE_Q6_K] = {OFFSET, sizeof(block_q6_K), q6_K_scales, q6_K_quants},
        [TYPE_IQ4_XS] = {SIGNED, sizeof(block_iq4_xs), iq4_xs_scales, iq4_xs_quants},
    };
    return &table[type];
}

/* Groups of the unit that starts at weight i of a row of n. */
static inline int groups_at(int i, int n) {
    return n - i < UNIT ? (n - i) / 32 : GROUPS;
}

static inline void unpack(const unpacker *type, const void *src, int n_groups, unit *u) {
    if (n_groups < GROUPS) memset(u, 0, sizeof *u);
    type->scales(src, n_groups, u);
    type->quants(src, n_groups, u->q);
}

/* ---- parts of a product ------------------------------------------------------------------ */

/* The part of an act row that meets a unit. */
typedef struct {
    const int8_t *q;
    const float *d;
    const int16_t *sum;
} act;

static inline act act_at(const void *row, int n, int i) {
    return (act){(const int8_t *)row + i, act_scales(row, n) + i / 32, act_sums(row, n) + i / 16};
}

/* A copy of what meets a partial unit, with zeros behind. */
typedef struct {
    int8_t q[UNIT];
    float d[GROUPS];
    int16_t sum[UNIT / 16];
} padded_act;

static inline act pad(act x, int n_groups, padded_act *copy) {
    memset(copy, 0, sizeof *copy);
    memcpy(copy->q, x.q, 32 * (size_t)n_groups);
    memcpy(copy->d, x.d, sizeof(float) * (size_t)n_groups);
    memcpy(copy->sum, x.sum, 2 * sizeof(int16_t) * (size_t)n_groups);
    return (act){copy->q, copy->d, copy->sum};
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
