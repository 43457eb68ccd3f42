/* blocks.h - weights of a row as signed bytes and scales, 32 at a time.
 *
 * A struct a type, all with the same members, for templates: a row is made of blocks of `bytes`
 * that hold `groups` groups of 32 weights; `run` weights share a scale, 16 or 32; with minima or
 * without. read(row, g, w) reads group g of a row, from loads as wide as the blocks are aligned:
 * 16 bytes in Q4_K and Q5_K, 8 in IQ4_XS, 4 in Q2_K, 2 in the others.
 */
#ifndef QWEN3_GPU_BLOCKS_H
#define QWEN3_GPU_BLOCKS_H

#include "../dialect.h"

#include "../../blocks.h"

/* 32 weights in their order: scale * q - min, of the first and of the last 16. Where there are
 * no minima they are zero. */
struct weights {
    int q[8]; /* of four signed bytes */
    float scale[2], min[2];
};

DEVICE void set_scale(LOCAL weights &w, float scale, float min) {
    w.scale[0] = w.scale[1] = scale;
    w.min[0] = w.min[1] = min;
}

/* ---- loads ------------------------------------------------------------------------ */

DEVICE float half_at(GLOBAL const void *at) { return to_float(*(GLOBAL const f16 *)at); }

DEVICE uint pair_at(GLOBAL const void *at) { return *(GLOBAL const ushort *)at; }

DEVICE uint word_by_2(GLOBAL const uchar *at) { return pair_at(at) | pair_at(at + 2) << 16; }

DEVICE uint word_by_4(GLOBAL const uchar *at) { return *(GLOBAL const uint *)at; }

/* 32 bytes that are aligned to 2, from words that are aligned to 4. Two bytes in front of them
 * may be read, none behind. */
DEVICE void load_by_2(GLOBAL const uchar *at, LOCAL uint to[8]) {
    bool odd = (size_t)at & 2;
    GLOBAL const uint *words = (GLOBAL const uint *)(at - (odd ? 2 : 0));
    UNROLL
    for (int i = 0; i < 8; i++) to[i] = words[i];
    uint last = pair_at(at + 30);
    UNROLL
    for (int i = 0; i < 8; i++) {
        uint next = i < 7 ? to[i + 1] : last;
        to[i] = odd ? to[i] >> 16 | next << 16 : to[i];
    }
}

DEVICE void load_by_4(GLOBAL const uchar *at, LOCAL uint to[8]) {
    UNROLL
    for (int i = 0; i < 8; i++) to[i] = word_by_4(at + 4 * i);
}

DEVICE void load_16(GLOBAL const uchar *at, LOCAL uint *to) {
    int4 v = *(GLOBAL const int4 *)at;
    to[0] = (uint)v.x, to[1] = (uint)v.y, to[2] = (uint)v.z, to[3] = (uint)v.w;
}

DEVICE void load_by_16(GLOBAL const uchar *at, LOCAL uint to[8]) {
    load_16(at, to);
    load_16(at + 16, to + 4);
}

/* 16 bytes of nibbles, the low ones first: bytes of 0 to 15. */
DEVICE void load_nibbles(GLOBAL const uchar *at, LOCAL uint to[8]) {
    UNROLL
    for (int i = 0; i < 4; i++) {
        uint word = word_by_2(at + 4 * i);
        to[i] = word & 0x0f0f0f0fu;
        to[i + 4] = word >> 4 & 0x0f0f0f0fu;
    }
}

/* ---- four bytes at a time ----------------------------------------------------------- */

/* Each byte, of 0 to 127, less `by` in each byte, as signed bytes. */
DEVICE int minus(uint bytes, uint by) {
    return (int)(((bytes | 0x80808080u) - by) ^ 0x80808080u);
}

/* The lowest four bits as 16 in each byte. */
DEVICE uint fifth_bits(uint bits) { return (bits & 15) * 0x02040810u & 0x10101010u; }

/* The levels of IQ4_NL and IQ4_XS that four bytes of 0 to 15 stand for. */
DEVICE int levels(uint nibbles) {
    /* four in a word: -127 -104 -83 -65, -49 -35 -22 -10, 1 13 25 38, 53 69 89 113 */
    uint q = 0;
    UNROLL
    for (int i = 0; i < 32; i += 8) {
        uint n = nibbles >> i & 15;
        uint low = n & 4 ? 0xf6eaddcfu : 0xbfad9881u, high = n & 4 ? 0x71594535u : 0x26190d01u;
        q |= ((n & 8 ? high : low) >> 8 * (n & 3) & 255) << i;
    }
    return (int)q;
}

/* ---- blocks of 32 --------------------------------------------------------------------- */

struct q8_0 {
    enum { bytes = sizeof(block_q8_0), groups = 1, run = 32, minima = 0 };

    DEVICE void read(GLOBAL const uchar *row, int g, LOCAL weights &w) {
        GLOBAL const block_q8_0 *b = (GLOBAL const block_q8_0 *)row + g;
        uint q[8];
        load_by_2((GLOBAL const uchar *)b->qs, q);
        UNROLL
        for (int i = 0; i < 8; i++) w.q[i] = (int)q[i];
        set_scale(w, half_at(&b->d), 0);
    }
};

/* A scale, with minima another f16, and nibbles from byte `quants` on; from byte `fifth` on their
 * fifth bits, unless that is 0. values(): what four of them stand for. */
struct nibbles_q4_0 {
    enum { bytes = sizeof(block_q4_0), quants = 2, fifth = 0, minima = 0 };
    DEVICE int values(uint q) { return minus(q, 0x08080808u); }
};

struct nibbles_q4_1 {
    enum { bytes = sizeof(block_q4_1), quants = 4, fifth = 0, minima = 1 };
    DEVICE int values(uint q) { return (int)q; }
};

struct nibbles_q5_0 {
    enum { bytes = sizeof(block_q5_0), quants = 6, fifth = 2, minima = 0 };
    DEVICE int values(uint q) { return minus(q, 0x10101010u); }
};

struct nibbles_q5_1 {
    enum { bytes = sizeof(block_q5_1), quants = 8, fifth = 4, minima = 1 };
    DEVICE int values(uint q) { return (int)q; }
};

struct nibbles_iq4_nl {
    enum { bytes = sizeof(block_iq4_nl), quants = 2, fifth = 0, minima = 0 };
    DEVICE int values(uint q) { return levels(q); }
};

template <class T> struct nibbles {
    enum { bytes = T::bytes, groups = 1, run = 32, minima = T::minima };

    DEVICE void read(GLOBAL const uchar *row, int g, LOCAL weights &w) {
        GLOBAL const uchar *block = row + (size_t)g * bytes;
        uint q[8], fifth = T::fifth > 0 ? word_by_2(block + T::fifth) : 0;
        load_nibbles(block + T::quants, q);
        UNROLL
        for (int i = 0; i < 8; i++) w.q[i] = T::values(q[i] | fifth_bits(fifth >> 4 * i));
        set_scale(w, half_at(block), T::minima ? -half_at(block + 2) : 0.0f);
    }
};

typedef nibbles<nibbles_q4_0> q4_0;
typedef nibbles<nibbles_q4_1> q4_1;
typedef nibbles<nibbles_q5_0> q5_0;
typedef nibbles<nibbles_q5_1> q5_1;
typedef nibbles<nibbles_iq4_nl> iq4_nl;

/* ---- super-blocks of 256 ----------------------------------------------------------------
 * decode.h says how the scales are packed. */

struct q2_k {
    enum { bytes = sizeof(block_q2_K), groups = 8, run = 16, minima = 1 };

    DEVICE void read(GLOBAL const uchar *row, int g, LOCAL weights &w) {
        GLOBAL const block_q2_K *b = (GLOBAL const block_q2_K *)row + g / 8;
        g %= 8;
        uint q[8];
        load_by_4(b->qs + g / 4 * 32, q);
        UNROLL
        for (int i = 0; i < 8; i++) w.q[i] = (int)(q[i] >> g % 4 * 2 & 0x03030303u);
        float d = half_at(&b->d), dmin = half_at(&b->dmin);
        UNROLL
        for (int i = 0; i < 2; i++) {
            w.scale[i] = d * (float)(b->scales[2 * g + i] & 15);
            w.min[i] = dmin * (float)(b->scales[2 * g + i] >> 4);
        }
    }
};

struct q3_k {
    enum { bytes = sizeof(block_q3_K), groups = 8, run = 16, minima = 0 };

    DEVICE void read(GLOBAL const uchar *row, int g, LOCAL weights &w) {
        GLOBAL const block_q3_K *b = (GLOBAL const block_q3_K *)row + g / 8;
        g %= 8;
        uint q[8], high[8];
        load_by_2(b->qs + g / 4 * 32, q);
        load_by_2(b->hmask, high);
        UNROLL
        for (int i = 0; i < 8; i++) {
            uint low = q[i] >> g % 4 * 2 & 0x03030303u;
            w.q[i] = minus(low | (high[i] >> g & 0x01010101u) << 2, 0x04040404u);
        }
        float d = half_at(&b->d);
        UNROLL
        for (int i = 0; i < 2; i++) {
            int j = 2 * g + i; /* in [0, 16) */
            int low = b->scales[j % 8] >> j / 8 * 4 & 15;
            int top = b->scales[8 + j % 4] >> j / 4 * 2 & 3;
            w.scale[i] = d * (float)((low | top << 4) - 32);
            w.min[i] = 0;
        }
    }
};

/* What begins a block of Q4_K and Q5_K, d, dmin and the packed scales, for group g of its 8. */
DEVICE void set_k4_scale(int4 head, int g, LOCAL weights &w) {
    int shift = g % 4 * 8;
    int a = head.y >> shift, b = head.z >> shift, c = head.w >> shift;
    int scale = g < 4 ? a & 63 : (c & 15) | (a >> 2 & 48);
    int min = g < 4 ? b & 63 : (c >> 4 & 15) | (b >> 2 & 48);
    set_scale(w, low_half((uint)head.x) * (float)scale, high_half((uint)head.x) * (float)min);
}

struct q4_k {
    enum { bytes = sizeof(block_q4_K), groups = 8, run = 32, minima = 1 };

    DEVICE void read(GLOBAL const uchar *row, int g, LOCAL weights &w) {
        GLOBAL const block_q4_K *b = (GLOBAL const block_q4_K *)row + g / 8;
        g %= 8;
        uint q[8];
        load_by_16(b->qs + g / 2 * 32, q);
        UNROLL
        for (int i = 0; i < 8; i++) w.q[i] = (int)(q[i] >> g % 2 * 4 & 0x0f0f0f0fu);
        set_k4_scale(*(GLOBAL const int4 *)b, g, w);
    }
};

struct q5_k {
    enum { bytes = sizeof(block_q5_K), groups = 8, run = 32, minima = 1 };

    DEVICE void read(GLOBAL const uchar *row, int g, LOCAL weights &w) {
        GLOBAL const block_q5_K *b = (GLOBAL const block_q5_K *)row + g / 8;
        g %= 8;
        uint q[8], high[8];
        load_by_16(b->qs + g / 2 * 32, q);
        load_by_16(b->qh, high);
        UNROLL
        for (int i = 0; i < 8; i++)
            w.q[i] = (int)((q[i] >> g % 2 * 4 & 0x0f0f0f0fu) | (high[i] >> g & 0x01010101u) << 4);
        set_k4_scale(*(GLOBAL const int4 *)b, g, w);
    }
};

struct q6_k {
    enum { bytes = sizeof(block_q6_K), groups = 8, run = 16, minima = 0 };

    DEVICE void read(GLOBAL const uchar *row, int g, LOCAL weights &w) {
        GLOBAL const block_q6_K *b = (GLOBAL const block_q6_K *)row + g / 8;
        g %= 8;
        uint q[8], high[8];
        load_by_2(b->ql + g / 4 * 64 + g % 2 * 32, q);
        load_by_2(b->qh + g / 4 * 32, high);
        UNROLL
        for (int i = 0; i < 8; i++) {
            uint low = q[i] >> g / 2 % 2 * 4 & 0x0f0f0f0fu;
            w.q[i] = minus(low | (high[i] >> g % 4 * 2 & 0x03030303u) << 4, 0x20202020u);
        }
        float d = half_at(&b->d);
        UNROLL
        for (int i = 0; i < 2; i++) {
            w.scale[i] = d * (float)b->scales[2 * g + i];
            w.min[i] = 0;
        }
    }
};

struct iq4_xs {
    enum { bytes = sizeof(block_iq4_xs), groups = 8, run = 32, minima = 0 };

    DEVICE void read(GLOBAL const uchar *row, int g, LOCAL weights &w) {
        GLOBAL const block_iq4_xs *b = (GLOBAL const block_iq4_xs *)row + g / 8;
        g %= 8;
        UNROLL
        for (int i = 0; i < 2; i++) {
            int2 v = ((GLOBAL const int2 *)(b->qs + 16 * g))[i];
            w.q[2 * i] = levels((uint)v.x & 0x0f0f0f0fu);
            w.q[2 * i + 1] = levels((uint)v.y & 0x0f0f0f0fu);
            w.q[2 * i + 4] = levels((uint)v.x >> 4 & 0x0f0f0f0fu);
            w.q[2 * i + 5] = levels((uint)v.y >> 4 & 0x0f0f0f0fu);
        }
        int low = b->scales_l[g / 2] >> g % 2 * 4 & 15, high = b->scales_h >> 2 * g & 3;
        set_scale(w, half_at(&b->d) * (float)((low | high << 4) - 32), 0);
    }
};

#endif
