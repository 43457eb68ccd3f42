/* attend.h - attention over the cache, written once over the vector of vector.h.
 *
 * Keys and values are widened to a panel of floats in the first-level cache, a few tiles
 * at a time, and all rows of the call multiply with it: so the type of the cache costs no
 * more than its widening, and one product serves scores and values alike. Every score is
 * one chain of fma over head_dim and every output one over positions, in order: the bits
 * of a row are the same alone, as decoding computes it, and among the rows of a prompt.
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
    COLUMNS = KV_TILE / LANES,                 /* vectors of 16 columns */
    ROWS = LANES == 16 ? 12 : LANES == 8 ? 6 : 6, /* of the largest product */
    AHEAD = 4096, /* bytes; what is widened next comes while this is multiplied */
};

/* ---- products ------------------------------------------------------------------------- */

/* C[r][j] (+)= sum_k A[r][k] B[k][j] of R rows and 16 W columns. A lies at a + r a_row +
 * k a_k, rows of B are b_k apart, rows of C c_row. */
ALWAYS_INLINE void multiply_tile(const int R, const int W, int n, const float *a, size_t a_row,
                                size_t a_k, const float *b, size_t b_k, float *c, size_t c_row,
                                const bool add) {
    vf sum[ROWS][4 * COLUMNS], column[4 * COLUMNS];
#pragma GCC unroll 16
    for (int i = 0; i < R; i++)
#pragma GCC unroll 16
        for (int j = 0; j < W * COLUMNS; j++)
            sum[i][j] = add ? vf_load(c + (size_t)i * c_row + j * LANES) : vf_zero();
    for (int k = 0; k < n; k++, a += a_k, b += b_k) {
#pragma GCC unroll 16
        for (int j = 0; j < W * COLUMNS; j++) column[j] = vf_load(b + j * LANES);
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

/* n_columns: a multiple of 16. */
ALWAYS_INLINE void multiply_rows(const int R, int n_columns, int n, const float *a, size_t a_row,
                                size_t a_k, const float *b, size_t b_k, float *c, size_t c_row,
                                const bool add) {
    const int most = SUMS / COLUMNS / R, left = n_columns / KV_TILE;
    int j = 0;
    if (most >= 4)
        for (; j + 4 <= left; j += 4)
            multiply_tile(R, 4, n, a, a_row, a_k, b + j * KV_TILE, b_k, c + j * KV_TILE, c_row, add);
    if (most >= 2)
        for (; j + 2 <= left; j += 2)
            multiply_tile(R, 2, n, a, a_row, a_k, b + j * KV_TILE, b_k, c + j * KV_TILE, c_row, add);
    for (; j < left; j++)
        multiply_tile(R, 1, n, a, a_row, a_k, b + j * KV_TILE, b_k, c + j * KV_TILE, c_row, add);
}

/* The rows that a product takes of those that are left. */
ALWAYS_INLINE int rows_of(int left) {
    return left >= ROWS ? ROWS : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

/* Scores of n_rows = rows_of(...) rows: q [head_dim][ATTEND_ROWS], keys [head_dim][STEP]. */
static void score_rows(int n_rows, int n_positions, int head_dim, const float *q,
                       const float *keys, float *scores) {
#define SCORES(R) \
    multiply_rows(R, n_positions, head_dim, q, 1, ATTEND_ROWS, keys, KV_STEP, scores, KV_BLOCK, false)
    switch (n_rows) {
    case ROWS: SCORES(ROWS); break;
    case 4: SCORES(4); break;
    case 2: SCORES(2); break;
    default: SCORES(1);
    }
#undef SCORES
}

/* out += p V: p [n_rows][KV_BLOCK] from the first position on, values [n][width]. */
static void value_rows(int n_rows, int n, int width, const float *p, const float *values,
                       float *out) {
    size_t row = (size_t)width, part = attend_part(width);
#define VALUES(R) multiply_rows(R, width, n, p, KV_BLOCK, 1, values, row, out, part, true)
    switch (n_rows) {
    case ROWS: VALUES(ROWS); break;
    case 4: VALUES(4); break;
    case 2: VALUES(2); break;
    default: VALUES(1);
    }
#undef VALUES
}

/* ---- the panel --------------------------------------------------------------------------- */

/* LANES items of a float cache. */
ALWAYS_INLINE vf kv_vector(uint32_t type, const uint8_t *src, size_t i) {
    src += i * (type == TYPE_F16 ? sizeof(f16_t) : sizeof(float));
    __builtin_prefetch(src + AHEAD);
    return type == TYPE_F16 ? vf_load_f16(src) : vf_load(src);
}

/* LANES items of a q8 cache, which share one scale or have one each. */
ALWAYS_INLINE vf q8_vector(const uint8_t *src, size_t i, vf scale) {
    __builtin_prefetch(src + i + AHEAD);
    return vf_mul(vf_load_i8(src + i), scale);
}

/* A tile of keys into 16 columns of the panel [head_dim][KV_STEP]. */
ALWAYS_INLINE void widen_keys(uint32_t type, int head_dim, const uint8_t *tile, float *panel) {
    for (int d = 0; d < head_dim; d++, panel += KV_STEP)
        for (int i = 0; i < KV_TILE; i += LANES)
            vf_store(panel + i, kv_vector(type, tile, (size_t)(d * KV_TILE + i)));
}

ALWAYS_INLINE void widen_q8_keys(int head_dim, const uint8_t *tile, float *panel) {
    const uint8_t *scales = tile + head_dim * KV_TILE;
    for (int first = 0; first < head_dim; first += 32, scales += KV_TILE * sizeof(f16_t))
        for (int d = first; d < first + 32; d++, panel += KV_STEP)
            for (int i = 0; i < KV_TILE; i += LANES)
                vf_store(panel + i, q8_vector(tile, (size_t)(d * KV_TILE + i),
                                              vf_load_f16(scales + (size_t)i * sizeof(f16_t))));
}

/* The values of the first n positions of a tile as panel [n][width]. */
ALWAYS_INLINE void widen_values(uint32_t type, int width, const uint8_t *tile, int n,
                                float *panel) {
    for (int i = 0; i < n * width; i += LANES)
        vf_store(panel + i, kv_vector(type, tile, (size_t)i));
}

ALWAYS_INLINE void widen_q8_values(int width, const uint8_t *tile, int n, float *panel) {
    const uint8_t *scales = tile + width * KV_TILE;
    for (int t = 0; t < n; t++, tile += width, panel += width)
        for (int first = 0; first < width; first += 32) {
            vf scale = vf_set1(f16_item(scales, first / 32 * KV_TILE + t));
            for (int i = first; i < first + 32; i += LANES)
                vf_store(panel + i, q8_vector(tile, (size_t)i, scale));
        }
}

/* The keys of n positions from first on, the start of a tile, as panel [head_dim][KV_STEP]. */
static void keys_panel(const attend_args *a, int first, int n, float *panel) {
    size_t bytes = kv_tile_bytes(a->type, a->head_dim);
    const uint8_t *tile = (const uint8_t *)a->k + (size_t)(first / KV_TILE) * bytes;
    for (int t = 0; t < n; t += KV_TILE, tile += bytes, panel += KV_TILE)
        if (a->type == TYPE_F16)
            widen_keys(TYPE_F16, a->head_dim, tile, panel);
        else if (a->type == TYPE_F32)
            widen_keys(TYPE_F32, a->head_dim, tile, panel);
        else
            widen_q8_keys(a->head_dim, tile, panel);
}

/* Their values as panel [n][width]. */
static void values_panel(const attend_args *a, int first, int n, float *panel) {
    int width = kv_width(a->head_dim);
    size_t bytes = kv_tile_bytes(a->type, a->head_dim);
    const uint8_t *tile = (const uint8_t *)a->v + (size_t)(first / KV_TILE) * bytes;
    for (int t = 0; t < n; t += KV_TILE, tile += bytes, panel += KV_TILE * width) {
        int here = n - t < KV_TILE ? n - t : KV_TILE;
        if (a->type == TYPE_F16)
            widen_values(TYPE_F16, width, tile, here, panel);
        else if (a->type == TYPE_F32)
            widen_values(TYPE_F32, width, tile, here, panel);
        else
            widen_q8_values(width, tile, here, panel);
    }
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

static void attend(const attend_args *a, int block, float *parts) {
    int start = block * KV_BLOCK, width = kv_width(a->head_dim), first = 0, height;
    float *panel = a->scratch, *scores = panel + KV_STEP * width;
    size_t part = attend_part(a->head_dim);
    while (a->n_kv[first] <= start) first++;
    int end = between(a->n_kv[a->n_rows - 1] - start, 1, KV_BLOCK);
    for (int t = 0; t < end; t += KV_STEP) {
        int n = between(end - t, 1, KV_STEP);
        keys_panel(a, start + t, n, panel);
        for (int r = first; r < a->n_rows; r += height) {
            height = rows_of(a->n_rows - r);
            int seen = between(a->n_kv[r + height - 1] - start - t, 0, n);
            score_rows(height, (seen + KV_TILE - 1) / KV_TILE * KV_TILE, a->head_dim, a->q + r,
                       panel, scores + r * KV_BLOCK + t);
        }
    }
    for (int r = first; r < a->n_rows; r++) {
        float *own = parts + (size_t)r * part;
        exp_scores(scores + r * KV_BLOCK, between(a->n_kv[r] - start, 1, KV_BLOCK), own + width);
        memset(own, 0, (size_t)width * sizeof *own);
    }
    for (int t = 0; t < end; t += KV_STEP) {
        int n = between(end - t, 1, KV_STEP);
        values_panel(a, start + t, n, panel);
        for (int r = first; r < a->n_rows; r += height) {
            height = rows_of(a->n_rows - r);
            /* What all rows see, then what only the later ones do. */
            const float *p = scores + r * KV_BLOCK + t;
            float *out = parts + (size_t)r * part;
            int common = between(a->n_kv[r] - start - t, 0, n);
            if (common) value_rows(height, common, width, p, panel, out);
            for (int i = 1; i < height; i++) {
                int own = between(a->n_kv[r + i] - start - t, 0, n);
                if (own > common)
                    value_rows(1, own - common, width, p + i * KV_BLOCK + common,
                               panel + common * width, out + (size_t)i * part);
            }
        }
    }
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
