/* matvec.h - products of a matrix with vectors, one to eight at a time: bound by the bytes of the
 * matrix.
 *
 * A warp makes two sums at a time, of two neighbouring rows or of the same row of gate and up, for
 * all columns, so that each load of activations serves both and many loads are under way. What a
 * lane adds to a sum, and in which order, does not depend on the number of columns.
 */
#ifndef QWEN3_GPU_MATVEC_H
#define QWEN3_GPU_MATVEC_H

#include "act.h"
#include "blocks.h"

enum { ROWS = 2 }; /* that a warp multiplies at a time */

/* ---- quantized weights ------------------------------------------------------------ */

/* Two ints at once: a group is aligned to 8. */
DEVICE void load_group(GLOBAL const act_group *from, LOCAL act_group &x) {
    GLOBAL const int2 *pairs = (GLOBAL const int2 *)from;
    x.d = bits_to_float((uint)pairs[0].x);
    x.s = bits_to_float((uint)pairs[0].y);
    UNROLL
    for (int i = 0; i < GROUP_SIZE / 8; i++) {
        int2 q = pairs[1 + i];
        x.q[2 * i] = q.x, x.q[2 * i + 1] = q.y;
    }
}

/* y and the terms of a group: the definition of cpu/product.h. */
template <typename Type>
DEVICE float add_group(LOCAL const weights &w, LOCAL const act_group &x, float y) {
    UNROLL
    for (int run = 0; run < 32 / Type::run; run++) {
        int dot = 0, sum = 0;
        UNROLL
        for (int i = run * Type::run / 4; i < (run + 1) * Type::run / 4; i++) {
            dot = dot4(w.q[i], x.q[i], dot);
            if (Type::minima && Type::run < 32) sum = dot4(0x01010101, x.q[i], sum);
        }
        y = fma((float)dot * w.scale[run], x.d, y);
        if (Type::minima) y = fma(-w.min[run], Type::run < 32 ? x.d * (float)sum : x.s, y);
    }
    return y;
}

/* Rows of a quantized type with N columns of act_group. A lane has every 32nd group. */
template <typename Type, int N> struct quantized_product {
    enum { columns = N };

    DEVICE size_t row_bytes(int n_in) { return (size_t)(n_in / 32 / Type::groups) * Type::bytes; }
    DEVICE size_t column_bytes(int n_in) { return (size_t)(n_in / 32) * sizeof(act_group); }

    DEVICE void add(GLOBAL const uchar *first, GLOBAL const uchar *second, GLOBAL const void *x,
                    int n_in, int n_columns, int lane, LOCAL float sum[N][ROWS]) {
        int n_groups = n_in / 32;
        for (int g = lane; g < n_groups; g += 32) {
            weights w[ROWS];
            Type::read(first, g, w[0]);
            Type::read(second, g, w[1]);
            UNROLL
            for (int c = 0; c < N; c++) {
                int column = c < n_columns ? c : n_columns - 1;
                act_group group;
                load_group((GLOBAL const act_group *)x + (size_t)column * (size_t)n_groups + g,
                           group);
                UNROLL
                for (int r = 0; r < ROWS; r++) sum[c][r] = add_group<Type>(w[r], group, sum[c][r]);
            }
        }
    }
};

/* ---- float weights ---------------------------------------------------------------- */

enum { FLOATS = 8 }; /* that a lane reads at once */

struct row_f32 {
    enum { bytes = 4 };

    DEVICE void read(GLOBAL const uchar *at, LOCAL float w[FLOATS]) {
        uint words[8];
        load_by_16(at, words);
        UNROLL
        for (int i = 0; i < 8; i++) w[i] = bits_to_float(words[i]);
    }
};

struct row_f16 {
    enum { bytes = 2 };

    DEVICE void read(GLOBAL const uchar *at, LOCAL float w[FLOATS]) {
        uint words[4];
        load_16(at, words);
        UNROLL
        for (int i = 0; i < 4; i++) {
            w[2 * i] = low_half(words[i]);
            w[2 * i + 1] = high_half(words[i]);
        }
    }
};

struct row_bf16 {
    enum { bytes = 2 };

    DEVICE void read(GLOBAL const uchar *at, LOCAL float w[FLOATS]) {
        uint words[4];
        load_16(at, words);
        UNROLL
        for (int i = 0; i < 4; i++) {
            w[2 * i] = bits_to_float(words[i] << 16);
            w[2 * i + 1] = bits_to_float(words[i] & 0xffff0000u);
        }
    }
};

/* Rows of a float type with N columns of float. */
template <typename Type, int N> struct float_product {
    enum { columns = N };

    DEVICE size_t row_bytes(int n_in) { return (size_t)n_in * Type::bytes; }
    DEVICE size_t column_bytes(int n_in) { return (size_t)n_in * sizeof(float); }

    DEVICE void add(GLOBAL const uchar *first, GLOBAL const uchar *second, GLOBAL const void *x,
                    int n_in, int n_columns, int lane, LOCAL float sum[N][ROWS]) {
        for (int k = lane * FLOATS; k < n_in; k += 32 * FLOATS) {
            float w[ROWS][FLOATS];
            Type::read(first + (size_t)k * Type::bytes, w[0]);
            Type::read(second + (size_t)k * Type::bytes, w[1]);
            UNROLL
            for (int c = 0; c < N; c++) {
                int column = c < n_columns ? c : n_columns - 1;
                float of[FLOATS];
                row_f32::read((GLOBAL const uchar *)((GLOBAL const float *)x +
                                                     (size_t)column * (size_t)n_in + k), of);
                UNROLL
                for (int r = 0; r < ROWS; r++)
                    UNROLL
                    for (int i = 0; i < FLOATS; i++) sum[c][r] = fma(w[r][i], of[i], sum[c][r]);
            }
        }
    }
};

/* ---- the kernels -------------------------------------------------------------------- */

DEVICE float silu(float x) { return x / (1.0f + exp(-x)); }

template <typename Product>
DEVICE void matvec(CONSTANT matvec_args &a, place at, SHARED char *shared) {
    GLOBAL const uchar *w = a.w, *up = a.up;
    GLOBAL float *y = a.y;
    int n_out = a.n_out;
    if (at.z) {
        w = a.more[at.z - 1].w;
        y = a.more[at.z - 1].y;
        n_out = a.more[at.z - 1].n_out;
    }
    int first_column = at.y * Product::columns, n_columns = a.n_columns - first_column;
    n_columns = n_columns < Product::columns ? n_columns : Product::columns;
    int first_x = first_column;
    if (a.entry_w) {
        w = a.entry_w[at.y];
        if (a.entry_up) up = a.entry_up[at.y];
        if (!w) return; /* the whole block */
        n_columns = 1;
        first_x = at.y / a.entries_per_x;
    }
    GLOBAL const uchar *x =
        (GLOBAL const uchar *)a.x + (size_t)first_x * Product::column_bytes(a.n_in);
    size_t bytes = Product::row_bytes(a.n_in);
    y = y ? y + (size_t)first_column * (size_t)n_out : y;
    SHARED float *hidden = (SHARED float *)shared; /* [columns][32], for act */
    int end = (at.x + 1) * a.n_pairs, n_pairs = up ? n_out : (n_out + 1) / 2;
    end = end < n_pairs ? end : n_pairs;
    for (int i = at.x * a.n_pairs + at.warp; i < end; i += at.warps) {
        int row = up ? i : 2 * i;
        bool one = !up && row + 1 == n_out; /* the last row of an odd number */
        GLOBAL const uchar *first = w + (size_t)row * bytes;
        GLOBAL const uchar *second = up ? up + (size_t)row * bytes : one ? first : first + bytes;
        float sum[Product::columns][ROWS];
        UNROLL
        for (int c = 0; c < Product::columns; c++) sum[c][0] = sum[c][1] = 0;
        Product::add(first, second, x, a.n_in, n_columns, at.lane, sum);
        float own[ROWS] = {0, 0}; /* the sums of column `lane` */
        UNROLL
        for (int c = 0; c < Product::columns; c++)
            UNROLL
            for (int r = 0; r < ROWS; r++) {
                float total = lane_sum(sum[c][r]);
                own[r] = at.lane == c ? total : own[r];
            }
        if (at.lane >= n_columns) continue;
        size_t to = (size_t)at.lane * (size_t)n_out + (size_t)row;
        if (up) {
            float h = silu(own[0]) * own[1];
            if (y) y[to] = h;
            if (a.act) hidden[at.lane * 32 + i % 32] = h;
        } else {
            y[to] = a.add ? y[to] + own[0] : own[0];
            if (!one) y[to + 1] = a.add ? y[to + 1] + own[1] : own[1];
        }
    }
    if (!a.act) return;
    barrier();
    for (int c = at.warp; c < n_columns; c += at.warps) {
        size_t to = (size_t)(first_column + c) * (size_t)(n_out / 32) + (size_t)at.x;
        store_group(a.act + to, hidden[c * 32 + at.lane], at.lane);
    }
}

/* matvec_TYPE_N.
 * Grid: x: a block for n_pairs pairs, of up to 512 threads, of 256 where N is 8, as many as the
 * matrix with the most rows has; y: entries (N is 1), or one for N columns; z: w and the matrices
 * of more. Shared: with act, 32 floats for each column or entry. */
#define MATVEC_KERNELS(type, Product, Type)                                                    \
    KERNEL(matvec_##type##_1, matvec_args) { matvec<Product<Type, 1>>(a, at, shared); }        \
    KERNEL(matvec_##type##_2, matvec_args) { matvec<Product<Type, 2>>(a, at, shared); }        \
    KERNEL(matvec_##type##_4, matvec_args) { matvec<Product<Type, 4>>(a, at, shared); }        \
    KERNEL(matvec_##type##_8, matvec_args) { matvec<Product<Type, 8>>(a, at, shared); }

MATVEC_KERNELS(f32, float_product, row_f32)
MATVEC_KERNELS(f16, float_product, row_f16)
MATVEC_KERNELS(bf16, float_product, row_bf16)
MATVEC_KERNELS(q8_0, quantized_product, q8_0)
MATVEC_KERNELS(q4_0, quantized_product, q4_0)
MATVEC_KERNELS(q4_1, quantized_product, q4_1)
MATVEC_KERNELS(q5_0, quantized_product, q5_0)
MATVEC_KERNELS(q5_1, quantized_product, q5_1)
MATVEC_KERNELS(iq4_nl, quantized_product, iq4_nl)
MATVEC_KERNELS(q2_k, quantized_product, q2_k)
MATVEC_KERNELS(q3_k, quantized_product, q3_k)
MATVEC_KERNELS(q4_k, quantized_product, q4_k)
MATVEC_KERNELS(q5_k, quantized_product, q5_k)
MATVEC_KERNELS(q6_k, quantized_product, q6_k)
MATVEC_KERNELS(iq4_xs, quantized_product, iq4_xs)

/* In the order of the experts, as the CPU adds them.
 * Grid: x: blocks of any size for n; y: tokens. */
KERNEL(add_experts, add_experts_args) {
    int i = at.x * at.threads + at.tid, last = -1;
    if (i >= a.n) return;
    GLOBAL const int *experts = a.experts + at.y * a.n_used;
    float y = a.y[(size_t)at.y * (size_t)a.n + (size_t)i];
    for (int added = 0; added < a.n_used; added++) {
        int slot = -1;
        for (int s = 0; s < a.n_used; s++)
            if (experts[s] > last && (slot < 0 || experts[s] < experts[slot])) slot = s;
        if (slot < 0) break;
        last = experts[slot];
        size_t entry = (size_t)at.y * (size_t)a.n_used + (size_t)slot;
        size_t row = a.position ? (size_t)a.position[entry] : entry;
        y += a.weights[entry] * a.x[row * (size_t)a.n + (size_t)i];
    }
    a.y[(size_t)at.y * (size_t)a.n + (size_t)i] = y;
}

#endif
