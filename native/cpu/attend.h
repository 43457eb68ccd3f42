/* attend.h - attention over the cache, written once over the vector of vector.h.
 *
 * Every score is one chain of fma over head_dim and every output one over positions, in
 * order, so two ways of reading the cache give the same bits. The many rows of a prompt
 * share a panel: some keys or values, widened to floats in the first-level cache. The few
 * rows of a token read the tiles themselves: loads from memory then lie evenly between the
 * products, instead of in bursts between which memory waits.
 */
#ifndef QWEN3_ATTEND_H
#define QWEN3_ATTEND_H

#include "vector.h"

#if defined(__AVX512F__) || defined(__aarch64__)
enum { SUMS = 24 }; /* vectors of sums that a product keeps in 32 registers */
#else
enum { SUMS = 12 }; /* in 16 */
#endif
enum {
    COLUMNS = KV_TILE / LANES,                      /* vectors of 16 columns */
    MOST_ROWS = SUMS / (COLUMNS > 2 ? COLUMNS : 2), /* of a product: 12, or 6 */
    TILE_ROWS = 8,                                  /* up to which the tiles are read */
    MOST_TILE_ROWS = LANES == 16 ? TILE_ROWS : 4,   /* of a product with them */
    AHEAD = 8192,                                   /* bytes that they are prefetched ahead */
};

/* ---- products ------------------------------------------------------------------------- */

/* The right factor: what it is, and where it lies. */
typedef struct {
    uint32_t type; /* of its items: F32, F16, Q8_0 */
    bool in_cache; /* or in a panel */
    bool keys;     /* scales of Q8_0 belong to columns, and are f16; or to rows, and are float */
} operand;

typedef struct {
    const uint8_t *items, *scales;
    size_t row, columns; /* bytes from a row to the next, from 16 columns to the next */
} matrix;

ALWAYS_INLINE vf load_items(uint32_t type, const uint8_t *p, int i) {
    if (type == TYPE_F32) return vf_load(p + (size_t)i * sizeof(float));
    if (type == TYPE_F16) return vf_load_f16(p + (size_t)i * sizeof(f16_t));
    return vf_load_i8(p + i);
}

/* C[r][j] += sum_k A[r][k] B[k][j] over n rows of B, for R rows and 16 W columns. A lies at
 * a + r a_row + k a_k; rows of C are c_row apart. */
ALWAYS_INLINE void multiply_tile(const int R, const int W, const operand B, int n, const float *a,
                                 size_t a_row, size_t a_k, matrix b, float *c, size_t c_row) {
    vf sum[MOST_ROWS][4 * COLUMNS], column[4 * COLUMNS], scale[4 * COLUMNS];
#pragma GCC unroll 16
    for (int j = 0; j < W * COLUMNS; j++) {
#pragma GCC unroll 16
        for (int i = 0; i < R; i++) sum[i][j] = vf_load(c + (size_t)i * c_row + j * LANES);
        if (B.type == TYPE_Q8_0 && B.keys)
            scale[j] = load_items(TYPE_F16, b.scales + (size_t)(j / COLUMNS) * b.columns,
                                  j % COLUMNS * LANES);
    }
    for (int k = 0; k < n; k++, a += a_k, b.items += b.row) {
#pragma GCC unroll 16
        for (int j = 0; j < W * COLUMNS; j++) {
            const uint8_t *items = b.items + (size_t)(j / COLUMNS) * b.columns;
            if (B.in_cache && j % COLUMNS == 0) __builtin_prefetch(items + AHEAD);
            column[j] = load_items(B.type, items, j % COLUMNS * LANES);
            if (B.type == TYPE_Q8_0 && !B.keys)
                scale[j] = vf_set1(f32_item(b.scales, j / COLUMNS / 2 * KV_TILE + k));
            if (B.type == TYPE_Q8_0) column[j] = vf_mul(column[j], scale[j]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < R; i++) {
            vf factor = vf_set1(a[(size_t)i * a_row]);
#pragma GCC unroll 16
            for (int j = 0; j < W * COLUMNS; j++)
                sum[i][j] = vf_fma(factor, column[j], sum[i][j]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; i++)
#pragma GCC unroll 16
        for (int j = 0; j < W * COLUMNS; j++)
            vf_store(c + (size_t)i * c_row + j * LANES, sum[i][j]);
}

/* The same for n_columns, a multiple of 16. */
ALWAYS_INLINE void multiply_rows(const int R, const operand B, int n_columns, int n,
                                 const float *a, size_t a_row, size_t a_k, matrix b, float *c,
                                 size_t c_row) {
    const int most = SUMS / COLUMNS / R, n_tiles = n_columns / KV_TILE;
    const uint8_t *scales = b.scales;
    for (int j = 0, w; j < n_tiles; j += w, b.items += (size_t)w * b.columns, c += w * KV_TILE) {
        if (B.type == TYPE_Q8_0)
            b.scales = scales + (B.keys ? (size_t)j * b.columns
                                        : (size_t)(j / 2 * KV_TILE) * sizeof(float));
        if (most >= 4 && n_tiles - j >= 4)
            multiply_tile(R, w = 4, B, n, a, a_row, a_k, b, c, c_row);
        else if (most >= 2 && n_tiles - j >= 2)
            multiply_tile(R, w = 2, B, n, a, a_row, a_k, b, c, c_row);
        else
            multiply_tile(R, w = 1, B, n, a, a_row, a_k, b, c, c_row);
    }
}

/* The rows that one product takes of those that are left. */
ALWAYS_INLINE int rows_of(int left, bool in_cache) {
    int most = in_cache ? MOST_TILE_ROWS : MOST_ROWS;
    return left >= most ? most : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

ALWAYS_INLINE void multiply(int n_rows, const operand B, int n_columns, int n, const float *a,
                            size_t a_row, size_t a_k, matrix b, float *c, size_t c_row) {
    const int most = B.in_cache ? MOST_TILE_ROWS : MOST_ROWS;
    if (n_rows == most)
        multiply_rows(most, B, n_columns, n, a, a_row, a_k, b, c, c_row);
    else if (n_rows == 4)
        multiply_rows(4, B, n_columns, n, a, a_row, a_k, b, c, c_row);
    else if (n_rows == 2)
        multiply_rows(2, B, n_columns, n, a, a_row, a_k, b, c, c_row);
    else
        multiply_rows(1, B, n_columns, n, a, a_row, a_k, b, c, c_row);
}

/* ---- reading the cache ------------------------------------------------------------------- */

/* The scales of a tile of Q8_0 as float[head_dim / 32][16]. */
ALWAYS_INLINE void widen_scales(int head_dim, const uint8_t *tile, float *scales) {
    for (int i = 0; i < head_dim / 32 * KV_TILE; i += LANES)
        vf_store(scales + i, load_items(TYPE_F16, tile + head_dim * KV_TILE, i));
}

/* scores += Q K of rows_of(...) queries, q [head_dim][ATTEND_ROWS], and the keys of tiles. */
ALWAYS_INLINE void tile_scores(uint32_t type, int n_rows, int n_positions, int head_dim,
                               const float *q, const uint8_t *tile, float *scores) {
    const operand keys = {type, true, true};
    const uint8_t *q8_scales = tile + head_dim * KV_TILE;
    size_t row = KV_TILE * (type == TYPE_F32 ? 4 : type == TYPE_F16 ? 2 : 1);
    int items = type == TYPE_Q8_0 ? 32 : head_dim; /* that share their scales */
    for (int d = 0; d < head_dim; d += items) {
        matrix b = {tile + (size_t)d * row, q8_scales + d, row, kv_tile_bytes(type, head_dim)};
        multiply(n_rows, keys, n_positions, items, q + d * ATTEND_ROWS, 1, ATTEND_ROWS, b, scores,
                 KV_BLOCK);
    }
}

/* out += P V of n positions in one tile, from its position first on; p [n_rows][KV_BLOCK].
 * scales: widened. */
ALWAYS_INLINE void tile_values(uint32_t type, int n_rows, int first, int n, int width,
                               const float *p, const uint8_t *tile, const float *scales,
                               float *out) {
    const operand values = {type, true, false};
    size_t item = type == TYPE_F32 ? 4 : type == TYPE_F16 ? 2 : 1, row = (size_t)width * item;
    matrix b = {tile + (size_t)first * row, (const uint8_t *)(scales + first), row, KV_TILE * item};
    multiply(n_rows, values, width, n, p, KV_BLOCK, 1, b, out, attend_part(width));
}

/* A tile of keys as 16 columns of a panel [head_dim][KV_STEP]. */
ALWAYS_INLINE void widen_keys(uint32_t type, int head_dim, const uint8_t *tile, float *panel) {
    const uint8_t *scales = tile + head_dim * KV_TILE;
    for (int d = 0; d < head_dim; d++, panel += KV_STEP)
        for (int i = 0; i < KV_TILE; i += LANES) {
            vf key = load_items(type, tile, d * KV_TILE + i);
            if (type == TYPE_Q8_0)
                key = vf_mul(key, load_items(TYPE_F16, scales, d / 32 * KV_TILE + i));
            vf_store(panel + i, key);
        }
}

/* The values of the first n positions of a tile as a panel [n][width]. */
ALWAYS_INLINE void widen_values(uint32_t type, int width, const uint8_t *tile, int n,
                                float *panel) {
    const uint8_t *scales = tile + width * KV_TILE;
    for (int t = 0; t < n; t++, panel += width)
        for (int i = 0; i < width; i += KV_TILE) {
            vf scale = vf_zero();
            if (type == TYPE_Q8_0) scale = vf_set1(f16_item(scales, i / 32 * KV_TILE + t));
            for (int k = i; k < i + KV_TILE; k += LANES) {
                vf value = load_items(type, tile, t * width + k);
                vf_store(panel + k, type == TYPE_Q8_0 ? vf_mul(value, scale) : value);
            }
        }
}

/* The products with a panel. */
static void panel_scores(int n_rows, int n_positions, int head_dim, const float *q,
                         const float *panel, float *scores) {
    const operand keys = {TYPE_F32, false, true};
    matrix b = {(const void *)panel, NULL, KV_STEP * sizeof *panel, KV_TILE * sizeof *panel};
    multiply(n_rows, keys, n_positions, head_dim, q, 1, ATTEND_ROWS, b, scores, KV_BLOCK);
}

static void panel_values(int n_rows, int n, int width, const float *p, const float *panel,
                         float *out) {
    const operand values = {TYPE_F32, false, false};
    matrix b = {(const void *)panel, NULL, (size_t)width * sizeof *panel, KV_TILE * sizeof *panel};
    multiply(n_rows, values, width, n, p, KV_BLOCK, 1, b, out, attend_part(width));
}

/* ---- a block --------------------------------------------------------------------------------- */

/* p = e^(p - top) of n >= 1 scores, whole vectors of which may be written; top and sum go
 * into the part. */
static void exp_scores(float *p, int n, float *top_and_sum) {
    int whole = (n + LANES - 1) / LANES * LANES;
    for (int i = n; i < whole; i++) p[i] = -INFINITY;
    vf tops = vf_load(p), sums = vf_zero();
    for (int i = LANES; i < whole; i += LANES) tops = vf_max(tops, vf_load(p + i));
    float top = vf_top(tops);
    for (int i = 0; i < whole; i += LANES) {
        vf e = vf_exp(vf_sub(vf_load(p + i), vf_set1(top)));
        vf_store(p + i, e);
        sums = vf_add(sums, e); /* what stands for -INFINITY, e^-87, is lost beside e^0 */
    }
    top_and_sum[0] = top;
    top_and_sum[1] = vf_sum(sums);
}

ALWAYS_INLINE int between(int n, int low, int high) {
    return n < low ? low : n > high ? high : n;
}

/* Scores of the rows from r on with the positions [start, end), into [n_rows][KV_BLOCK]. */
ALWAYS_INLINE void score_rows(uint32_t type, bool in_cache, const attend_args *a, int r, int start,
                              int end, float *scores) {
    const int step = in_cache ? 4 * KV_TILE : KV_STEP;
    size_t bytes = kv_tile_bytes(type, a->head_dim);
    const uint8_t *tile = (const uint8_t *)a->k + (size_t)(start / KV_TILE) * bytes;
    for (int t = start; t < end; t += step, tile += (size_t)(step / KV_TILE) * bytes) {
        int n = end - t < step ? end - t : step, height;
        for (int i = 0; !in_cache && i < n; i += KV_TILE)
            widen_keys(type, a->head_dim, tile + (size_t)(i / KV_TILE) * bytes, a->scratch + i);
        for (int i = r; i < a->n_rows; i += height) {
            height = rows_of(a->n_rows - i, in_cache);
            int seen = between(a->n_kv[i + height - 1] - t, 0, n);
            int whole = (seen + KV_TILE - 1) / KV_TILE * KV_TILE;
            float *to = scores + i * KV_BLOCK + t - start;
            if (in_cache)
                tile_scores(type, height, whole, a->head_dim, a->q + i, tile, to);
            else
                panel_scores(height, whole, a->head_dim, a->q + i, a->scratch, to);
        }
    }
}

/* Adds their values to the parts. */
ALWAYS_INLINE void value_rows(uint32_t type, bool in_cache, const attend_args *a, int r, int start,
                              int end, const float *p, float *parts) {
    const int step = in_cache ? KV_TILE : KV_STEP;
    int width = kv_width(a->head_dim);
    size_t bytes = kv_tile_bytes(type, a->head_dim), part = attend_part(a->head_dim);
    const uint8_t *tile = (const uint8_t *)a->v + (size_t)(start / KV_TILE) * bytes;
    float *panel = a->scratch;
    for (int t = start; t < end; t += step, tile += (size_t)(step / KV_TILE) * bytes) {
        int n = end - t < step ? end - t : step, height;
        for (int i = 0; !in_cache && i < n; i += KV_TILE)
            widen_values(type, width, tile + (size_t)(i / KV_TILE) * bytes,
                         n - i < KV_TILE ? n - i : KV_TILE, panel + i * width);
        if (in_cache && type == TYPE_Q8_0) widen_scales(a->head_dim, tile, panel);
        for (int i = r; i < a->n_rows; i += height) {
            height = rows_of(a->n_rows - i, in_cache);
            /* First what all rows see, then for each row what only later ones do. */
            for (int k = 0, done = 0; k < height; k++) {
                int seen = between(a->n_kv[i + k] - t, 0, n), rows = k == 0 ? height : 1;
                const float *weights = p + (i + k) * KV_BLOCK + t - start + done;
                float *out = parts + (size_t)(i + k) * part;
                if (seen == done) continue;
                if (in_cache)
                    tile_values(type, rows, done, seen - done, width, weights, tile, panel, out);
                else
                    panel_values(rows, seen - done, width, weights, panel + done * width, out);
                if (k == 0) done = seen;
            }
        }
    }
}

ALWAYS_INLINE void attend_as(uint32_t type, bool in_cache, const attend_args *a, int r, int start,
                             float *parts) {
    int width = kv_width(a->head_dim), last = a->n_rows - 1;
    int end = between(a->n_kv[last], start, start + KV_BLOCK);
    float *scores = a->scratch + width * KV_STEP;
    memset(scores + r * KV_BLOCK, 0, (size_t)((a->n_rows - r) * KV_BLOCK) * sizeof *scores);
    score_rows(type, in_cache, a, r, start, end, scores);
    for (int i = r; i < a->n_rows; i++) {
        float *part = parts + (size_t)i * attend_part(a->head_dim);
        exp_scores(scores + i * KV_BLOCK, between(a->n_kv[i] - start, 1, KV_BLOCK), part + width);
        memset(part, 0, (size_t)width * sizeof *part);
    }
    value_rows(type, in_cache, a, r, start, end, scores, parts);
}

static void attend(const attend_args *a, int block, float *parts) {
    int start = block * KV_BLOCK, r = 0;
    while (a->n_kv[r] <= start) r++;
    bool in_cache = a->n_rows - r <= TILE_ROWS;
    if (a->type == TYPE_F16 && in_cache)
        attend_as(TYPE_F16, true, a, r, start, parts);
    else if (a->type == TYPE_F16)
        attend_as(TYPE_F16, false, a, r, start, parts);
    else if (a->type == TYPE_F32 && in_cache)
        attend_as(TYPE_F32, true, a, r, start, parts);
    else if (a->type == TYPE_F32)
        attend_as(TYPE_F32, false, a, r, start, parts);
    else if (in_cache)
        attend_as(TYPE_Q8_0, true, a, r, start, parts);
    else
        attend_as(TYPE_Q8_0, false, a, r, start, parts);
}

static void merge(float *sum, const float *part, int head_dim) {
    int width = kv_width(head_dim);
    float top = sum[width] > part[width] ? sum[width] : part[width], scalars[2][LANES];
    vf old = vf_exp(vf_set1(sum[width] - top)), new = vf_exp(vf_set1(part[width] - top));
    for (int i = 0; i < width; i += LANES)
        vf_store(sum + i, vf_fma(vf_load(sum + i), old, vf_mul(vf_load(part + i), new)));
    vf_store(scalars[0], old);
    vf_store(scalars[1], new);
    sum[width] = top;
    sum[width + 1] = fmaf(sum[width + 1], scalars[0][0], part[width + 1] * scalars[1][0]);
}

#endif
