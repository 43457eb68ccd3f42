/* tile.h - products of panels with activations, once over the vectors of a backend.
 *
 * Few columns: weights go from the unpacker into the product. More columns: K_UNITS units of
 * R panels are unpacked into the first-level cache, where all columns meet them in register
 * tiles of R panels x C columns; what columns bring for those units stays in the second
 * level while all rows of the call go by. In each case a result is summed in the order that
 * product.h defines.
 *
 * The file that includes this (after panel.h, and wide.h if it has that) defines
 *   dots(...)        the sums of products of a run for a tile: see avx512.c
 *   scaled(dot, s)   a finished sum times a scale, rounded once
 *   MAX_R, MAX_C     bounds of a tile; FOR_COLUMNS(F, shape, R) is
 *                    F(shape, R, 1) ... F(shape, R, MAX_C)
 */
#ifndef QWEN3_TILE_H
#define QWEN3_TILE_H

#include "panel.h"

/* y plus the term of run j of a unit, see product.h. */
ALWAYS_INLINE vf add_term(const shape t, const panel *p, int j, vu dot, const act_unit *x, vf y) {
    int g = j * t.run / 32;
    y = vf_fma(scaled(dot, p->scale[j]), vf_set1(x->d[g]), y);
    if (!t.min) return y;
    float s = t.run == 32 ? x->s[g] : x->d[g] * act_sum16(x, j);
    return vf_fma(p->minus_min[j], vf_set1(s), y);
}

/* ---- register tiles ------------------------------------------------------------------ */

enum { K_UNITS = 2 }; /* units of a row that are unpacked at a time */

/* Adds n_groups groups to y[c][0 .. R * LANES). p[u * R + r] is unit u of panel r; x[c] are
 * the act units of column c. first: y starts from zero. ahead: bytes from a column to its
 * successor in the next tile, which is fetched into the first-level cache meanwhile. */
ALWAYS_INLINE void tile(const shape t, const panel *p, const int R, const act_unit *const *x,
                        const int C, int n_groups, float *const *y, bool first, intptr_t ahead) {
    vf sum[MAX_R][MAX_C];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < C; c++)
            sum[r][c] = first ? vf_zero() : vf_load(y[c] + r * LANES);
    const act_unit *at[MAX_C];
    UNROLL for (int c = 0; c < C; c++) at[c] = x[c];
    for (; n_groups > 0; n_groups -= GROUPS, p += R) {
        int n = (n_groups < GROUPS ? n_groups : GROUPS) * (32 / t.run);
        for (int j = 0; j < n; j++) {
            vu dot[MAX_R][MAX_C];
            /* a line for every 32 values: a little more than an act unit is */
            UNROLL for (int c = 0; c < C; c++)
                __builtin_prefetch((const void *)((uintptr_t)at[c] + (uintptr_t)ahead +
                                                  (unsigned)(j * t.run * 2)), 0, 3);
            dots(t, p, R, at, C, j, dot);
            UNROLL for (int r = 0; r < R; r++)
                UNROLL for (int c = 0; c < C; c++)
                    sum[r][c] = add_term(t, p + r, j, dot[r][c], at[c], sum[r][c]);
        }
        UNROLL for (int c = 0; c < C; c++) at[c]++;
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < C; c++) vf_store(y[c] + r * LANES, sum[r][c]);
}

typedef void tile_function(const panel *p, const act_unit *const *x, int n_groups,
                           float *const *y, bool first, intptr_t ahead);

#define TILE(shape, R, C)                                                                    \
    static void shape##_##R##_##C(const panel *p, const act_unit *const *x, int n_groups,     \
                                  float *const *y, bool first, intptr_t ahead) {             \
        tile(shape, p, R, x, C, n_groups, y, first, ahead);                                   \
    }
#define TILE_NAME(shape, R, C) shape##_##R##_##C,
/* All tiles of a shape, and their table [panels - 1][columns - 1]. */
#define TILES(shape)                                                                         \
    FOR_COLUMNS(TILE, shape, 1)                                                              \
    FOR_COLUMNS(TILE, shape, 2)                                                              \
    static tile_function *const shape##_tiles[MAX_R][MAX_C] = {                              \
        {FOR_COLUMNS(TILE_NAME, shape, 1)}, {FOR_COLUMNS(TILE_NAME, shape, 2)}};

/* ---- few columns ------------------------------------------------------------------------ */

/* Rows [row, row + LANES), or row alone in every lane. */
typedef struct {
    const matmul_args *a;
    size_t unit_bytes;
    int row;
    bool single;
} row_set;

ALWAYS_INLINE rows unit_rows(row_set set, int unit) {
    const matmul_args *a = set.a;
    size_t bytes = set.unit_bytes;
    const uint8_t *src = row_w(a, set.row);
    size_t at = (size_t)unit * bytes, done = (uintptr_t)src - (uintptr_t)a->ahead + at * LANES;
    return (rows){src + at, set.single ? 0 : a->row_bytes,
                  a->ahead ? fetched_ahead(a->ahead, done, a->ahead_bytes) : 0, 0};
}

/* Adds n groups, with the unit that w is at, to y. */
ALWAYS_INLINE void add_unit(void (*unpack)(rows, int, sink), const shape t, rows w, int n,
                            const act_unit *const *x, const int C, vf *y) {
    panel p;
    vu dot[UNIT / 16][FEW];
    unpack(w, n, (sink){&p, t, C, x, dot});
    for (int j = 0; j < 32 / t.run * n; j++)
        for (int c = 0; c < C; c++) y[c] = add_term(t, &p, j, dot[j][c], x[c], y[c]);
}

/* Columns [0, n_cols), as C of them: what is too many repeats the first and is dropped. Whole
 * units may have an unpacker of their own. */
ALWAYS_INLINE void few_columns(void (*whole)(rows, int, sink), void (*unpack)(rows, int, sink),
                               const shape t, row_set set, const int C) {
    const matmul_args *a = set.a;
    const act_unit *x[FEW];
    vf y[FEW];
    for (int c = 0; c < C; c++) {
        x[c] = column_x(a, c < a->n_cols ? c : 0);
        y[c] = vf_zero();
    }
    int n_units = a->n_in / UNIT, rest = a->n_in % UNIT / 32;
    for (int u = 0; u < n_units; u++) { /* the count as a constant: no loop is left */
        add_unit(whole, t, unit_rows(set, u), GROUPS, x, C, y);
        for (int c = 0; c < C; c++) x[c]++;
    }
    if (rest) add_unit(unpack, t, unit_rows(set, n_units), rest, x, C, y);
    for (int c = 0; c < C && c < a->n_cols; c++) {
        float lanes[LANES];
        vf_store(set.single ? lanes : column_y(a, c) + set.row, y[c]);
        if (set.single) column_y(a, c)[set.row] = lanes[0];
    }
}

/* ---- the product ------------------------------------------------------------------------- */

typedef struct {
    void (*unpack)(rows w, int n, panel *p);
    void (*one_column)(row_set), (*few_columns)(row_set);
    tile_function *const (*tiles)[MAX_C];
} panel_kernel;

/* Panels are not fetched ahead: the tiles leave the hardware time enough. */
#define KERNEL(type, shape, whole)                                                           \
    static void type##_unpack(rows w, int n, panel *p) {                                     \
        w.next = 0;                                                                          \
        type##_panel(w, n, (sink){p, shape, 0, NULL, NULL});                                 \
    }                                                                                        \
    static void type##_one(row_set set) {                                                    \
        few_columns(type##_##whole, type##_panel, shape, set, 1);                               \
    }                                                                                        \
    static void type##_few(row_set set) {                                                    \
        few_columns(type##_panel, type##_panel, shape, set, FEW);                            \
    }                                                                                        \
    static const panel_kernel type##_kernel = {type##_unpack, type##_one, type##_few,        \
                                               shape##_tiles};

/* All columns, R panels from set.row on, units [u0, u1). */
static void many_columns(panel_kernel kernel, row_set set, const int R, int u0, int u1) {
    const matmul_args *a = set.a;
    int n_groups = 0;
    panel p[K_UNITS * MAX_R];
    for (int u = u0; u < u1; u++) {
        int n = groups_at(u * UNIT, a->n_in);
        for (int r = 0; r < R; r++) {
            row_set at = {a, set.unit_bytes, set.row + r * LANES, set.single};
            kernel.unpack(unit_rows(at, u), n, &p[(u - u0) * R + r]);
        }
        n_groups += n;
    }
    for (int c = 0; c < a->n_cols; c += MAX_C) {
        const act_unit *x[MAX_C];
        float *y[MAX_C], lanes[MAX_C][LANES] = {{0}};
        int C = a->n_cols - c < MAX_C ? a->n_cols - c : MAX_C;
        for (int k = 0; k < C; k++) {
            x[k] = (const act_unit *)column_x(a, c + k) + u0;
            y[k] = column_y(a, c + k) + set.row;
            if (!set.single) continue;
            lanes[k][0] = *y[k];
            y[k] = lanes[k];
        }
        intptr_t ahead = c + MAX_C < a->n_cols
                             ? (intptr_t)column_x(a, c + MAX_C) - (intptr_t)column_x(a, c)
                             : 0;
        kernel.tiles[R - 1][C - 1](p, x, n_groups, y, u0 == 0, ahead);
        for (int k = 0; set.single && k < C; k++) column_y(a, c + k)[set.row] = lanes[k][0];
    }
}

/* What columns bring stays in the second-level cache while all rows go by, if not whole then
 * K_UNITS of it. */
enum { CACHED_BYTES = 512 << 10 };

static inline void panel_product(const matmul_args *a, panel_kernel kernel, int row0, int row1) {
    int n_units = (a->n_in + UNIT - 1) / UNIT;
    size_t bytes = unit_bytes(a->type);
    bool few = a->n_cols <= FEW;
    bool cached = few || (size_t)a->n_cols * act_bytes(a->n_in) <= CACHED_BYTES;
    int step = cached ? n_units : K_UNITS;
    for (int first = 0; first < n_units; first += step)
        for (int r = row0, n; r < row1; r += n) {
            row_set set = {a, bytes, r, row1 - r < LANES};
            int R = few || row1 - r < MAX_R * LANES ? 1 : MAX_R;
            n = set.single ? 1 : R * LANES;
            if (few) {
                (a->n_cols == 1 ? kernel.one_column : kernel.few_columns)(set);
                continue;
            }
            for (int u = first; u < n_units && u < first + step; u += K_UNITS)
                many_columns(kernel, set, R, u, u + K_UNITS < n_units ? u + K_UNITS : n_units);
        }
}

#endif
