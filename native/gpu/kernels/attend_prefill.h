/* attend_prefill.h - causal attention of many tokens of one sequence over its cache, on the
 * matrix units (see tile.h).
 *
 * The rows of a K/V head are the queries that share it, token after token: 16 for a warp, four
 * warps for a block. A block goes through the positions from 0 on, 32 at a time, with an online
 * softmax (Dao, FlashAttention-2, 2023). Items of keys and values come to shared memory for all of
 * its rows; queries, scores and sums stay in registers. What a row computes does not depend on the
 * rows beside it, nor on how a prompt is cut.
 *
 * The sums are as exact as in float: items, halves or bytes, are f16 without a rounding; scales are
 * applied in float; queries and softmax weights are the sum of two f16 each; outputs of 16 positions
 * are added in float, as the unit's own sums are cut off, not rounded, and drift.
 */
#ifndef QWEN3_GPU_ATTEND_PREFILL_H
#define QWEN3_GPU_ATTEND_PREFILL_H

#include "kv.h"
#include "tile.h"

enum {
    STEP = 32, /* positions */
    SCORE_TILES = STEP / TILE_COLUMNS,
    OUT_TILES = ATTEND_HEAD_DIM / TILE_COLUMNS,
    HEAD_GROUPS = ATTEND_HEAD_DIM / 32, /* of items with a scale */
    KEY_STRIDE = TILE_STRIDE,               /* words: STEP positions of an item */
    VALUE_STRIDE = ATTEND_HEAD_DIM / 2 + 4, /* the items of a position */
    SCALE_WORDS = HEAD_GROUPS * STEP / 2,   /* [HEAD_GROUPS][STEP] of f16 */
    BOX_STRIDE = 33,
};

/* Of a step in shared memory. */
struct step_items {
    int keys[ATTEND_HEAD_DIM * KEY_STRIDE], values[STEP * VALUE_STRIDE];
    uint key_scales[SCALE_WORDS], value_scales[SCALE_WORDS];
};

static_assert(PREFILL_SHARED == sizeof(step_items), "what the host gives");

/* ---- keys and values ---------------------------------------------------------------------- */

/* Keys or values of a step on their way, spread over the threads. */
template <typename KV> struct step_parts {
    enum { EIGHTS = ATTEND_HEAD_DIM * STEP / 8 / PREFILL_THREADS };
    typename KV::eight items[EIGHTS];
    typename KV::pair_scale scales; /* of two positions */
};

/* Where a thread's are: keys are eight positions of an item, values eight items of a position. */
DEVICE int key_item(int i, int tid) { return i * (PREFILL_THREADS / 4) + tid / 4; }
DEVICE int key_positions(int tid) { return tid % 4 * 8; }
DEVICE int value_position(int i, int tid) { return i * (PREFILL_THREADS / 16) + tid / 16; }
DEVICE int value_items(int tid) { return tid % 16 * 8; }

/* In load and store, tile: of the step's first position; n: of its positions so many are there. */

template <typename KV>
DEVICE void load_scales(GLOBAL const uchar *tile, int n, int head_dim, int tid,
                        LOCAL step_parts<KV> &parts) {
    int group = tid / (STEP / 2), position = tid % (STEP / 2) * 2;
    if (32 * group >= head_dim) group = 0;
    if (position / KV_POSITIONS * KV_POSITIONS >= n) position = 0; /* no such tile */
    tile += position / KV_POSITIONS * (int)kv_tile_bytes(KV::Q8, head_dim);
    parts.scales = kv_scale<KV, typename KV::pair_scale>(tile + head_dim * KV_POSITIONS, group,
                                                         position % KV_POSITIONS);
}

/* Of keys behind the last position anything may come: they are masked. */
template <typename KV>
DEVICE void load_keys(GLOBAL const uchar *tile, int n, int head_dim, int tid,
                      LOCAL step_parts<KV> &parts) {
    load_scales<KV>(tile, n, head_dim, tid, parts);
    int position = key_positions(tid);
    if (position / KV_POSITIONS * KV_POSITIONS >= n) position = 0;
    tile += position / KV_POSITIONS * (int)kv_tile_bytes(KV::Q8, head_dim);
    UNROLL
    for (int i = 0; i < step_parts<KV>::EIGHTS; i++) {
        int item = key_item(i, tid) < head_dim ? key_item(i, tid) : 0;
        parts.items[i] = kv_items<KV, typename KV::eight>(
            tile, item * KV_POSITIONS + position % KV_POSITIONS);
    }
}

/* Values there are zero. */
template <typename KV>
DEVICE void load_values(GLOBAL const uchar *tile, int n, int head_dim, int tid,
                        LOCAL step_parts<KV> &parts) {
    load_scales<KV>(tile, n, head_dim, tid, parts);
    UNROLL
    for (int i = 0; i < step_parts<KV>::EIGHTS; i++) {
        int position = value_position(i, tid), item = value_items(tid);
        bool some = position < n && item < head_dim;
        GLOBAL const uchar *from =
            tile + position / KV_POSITIONS * (int)kv_tile_bytes(KV::Q8, head_dim);
        parts.items[i] = kv_items_if<KV, typename KV::eight>(
            some, from, position % KV_POSITIONS * head_dim + item);
    }
}

template <typename KV>
DEVICE void store_keys(LOCAL const step_parts<KV> &parts, int head_dim, int tid,
                       SHARED step_items *to) {
    UNROLL
    for (int i = 0; i < step_parts<KV>::EIGHTS; i++) {
        SHARED int *k = to->keys + key_item(i, tid) * KEY_STRIDE + key_positions(tid) / 2;
        if (key_item(i, tid) < head_dim) *(SHARED uint4 *)k = KV::as_f16(parts.items[i]);
    }
    if (KV::Q8 && tid < SCALE_WORDS) to->key_scales[tid] = parts.scales;
}

/* A scale behind the last position may be anything, too. */
template <typename KV>
DEVICE void store_values(LOCAL const step_parts<KV> &parts, int n, int tid,
                         SHARED step_items *to) {
    UNROLL
    for (int i = 0; i < step_parts<KV>::EIGHTS; i++) {
        SHARED int *v = to->values + value_position(i, tid) * VALUE_STRIDE + value_items(tid) / 2;
        *(SHARED uint4 *)v = KV::as_f16(parts.items[i]);
    }
    if (KV::Q8 && tid < SCALE_WORDS) {
        int there = n - tid % (STEP / 2) * 2;
        to->value_scales[tid] =
            there > 1 ? parts.scales : there > 0 ? parts.scales & 0xffffu : 0u;
    }
}

/* ---- the rows of a warp --------------------------------------------------------------------- */

/* A query of a K/V head: that of row 0 plus `row`. */
struct query_row {
    int token;
    size_t at; /* in q and y */
};

DEVICE query_row row_at(CONSTANT attention_args &a, int kv_head, int row) {
    int group = a.n_heads / a.n_kv_heads, token = row / group, head = kv_head * group + row % group;
    size_t vector = (size_t)token * (size_t)a.n_heads + (size_t)head;
    query_row found = {token, vector * (size_t)a.head_dim};
    return found;
}

/* Those of a lane: row tile_row(lane) of the warp and, of index 1, eight below. */
struct lane_rows {
    tile_split q[2 * HEAD_GROUPS]; /* 16 items each */
    tile_sums out[OUT_TILES];
    float top[2], sum[2]; /* of the softmax weights */
    int pos[2];           /* -1: no such row */
};

DEVICE void start_rows(CONSTANT attention_args &a, int kv_head, int first, int n, int lane,
                       LOCAL lane_rows &rows) {
    GLOBAL const float *q[2];
    UNROLL
    for (int r = 0; r < 2; r++) {
        int row = first + tile_row(lane) + 8 * r;
        query_row of = row_at(a, kv_head, row < n ? row : 0);
        q[r] = a.q + of.at + tile_column(lane);
        rows.top[r] = -INFINITY;
        rows.sum[r] = 0;
        rows.pos[r] = row < n ? a.tokens[of.token].pos : -1;
    }
    UNROLL
    for (int i = 0; i < 2 * HEAD_GROUPS; i++) {
        tile_sums x[2];
        UNROLL
        for (int j = 0; j < 8; j++) {
            int item = 16 * i + j / 4 * 8 + j % 2;
            x[j / 4][j % 4] = 16 * i < a.head_dim ? q[j / 2 % 2][item] : 0.0f;
        }
        rows.q[i] = split_rows(x[0], x[1]);
    }
    UNROLL
    for (int i = 0; i < OUT_TILES; i++)
        UNROLL
        for (int j = 0; j < 4; j++) rows.out[i][j] = 0;
}

/* y += rows times the 16 x 8 f16 that lie across from `values` on. */
DEVICE void add_split(LOCAL tile_sums &y, LOCAL const tile_split &rows, SHARED const int *values,
                      int stride, int lane) {
    tile_columns x = tile_load_across(values, stride, lane);
    tile_add_f16(y, rows.low, x);
    tile_add_f16(y, rows.high, x);
}

/* The scores of the warp's rows at the step's positions. */
template <typename KV>
DEVICE void score_step(LOCAL const lane_rows &rows, SHARED const step_items *items, int head_dim,
                       int lane, LOCAL tile_sums (&score)[SCORE_TILES]) {
    UNROLL
    for (int j = 0; j < SCORE_TILES; j++)
        for (int i = 0; i < 4; i++) score[j][i] = 0;
    UNROLL
    for (int group = 0; group < HEAD_GROUPS; group++) {
        if (32 * group >= head_dim) break;
        UNROLL
        for (int j = 0; j < SCORE_TILES; j++) {
            SHARED const int *k =
                items->keys + 32 * group * KEY_STRIDE + j * TILE_COLUMNS / 2;
            tile_sums dot;
            for (int i = 0; i < 4; i++) dot[i] = KV::Q8 ? 0.0f : score[j][i];
            add_split(dot, rows.q[2 * group], k, KEY_STRIDE, lane);
            add_split(dot, rows.q[2 * group + 1], k + 16 * KEY_STRIDE, KEY_STRIDE, lane);
            uint by = 0;
            if (KV::Q8) by = items->key_scales[(group * STEP + j * 8 + tile_column(lane)) / 2];
            for (int i = 0; i < 4; i++)
                score[j][i] = !KV::Q8 ? dot[i]
                                      : fma(dot[i], i % 2 ? high_half(by) : low_half(by),
                                            score[j][i]);
        }
    }
}

/* The scores of the positions from `first` on become weights, 64 e^(score - top): times a value's
 * scale still far from the ends of f16. */
DEVICE void softmax_step(LOCAL lane_rows &rows, LOCAL tile_sums (&score)[SCORE_TILES], int first,
                         int lane) {
    UNROLL
    for (int r = 0; r < 2; r++) {
        float most = -INFINITY;
        UNROLL
        for (int i = 0; i < 2 * SCORE_TILES; i++) {
            LOCAL float &x = score[i / 2][2 * r + i % 2];
            int pos = first + i / 2 * TILE_COLUMNS + tile_column(lane) + i % 2;
            x = pos <= rows.pos[r] ? x : -INFINITY;
            most = x > most ? x : most;
        }
        most = tile_row_max(most);
        most = rows.top[r] > most ? rows.top[r] : most;
        float factor = exp(rows.top[r] - most), sum = 0;
        UNROLL
        for (int i = 0; i < 2 * SCORE_TILES; i++) {
            LOCAL float &x = score[i / 2][2 * r + i % 2];
            x = 64.0f * exp(x - most);
            sum += x;
        }
        rows.top[r] = most;
        rows.sum[r] = rows.sum[r] * factor + sum;
        UNROLL
        for (int i = 0; i < OUT_TILES; i++)
            for (int j = 0; j < 2; j++) rows.out[i][2 * r + j] *= factor;
    }
}

/* Weights of 16 positions from the i-th on times the scales of a group of their values. */
DEVICE tile_split scaled_weights(LOCAL const tile_sums (&weights)[SCORE_TILES],
                                 SHARED const step_items *items, int group, int i, int lane) {
    tile_sums x[2];
    UNROLL
    for (int j = 0; j < 2; j++) {
        uint by = items->value_scales[(group * STEP + i + 8 * j + tile_column(lane)) / 2];
        for (int k = 0; k < 4; k++)
            x[j][k] = weights[i / 8 + j][k] * (k % 2 ? high_half(by) : low_half(by));
    }
    return split_rows(x[0], x[1]);
}

template <typename KV>
DEVICE void add_step(LOCAL lane_rows &rows, LOCAL const tile_sums (&weights)[SCORE_TILES],
                     SHARED const step_items *items, int head_dim, int lane) {
    UNROLL
    for (int i = 0; i < STEP; i += 16) {
        tile_split w = split_rows(weights[i / 8], weights[i / 8 + 1]);
        UNROLL
        for (int j = 0; j < OUT_TILES; j++) {
            if (j * TILE_COLUMNS >= head_dim) break;
            if (KV::Q8 && j % 4 == 0) w = scaled_weights(weights, items, j / 4, i, lane);
            tile_sums sum = {0, 0, 0, 0};
            add_split(sum, w, items->values + i * VALUE_STRIDE + j * TILE_COLUMNS / 2,
                      VALUE_STRIDE, lane);
            for (int k = 0; k < 4; k++) rows.out[j][k] += sum[k];
        }
    }
}

/* y of the warp's rows, through shared memory, where a warp finds 32 that follow each other. */
DEVICE void store_rows(CONSTANT attention_args &a, int kv_head, int first, int n,
                       LOCAL lane_rows &rows, SHARED float *box, int lane) {
    float scale[2];
    UNROLL
    for (int r = 0; r < 2; r++) scale[r] = 1.0f / tile_row_sum(rows.sum[r]);
    UNROLL
    for (int from = 0; from < OUT_TILES; from += 4) {
        if (from * TILE_COLUMNS >= a.head_dim) break;
        UNROLL
        for (int i = 0; i < 16; i++) {
            int row = tile_row(lane) + i / 2 % 2 * 8;
            int column = i / 4 * TILE_COLUMNS + tile_column(lane) + i % 2;
            box[row * BOX_STRIDE + column] = rows.out[from + i / 4][i % 4] * scale[i / 2 % 2];
        }
        warp_barrier();
        for (int row = 0; row < TILE_ROWS && first + row < n; row++) {
            size_t to = row_at(a, kv_head, first + row).at + (size_t)(from * TILE_COLUMNS + lane);
            float y = box[row * BOX_STRIDE + lane];
            if (a.y) a.y[to] = y;
            if (a.act) store_group(a.act + to / 32, y, lane);
        }
        warp_barrier();
    }
}

/* ---- the kernels ---------------------------------------------------------------------------- */

/* Grid: (n * n_heads / n_kv_heads / PREFILL_ROWS rounded up, n_kv_heads), of PREFILL_THREADS. The
 * tokens are of one sequence, in its order, their keys and values already in the cache. Shared:
 * PREFILL_SHARED bytes. */
template <typename KV>
DEVICE void prefill(CONSTANT attention_args &a, place at, SHARED char *shared) {
    int hd = a.head_dim, n = a.n * (a.n_heads / a.n_kv_heads), kv_head = at.y;
    int blocks = (n + PREFILL_ROWS - 1) / PREFILL_ROWS;
    int block = blocks - 1 - at.x; /* the longest first */
    int end = (block + 1) * PREFILL_ROWS, first = block * PREFILL_ROWS + at.warp * TILE_ROWS;
    token_place last = a.tokens[row_at(a, kv_head, (end < n ? end : n) - 1).token];
    int n_kv = last.pos + 1;
    int warp_end = first + TILE_ROWS < n ? first + TILE_ROWS : n;
    int warp_kv = first < n ? a.tokens[row_at(a, kv_head, warp_end - 1).token].pos + 1 : 0;

    SHARED step_items *items = (SHARED step_items *)shared;
    GLOBAL const uchar *keys = kv_keys(last, a.layer, a.n_kv_heads, kv_head);
    size_t step_bytes = STEP / KV_POSITIONS * kv_tile_bytes(KV::Q8, hd);
    step_parts<KV> parts;
    load_keys<KV>(keys, n_kv, hd, at.tid, parts);
    lane_rows rows;
    start_rows(a, kv_head, first, n, at.lane, rows);
    for (int t = 0; t < n_kv; t += STEP) { /* what comes next is loaded while this is computed */
        tile_sums weights[SCORE_TILES];
        store_keys<KV>(parts, hd, at.tid, items);
        barrier();
        load_values<KV>(keys + last.stream, n_kv - t, hd, at.tid, parts);
        if (t < warp_kv) {
            score_step<KV>(rows, items, hd, at.lane, weights);
            softmax_step(rows, weights, t, at.lane);
        }
        store_values<KV>(parts, n_kv - t, at.tid, items);
        barrier();
        keys += step_bytes;
        if (t + STEP < n_kv) load_keys<KV>(keys, n_kv - t - STEP, hd, at.tid, parts);
        if (t < warp_kv) add_step<KV>(rows, weights, items, hd, at.lane);
    }
    barrier();
    SHARED float *box = (SHARED float *)shared + at.warp * TILE_ROWS * BOX_STRIDE;
    store_rows(a, kv_head, first, n, rows, box, at.lane);
}

KERNEL(prefill_f16, attention_args) { prefill<kv_f16>(a, at, shared); }
KERNEL(prefill_q8, attention_args) { prefill<kv_q8>(a, at, shared); }

#endif
