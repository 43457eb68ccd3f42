/* embed.h - rows of the embedding matrix. */
#ifndef QWEN3_GPU_EMBED_H
#define QWEN3_GPU_EMBED_H

#include "blocks.h"

#include "../args.h"

DEVICE float decode_f32(GLOBAL const uchar *row, int i) { return ((GLOBAL const float *)row)[i]; }

DEVICE float decode_f16(GLOBAL const uchar *row, int i) {
    return to_float(((GLOBAL const f16 *)row)[i]);
}

DEVICE float decode_bf16(GLOBAL const uchar *row, int i) {
    return bits_to_float((uint)((GLOBAL const ushort *)row)[i] << 16);
}

/* A group of 32 weights a thread: it is read at once. */
template <typename Block>
DEVICE void decode_row(GLOBAL const uchar *row, GLOBAL float *y, int n, place at) {
    for (int g = at.tid; g < n / 32; g += at.threads) {
        weights w;
        Block::read(row, g, w);
        UNROLL
        for (int i = 0; i < 32; i++) {
            float q = (float)((int)((uint)w.q[i / 4] << (24 - i % 4 * 8)) >> 24);
            y[32 * g + i] = w.scale[i / 16] * q - w.min[i / 16];
        }
    }
}

/* Grid: a block of any size for each id. */
KERNEL(embed_rows, embed_args) {
    int id = a.ids[at.x];
    bool known = id >= 0 && id < a.n_vocab;
    GLOBAL const uchar *row = a.table + (known ? (size_t)id * a.row_bytes : 0);
    GLOBAL float *y = a.y + (size_t)at.x * (size_t)a.n_embd;
    if (!known) {
        for (int i = at.tid; i < a.n_embd; i += at.threads) y[i] = 0;
        return;
    }
    switch (a.type) {
    case TYPE_F32:
        for (int i = at.tid; i < a.n_embd; i += at.threads) y[i] = decode_f32(row, i);
        break;
    case TYPE_F16:
        for (int i = at.tid; i < a.n_embd; i += at.threads) y[i] = decode_f16(row, i);
        break;
    case TYPE_BF16:
        for (int i = at.tid; i < a.n_embd; i += at.threads) y[i] = decode_bf16(row, i);
        break;
    case TYPE_Q4_0: decode_row<q4_0>(row, y, a.n_embd, at); break;
    case TYPE_Q4_1: decode_row<q4_1>(row, y, a.n_embd, at); break;
    case TYPE_Q5_0: decode_row<q5_0>(row, y, a.n_embd, at); break;
    case TYPE_Q5_1: decode_row<q5_1>(row, y, a.n_embd, at); break;
    case TYPE_Q8_0: decode_row<q8_0>(row, y, a.n_embd, at); break;
    case TYPE_Q2_K: decode_row<q2_k>(row, y, a.n_embd, at); break;
    case TYPE_Q3_K: decode_row<q3_k>(row, y, a.n_embd, at); break;
    case TYPE_Q4_K: decode_row<q4_k>(row, y, a.n_embd, at); break;
    case TYPE_Q5_K: decode_row<q5_k>(row, y, a.n_embd, at); break;
    case TYPE_Q6_K: decode_row<q6_k>(row, y, a.n_embd, at); break;
    case TYPE_IQ4_NL: decode_row<iq4_nl>(row, y, a.n_embd, at); break;
    case TYPE_IQ4_XS: decode_row<iq4_xs>(row, y, a.n_embd, at); break;
    }
}

#endif
