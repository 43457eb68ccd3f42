/* matmul.h - products with many columns, on the matrix units (see tile.h).
 *
 * A block computes 128 rows times 128 columns, its eight warps 32 rows each of every other eight
 * columns. The quantized products are those of cpu/product.h, with the same roundings: the dots
 * of 16 or 32 int8 are exact, and are added up in order, with their scales, in float.
 */
#ifndef QWEN3_GPU_MATMUL_H
#define QWEN3_GPU_MATMUL_H

#include "act.h"
#include "stage.h"

/* Tiles of a warp. */
enum { WARP_ROWS = 2, WARP_COLUMNS = 8, COLUMN_WARPS = 2 };

/* Columns of a block: c in [0, n) is column first + c of y. */
struct columns {
    int first, n;
};

DEVICE columns columns_of(CONSTANT gemm_args &a, place at) {
    int start = a.expert_w ? a.start[at.z] : 0;
    int end = a.expert_w ? a.start[at.z + 1] : a.n_columns;
    columns c = {start + at.y * LINES, end - start - at.y * LINES};
    return c;
}

/* ---- sums ------------------------------------------------------------------------------ */

/* Of a part of a tile, 16 or all 32. */
template <class W> DEVICE float scale_of(factors by, int part) {
    if (W::run == 16 && W::minima)
        return low_half(float_to_bits(by.first)) * (float)((int)by.second >> 8 * part & 15);
    return part ? by.second : by.first;
}

template <class W> DEVICE float min_of(factors by, int part) {
    if (W::run == 16)
        return high_half(float_to_bits(by.first)) * (float)((int)by.second >> (8 * part + 4) & 15);
    return by.second;
}

/* Of two columns, what their weights' minima are multiplied with: d times the sum of a part. */
template <class W>
DEVICE void sums_of(LOCAL const factors (&x)[2], tile_columns c, int part, LOCAL float (&s)[2]) {
    if (W::run == 32) {
        for (int i = 0; i < 2; i++) s[i] = x[i].second;
    } else {
        tile_rows ones = {{0x01010101, 0x01010101, 0x01010101, 0x01010101}};
        float sum[4];
        tile_int8(sum, ones, c, part);
        for (int i = 0; i < 2; i++) s[i] = x[i].first * (sum[i] - TILE_START);
    }
}

/* y += the products of a column's tile with those of the rows. by: of each tile's rows, those of
 * tile_row and eight below; x: of the two columns. */
template <class W>
DEVICE void add_tiles(LOCAL tile_sums (&y)[WARP_ROWS][WARP_COLUMNS], int j,
                      LOCAL const tile_rows (&w)[WARP_ROWS], tile_columns c,
                      LOCAL const factors (&by)[WARP_ROWS][2], LOCAL const factors (&x)[2]) {
    enum { parts = W::run == 16 ? 2 : 1 };
    UNROLL
    for (int part = 0; part < parts; part++) {
        float s[2];
        if (W::minima) sums_of<W>(x, c, part, s);
        UNROLL
        for (int m = 0; m < WARP_ROWS; m++) {
            float v[4] = {0, 0, 0, 0};
            if (!W::int8) tile_add_f16(v, w[m], c);
            else if (parts == 1) tile_int8(v, w[m], c);
            else tile_int8(v, w[m], c, part);
            UNROLL
            for (int i = 0; i < 4; i++) {
                LOCAL float &sum = y[m][j][i];
                float scale = scale_of<W>(by[m][i / 2], part);
                float dot = W::int8 ? to_scaled(v[i], scale, -TILE_START * scale) : v[i] * scale;
                sum = fma(dot, x[i % 2].first, sum);
                if (W::minima) sum = fma(-min_of<W>(by[m][i / 2], part), s[i % 2], sum);
            }
        }
    }
}

/* Adds a step's tile to the sums of a warp: of a part of the columns where n are no more. In finer
 * steps the unit would wait for its operands; in coarser ones registers would not do for the two
 * scales of a row. */
template <class W>
DEVICE void add_step(LOCAL tile_sums (&y)[WARP_ROWS][WARP_COLUMNS], SHARED const stage *rows,
                     SHARED const stage *cols, int tile, int n, place at) {
    enum { together = W::run == 16 ? 2 : 4 };
    int first = at.warp / COLUMN_WARPS * WARP_ROWS * TILE_ROWS;
    tile_rows w[WARP_ROWS];
    factors by[WARP_ROWS][2];
    UNROLL
    for (int m = 0; m < WARP_ROWS; m++) {
        int line = first + m * TILE_ROWS;
        w[m] = tile_load_rows(rows->words + line * TILE_STRIDE + tile * TILE_WORDS, at.lane);
        line += tile_row(at.lane);
        by[m][0] = rows->by[tile][line];
        by[m][1] = rows->by[tile][line + 8];
    }
    UNROLL
    for (int first = 0; first < WARP_COLUMNS; first += together) {
        if (first * COLUMN_WARPS * TILE_COLUMNS >= n) break;
        UNROLL
        for (int j = first; j < first + together; j++) {
            int line = (j * COLUMN_WARPS + at.warp % COLUMN_WARPS) * TILE_COLUMNS;
            tile_columns c = tile_load_columns(
                cols->words + line * TILE_STRIDE + tile * TILE_WORDS, at.lane, W::int8);
            line += tile_column(at.lane);
            factors x[2] = {cols->by[tile][line], cols->by[tile][line + 1]};
            add_tiles<W>(y, j, w, c, by, x);
        }
    }
}

/* ---- results ---------------------------------------------------------------------------- */

DEVICE void store_products(CONSTANT gemm_args &a, columns c,
                           LOCAL tile_sums (&y)[WARP_ROWS][WARP_COLUMNS], place at) {
    UNROLL
    for (int m = 0; m < WARP_ROWS; m++) {
        int row = at.x * LINES + (at.warp / COLUMN_WARPS * WARP_ROWS + m) * TILE_ROWS +
                  tile_row(at.lane);
        UNROLL
        for (int j = 0; j < WARP_COLUMNS; j++) {
            int column = (j * COLUMN_WARPS + at.warp % COLUMN_WARPS) * TILE_COLUMNS +
                         tile_column(at.lane);
            UNROLL
            for (int i = 0; i < 4; i++) {
                int r = row + i / 2 * 8, k = column + i % 2;
                if (r >= a.n_out || k >= c.n) continue;
                GLOBAL float *to = a.y + (size_t)(c.first + k) * (size_t)a.n_out + (size_t)r;
                *to = a.add ? *to + y[m][j][i] : y[m][j][i];
            }
        }
    }
}

/* A warp's two tiles of rows are of gate and of up. The block's 64 rows of results go through
 * shared memory, half of the columns at a time: there a warp finds 32 that follow each other. */
DEVICE void store_swiglu(CONSTANT gemm_args &a, columns c,
                         LOCAL tile_sums (&y)[WARP_ROWS][WARP_COLUMNS], place at,
                         SHARED float *shared) {
    enum { rows = LINES / 2, stride = rows + 1, cols = LINES / 2 };
    int row = at.warp / COLUMN_WARPS * TILE_ROWS + tile_row(at.lane);
    UNROLL
    for (int first = 0; first < WARP_COLUMNS; first += WARP_COLUMNS / 2) {
        barrier();
        UNROLL
        for (int j = 0; j < WARP_COLUMNS / 2; j++) {
            int column = (j * COLUMN_WARPS + at.warp % COLUMN_WARPS) * TILE_COLUMNS +
                         tile_column(at.lane);
            UNROLL
            for (int i = 0; i < 4; i++) {
                float gate = y[0][first + j][i], up = y[1][first + j][i];
                shared[(column + i % 2) * stride + row + i / 2 * 8] =
                    gate / (1.0f + exp(-gate)) * up;
            }
        }
        barrier();
        for (int i = at.warp; i < cols * 2; i += at.warps) {
            int k = i / 2 + first * COLUMN_WARPS * TILE_COLUMNS, r = i % 2 * 32 + at.lane;
            int group = at.x * rows + i % 2 * 32; /* begins there */
            if (k >= c.n || group >= a.n_out) continue;
            size_t to = (size_t)(c.first + k) * (size_t)a.n_out + (size_t)(group);
            float x = shared[i / 2 * stride + r];
            if (a.y && group + at.lane < a.n_out) a.y[to + (size_t)at.lane] = x;
            if (a.act) store_group(a.act + to / 32, x, at.lane);
        }
    }
}

/* ---- the kernels -------------------------------------------------------------------------- */

static_assert(GEMM_SHARED == 2 * sizeof(stage), "what the host gives");

/* Where the lines of the block begin. What lies behind the last row and column repeats it. */
template <class W, class X>
DEVICE void find_lines(CONSTANT gemm_args &a, columns c, GLOBAL const uchar *w,
                       GLOBAL const uchar *up, SHARED stage *rows, SHARED stage *cols, place at) {
    int line = at.tid % LINES;
    if (at.tid < LINES) {
        int m = line / TILE_ROWS;
        int row = up ? at.x * (LINES / 2) + m / 2 * TILE_ROWS + line % TILE_ROWS
                     : at.x * LINES + line;
        row = row < a.n_out ? row : a.n_out - 1;
        rows->from[line] = (up && m % 2 ? up : w) + (size_t)row * W::line_bytes(a.n_in);
    } else {
        int column = c.first + (line < c.n ? line : c.n - 1);
        if (a.token) column = a.token[column];
        cols->from[line] = (GLOBAL const uchar *)a.x + (size_t)column * X::line_bytes(a.n_in);
    }
}

/* Grid: a block of 256 threads for each 128 rows (x; 64 with up), each 128 columns (y; of the
 * expert that has the most) and each expert (z). Shared: GEMM_SHARED bytes. */
template <class W, class X>
DEVICE void gemm(CONSTANT gemm_args &a, place at, SHARED char *shared) {
    columns c = columns_of(a, at);
    GLOBAL const uchar *w = a.expert_w ? a.expert_w[at.z] : a.w;
    GLOBAL const uchar *up = !w ? w : a.expert_up ? a.expert_up[at.z] : a.up;
    if (!w || c.n <= 0) return;

    SHARED stage *rows = (SHARED stage *)shared, *cols = rows + 1;
    find_lines<W, X>(a, c, w, up, rows, cols, at);
    barrier();

    enum { values = LINE_WORDS * (W::int8 ? 4 : 2) }; /* of a step */
    int steps = (a.n_in + values - 1) / values;
    tile_sums y[WARP_ROWS][WARP_COLUMNS];
    UNROLL
    for (int m = 0; m < WARP_ROWS; m++)
        UNROLL
        for (int j = 0; j < WARP_COLUMNS; j++)
            UNROLL
            for (int i = 0; i < 4; i++) y[m][j][i] = 0;
    W next_w;
    X next_x;
    W::load(next_w, rows, a.n_in, 0, at);
    X::load(next_x, cols, a.n_in, 0, at);
    for (int step = 0; step < steps; step++) {
        barrier();
        W::store(next_w, rows, step, at);
        X::store(next_x, cols, step, at);
        barrier();
        if (step + 1 < steps) {
            W::load(next_w, rows, a.n_in, step + 1, at);
            X::load(next_x, cols, a.n_in, step + 1, at);
        }
        add_step<W>(y, rows, cols, 0, c.n, at);
        if (step * values + values / 2 < a.n_in) add_step<W>(y, rows, cols, 1, c.n, at);
    }
    if (up) store_swiglu(a, c, y, at, (SHARED float *)shared);
    else store_products(a, c, y, at);
}

template <class T> DEVICE void gemm_blocks(CONSTANT gemm_args &a, place at, SHARED char *shared) {
    gemm<staged_blocks<T>, staged_groups<T>>(a, at, shared);
}

template <class T> DEVICE void gemm_floats(CONSTANT gemm_args &a, place at, SHARED char *shared) {
    gemm<staged_floats<T>, staged_floats<lines_f32>>(a, at, shared);
}

KERNEL(gemm_f32, gemm_args) { gemm_floats<lines_f32>(a, at, shared); }
KERNEL(gemm_f16, gemm_args) { gemm_floats<lines_f16>(a, at, shared); }
KERNEL(gemm_bf16, gemm_args) { gemm_floats<lines_bf16>(a, at, shared); }
KERNEL(gemm_q8_0, gemm_args) { gemm_blocks<lines_q8_0>(a, at, shared); }
KERNEL(gemm_q4_0, gemm_args) { gemm_blocks<lines_nibbles<nibbles_q4_0>>(a, at, shared); }
KERNEL(gemm_q4_1, gemm_args) { gemm_blocks<lines_nibbles<nibbles_q4_1>>(a, at, shared); }
KERNEL(gemm_q5_0, gemm_args) { gemm_blocks<lines_nibbles<nibbles_q5_0>>(a, at, shared); }
KERNEL(gemm_q5_1, gemm_args) { gemm_blocks<lines_nibbles<nibbles_q5_1>>(a, at, shared); }
KERNEL(gemm_iq4_nl, gemm_args) { gemm_blocks<lines_nibbles<nibbles_iq4_nl>>(a, at, shared); }
KERNEL(gemm_q2_k, gemm_args) { gemm_blocks<lines_q2_k>(a, at, shared); }
KERNEL(gemm_q3_k, gemm_args) { gemm_blocks<lines_q3_k>(a, at, shared); }
KERNEL(gemm_q4_k, gemm_args) { gemm_blocks<lines_q4_k>(a, at, shared); }
KERNEL(gemm_q5_k, gemm_args) { gemm_blocks<lines_q5_k>(a, at, shared); }
KERNEL(gemm_q6_k, gemm_args) { gemm_blocks<lines_q6_k>(a, at, shared); }
KERNEL(gemm_iq4_xs, gemm_args) { gemm_blocks<lines_iq4_xs>(a, at, shared); }

#endif
