/* wide.h - products with one column, once over the vectors of a backend: what decoding does.
 *
 * A vector takes LANES * 4 bytes of one row, not 16 bytes of each of LANES rows as in
 * panel.h: few loads, nothing inserted. It holds WIDE chunks of 16 bytes. The dwords of four
 * such rows are transposed, so that chunk l of vector k has dword k of its place in each of
 * the four; the activations are spread the same way, and the sums of WIDE such sets of rows
 * become those of LANES rows at the end, which takes fewer shuffles than there were inserts.
 *
 * The file that includes this (after panel.h) defines
 *   load_chunks(p, odd, pair)       chunk l of the vector from p + odd * (l % 2) + pair * (l / 2)
 *   transpose(a, b, c, d, out)      out[k]: dword k of each chunk of a, b, c and d
 *   repeat_dwords(v, out)           out[k]: dword k of each chunk, four times
 *   add_products(t, dot, q, x)      dot + the products of q[k] and x[k], k < 4
 *   add_pairs_of_chunks(v, out)     the sums of chunks 2 i and 2 i + 1 of the sets v[WIDE] become
 *                                   out[i]; likewise one_by_one(v, out) with chunk i alone
 *   start_less(offset, t, x, j)     start() for quants stored as q + offset
 *   BYTE_OFFSET                     that offset for center(q, 0)
 *   HIGH                            4: add_products may take high nibbles where they lie, else 0
 */
#ifndef QWEN3_WIDE_H
#define QWEN3_WIDE_H

#include "panel.h"

enum { WIDE = LANES / 4 };

/* Chunks at odd * (l % 2) + pair * (l / 2) of four rows, the set-th of the panel. */
ALWAYS_INLINE void wide(rows *w, int set, int at, int odd, int pair, vu out[4]) {
    fetch(w, pair ? 16 * LANES : 8 * LANES);
    const uint8_t *p = w->src + at + (size_t)(4 * set) * w->stride;
    transpose(load_chunks(p, odd, pair), load_chunks(p + w->stride, odd, pair),
              load_chunks(p + 2 * w->stride, odd, pair),
              load_chunks(p + 3 * w->stride, odd, pair), out);
}

ALWAYS_INLINE void spread(const int8_t *x, int odd, int pair, vu out[4]) {
    repeat_dwords(load_chunks((const uint8_t *)x, odd, pair), out);
}

/* The nibbles of b, the high ones 2^HIGH times as large. */
ALWAYS_INLINE void halves(const vu b[4], vu low[4], vu high[4]) {
    nibbles(b, low, high);
    for (int k = 0; HIGH == 4 && k < 4; k++) high[k] = b[k] & 0xf0f0f0f0;
}
ALWAYS_INLINE vu from_high(vu dot) { return (vu)((vs)dot >> HIGH); }

/* Bit g of each byte, g + 2 in chunks 2 and 3, moved to bit 4. */
ALWAYS_INLINE vu to_bit_4(vu v, int g) {
    vu further = {0};
    for (int i = 8; i < LANES; i++) further[i] = 2;
    return g < 4 ? v << ((unsigned)(4 - g) - further) : v >> ((unsigned)(g - 4) + further);
}

ALWAYS_INLINE void q8_0_wide(rows w, int n, sink s) {
    (void)n;
    for (int g = 0, at = 0; g < GROUPS; g++, at += (int)sizeof(block_q8_0))
        block_scales(&w, at, g, false, s.p);
    UNROLL for (int c = 0; c < UNIT / 16; c += WIDE) {
        vu x[4], q[4], dot[WIDE], sums[WIDE / 2];
        spread(s.x[0]->q + 16 * c, 16, 32, x);
        UNROLL for (int i = 0; i < WIDE; i++) {
            wide(&w, i, c / 2 * (int)sizeof(block_q8_0) + 2, 16, sizeof(block_q8_0), q);
            for (int k = 0; k < 4; k++) q[k] = center(q[k], 0);
            dot[i] = add_products(s.t, (vu){0}, q, x);
        }
        add_pairs_of_chunks(dot, sums);
        for (int i = 0; i < WIDE / 2; i++)
            s.dot[c / 2 + i][0] = sums[i] + start_less(BYTE_OFFSET, s.t, s.x[0], c / 2 + i);
    }
}

/* Blocks that end in 16 bytes of nibbles. */
ALWAYS_INLINE void nibble_blocks_wide(rows w, int bytes, int offset, sink s) {
    for (int g = 0; g < GROUPS; g++) block_scales(&w, g * bytes, g, s.t.min, s.p);
    UNROLL for (int g = 0; g < GROUPS; g += WIDE) {
        vu x[2][4], b[4], low[4], high[4], dot[WIDE], sums[WIDE];
        for (int h = 0; h < 2; h++) spread(s.x[0]->q + 32 * g + 16 * h, 32, 64, x[h]);
        UNROLL for (int i = 0; i < WIDE; i++) {
            wide(&w, i, (g + 1) * bytes - 16, bytes, 2 * bytes, b);
            halves(b, low, high);
            dot[i] = from_high(add_products(s.t, (vu){0}, high, x[1]));
            dot[i] = add_products(s.t, dot[i], low, x[0]);
        }
        one_by_one(dot, sums);
        for (int i = 0; i < WIDE; i++)
            s.dot[g + i][0] = sums[i] + start_less(offset, s.t, s.x[0], g + i);
    }
}

ALWAYS_INLINE void q4_0_wide(rows w, int n, sink s) {
    (void)n;
    nibble_blocks_wide(w, sizeof(block_q4_0), 8, s);
}
ALWAYS_INLINE void q4_1_wide(rows w, int n, sink s) {
    (void)n;
    nibble_blocks_wide(w, sizeof(block_q4_1), 0, s);
}

/* Chunks c ... of qs hold the nibbles of groups g and g + 1 (chunks 2 and 3 those of the next
 * two), chunks of qh their fifth bits. */
ALWAYS_INLINE void k4_wide(rows w, int qs, int qh, bool bits, sink s) {
    k4_panel_scales(&w, s.p);
    UNROLL for (int c = 0; c < GROUPS; c += WIDE) {
        const int g = c & ~1;
        vu x[2][4], b[4], fifth[4], q[2][4], dot[2][WIDE], sums[WIDE / 2];
        for (int h = 0; h < 2; h++) spread(s.x[0]->q + 32 * (g + h), 16, 64, x[h]);
        UNROLL for (int i = 0; i < WIDE; i++) {
            wide(&w, i, qs + 16 * c, 16, 32, b);
            if (bits) {
                wide(&w, i, qh, 16, 0, fifth);
                nibbles(b, q[0], q[1]);
                for (int k = 0; k < 4; k++)
                    for (int h = 0; h < 2; h++)
                        q[h][k] |= to_bit_4(fifth[k], g + h) & 0x10101010;
            } else {
                halves(b, q[0], q[1]);
            }
            for (int h = 0; h < 2; h++) dot[h][i] = add_products(s.t, (vu){0}, q[h], x[h]);
        }
        for (int h = 0; h < 2; h++) {
            add_pairs_of_chunks(dot[h], sums);
            for (int i = 0; i < WIDE / 2; i++) {
                vu sum = h && !bits ? from_high(sums[i]) : sums[i];
                s.dot[g + 2 * i + h][0] = sum + start_less(0, s.t, s.x[0], g + 2 * i + h);
            }
        }
    }
}

ALWAYS_INLINE void q4_K_wide(rows w, int n, sink s) {
    (void)n;
    k4_wide(w, offsetof(block_q4_K, qs), 0, false, s);
}
ALWAYS_INLINE void q5_K_wide(rows w, int n, sink s) {
    (void)n;
    k4_wide(w, offsetof(block_q5_K, qs), offsetof(block_q5_K, qh), true, s);
}

ALWAYS_INLINE void q6_K_wide(rows w, int n, sink s) {
    (void)n;
    q6_K_panel_scales(&w, s.p);
    UNROLL for (int c = 0; c < GROUPS; c += WIDE) { /* of ql; weights at, and 64 after it */
        const int at = 16 * (c % 4) + 128 * (c / 4);
        vu x[2][4], b[4], two[4], q[2][4], dot[2][WIDE], sums[WIDE];
        for (int h = 0; h < 2; h++) spread(s.x[0]->q + at + 64 * h, 16, 32, x[h]);
        UNROLL for (int i = 0; i < WIDE; i++) {
            wide(&w, i, 16 * c, 16, 32, b);
            wide(&w, i, (int)offsetof(block_q6_K, qh) + 32 * (c / 4), 16, 0, two);
            nibbles(b, q[0], q[1]);
            for (int h = 0; h < 2; h++) {
                for (int k = 0; k < 4; k++)
                    q[h][k] |= to_bit_4(two[k], 4 * h + c % 4 / 2 * 2) & 0x30303030;
                dot[h][i] = add_products(s.t, (vu){0}, q[h], x[h]);
            }
        }
        for (int h = 0; h < 2; h++) {
            one_by_one(dot[h], sums);
            for (int i = 0; i < WIDE; i++)
                s.dot[at / 16 + 4 * h + i][0] =
                    sums[i] + start_less(32, s.t, s.x[0], at / 16 + 4 * h + i);
        }
    }
}

#endif
