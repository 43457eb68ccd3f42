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

/* Byte i of a word, signed, by way of 2^23 + 128 + it: conversions take eight times as long. */
DEVICE float signed_byte(uint word, int i) {
    uint biased = ((word >> 8 * i) & 255u) ^ 128u;
    return bits_to_float(0x4b000000u | biased) - 8388736.0f;
}

/* Items of a tile as they are loaded: two positions of a key's item (pair), four items of a value
 * (quad), eight of either, also as f16 without their scale. Scales lie behind the items, for each
 * group of 32 those of 16 positions; at F16 there are none. */
struct kv_f16 {
    enum { Q8 = 0, ITEM = 2 /* bytes */ };
    typedef uint pair;
    typedef uint2 quad;
    typedef uint4 eight;
    typedef int scale, pair_scale; /* of a position, of two */

    DEVICE void unpack(pair x, int, LOCAL float *y) {
        y[0] = low_half(x);
        y[1] = high_half(x);
    }
    DEVICE void unpack(quad x, int, LOCAL float *y) {
        unpack(x.x, 0, y);
        unpack(x.y, 0, y + 2);
    }
    DEVICE uint4 as_f16(eight x) { return x; }
};

struct kv_q8 {
    enum { Q8 = 1, ITEM = 1 };
    typedef ushort pair;
    typedef uint quad;
    typedef uint2 eight;
    typedef f16 scale;
    typedef uint pair_scale;

    DEVICE void unpack(pair x, pair_scale by, LOCAL float *y) {
        y[0] = signed_byte(x, 0) * low_half(by);
        y[1] = signed_byte(x, 1) * high_half(by);
    }
    DEVICE void unpack(quad x, scale by, LOCAL float *y) {
        for (int i = 0; i < 4; i++) y[i] = signed_byte(x, i) * to_float(by);
    }
    DEVICE uint4 as_f16(eight x) {
        uint4 y = {word(x.x, 0), word(x.x, 2), word(x.y, 0), word(x.y, 2)};
        return y;
    }
    DEVICE uint word(uint x, int i) { return f16_word(signed_byte(x, i), signed_byte(x, i + 1)); }
};

/* A pair, a quad or an eight. at: in items from the start of the tile. */
template <typename KV, typename T> DEVICE T kv_items(GLOBAL const uchar *tile, int at) {
    return *(GLOBAL const T *)(tile + KV::ITEM * at);
}

/* The same, or zeros. */
template <typename KV, typename T>
DEVICE T kv_items_if(bool some, GLOBAL const uchar *tile, int at) {
    T x = {};
    if (some) x = kv_items<KV, T>(tile, at);
    return x;
}

/* Their scales. scales: what lies behind the items; g: the group. */
template <typename KV, typename T>
DEVICE T kv_scale(GLOBAL const uchar *scales, int g, int position) {
    T by = {};
    if (KV::Q8) by = *(GLOBAL const T *)(scales + 2 * (g * KV_POSITIONS + position));
    return by;
}

#endif
