/* stage.h - the way of a step's operands into shared memory: load() brings them as they lie in
 * memory into registers, while the step before is computed; store() unpacks them from there.
 *
 * A step takes LINES rows of weights, or of activations, 16 words of each: two tiles, of 32 int8
 * or 16 f16. The lanes of a warp read along the lines, so that a read touches few of them.
 */
#ifndef QWEN3_GPU_STAGE_H
#define QWEN3_GPU_STAGE_H

#include "../dialect.h"

#include "../args.h"
#include "blocks.h"
#include "tile.h"

enum { LINES = 128, LINE_WORDS = 16, STAGE_THREADS = 256 };

/* What the dots of a line's tile are multiplied with: a weight's scale, then its minimum or the
 * scale of the second 16, or both packed, of 16 with minima; d and s of activations. */
struct factors {
    float first, second;
};

/* The lines of one operand in shared memory. */
struct stage {
    GLOBAL const uchar *from[LINES]; /* where they begin */
    factors by[2][LINES];            /* of each tile */
    int words[LINES * TILE_STRIDE];
};

/* ---- quantized weights -----------------------------------------------------------------
 * A struct a type: a row is made of blocks of `bytes` that hold `groups` groups of 32; a step of
 * a line is read from `words` words, 16 of one tile's quants each, or 8 that hold both tiles';
 * `run` weights share a scale. group() is which group of the row a step's tile holds. */

/* What a word of a line is made of. */
struct quants {
    uint low, high;
};

struct lines_q8_0 {
    enum { bytes = sizeof(block_q8_0), groups = 1, words = 16, run = 32, minima = 0 };

    DEVICE int group(int step, int tile) { return 2 * step + tile; }
    DEVICE quants load(GLOBAL const uchar *block, int, int word) {
        quants q = {word_by_2(block + 2 + word % 8 * 4), 0};
        return q;
    }
    DEVICE void unpack(quants q, int, int word, SHARED int *to) { to[word] = (int)q.low; }
    DEVICE int4 head(GLOBAL const uchar *block, int) {
        int4 head = {(int)pair_at(block), 0, 0, 0};
        return head;
    }
    DEVICE factors scales(int4 head, int) {
        factors by = {low_half((uint)head.x), 0};
        return by;
    }
};

/* Of a type in nibbles. */
template <class T> struct lines_nibbles {
    enum { bytes = T::bytes, groups = 1, words = 8, run = 32, minima = T::minima };

    DEVICE int group(int step, int tile) { return 2 * step + tile; }
    DEVICE quants load(GLOBAL const uchar *block, int, int word) {
        quants q = {word_by_2(block + T::quants + word % 4 * 4),
                    T::fifth > 0 ? word_by_2(block + T::fifth) : 0};
        return q;
    }
    DEVICE void unpack(quants q, int, int word, SHARED int *to) {
        uint fifth = q.high >> word % 4 * 4;
        to += word / 4 * 8 + word % 4;
        to[0] = T::values((q.low & 0x0f0f0f0fu) | fifth_bits(fifth));
        to[4] = T::values((q.low >> 4 & 0x0f0f0f0fu) | fifth_bits(fifth >> 16));
    }
    DEVICE int4 head(GLOBAL const uchar *block, int) {
        int4 head = {(int)pair_at(block), T::minima ? (int)pair_at(block + 2) : 0, 0, 0};
        return head;
    }
    DEVICE factors scales(int4 head, int) {
        factors by = {low_half((uint)head.x), T::minima ? -low_half((uint)head.y) : 0.0f};
        return by;
    }
};

/* Both groups of a step are in the same bytes, two bits of each. */
DEVICE uint two_bits(uint quants, int step, int tile) {
    return quants >> (step % 2 * 4 + tile * 2) & 0x03030303u;
}

struct lines_q2_k {
    enum { bytes = sizeof(block_q2_K), groups = 8, words = 8, run = 16, minima = 1 };

    DEVICE int group(int step, int tile) { return 2 * step + tile; }
    DEVICE quants load(GLOBAL const uchar *block, int step, int word) {
        quants q = {word_by_4(block + 16 + step % 4 / 2 * 32 + word * 4), 0};
        return q;
    }
    DEVICE void unpack(quants q, int step, int word, SHARED int *to) {
        to[word] = (int)two_bits(q.low, step, 0);
        to[word + 8] = (int)two_bits(q.low, step, 1);
    }
    DEVICE int4 head(GLOBAL const uchar *block, int group) {
        int4 head = {(int)word_by_4(block + 80), (int)pair_at(block + group % 8 * 2), 0, 0};
        return head;
    }
    DEVICE factors scales(int4 head, int) { /* as they lie in the block */
        factors by = {bits_to_float((uint)head.x), (float)head.y};
        return by;
    }
};

struct lines_q3_k {
    enum { bytes = sizeof(block_q3_K), groups = 8, words = 8, run = 16, minima = 0 };

    DEVICE int group(int step, int tile) { return 2 * step + tile; }
    DEVICE quants load(GLOBAL const uchar *block, int step, int word) {
        quants q = {word_by_2(block + 32 + step % 4 / 2 * 32 + word * 4),
                    word_by_2(block + word * 4)};
        return q;
    }
    DEVICE void unpack(quants q, int step, int word, SHARED int *to) {
        uint high = q.high >> step % 4 * 2, by = 0x04040404u;
        to[word] = minus(two_bits(q.low, step, 0) | (high & 0x01010101u) << 2, by);
        to[word + 8] = minus(two_bits(q.low, step, 1) | (high >> 1 & 0x01010101u) << 2, by);
    }
    DEVICE int4 head(GLOBAL const uchar *block, int group) {
        int j = group % 8 * 2; /* the scales j and j + 1 of 16: four bits, two more */
        int4 head = {(int)pair_at(block + 108), (int)pair_at(block + 96 + j % 8) >> j / 8 * 4,
                     (int)pair_at(block + 104 + j % 4) >> j / 4 * 2, 0};
        return head;
    }
    DEVICE factors scales(int4 head, int) {
        float d = low_half((uint)head.x);
        factors by = {d * (float)(((head.y & 15) | (head.z & 3) << 4) - 32),
                      d * (float)(((head.y >> 8 & 15) | (head.z >> 8 & 3) << 4) - 32)};
        return by;
    }
};

struct lines_iq4_xs {
    enum { bytes = sizeof(block_iq4_xs), groups = 8, words = 8, run = 32, minima = 0 };

    DEVICE int group(int step, int tile) { return 2 * step + tile; }
    DEVICE quants load(GLOBAL const uchar *block, int step, int word) {
        quants q = {word_by_4(block + 8 + step % 4 * 32 + word * 4), 0};
        return q;
    }
    DEVICE void unpack(quants q, int step, int word, SHARED int *to) {
        lines_nibbles<nibbles_iq4_nl>::unpack(q, step, word, to);
    }
    DEVICE int4 head(GLOBAL const uchar *block, int) {
        int4 head = {(int)word_by_4(block), (int)word_by_4(block + 4), 0, 0};
        return head;
    }
    DEVICE factors scales(int4 head, int group) {
        int g = group % 8, low = head.y >> 4 * g & 15, high = head.x >> (16 + 2 * g) & 3;
        factors by = {low_half((uint)head.x) * (float)((low | high << 4) - 32), 0};
        return by;
    }
};

DEVICE factors k4_scales(int4 head, int group) {
    weights w;
    set_k4_scale(head, group % 8, w);
    factors by = {w.scale[0], w.min[0]};
    return by;
}

struct lines_q4_k {
    enum { bytes = sizeof(block_q4_K), groups = 8, words = 8, run = 32, minima = 1 };

    DEVICE int group(int step, int tile) { return 2 * step + tile; }
    DEVICE quants load(GLOBAL const uchar *block, int step, int word) {
        quants q = {word_by_4(block + 16 + step % 4 * 32 + word * 4), 0};
        return q;
    }
    DEVICE void unpack(quants q, int, int word, SHARED int *to) {
        to[word] = (int)(q.low & 0x0f0f0f0fu);
        to[word + 8] = (int)(q.low >> 4 & 0x0f0f0f0fu);
    }
    DEVICE int4 head(GLOBAL const uchar *block, int) { return *(GLOBAL const int4 *)block; }
    DEVICE factors scales(int4 head, int group) { return k4_scales(head, group); }
};

struct lines_q5_k {
    enum { bytes = sizeof(block_q5_K), groups = 8, words = 8, run = 32, minima = 1 };

    DEVICE int group(int step, int tile) { return 2 * step + tile; }
    DEVICE quants load(GLOBAL const uchar *block, int step, int word) {
        quants q = {word_by_4(block + 48 + step % 4 * 32 + word * 4),
                    word_by_4(block + 16 + word * 4)};
        return q;
    }
    DEVICE void unpack(quants q, int step, int word, SHARED int *to) {
        uint high = q.high >> step % 4 * 2;
        to[word] = (int)((q.low & 0x0f0f0f0fu) | (high & 0x01010101u) << 4);
        to[word + 8] = (int)((q.low >> 4 & 0x0f0f0f0fu) | (high >> 1 & 0x01010101u) << 4);
    }
    DEVICE int4 head(GLOBAL const uchar *block, int) { return *(GLOBAL const int4 *)block; }
    DEVICE factors scales(int4 head, int group) { return k4_scales(head, group); }
};

/* A step has the groups whose quants share bytes, 64 weights apart. */
struct lines_q6_k {
    enum { bytes = sizeof(block_q6_K), groups = 8, words = 8, run = 16, minima = 0 };

    DEVICE int group(int step, int tile) { return step / 2 * 4 + step % 2 + 2 * tile; }
    DEVICE quants load(GLOBAL const uchar *block, int step, int word) {
        quants q = {word_by_2(block + step % 4 * 32 + word * 4),
                    word_by_2(block + 128 + step % 4 / 2 * 32 + word * 4)};
        return q;
    }
    DEVICE void unpack(quants q, int step, int word, SHARED int *to) {
        uint high = q.high >> step % 2 * 2, by = 0x20202020u;
        to[word] = minus((q.low & 0x0f0f0f0fu) | (high & 0x03030303u) << 4, by);
        to[word + 8] = minus((q.low >> 4 & 0x0f0f0f0fu) | (high >> 4 & 0x03030303u) << 4, by);
    }
    DEVICE int4 head(GLOBAL const uchar *block, int group) {
        int4 head = {(int)pair_at(block + 208), (int)pair_at(block + 192 + group % 8 * 2), 0, 0};
        return head;
    }
    DEVICE factors scales(int4 head, int) {
        float d = low_half((uint)head.x);
        factors by = {d * (float)(signed char)head.y, d * (float)(signed char)(head.y >> 8)};
        return by;
    }
};

template <class T> struct staged_blocks {
    enum { int8 = 1, run = T::run, minima = T::minima, loads = LINES * T::words / STAGE_THREADS };
    quants q[loads];
    int4 head;

    DEVICE size_t line_bytes(int n) { return (size_t)(n / 32 / T::groups * T::bytes); }

    /* The block of a group; of the last one where a row's last step has only one tile. */
    DEVICE GLOBAL const uchar *block(SHARED const stage *s, int line, int n, int group) {
        int last = n / 32 - 1;
        return s->from[line] + (group < last ? group : last) / T::groups * T::bytes;
    }

    DEVICE void load(LOCAL staged_blocks &raw, SHARED const stage *s, int n, int step, place at) {
        int word = at.tid % T::words, group = T::group(step, word / (T::words / 2));
        UNROLL
        for (int i = 0; i < loads; i++) {
            int line = (i * STAGE_THREADS + at.tid) / T::words;
            raw.q[i] = T::load(block(s, line, n, group), step, word);
        }
        group = T::group(step, at.tid % 2);
        raw.head = T::head(block(s, at.tid / 2, n, group), group);
    }

    DEVICE void store(LOCAL staged_blocks &raw, SHARED stage *s, int step, place at) {
        UNROLL
        for (int i = 0; i < loads; i++) {
            int line = (i * STAGE_THREADS + at.tid) / T::words;
            T::unpack(raw.q[i], step, at.tid % T::words, s->words + line * TILE_STRIDE);
        }
        int tile = at.tid % 2;
        s->by[tile][at.tid / 2] = T::scales(raw.head, T::group(step, tile));
    }
};

/* The activations that they multiply. */
template <class T> struct staged_groups {
    enum { loads = LINES * LINE_WORDS / STAGE_THREADS };
    int q[loads];
    factors by;

    DEVICE size_t line_bytes(int n) { return (size_t)(n / 32) * sizeof(act_group); }

    DEVICE GLOBAL const act_group *at_group(SHARED const stage *s, int line, int n, int group) {
        int last = n / 32 - 1;
        return (GLOBAL const act_group *)s->from[line] + (group < last ? group : last);
    }

    DEVICE void load(LOCAL staged_groups &raw, SHARED const stage *s, int n, int step, place at) {
        int word = at.tid % LINE_WORDS, group = T::group(step, word / TILE_WORDS);
        UNROLL
        for (int i = 0; i < loads; i++) {
            int line = (i * STAGE_THREADS + at.tid) / LINE_WORDS;
            raw.q[i] = at_group(s, line, n, group)->q[word % TILE_WORDS];
        }
        GLOBAL const act_group *g = at_group(s, at.tid / 2, n, T::group(step, at.tid % 2));
        raw.by.first = g->d;
        raw.by.second = g->s;
    }

    DEVICE void store(LOCAL staged_groups &raw, SHARED stage *s, int, place at) {
        UNROLL
        for (int i = 0; i < loads; i++) {
            int line = (i * STAGE_THREADS + at.tid) / LINE_WORDS;
            s->words[line * TILE_STRIDE + at.tid % LINE_WORDS] = raw.q[i];
        }
        s->by[at.tid % 2][at.tid / 2] = raw.by;
    }
};

/* ---- floats ----------------------------------------------------------------------------
 * They are rounded to f16 after a division by a power of two, which 16 of them share: the
 * greatest is then between 1 and 2, whatever the range, and the rest lose at most 2^-12 of
 * themselves or 2^-25 of it. */

struct lines_f32 {
    enum { bytes = 4 };
    DEVICE quants load(GLOBAL const uchar *two) {
        quants q = {word_by_4(two), word_by_4(two + 4)};
        return q;
    }
    DEVICE float first(quants q) { return bits_to_float(q.low); }
    DEVICE float second(quants q) { return bits_to_float(q.high); }
};

struct lines_bf16 {
    enum { bytes = 2 };
    DEVICE quants load(GLOBAL const uchar *two) {
        quants q = {word_by_4(two), 0};
        return q;
    }
    DEVICE float first(quants q) { return bits_to_float(q.low << 16); }
    DEVICE float second(quants q) { return bits_to_float(q.low & 0xffff0000u); }
};

struct lines_f16 {
    enum { bytes = 2 };
    DEVICE quants load(GLOBAL const uchar *two) { return lines_bf16::load(two); }
    DEVICE float first(quants q) { return low_half(q.low); }
    DEVICE float second(quants q) { return high_half(q.low); }
};

template <class T> struct staged_floats {
    enum { int8 = 0, run = 0, minima = 0, loads = LINES * LINE_WORDS / STAGE_THREADS };
    quants q[loads];

    DEVICE size_t line_bytes(int n) { return (size_t)n * T::bytes; }

    DEVICE void load(LOCAL staged_floats &raw, SHARED const stage *s, int, int step, place at) {
        UNROLL
        for (int i = 0; i < loads; i++) {
            int line = (i * STAGE_THREADS + at.tid) / LINE_WORDS;
            int word = step * LINE_WORDS + at.tid % LINE_WORDS;
            raw.q[i] = T::load(s->from[line] + word * 2 * T::bytes);
        }
    }

    DEVICE void store(LOCAL staged_floats &raw, SHARED stage *s, int, place at) {
        int word = at.tid % LINE_WORDS;
        UNROLL
        for (int i = 0; i < loads; i++) {
            int line = (i * STAGE_THREADS + at.tid) / LINE_WORDS;
            float x = T::first(raw.q[i]), y = T::second(raw.q[i]);
            uint top = float_to_bits(x) & 0x7f800000u, other = float_to_bits(y) & 0x7f800000u;
            top = other > top ? other : top;
            for (int mask = TILE_WORDS / 2; mask; mask /= 2) {
                other = (uint)lane_xor((int)top, mask);
                top = other > top ? other : top;
            }
            /* Both powers of two are normal numbers; an infinity stays one, a NaN too. */
            uint least = 1u << 23, most = 253u << 23;
            top = top < least ? least : top > most ? most : top;
            float inverse = bits_to_float((254u << 23) - top);
            s->words[line * TILE_STRIDE + word] = (int)f16_word(x * inverse, y * inverse);
            if (word % TILE_WORDS == 0) {
                factors by = {bits_to_float(top), 0};
                s->by[word / TILE_WORDS][line] = by;
            }
        }
    }
};

#endif
