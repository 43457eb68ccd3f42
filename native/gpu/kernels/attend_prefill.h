/* attend_prefill.h - causal attention of many tokens of one sequence over its cache.
 *
 * The rows of a K/V head are the queries that share it, token after token: 16 for a warp, four
 * warps for a block. A block goes through the positions from 0 on, a tile of the cache at a time,
 * with an online softmax (Dao, FlashAttention-2, 2023). What a row computes does not depend on the
 * rows beside it, nor on how a prompt is cut.
 *
 * The two products are score_rows and add_rows alone: they read floats that unpack_keys and
 * unpack_values have put into shared memory, and decide with their mapping of lanes what the rest
 * sees as a lane's rows and columns.
 */
#ifndef QWEN3_GPU_ATTEND_PREFILL_H
#define QWEN3_GPU_ATTEND_PREFILL_H

#include "kv.h"

enum {
    PREFILL_WARPS = 4,
    PREFILL_ROWS = 16, /* of a warp */
    LANE_ROWS = 4,     /* rows 4 (lane / 8) + r, */
    LANE_COLUMNS = 16, /* columns 32 (c / 4) + 4 (lane % 8) + c % 4 of the output */
};

/* A tile's keys and values on their way, spread over the threads. */
template <typename KV> struct tile_parts {
    enum {
        THREADS = 32 * PREFILL_WARPS,
        PAIRS = ATTEND_HEAD_DIM * KV_POSITIONS / 2 / THREADS,
        QUADS = ATTEND_HEAD_DIM * KV_POSITIONS / 4 / THREADS,
    };
    typename KV::pair k[PAIRS];
    typename KV::pair_scale k_scale[PAIRS];
    typename KV::quad v[QUADS];
    typename KV::quad_scale v_scale[QUADS];
};

/* The first n positions of the tile are there; keys behind them are masked later, values are
 * zero, as anything may lie there. */
template <typename KV>
DEVICE void load_tile(GLOBAL const uchar *keys, GLOBAL const uchar *values, int n, int head_dim,
                      int tid, LOCAL tile_parts<KV> &parts) {
    typedef tile_parts<KV> layout;
    int scales = head_dim * KV_POSITIONS;
    for (int j = 0; j < layout::PAIRS; j++) {
        int at = 2 * (j * layout::THREADS + tid), item = at / KV_POSITIONS;
        if (item >= head_dim) continue;
        parts.k[j] = KV::load_pair(keys, at);
        parts.k_scale[j] = KV::load_pair_scale(keys + scales, item / 32, at % KV_POSITIONS);
    }
    for (int j = 0; j < layout::QUADS; j++) {
        int at = 4 * (j * layout::THREADS + tid), position = at / head_dim;
        bool some = position < n && position < KV_POSITIONS;
        parts.v[j] = some ? KV::load_quad(values, at) : KV::no_quad();
        parts.v_scale[j] = KV::load_quad_scale(values + scales, some ? at % head_dim / 32 : 0,
                                               some ? position : 0);
    }
}

/* to: [head_dim][16] */
template <typename KV>
DEVICE void unpack_keys(LOCAL const tile_parts<KV> &parts, int head_dim, int tid,
                        SHARED float *to) {
    typedef tile_parts<KV> layout;
    for (int j = 0; j < layout::PAIRS; j++) {
        int at = 2 * (j * layout::THREADS + tid);
        float x[2];
        if (at >= head_dim * KV_POSITIONS) continue;
        KV::unpack(parts.k[j], parts.k_scale[j], x);
        for (int i = 0; i < 2; i++) to[at + i] = x[i];
    }
}

/* to: [16][head_dim] */
template <typename KV>
DEVICE void unpack_values(LOCAL const tile_parts<KV> &parts, int head_dim, int tid,
                          SHARED float *to) {
    typedef tile_parts<KV> layout;
    for (int j = 0; j < layout::QUADS; j++) {
        int at = 4 * (j * layout::THREADS + tid);
        float x[4];
        if (at >= head_dim * KV_POSITIONS) continue;
        KV::unpack(parts.v[j], parts.v_scale[j], x);
        for (int i = 0; i < 4; i++) to[at + i] = x[i];
    }
}

/* The scores of a lane's rows at the positions 2 (lane % 8) and the next. q: [head_dim][16 rows] */
DEVICE void score_rows(SHARED const float *q, SHARED const float *keys, int head_dim, int lane,
                       LOCAL float *even, LOCAL float *odd) {
    SHARED const float *k = keys + 2 * (lane % 8);
    SHARED const float4 *w = (SHARED const float4 *)q + lane / 8;
    for (int r = 0; r < LANE_ROWS; r++) even[r] = odd[r] = 0;
    for (int i = 0; i < head_dim; i++) {
        float4 rows = w[i * PREFILL_ROWS / 4];
        float k0 = k[i * KV_POSITIONS], k1 = k[i * KV_POSITIONS + 1];
        even[0] = fma(rows.x, k0, even[0]);
        odd[0] = fma(rows.x, k1, odd[0]);
        even[1] = fma(rows.y, k0, even[1]);
        odd[1] = fma(rows.y, k1, odd[1]);
        even[2] = fma(rows.z, k0, even[2]);
        odd[2] = fma(rows.z, k1, odd[2]);
        even[3] = fma(rows.w, k0, even[3]);
        odd[3] = fma(rows.w, k1, odd[3]);
    }
}

/* A lane's rows and columns += p times values. p: [16 positions][16 rows] */
DEVICE void add_rows(SHARED const float *p, SHARED const float *values, int head_dim, int lane,
                     LOCAL float *out) {
    SHARED const float4 *w = (SHARED const float4 *)p + lane / 8;
    for (int t = 0; t < KV_POSITIONS; t++) {
        float4 rows = w[t * PREFILL_ROWS / 4];
        SHARED const float4 *v = (SHARED const float4 *)(values + t * head_dim) + lane % 8;
        for (int c = 0; c < LANE_COLUMNS; c += 4) {
            if (8 * c >= head_dim) continue;
            float4 four = v[2 * c];
            float x[4] = {four.x, four.y, four.z, four.w};
            for (int i = 0; i < 4; i++) {
                LOCAL float *at = out + c + i;
                at[0] = fma(rows.x, x[i], at[0]);
                at[LANE_COLUMNS] = fma(rows.y, x[i], at[LANE_COLUMNS]);
                at[2 * LANE_COLUMNS] = fma(rows.z, x[i], at[2 * LANE_COLUMNS]);
                at[3 * LANE_COLUMNS] = fma(rows.w, x[i], at[3 * LANE_COLUMNS]);
            }
        }
    }
}

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

/* Grid: (n * n_heads / n_kv_heads / 64 rounded up, n_kv_heads). The tokens are of one sequence, in
 * its order, their keys and values already in the cache. Threads: 128. Shared: floats,
 * 80 head_dim + 1024. */
template <typename KV>
DEVICE void prefill(CONSTANT attention_args &a, place at, SHARED char *shared) {
    int hd = a.head_dim, rows = a.n * (a.n_heads / a.n_kv_heads), kv_head = at.y;
    int blocks = (rows + 63) / 64, block = blocks - 1 - at.x; /* the longest first */
    int last_row = block * 64 + 63 < rows ? block * 64 + 63 : rows - 1;
    int first_row = block * 64 + at.warp * PREFILL_ROWS;
    token_place last_token = a.tokens[row_at(a, kv_head, last_row).token];
    int n_kv = last_token.pos + 1;

    SHARED float *tile = (SHARED float *)shared; /* keys, then values */
    SHARED float *q = tile + hd * KV_POSITIONS + at.warp * hd * PREFILL_ROWS;
    SHARED float *p = tile + hd * (KV_POSITIONS + PREFILL_WARPS * PREFILL_ROWS) +
                      at.warp * KV_POSITIONS * PREFILL_ROWS;
    for (int r = 0; r < PREFILL_ROWS; r++) {
        bool some = first_row + r < rows;
        GLOBAL const float *from = a.q + row_at(a, kv_head, some ? first_row + r : 0).at;
        for (int i = at.lane; i < hd; i += 32) q[i * PREFILL_ROWS + r] = some ? from[i] : 0.0f;
    }

    int my_row = LANE_ROWS * (at.lane / 8), even = 2 * (at.lane % 8), pos[LANE_ROWS];
    float out[LANE_ROWS * LANE_COLUMNS], top[LANE_ROWS], sum[LANE_ROWS];
    for (int i = 0; i < LANE_ROWS * LANE_COLUMNS; i++) out[i] = 0;
    for (int r = 0; r < LANE_ROWS; r++) {
        int row = first_row + my_row + r;
        pos[r] = row < rows ? a.tokens[row_at(a, kv_head, row).token].pos : -1;
        top[r] = -INFINITY;
        sum[r] = 0;
    }

    GLOBAL const uchar *keys = kv_keys(last_token, a.layer, a.n_kv_heads, kv_head);
    GLOBAL const uchar *values = keys + last_token.stream;
    size_t tile_bytes = kv_tile_bytes(KV::Q8, hd);
    tile_parts<KV> parts;
    load_tile<KV>(keys, values, n_kv, hd, at.tid, parts);
    for (int t = 0; t < n_kv; t += KV_POSITIONS) {
        unpack_keys<KV>(parts, hd, at.tid, tile);
        barrier();
        float s0[LANE_ROWS], s1[LANE_ROWS];
        score_rows(q, tile, hd, at.lane, s0, s1);
        for (int r = 0; r < LANE_ROWS; r++) {
            s0[r] = t + even <= pos[r] ? s0[r] : -INFINITY;
            s1[r] = t + even + 1 <= pos[r] ? s1[r] : -INFINITY;
            float most = s1[r] > s0[r] ? s1[r] : s0[r];
            for (int mask = 4; mask; mask /= 2) {
                float other = lane_xor(most, mask);
                most = other > most ? other : most;
            }
            most = top[r] > most ? top[r] : most;
            float factor = exp(top[r] - most), p0 = exp(s0[r] - most), p1 = exp(s1[r] - most);
            top[r] = most;
            sum[r] = sum[r] * factor + (p0 + p1);
            p[even * PREFILL_ROWS + my_row + r] = p0;
            p[(even + 1) * PREFILL_ROWS + my_row + r] = p1;
            for (int c = 0; c < LANE_COLUMNS; c++) out[r * LANE_COLUMNS + c] *= factor;
        }
        barrier();
        unpack_values<KV>(parts, hd, at.tid, tile);
        barrier();
        int next = t + KV_POSITIONS;
        if (next < n_kv) { /* comes while this one is added */
            size_t offset = (size_t)(next / KV_POSITIONS) * tile_bytes;
            load_tile<KV>(keys + offset, values + offset, n_kv - next, hd, at.tid, parts);
        }
        add_rows(p, tile, hd, at.lane, out);
        barrier();
    }

    for (int r = 0; r < LANE_ROWS; r++) {
        for (int mask = 4; mask; mask /= 2) sum[r] += lane_xor(sum[r], mask);
        float scale = 1.0f / sum[r];
        for (int c = 0; c < LANE_COLUMNS; c++) {
            int column = 32 * (c / 4) + 4 * (at.lane % 8) + c % 4;
            if (column < hd) q[(my_row + r) * hd + column] = out[r * LANE_COLUMNS + c] * scale;
        }
    }
    warp_barrier();
    for (int r = 0; r < PREFILL_ROWS && first_row + r < rows; r++) {
        size_t to = row_at(a, kv_head, first_row + r).at;
        for (int i = at.lane; i < hd; i += 32) {
            float x = q[r * hd + i];
            if (a.y) a.y[to + (size_t)i] = x;
            if (a.act) store_group(a.act + (to + (size_t)i) / 32, x, at.lane);
        }
    }
}

KERNEL(prefill_f16, attention_args) { prefill<kv_f16>(a, at, shared); }
KERNEL(prefill_q8, attention_args) { prefill<kv_q8>(a, at, shared); }

#endif
