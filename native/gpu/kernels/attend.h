/* attend.h - attention of single tokens over their caches: a few queries, many positions.
 *
 * The positions of a token are cut into parts (Dao et al., Flash-Decoding, 2023), one for a
 * block, and a part into rounds of 128, a tile of 16 for each warp. A warp multiplies its tile
 * with all queries that share the K/V head and keeps its own softmax until the end of the part;
 * then the warps are added in their order, and by attend_merge the parts in theirs.
 */
#ifndef QWEN3_GPU_ATTEND_H
#define QWEN3_GPU_ATTEND_H

#include "kv.h"

enum { ATTEND_WARPS = ATTEND_ROUND / KV_POSITIONS };

/* Positions of a part: whole rounds. */
DEVICE int part_positions(int n_kv) {
    int rounds = (n_kv + ATTEND_PARTS * ATTEND_ROUND - 1) / (ATTEND_PARTS * ATTEND_ROUND);
    return rounds * ATTEND_ROUND;
}

DEVICE size_t part_floats(int head_dim) { return (size_t)head_dim + 2; /* out, top, sum */ }

DEVICE GLOBAL float *part_of(CONSTANT attention_args &a, int token, int head, int part) {
    size_t vector = (size_t)token * (size_t)a.n_heads + (size_t)head;
    return a.parts + (vector * ATTEND_PARTS + (size_t)part) * part_floats(a.head_dim);
}

/* Adds lanes whose numbers differ in `bit`: of n sums the lane without the bit keeps the first
 * half, the other the second. */
template <int n> DEVICE void fold(LOCAL float *x, int bit, int lane) {
    bool upper = lane & bit;
    UNROLL
    for (int i = 0; i < n / 2; i++) {
        float mine = upper ? x[i + n / 2] : x[i], other = upper ? x[i] : x[i + n / 2];
        x[i] = mine + lane_xor(other, bit);
    }
}

/* The scores of a tile's positions 2 (lane % 8) and the next for the G / 4 queries from
 * lane / 8 * (G / 4) on. The lanes of a position pair multiply a quarter of the items each;
 * q: [head_dim][G]. */
template <typename KV, int G>
DEVICE void score_tile(GLOBAL const uchar *keys, SHARED const float *q, int head_dim, int lane,
                       LOCAL float *even, LOCAL float *odd) {
    int position = 2 * (lane % 8), quarter = lane / 8;
    GLOBAL const uchar *scales = keys + head_dim * KV_POSITIONS;
    float sum0[G], sum1[G];
    UNROLL
    for (int g = 0; g < G; g++) sum0[g] = sum1[g] = 0;
    for (int first = 0; first < head_dim; first += 32) {
        typename KV::pair k[8];
        UNROLL
        for (int j = 0; j < 8; j++)
            k[j] = kv_items<KV, typename KV::pair>(
                keys, (first + 4 * j + quarter) * KV_POSITIONS + position);
        typename KV::pair_scale scale =
            kv_scale<KV, typename KV::pair_scale>(scales, first / 32, position);
        UNROLL
        for (int j = 0; j < 8; j++) {
            float x[2];
            KV::unpack(k[j], scale, x);
            SHARED const float4 *w = (SHARED const float4 *)(q + (first + 4 * j + quarter) * G);
            UNROLL
            for (int g = 0; g < G; g += 4) {
                float4 four = w[g / 4];
                sum0[g] = fma(four.x, x[0], sum0[g]);
                sum1[g] = fma(four.x, x[1], sum1[g]);
                sum0[g + 1] = fma(four.y, x[0], sum0[g + 1]);
                sum1[g + 1] = fma(four.y, x[1], sum1[g + 1]);
                sum0[g + 2] = fma(four.z, x[0], sum0[g + 2]);
                sum1[g + 2] = fma(four.z, x[1], sum1[g + 2]);
                sum0[g + 3] = fma(four.w, x[0], sum0[g + 3]);
                sum1[g + 3] = fma(four.w, x[1], sum1[g + 3]);
            }
        }
    }
    fold<G>(sum0, 16, lane);
    fold<G>(sum1, 16, lane);
    fold<G / 2>(sum0, 8, lane);
    fold<G / 2>(sum1, 8, lane);
    UNROLL
    for (int g = 0; g < G / 4; g++) {
        even[g] = sum0[g];
        odd[g] = sum1[g];
    }
}

/* out[4 g + i] += p[position][g] times item 4 lane + i of the values at the first n positions;
 * what lies behind them may be anything, NaN too. */
template <typename KV, int G>
DEVICE void add_tile(GLOBAL const uchar *values, SHARED const float *p, int n, int head_dim,
                     int lane, LOCAL float *out) {
    GLOBAL const uchar *scales = values + head_dim * KV_POSITIONS;
    for (int first = 0; first < n; first += 8) {
        typename KV::quad v[8];
        typename KV::scale scale[8];
        UNROLL
        for (int j = 0; j < 8; j++) {
            int t = first + j;
            bool some = t < n && 4 * lane < head_dim;
            v[j] = kv_items_if<KV, typename KV::quad>(some, values, t * head_dim + 4 * lane);
            scale[j] = kv_scale<KV, typename KV::scale>(scales, some ? lane / 8 : 0, some ? t : 0);
        }
        UNROLL
        for (int j = 0; j < 8; j++) {
            float x[4];
            KV::unpack(v[j], scale[j], x);
            SHARED const float4 *w = (SHARED const float4 *)(p + (first + j) * G);
            UNROLL
            for (int g = 0; g < G; g += 4) {
                float4 four = w[g / 4];
                UNROLL
                for (int i = 0; i < 4; i++) {
                    out[4 * g + i] = fma(four.x, x[i], out[4 * g + i]);
                    out[4 * g + 4 + i] = fma(four.y, x[i], out[4 * g + 4 + i]);
                    out[4 * g + 8 + i] = fma(four.z, x[i], out[4 * g + 8 + i]);
                    out[4 * g + 12 + i] = fma(four.w, x[i], out[4 * g + 12 + i]);
                }
            }
        }
    }
}

/* What the warps of a block have found: out [4 queries][head_dim], and of every query top and
 * sum of e^(score - top). Added in their order into the parts of queries [0, n). */
template <int G>
DEVICE void merge_warps(GLOBAL float *part, size_t stride, int n, int head_dim, place at,
                        SHARED float *box, SHARED float *tops, SHARED float *sums,
                        LOCAL const float *out) {
    barrier();
    if (at.tid < n) {
        float top = tops[at.tid], sum = 0;
        for (int w = 1; w < ATTEND_WARPS; w++) {
            float other = tops[w * G + at.tid];
            top = other > top ? other : top;
        }
        for (int w = 0; w < ATTEND_WARPS; w++) {
            float weight = exp(tops[w * G + at.tid] - top);
            tops[w * G + at.tid] = weight;
            sum += sums[w * G + at.tid] * weight;
        }
        part[(size_t)at.tid * stride + (size_t)head_dim] = top;
        part[(size_t)at.tid * stride + (size_t)head_dim + 1] = sum;
    }
    UNROLL
    for (int first = 0; first < G; first += 4) {
        UNROLL
        for (int g = 0; g < 4; g++)
            UNROLL
            for (int i = 0; i < 4; i++)
                if (4 * at.lane < head_dim)
                    box[(at.warp * 4 + g) * head_dim + 4 * at.lane + i] = out[4 * (first + g) + i];
        barrier();
        for (int j = at.tid; j < 4 * head_dim; j += at.threads) {
            int g = first + j / head_dim;
            float sum = 0;
            for (int w = 0; w < ATTEND_WARPS; w++)
                sum = fma(box[w * 4 * head_dim + j], tops[w * G + g], sum);
            if (g < n) part[(size_t)g * stride + (size_t)(j % head_dim)] = sum;
        }
        barrier();
    }
}

/* Grid: (parts, n_kv_heads * chunks, n tokens). A chunk is up to G of the n_heads / n_kv_heads
 * queries of a K/V head. Any number of parts that reaches the longest context will do, at most
 * ATTEND_PARTS: blocks behind a token's positions leave. Threads: 256. Shared: floats,
 * max(head_dim G + 136 G, 32 head_dim) + 16 G. */
template <typename KV, int G>
DEVICE void attend(CONSTANT attention_args &a, place at, SHARED char *shared) {
    int hd = a.head_dim, group = a.n_heads / a.n_kv_heads, chunks = (group + G - 1) / G;
    int kv_head = at.y / chunks, first_query = at.y % chunks * G;
    int n = group - first_query < G ? group - first_query : G;
    int head = kv_head * group + first_query;
    token_place token = a.tokens[at.z];
    int n_kv = token.pos + 1, positions = part_positions(n_kv);
    int first = at.x * positions, last = first + positions < n_kv ? first + positions : n_kv;
    if (first >= n_kv) return;

    SHARED float *q = (SHARED float *)shared;                        /* [head_dim][G] */
    SHARED float *p = q + hd * G + at.warp * (KV_POSITIONS + 1) * G; /* [16][G], of the warp */
    SHARED float *factors = p + KV_POSITIONS * G;                    /* [G] */
    int above = hd * G + ATTEND_WARPS * (KV_POSITIONS + 1) * G, box = 4 * ATTEND_WARPS * hd;
    SHARED float *tops = q + (above > box ? above : box), *sums = tops + ATTEND_WARPS * G;

    size_t vector = (size_t)at.z * (size_t)a.n_heads + (size_t)head;
    GLOBAL const float *queries = a.q + vector * (size_t)hd;
    for (int i = at.tid; i < hd * G; i += at.threads)
        q[i % hd * G + i / hd] = i / hd < n ? queries[i] : 0.0f;
    barrier();

    float out[4 * G], top[G / 4], sum[G / 4];
    UNROLL
    for (int i = 0; i < 4 * G; i++) out[i] = 0;
    UNROLL
    for (int g = 0; g < G / 4; g++) {
        top[g] = -INFINITY;
        sum[g] = 0;
    }
    GLOBAL const uchar *keys = kv_keys(token, a.layer, a.n_kv_heads, kv_head);
    int mine = at.lane / 8 * (G / 4), even = 2 * (at.lane % 8);
    for (int t = first + at.warp * KV_POSITIONS; t < last; t += ATTEND_ROUND) {
        size_t tile = (size_t)(t / KV_POSITIONS) * kv_tile_bytes(KV::Q8, hd);
        float score[2][G / 4];
        score_tile<KV, G>(keys + tile, q, hd, at.lane, score[0], score[1]);
        UNROLL
        for (int g = 0; g < G / 4; g++) {
            float s0 = t + even < last ? score[0][g] : -INFINITY;
            float s1 = t + even + 1 < last ? score[1][g] : -INFINITY;
            float most = s1 > s0 ? s1 : s0;
            for (int mask = 4; mask; mask /= 2) {
                float other = lane_xor(most, mask);
                most = other > most ? other : most;
            }
            most = top[g] > most ? top[g] : most;
            float factor = exp(top[g] - most), p0 = exp(s0 - most), p1 = exp(s1 - most);
            top[g] = most;
            sum[g] = sum[g] * factor + (p0 + p1);
            p[even * G + mine + g] = p0;
            p[(even + 1) * G + mine + g] = p1;
            if (even == 0) factors[mine + g] = factor;
        }
        warp_barrier();
        UNROLL
        for (int g = 0; g < G; g++)
            UNROLL
            for (int i = 0; i < 4; i++) out[4 * g + i] *= factors[g];
        int n_here = last - t < KV_POSITIONS ? last - t : KV_POSITIONS;
        add_tile<KV, G>(keys + token.stream + tile, p, n_here, hd, at.lane, out);
        warp_barrier();
    }
    UNROLL
    for (int g = 0; g < G / 4; g++) {
        for (int mask = 4; mask; mask /= 2) sum[g] += lane_xor(sum[g], mask);
        if (even == 0) {
            tops[at.warp * G + mine + g] = top[g];
            sums[at.warp * G + mine + g] = sum[g];
        }
    }
    size_t stride = part_floats(hd) * ATTEND_PARTS;
    merge_warps<G>(part_of(a, at.z, head, at.x), stride, n, hd, at, q, tops, sums, out);
}

KERNEL(attend_f16_4, attention_args) { attend<kv_f16, 4>(a, at, shared); }
KERNEL(attend_f16_8, attention_args) { attend<kv_f16, 8>(a, at, shared); }
KERNEL(attend_f16_16, attention_args) { attend<kv_f16, 16>(a, at, shared); }
KERNEL(attend_q8_4, attention_args) { attend<kv_q8, 4>(a, at, shared); }
KERNEL(attend_q8_8, attention_args) { attend<kv_q8, 8>(a, at, shared); }
KERNEL(attend_q8_16, attention_args) { attend<kv_q8, 16>(a, at, shared); }

/* Grid: (n_heads, n tokens). Threads: head_dim. Shared: ATTEND_PARTS floats. Adds the parts. */
KERNEL(attend_merge, attention_args) {
    int n_kv = a.tokens[at.y].pos + 1, positions = part_positions(n_kv), hd = a.head_dim;
    int n = (n_kv + positions - 1) / positions;
    GLOBAL const float *parts = part_of(a, at.y, at.x, 0);
    size_t stride = part_floats(hd);
    SHARED float *weights = (SHARED float *)shared;
    float top = -INFINITY;
    for (int i = at.lane; i < n; i += 32) {
        float other = parts[(size_t)i * stride + (size_t)hd];
        top = other > top ? other : top;
    }
    top = lane_max(top); /* every warp for itself */
    for (int i = at.tid; i < n; i += at.threads)
        weights[i] = exp(parts[(size_t)i * stride + (size_t)hd] - top);
    barrier();
    float out = 0, sum = 0;
    for (int i = 0; i < n; i++) {
        out = fma(parts[(size_t)i * stride + (size_t)at.tid], weights[i], out);
        sum = fma(parts[(size_t)i * stride + (size_t)hd + 1], weights[i], sum);
    }
    out *= 1.0f / sum;
    size_t i = ((size_t)at.y * (size_t)a.n_heads + (size_t)at.x) * (size_t)hd + (size_t)at.tid;
    if (a.y) a.y[i] = out;
    if (a.act) store_group(a.act + i / 32, out, at.lane);
}

#endif
