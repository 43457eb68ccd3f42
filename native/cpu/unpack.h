/* unpack.h - reads every quantized weight type, 256 weights at a time, in plain C. */
#ifndef QWEN3_UNPACK_H
#define QWEN3_UNPACK_H

#include "product.h"

typedef struct {
    int8_t q[UNIT];
    float scale[UNIT / 16], min[UNIT / 16]; /* of each 16 weights, also where 32 share them */
} unit;

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

/* ---- one function a type: n groups of 32 from src; of a super-block n is 8 ------------- */

static inline void set_group(unit *u, int g, float scale, float min) {
    u->scale[2 * g] = u->scale[2 * g + 1] = scale;
    u->min[2 * g] = u->min[2 * g + 1] = min;
}

static inline void unpack_q8_0(const void *src, int n, unit *u) {
    const row_q8_0 *b = src;
    for (int g = 0; g < n; g++) {
        set_group(u, g, half(b[g].d), 0);
        memcpy(u->q + 32 * g, b[g].qs, 32);
    }
}

/* The low nibbles of count bytes, then the high ones. */
static inline void nibbles(const uint8_t *qs, int count, int offset, int8_t *q) {
    for (int i = 0; i < count; i++) {
        q[i] = (int8_t)((qs[i] & 15) - offset);
        q[i + count] = (int8_t)((qs[i] >> 4) - offset);
    }
}

static inline void levels(const uint8_t *qs, int8_t *q) {
    for (int i = 0; i < 16; i++) {
        q[i] = iq4_levels[qs[i] & 15];
        q[i + 16] = iq4_levels[qs[i] >> 4];
    }
}

/* Adds 16 where bit i of qh is set. */
static inline void fifth_bits(const uint8_t qh[4], int8_t *q) {
    for (int i = 0; i < 32; i++) q[i] = (int8_t)(q[i] + (qh[i / 8] >> i % 8 & 1) * 16);
}

static inline void unpack_q4_0(const void *src, int n, unit *u) {
    const row_q4_0 *b = src;
    for (int g = 0; g < n; g++) {
        set_group(u, g, half(b[g].d), 0);
        nibbles(b[g].qs, 16, 8, u->q + 32 * g);
    }
}

static inline void unpack_q4_1(const void *src, int n, unit *u) {
    const row_q4_1 *b = src;
    for (int g = 0; g < n; g++) {
        set_group(u, g, half(b[g].d), -half(b[g].m));
        nibbles(b[g].qs, 16, 0, u->q + 32 * g);
    }
}

static inline void unpack_q5_0(const void *src, int n, unit *u) {
    const row_q5_0 *b = src;
    for (int g = 0; g < n; g++) {
        set_group(u, g, half(b[g].d), 0);
        nibbles(b[g].qs, 16, 16, u->q + 32 * g);
        fifth_bits(b[g].qh, u->q + 32 * g);
    }
}

static inline void unpack_q5_1(const void *src, int n, unit *u) {
    const row_q5_1 *b = src;
    for (int g = 0; g < n; g++) {
        set_group(u, g, half(b[g].d), -half(b[g].m));
        nibbles(b[g].qs, 16, 0, u->q + 32 * g);
        fifth_bits(b[g].qh, u->q + 32 * g);
    }
}

static inline void unpack_iq4_nl(const void *src, int n, unit *u) {
    const row_iq4_nl *b = src;
    for (int g = 0; g < n; g++) {
        set_group(u, g, half(b[g].d), 0);
        levels(b[g].qs, u->q + 32 * g);
    }
}

static inline void unpack_q2_K(const void *src, int n, unit *u) {
    const row_q2_K *b = src;
    for (int i = 0; i < 16; i++) {
        u->scale[i] = half(b->d) * (float)(b->scales[i] & 15);
        u->min[i] = half(b->dmin) * (float)(b->scales[i] >> 4);
    }
    for (int i = 0; i < 32 * n; i++)
        u->q[i] = b->qs[i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3;
}

static inline void unpack_q3_K(const void *src, int n, unit *u) {
    const row_q3_K *b = src;
    for (int i = 0; i < 16; i++) {
        u->scale[i] = half(b->d) * (float)k3_scale(b->scales, i);
        u->min[i] = 0;
    }
    for (int i = 0; i < 32 * n; i++)
        u->q[i] = (int8_t)((b->qs[i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3) +
                           (b->hmask[i % 32] >> i / 32 & 1) * 4 - 4);
}

static inline void k4_scales(const uint8_t packed[12], float d, float dmin, unit *u) {
    for (int g = 0; g < GROUPS; g++) {
        uint8_t scale, min;
        k4_scale_min(packed, g, &scale, &min);
        set_group(u, g, d * scale, dmin * min);
    }
}

static inline void unpack_q4_K(const void *src, int n, unit *u) {
    const row_q4_K *b = src;
    k4_scales(b->scales, half(b->d), half(b->dmin), u);
    for (int g = 0; g < n; g += 2) nibbles(b->qs + 16 * g, 32, 0, u->q + 32 * g);
}

static inline void unpack_q5_K(const void *src, int n, unit *u) {
    const row_q5_K *b = src;
    k4_scales(b->scales, half(b->d), half(b->dmin), u);
    for (int g = 0; g < n; g += 2) nibbles(b->qs + 16 * g, 32, 0, u->q + 32 * g);
    for (int i = 0; i < 32 * n; i++)
        u->q[i] = (int8_t)(u->q[i] + (b->qh[i % 32] >> i / 32 & 1) * 16);
}

static inline void unpack_q6_K(const void *src, int n, unit *u) {
    const row_q6_K *b = src;
    for (int i = 0; i < 16; i++) {
        u->scale[i] = half(b->d) * b->scales[i];
        u->min[i] = 0;
    }
    for (int i = 0; i < 32 * n; i++) {
        int low = b->ql[i / 128 * 64 + i % 64] >> i / 64 % 2 * 4 & 15;
        int high = b->qh[i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3;
        u->q[i] = (int8_t)((low | high << 4) - 32);
    }
}

static inline void unpack_iq4_xs(const void *src, int n, unit *u) {
    const row_iq4_xs *b = src;
    for (int g = 0; g < n; g++) {
        set_group(u, g, half(b->d) * (float)iq4_xs_scale(b->scales_h, b->scales_l, g), 0);
        levels(b->qs + 16 * g, u->q + 32 * g);
    }
}

/* ---- the table -------------------------------------------------------------------- */

typedef struct {
    int run;  /* weights that share a scale: 16 or 32 */
    bool min; /* there are minima */
    void (*unpack)(const void *src, int n_groups, unit *u);
} unpacker;

static inline const unpacker *unpacker_of(uint32_t type) {
    static const unpacker table[TYPE_COUNT] = {
        [TYPE_Q8_0] = {32, false, unpack_q8_0},
        [TYPE_Q4_0] = {32, false, unpack_q4_0},
        [TYPE_Q4_1] = {32, true, unpack_q4_1},
        [TYPE_Q5_0] = {32, false, unpack_q5_0},
        [TYPE_Q5_1] = {32, true, unpack_q5_1},
        [TYPE_IQ4_NL] = {32, false, unpack_iq4_nl},
        [TYPE_Q2_K] = {16, true, unpack_q2_K},
        [TYPE_Q3_K] = {16, false, unpack_q3_K},
        [TYPE_Q4_K] = {32, true, unpack_q4_K},
        [TYPE_Q5_K] = {32, true, unpack_q5_K},
        [TYPE_Q6_K] = {16, false, unpack_q6_K},
        [TYPE_IQ4_XS] = {32, false, unpack_iq4_xs},
    };
    return &table[type];
}

#endif
