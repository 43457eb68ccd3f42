/* rope.h - what happens to queries, keys and values between the products and attention: RMSNorm
 * of each head, rotary positions (Su et al., 2021) and the way into the cache. */
#ifndef QWEN3_GPU_ROPE_H
#define QWEN3_GPU_ROPE_H

#include "kv.h"

/* cos and sin of 0 <= x < 2^20, to some 2^-23. The libraries of devices differ, most of all for
 * large angles: here the quarter turns are subtracted without an error. */
DEVICE void cos_and_sin(float x, LOCAL float *c, LOCAL float *s) {
    float turns = (x * 0.636619772f + 12582912.0f) - 12582912.0f; /* x / (pi / 2), rounded */
    float r = fma(turns, -1.57079637f, x); /* pi / 2 in two floats: exact */
    r = fma(turns, 4.37113883e-8f, r);
    float z = r * r; /* Taylor's series up to |r| = pi / 4 */
    float sine = fma(z, 1.0f / 362880, -1.0f / 5040);
    sine = fma(z, sine, 1.0f / 120);
    sine = fma(z, sine, -1.0f / 6);
    sine = fma(r * z, sine, r);
    float cosine = fma(z, -1.0f / 3628800, 1.0f / 40320);
    cosine = fma(z, cosine, -1.0f / 720);
    cosine = fma(z, cosine, 1.0f / 24);
    cosine = fma(z, cosine, -0.5f);
    cosine = fma(z, cosine, 1.0f);
    int quarter = (int)turns;
    float a = quarter & 1 ? sine : cosine, b = quarter & 1 ? cosine : sine;
    *c = (quarter + 1) & 2 ? -a : a;
    *s = quarter & 2 ? -b : b;
}

/* A warp normalizes x and turns its pairs (x[i], x[i + head_dim / 2]), into y. */
DEVICE void norm_and_rotate(CONSTANT rope_args &a, GLOBAL const float *x, GLOBAL const float *w,
                            int pos, SHARED float *y, int lane) {
    float sum = 0;
    for (int i = lane; i < a.head_dim; i += 32) sum += x[i] * x[i];
    float scale = 1.0f / sqrt(lane_sum(sum) / (float)a.head_dim + a.eps);
    int half_dim = a.head_dim / 2;
    for (int i = lane; i < half_dim; i += 32) {
        float c, s;
        cos_and_sin((float)pos * a.freq[i], &c, &s);
        c *= a.rope_scale;
        s *= a.rope_scale;
        float u = x[i] * scale * w[i], v = x[i + half_dim] * scale * w[i + half_dim];
        y[i] = u * c - v * s;
        y[i + half_dim] = u * s + v * c;
    }
}

/* Grid: (warps for the n_heads + 2 n_kv_heads heads, n tokens). Threads: a warp for each head.
 * Shared: head_dim floats for each warp. */
KERNEL(rope, rope_args) {
    int head = at.x * at.warps + at.warp, hd = a.head_dim;
    int key = head - a.n_heads, value = key - a.n_kv_heads; /* heads: queries, keys, values */
    token_place token = a.tokens[at.y];
    SHARED float *row = (SHARED float *)shared + at.warp * hd;
    GLOBAL float *q = a.q + ((size_t)at.y * (size_t)a.n_heads + (size_t)head) * (size_t)hd;
    size_t kv_row = (size_t)at.y * (size_t)a.n_kv_heads;
    if (key < 0) {
        norm_and_rotate(a, q, a.q_norm, token.pos, row, at.lane);
    } else if (value < 0) {
        norm_and_rotate(a, a.k + (kv_row + (size_t)key) * (size_t)hd, a.k_norm, token.pos, row,
                        at.lane);
    } else if (value < a.n_kv_heads) {
        GLOBAL const float *v = a.v + (kv_row + (size_t)value) * (size_t)hd;
        for (int i = at.lane; i < hd; i += 32) row[i] = v[i];
    }
    warp_barrier();
    if (key < 0) {
        for (int i = at.lane; i < hd; i += 32) q[i] = row[i] * a.q_scale;
    } else if (value < a.n_kv_heads) {
        GLOBAL uchar *stream = kv_keys(token, a.layer, a.n_kv_heads, value < 0 ? key : value);
        if (value >= 0) stream += token.stream;
        kv_store(stream, a.q8, value < 0, hd, token.pos, row, at.lane);
    }
}

#endif
