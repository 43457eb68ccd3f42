/* probe.h - what a device can do at best: read its memory, multiply on its matrix units. */
#ifndef QWEN3_GPU_PROBE_H
#define QWEN3_GPU_PROBE_H

#include "tile.h"

/* Grid: n_blocks blocks of PROBE_THREADS threads. */
KERNEL(probe_read, probe_read_args) {
    enum { ahead = PROBE_PIECE / PROBE_THREADS / 16 }; /* words that a thread waits for at once */
    GLOBAL const int4 *from = (GLOBAL const int4 *)a.from;
    int sum = 0;
    for (int piece = at.x; piece < a.n; piece += a.n_blocks) {
        GLOBAL const int4 *first = from + (size_t)piece * (PROBE_PIECE / 16) + (size_t)at.tid;
        int4 v[ahead];
        UNROLL
        for (int i = 0; i < ahead; i++) v[i] = first[i * PROBE_THREADS];
        UNROLL
        for (int i = 0; i < ahead; i++) sum ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
    }
    for (int mask = 16; mask; mask /= 2) sum ^= lane_xor(sum, mask);
    if (at.lane == 0) a.sums[at.x * at.warps + at.warp] = sum;
}

/* ---- products -------------------------------------------------------------------------- */

/* Operands stay in registers: 2 tiles of rows times 4 of columns. */
enum { PROBE_ROWS = 2, PROBE_COLUMNS = PROBE_TILES / PROBE_ROWS };

/* A lane's word of an operand: four int8, or two f16 of a size in [1/2, 1). */
template <bool int8> DEVICE int probe_word(int lane, int i) {
    uint bits = (uint)(lane * 32 + i + 1) * 2654435761u;
    bits ^= bits >> 15;
    return (int)(int8 ? bits : (bits & 0x83ff83ffu) | 0x38003800u);
}

template <bool int8>
DEVICE void probe_products(CONSTANT probe_products_args &a, place at) {
    tile_rows w[PROBE_ROWS];
    tile_columns x[PROBE_COLUMNS];
    float v[PROBE_TILES][4];
    UNROLL
    for (int m = 0; m < PROBE_ROWS; m++)
        for (int i = 0; i < 4; i++) w[m].v[i] = probe_word<int8>(at.lane, m * 4 + i);
    UNROLL
    for (int j = 0; j < PROBE_COLUMNS; j++)
        for (int i = 0; i < 2; i++) x[j].v[i] = probe_word<int8>(at.lane, 16 + j * 2 + i);
    UNROLL
    for (int t = 0; t < PROBE_TILES; t++)
        for (int i = 0; i < 4; i++) v[t][i] = int8 ? TILE_START : 0.0f;

    for (int round = 0; round < a.rounds; round++) {
        UNROLL
        for (int t = 0; t < PROBE_TILES; t++) {
            tile_rows rows = w[t / PROBE_COLUMNS];
            if (int8) tile_add_int8(v[t], rows, x[t % PROBE_COLUMNS]);
            else tile_add_f16(v[t], rows, x[t % PROBE_COLUMNS]);
        }
    }

    float sum = 0;
    UNROLL
    for (int t = 0; t < PROBE_TILES; t++)
        for (int i = 0; i < 4; i++) sum += v[t][i] - (int8 ? TILE_START : 0.0f);
    sum = lane_sum(sum);
    if (at.lane == 0) a.sums[at.x * at.warps + at.warp] = sum;
}

/* Grid: blocks of PROBE_THREADS threads, as many as stay busy. */
KERNEL(probe_f16, probe_products_args) { probe_products<false>(a, at); }
KERNEL(probe_int8, probe_products_args) { probe_products<true>(a, at); }

#endif
