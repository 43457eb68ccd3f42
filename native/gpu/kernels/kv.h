/* kv.h - the cache of keys and values, in the tiles of backend.h. */
#ifndef QWEN3_GPU_KV_H
#define QWEN3_GPU_KV_H

#include "act.h"

enum { KV_POSITIONS = 16 }; /* of a tile */

DEVICE size_t kv_tile_bytes(bool q8, int head_dim) {
    return (size_t)((q8 ? 17 : 32) * head_dim);
}

/* The keys of a head, its values behind them. */
DEVICE GLOBAL uchar *kv_keys(token_place token, int layer, int n_kv_heads, int head) {
    return token.kv + 2 * token.stream * (size_t)(layer * n_kv_heads + head);
}

/* A warp puts x[head_dim] at a position of a stream of keys or values. */
DEVICE void kv_store(GLOBAL uchar *stream, bool q8, bool key, int head_dim, int pos,
                     SHARED const float *x, int lane) {
    GLOBAL uchar *tile = stream + (size_t)(pos / KV_POSITIONS) * kv_tile_bytes(q8, head_dim);
    int at = pos % KV_POSITIONS, first = key ? at : at * head_dim, step = key ? KV_POSITIONS : 1;
    for (int i = lane; i < head_dim; i += 32) {
        if (q8) {
            float d;
            int q = quantize(x[i], &d);
            tile[first + i * step] = (uchar)q;
            GLOBAL f16 *scales = (GLOBAL f16 *)(tile + head_dim * KV_POSITIONS);
            if (lane == 0) scales[i / 32 * KV_POSITIONS + at] = to_f16(d);
        } else {
            ((GLOBAL f16 *)tile)[first + i * step] = to_f16(x[i]);
        }
    }
}

/* ---- reading ------------------------------------------------------------------------- */

DEVICE float low_half(uint word) { return to_float(bits_to_f16((ushort)(word & 0xffffu))); }
DEVICE float high_half(uint word) { return to_float(bits_to_f16((ushort)(word >> 16))); }

/* Byte i of a word, signed, by way of 2^23 + 128 + it: conversions take eight times as long. */
DEVICE float signed_byte(uint word, int i) {
    uint biased = ((word >> 8 * i) & 255u) ^ 128u;
    return bits_to_float(0x4b000000u | biased) - 8388736.0f;
}

/* Items of a tile as they are loaded: two positions of a key's item (pair), four items of a
 * value (quad), with their scales. at: in items from the start of the tile. */
struct kv_f16 {
    enum { Q8 = 0 };
    typedef uint pair;
    typedef uint2 quad;
    typedef int pair_scale; /* there is none */
    typedef int quad_scale;

    DEVICE pair load_pair(GLOBAL const uchar *tile, int at) {
        return *(GLOBAL const uint *)(tile + 2 * at);
    }
    DEVICE quad load_quad(GLOBAL const uchar *tile, int at) {
        return *(GLOBAL const uint2 *)(tile + 2 * at);
    }
    DEVICE quad no_quad() {
        quad none = {0, 0};
        return none;
    }
    DEVICE pair_scale load_pair_scale(GLOBAL const uchar *, int, int) { return 0; }
    DEVICE quad_scale load_quad_scale(GLOBAL const uchar *, int, int) { return 0; }
    DEVICE void unpack(pair x, pair_scale, LOCAL float *y) {
        y[0] = low_half(x);
        y[1] = high_half(x);
    }
    DEVICE void unpack(quad x, quad_scale, LOCAL float *y) {
        y[0] = low_half(x.x);
        y[1] = high_half(x.x);
        y[2] = low_half(x.y);
        y[3] = high_half(x.y);
    }
};

struct kv_q8 {
    enum { Q8 = 1 };
    typedef ushort pair;
    typedef uint quad;
    typedef uint pair_scale; /* of two positions */
    typedef f16 quad_scale;

    DEVICE pair load_pair(GLOBAL const uchar *tile, int at) {
        return *(GLOBAL const ushort *)(tile + at);
    }
    DEVICE quad load_quad(GLOBAL const uchar *tile, int at) {
        return *(GLOBAL const uint *)(tile + at);
    }
    DEVICE quad no_quad() { return 0; }
    /* Of group g of 32 items; scales: behind the items. */
    DEVICE pair_scale load_pair_scale(GLOBAL const uchar *scales, int g, int position) {
        return *(GLOBAL const uint *)(scales + 2 * (g * KV_POSITIONS + position));
    }
    DEVICE quad_scale load_quad_scale(GLOBAL const uchar *scales, int g, int position) {
        return *(GLOBAL const f16 *)(scales + 2 * (g * KV_POSITIONS + position));
    }
    DEVICE void unpack(pair x, pair_scale scale, LOCAL float *y) {
        y[0] = signed_byte(x, 0) * low_half(scale);
        y[1] = signed_byte(x, 1) * high_half(scale);
    }
    DEVICE void unpack(quad x, quad_scale scale, LOCAL float *y) {
        for (int i = 0; i < 4; i++) y[i] = signed_byte(x, i) * to_float(scale);
    }
};

#endif
