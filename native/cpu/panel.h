/* panel.h - unpacks quantized weights into panels, once over the vectors of a backend.
 *
 * A panel is LANES rows x 256 weights, transposed as it is unpacked: a vector holds the
 * same four quants of every row, so that a product needs no sum over lanes (tile.h). Rows
 * are read where they lie.
 *
 * The file that includes this (after vector.h) defines the type vu, LANES uint32_t, and
 *   load_quads(src, stride, out)  16 bytes of each row: out[i] has the i-th four
 *   load_dwords(src, stride)      four bytes of each row
 *   half_low(v)                   the low 16 bits of each lane, an f16, as float
 *   iq4_lookup(v)                 iq4_levels at each byte
 *   center(v, offset)             quants stored as q + offset in the form of its products
 *   shape                         what of a type decides how it is multiplied: run and min of
 *                                 its unpacker, and what else products need
 *   start(t, x, j)                what the sum of products of run j of act unit x starts from
 *   FEW                           up to how many columns are multiplied without storing a panel
 *   add_dot(t, dot, q, x)         dot + the products of 16 quants of each row with x[0..16)
 *   store_quads(t, to, q)         16 quants of each row into a panel, in the form and order that
 *                                 tiles (dots in tile.h) take them
 *   PARTS                         vectors that four quants of each row take there; the second
 *                                 part is UNIT / 4 vectors behind the first
 */
#ifndef QWEN3_PANEL_H
#define QWEN3_PANEL_H

#include "vector.h"

typedef int32_t vs __attribute__((vector_size(4 * LANES)));
typedef uint8_t vb __attribute__((vector_size(4 * LANES)));

typedef struct {
    vf scale[UNIT / 16], minus_min[UNIT / 16]; /* one for each run of 16 or 32 weights */
    vu q[PARTS * UNIT / 4];
} panel;

/* ---- reading ------------------------------------------------------------------------------ */

/* LANES rows at the same weight, stride bytes apart. While they are read, as many bytes are
 * fetched ahead from next on, unless that is 0. */
typedef struct {
    const uint8_t *src;
    size_t stride;
    uintptr_t next;
    int read; /* since the last fetch */
} rows;

/* Memory that is read in one stream leaves a third of its bandwidth unused, as the hardware's
 * own prefetching keeps within a page. So the next PAGES are fetched line by line side by
 * side; and not all at once, as there are few buffers for lines under way. */
enum { PAGE = 4096, PAGES = 8, LINE = 64 };

/* Where fetching goes on for what lies `done` bytes into a region of size bytes. */
static inline uintptr_t fetched_ahead(const void *region, size_t done, size_t size) {
    const size_t ahead = PAGES * PAGE;
    uintptr_t first_page = (uintptr_t)region & ~(uintptr_t)(PAGE - 1);
    if (done + ahead >= size) return 0;
    return first_page + (done / ahead + 1) * ahead + done % ahead / (PAGES * LINE) * LINE;
}

ALWAYS_INLINE void fetch(rows *w, int bytes) {
    w->read += bytes;
    if (w->read < PAGES * LINE || w->next == 0) return;
    w->read -= PAGES * LINE;
    for (unsigned i = 0; i < PAGES; i++)
        __builtin_prefetch((const void *)(w->next + i * PAGE), 0, 3);
    w->next += LINE;
    if (w->next % PAGE == 0) w->next += (PAGES - 1) * PAGE;
}

ALWAYS_INLINE void quads(rows *w, int at, vu out[4]) {
    fetch(w, 16 * LANES);
    load_quads(w->src + at, w->stride, out);
}

ALWAYS_INLINE vu dwords(rows *w, int at) {
    fetch(w, 2 * LANES); /* most are two bytes that a quad begins or ends with */
    return load_dwords(w->src + at, w->stride);
}

ALWAYS_INLINE vf vf_int(vu v) {
    typedef float floats __attribute__((vector_size(4 * LANES)));
    return (vf)__builtin_convertvector((vs)v, floats);
}

/* Byte j of each lane. */
ALWAYS_INLINE vf byte_of(vu v, int j) { return vf_int(v >> (8 * j) & 0xff); }
ALWAYS_INLINE vf signed_byte_of(vu v, int j) {
    return vf_int((vu)((vs)(v << (24 - 8 * j)) >> 24));
}
ALWAYS_INLINE vf negative(vf v) { return vf_sub(vf_zero(), v); }

/* ---- unpacking --------------------------------------------------------------------------
 * TYPE_panel(w, n, s) unpacks n groups of a unit (of a super-block all 8): scales into
 * s.p, and quants, 16 of each row at a time, to where the sink takes them. */

/* Quants are stored in the panel, or multiplied at once with n_cols columns. */
typedef struct {
    panel *p;
    shape t;
    int n_cols; /* 0: store */
    const act_unit *const *x;
    vu (*dot)[FEW]; /* [run][column] */
} sink;

/* Half h of group g, 16 quants of each row; the halves of a run of 32 come in order. */
ALWAYS_INLINE void emit(sink s, int g, int h, const vu q[4]) {
    if (s.n_cols == 0) store_quads(s.t, s.p->q + 8 * g + 4 * h, q);
    UNROLL for (int c = 0; c < s.n_cols; c++) {
        vu *dot = &s.dot[s.t.run == 32 ? g : 2 * g + h][c];
        vu from = s.t.run == 32 && h ? *dot : start(s.t, s.x[c], s.t.run == 32 ? g : 2 * g + h);
        *dot = add_dot(s.t, from, q, s.x[c]->q + 32 * g + 16 * h);
    }
}

/* The low four bits of each byte, and the high ones. */
ALWAYS_INLINE void nibbles(const vu b[4], vu low[4], vu high[4]) {
    for (int k = 0; k < 4; k++) {
        low[k] = (vu)((vb)b[k] & 15);
        high[k] = (vu)((vb)b[k] >> 4); /* a single instruction where bytes can be shifted */
    }
}

/* ---- blocks of 32 ------------------------------------------------------------------------- */

/* Scales: d, and with it m = -min. */
ALWAYS_INLINE void block_scales(rows *w, int at, int g, bool min, panel *p) {
    vu d = dwords(w, at);
    p->scale[g] = half_low(d);
    if (min) p->minus_min[g] = half_low(d >> 16);
}

ALWAYS_INLINE void q8_0_panel(rows w, int n, sink s) {
    for (int g = 0, at = 0; g < n; g++, at += (int)sizeof(block_q8_0)) {
        block_scales(&w, at, g, false, s.p);
        UNROLL for (int h = 0; h < 2; h++) {
            vu q[4];
            quads(&w, at + 2 + 16 * h, q);
            for (int k = 0; k < 4; k++) q[k] = center(q[k], 0);
            emit(s, g, h, q);
        }
    }
}

/* Bits 16 h ... of a lane, as the fifth bits of 16 quants. */
ALWAYS_INLINE void fifth_bits(vu bits, int h, vu q[4]) {
    for (int k = 0; k < 4; k++) /* the product puts bit j of a nibble at bit 8 j */
        q[k] |= ((bits >> (16 * h + 4 * k) & 15) * 0x00204081 & 0x01010101) << 4;
}

/* Blocks that end in 16 bytes of nibbles; bits: there is a fifth, in the four bytes before. */
ALWAYS_INLINE void nibble_blocks(rows w, int n, int bytes, bool bits, int offset, bool levels,
                                 sink s) {
    for (int g = 0, at = 0; g < n; g++, at += bytes) {
        vu b[4], q[2][4], fifth = {0};
        block_scales(&w, at, g, s.t.min, s.p);
        if (bits) fifth = dwords(&w, at + bytes - 20);
        quads(&w, at + bytes - 16, b);
        nibbles(b, q[0], q[1]);
        UNROLL for (int h = 0; h < 2; h++) {
            if (bits) fifth_bits(fifth, h, q[h]);
            for (int k = 0; k < 4; k++)
                q[h][k] = levels  ? center(iq4_lookup(q[h][k]), 0)
                          : s.t.min ? q[h][k]
                                  : center(q[h][k], offset);
            emit(s, g, h, q[h]);
        }
    }
}

ALWAYS_INLINE void q4_0_panel(rows w, int n, sink s) {
    nibble_blocks(w, n, sizeof(block_q4_0), false, 8, false, s);
}
ALWAYS_INLINE void q4_1_panel(rows w, int n, sink s) {
    nibble_blocks(w, n, sizeof(block_q4_1), false, 0, false, s);
}
ALWAYS_INLINE void q5_0_panel(rows w, int n, sink s) {
    nibble_blocks(w, n, sizeof(block_q5_0), true, 16, false, s);
}
ALWAYS_INLINE void q5_1_panel(rows w, int n, sink s) {
    nibble_blocks(w, n, sizeof(block_q5_1), true, 0, false, s);
}
ALWAYS_INLINE void iq4_nl_panel(rows w, int n, sink s) {
    nibble_blocks(w, n, sizeof(block_iq4_nl), false, 0, true, s);
}

/* ---- super-blocks -------------------------------------------------------------------------- */

ALWAYS_INLINE void q2_K_panel(rows w, int n, sink s) {
    (void)n;
    vu pairs[4], b[4], d = dwords(&w, (int)offsetof(block_q2_K, d));
    quads(&w, 0, pairs);
    for (int j = 0; j < 16; j++) {
        s.p->scale[j] = vf_mul(half_low(d), byte_of(pairs[j / 4] & 0x0f0f0f0f, j % 4));
        s.p->minus_min[j] = negative(vf_mul(half_low(d >> 16),
                                            byte_of(pairs[j / 4] >> 4 & 0x0f0f0f0f, j % 4)));
    }
    for (int c = 0; c < 4; c++) {
        quads(&w, (int)offsetof(block_q2_K, qs) + 16 * c, b);
        for (int g = 0; g < 4; g++) { /* of the half c / 2 */
            vu q[4];
            for (int k = 0; k < 4; k++) q[k] = b[k] >> (2 * g) & 0x03030303;
            emit(s, 4 * (c / 2) + g, c % 2, q);
        }
    }
}

ALWAYS_INLINE void q3_K_panel(rows w, int n, sink s) {
    (void)n;
    vu packed[3], b[4], high[2][4];
    for (int i = 0; i < 3; i++) packed[i] = dwords(&w, (int)offsetof(block_q3_K, scales) + 4 * i);
    vf d = half_low(dwords(&w, (int)offsetof(block_q3_K, d) - 2) >> 16);
    for (int j = 0; j < 16; j += 4) {
        vu six = (packed[j / 4 % 2] >> (j / 8 * 4) & 0x0f0f0f0f) |
                 (packed[2] >> (j / 2) & 0x03030303) << 4;
        for (int k = 0; k < 4; k++)
            s.p->scale[j + k] = vf_mul(d, vf_sub(byte_of(six, k), vf_set1(32)));
    }
    for (int c = 0; c < 2; c++) quads(&w, 16 * c, high[c]);
    for (int c = 0; c < 4; c++) {
        quads(&w, (int)offsetof(block_q3_K, qs) + 16 * c, b);
        for (int g = 0; g < 4; g++) {
            vu q[4];
            for (int k = 0; k < 4; k++)
                q[k] = center((b[k] >> (2 * g) & 0x03030303) |
                              (high[c % 2][k] >> (c / 2 * 4 + g) & 0x01010101) << 2, 4);
            emit(s, 4 * (c / 2) + g, c % 2, q);
        }
    }
}

/* The 6-bit pairs of Q4_K and Q5_K (see k4_scale_min) behind d and dmin: the first 16 bytes
 * of a super-block. */
ALWAYS_INLINE void k4_panel_scales(rows *w, panel *p) {
    vu h[4];
    quads(w, 0, h);
    vf d = half_low(h[0]), minus_dmin = negative(half_low(h[0] >> 16));
    vu scale[2] = {h[1] & 0x3f3f3f3f, (h[3] & 0x0f0f0f0f) | (h[1] >> 2 & 0x30303030)};
    vu min[2] = {h[2] & 0x3f3f3f3f, (h[3] >> 4 & 0x0f0f0f0f) | (h[2] >> 2 & 0x30303030)};
    for (int g = 0; g < GROUPS; g++) {
        p->scale[g] = vf_mul(d, byte_of(scale[g / 4], g % 4));
        p->minus_min[g] = vf_mul(minus_dmin, byte_of(min[g / 4], g % 4));
    }
}

/* 32 bytes of qs hold the nibbles of two groups, a bit of each byte of qh a fifth bit. */
ALWAYS_INLINE void k4_quants(rows *w, int qs, int qh, bool bits, sink s) {
    vu b[4], q[2][4], fifth[2][4];
    for (int h = 0; bits && h < 2; h++) quads(w, qh + 16 * h, fifth[h]);
    for (int g = 0; g < GROUPS; g += 2)
        UNROLL for (int h = 0; h < 2; h++) {
            quads(w, qs + 16 * g + 16 * h, b);
            nibbles(b, q[0], q[1]);
            UNROLL for (int i = 0; i < 2; i++) {
                for (int k = 0; bits && k < 4; k++)
                    q[i][k] |= (fifth[h][k] >> (g + i) & 0x01010101) << 4;
                emit(s, g + i, h, q[i]);
            }
        }
}

ALWAYS_INLINE void q4_K_panel(rows w, int n, sink s) {
    (void)n;
    k4_panel_scales(&w, s.p);
    k4_quants(&w, offsetof(block_q4_K, qs), 0, false, s);
}

ALWAYS_INLINE void q5_K_panel(rows w, int n, sink s) {
    (void)n;
    k4_panel_scales(&w, s.p);
    k4_quants(&w, offsetof(block_q5_K, qs), offsetof(block_q5_K, qh), true, s);
}

ALWAYS_INLINE void q6_K_panel_scales(rows *w, panel *p) {
    vu scales[4];
    quads(w, (int)offsetof(block_q6_K, scales), scales);
    vf d = half_low(dwords(w, (int)offsetof(block_q6_K, d) - 2) >> 16);
    for (int j = 0; j < 16; j++) p->scale[j] = vf_mul(d, signed_byte_of(scales[j / 4], j % 4));
}

ALWAYS_INLINE void q6_K_panel(rows w, int n, sink s) {
    (void)n;
    vu b[4], q[2][4], high[2][4];
    q6_K_panel_scales(&w, s.p);
    for (int g = 0; g < GROUPS; g += 4) { /* 64 bytes of ql and 32 of qh */
        for (int h = 0; h < 2; h++)
            quads(&w, (int)offsetof(block_q6_K, qh) + 8 * g + 16 * h, high[h]);
        UNROLL for (int c = 0; c < 4; c++) {
            quads(&w, 16 * (g + c), b);
            nibbles(b, q[0], q[1]);
            UNROLL for (int i = 0; i < 2; i++) { /* a group, and the one after the next */
                int at = c / 2 + 2 * i;
                for (int k = 0; k < 4; k++) {
                    vu two = high[c % 2][k] >> (2 * at) & 0x03030303;
                    q[i][k] = center(q[i][k] | two << 4, 32);
                }
                emit(s, g + at, c % 2, q[i]);
            }
        }
    }
}

ALWAYS_INLINE void iq4_xs_panel(rows w, int n, sink s) {
    vu h = dwords(&w, 0), low = dwords(&w, 4);
    for (int g = 0; g < n; g++) {
        vu b[4], q[2][4], six = (low >> (4 * g) & 15) | (h >> (16 + 2 * g) & 3) << 4;
        s.p->scale[g] = vf_mul(half_low(h), vf_sub(vf_int(six), vf_set1(32)));
        quads(&w, (int)offsetof(block_iq4_xs, qs) + 16 * g, b);
        nibbles(b, q[0], q[1]);
        UNROLL for (int h = 0; h < 2; h++) {
            for (int k = 0; k < 4; k++) q[h][k] = center(iq4_lookup(q[h][k]), 0);
            emit(s, g, h, q[h]);
        }
    }
}

#endif
