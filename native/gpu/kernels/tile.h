/* tile.h - the matrix unit: 16 rows times 8 columns, over eight words of each.
 *
 * A word holds four int8 or two f16. Rows and columns lie in shared memory alike, TILE_STRIDE
 * words apart, and a lane has four of the products:
 *
 *   v[0], v[1]   row tile_row(lane), columns tile_column(lane) and the next
 *   v[2], v[3]   eight rows below
 *
 * Words of rows and columns are multiplied in pairs, so that any order of the values in them will
 * do that is the same in both.
 */
#ifndef QWEN3_GPU_TILE_H
#define QWEN3_GPU_TILE_H

#include "../dialect.h"

/* TILE_STRIDE: the eight rows that are read at a time begin four banks apart. */
enum { TILE_ROWS = 16, TILE_COLUMNS = 8, TILE_WORDS = 8, TILE_STRIDE = 20 };

typedef float tile_sums[4]; /* the products of a lane */

/* What a lane holds of the operands: v[i] is of row tile_row(lane) + i % 2 * 8 and of the part
 * i / 2 of its words; v[i] of a column is of the part i. */
struct tile_rows {
    int v[4];
};
struct tile_columns {
    int v[2];
};

/* tile_load_rows and tile_load_columns read what lies as above; tile_load_across reads columns of
 * f16 from 16 rows of values, `stride` words apart, of which each word belongs to two columns. */

/* The dots of int8 come as TILE_START + dot, which to_scaled takes off again. */
#if defined(__METAL_VERSION__)
#define TILE_START 0.0f
#else
#define TILE_START 12582912.0f /* 1.5 * 2^23: an int added to its bits is added to the float */
#endif

/* dot * scale, rounded once: start is -TILE_START * scale, and exact where the scale has at most
 * 22 bits, as f16 times a few bits has. */
DEVICE float to_scaled(float v, float scale, float start) { return fma(v, scale, start); }

#if defined(__METAL_VERSION__)

/* Elements of an 8 x 8 matrix lie in lanes by their quadrants. */
DEVICE int tile_row(int lane) { return lane / 16 * 4 + lane / 2 % 4; }
DEVICE int tile_column(int lane) { return lane / 8 % 2 * 4 + lane % 2 * 2; }
enum { TILE_BESIDE = 8 }; /* with 1 the bits in which lanes of the same rows differ */

#else

DEVICE int tile_row(int lane) { return lane / 4; }
DEVICE int tile_column(int lane) { return lane % 4 * 2; }
enum { TILE_BESIDE = 2 };

#endif

/* Of the lanes that have the same rows. */
DEVICE float tile_row_sum(float x CALLER) {
    x += lane_xor(x, 1 FOR_CALLER);
    return x + lane_xor(x, TILE_BESIDE FOR_CALLER);
}

DEVICE float tile_row_max(float x CALLER) {
    float other = lane_xor(x, 1 FOR_CALLER);
    x = other > x ? other : x;
    other = lane_xor(x, TILE_BESIDE FOR_CALLER);
    return other > x ? other : x;
}

/* ---- operands ------------------------------------------------------------------------- */

/* Rows of 16 values as the sum of two f16. */
struct tile_split {
    tile_rows high, low;
};

/* Of the products of two tiles, one behind the other, that a lane holds. */
DEVICE tile_split split_rows(LOCAL const tile_sums &first, LOCAL const tile_sums &second) {
    tile_split w;
    UNROLL
    for (int i = 0; i < 4; i++) {
        float x = i < 2 ? first[2 * i] : second[2 * i - 4];
        float y = i < 2 ? first[2 * i + 1] : second[2 * i - 3];
        uint high = f16_word(x, y);
        w.high.v[i] = (int)high;
        w.low.v[i] = (int)f16_word(x - low_half(high), y - high_half(high));
    }
    return w;
}

#if defined(__CUDACC__)

DEVICE tile_rows tile_load_rows(SHARED const int *rows, int lane) {
    tile_rows w;
    uint from = (uint)__cvta_generic_to_shared(rows + lane % 16 * TILE_STRIDE + lane / 16 * 4);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.v[0]), "=r"(w.v[1]), "=r"(w.v[2]), "=r"(w.v[3])
                 : "r"(from)
                 : "memory");
    return w;
}

DEVICE tile_columns tile_load_columns(SHARED const int *columns, int lane, bool) {
    tile_columns x;
    uint from = (uint)__cvta_generic_to_shared(columns + lane % 8 * TILE_STRIDE + lane / 8 % 2 * 4);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(x.v[0]), "=r"(x.v[1])
                 : "r"(from)
                 : "memory");
    return x;
}

DEVICE tile_columns tile_load_across(SHARED const int *values, int stride, int lane) {
    tile_columns x;
    uint from = (uint)__cvta_generic_to_shared(values + lane % 16 * stride);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(x.v[0]), "=r"(x.v[1])
                 : "r"(from)
                 : "memory");
    return x;
}

#else

DEVICE tile_rows tile_load_rows(SHARED const int *rows, int lane) {
    tile_rows w;
    SHARED const int *from = rows + tile_row(lane) * TILE_STRIDE + tile_column(lane) / 2;
    for (int i = 0; i < 4; i++) w.v[i] = from[i % 2 * 8 * TILE_STRIDE + i / 2 * 4];
    return w;
}

#if defined(__METAL_VERSION__)

/* Columns are a matrix of values by columns, of which a lane holds one row of two columns: of
 * the words of both, the value that is tile_row in the order of tile_load_rows. */
DEVICE tile_columns tile_load_columns(SHARED const int *columns, int lane, bool int8) {
    tile_columns x;
    int row = tile_row(lane), odd = row % 2;
    SHARED const int *from = columns + tile_column(lane) * TILE_STRIDE + row / 2;
    for (int i = 0; i < 2; i++) {
        int a = from[i * 4], b = from[i * 4 + TILE_STRIDE];
        if (int8) {
            char4 p = as_type<char4>(a), q = as_type<char4>(b);
            x.v[i] = as_type<int>(odd ? char4(p.y, q.y, p.w, q.w) : char4(p.x, q.x, p.z, q.z));
        } else {
            ushort2 p = as_type<ushort2>(a), q = as_type<ushort2>(b);
            x.v[i] = as_type<int>(odd ? ushort2(p.y, q.y) : ushort2(p.x, q.x));
        }
    }
    return x;
}

DEVICE tile_columns tile_load_across(SHARED const int *values, int stride, int lane) {
    tile_columns x;
    SHARED const int *from = values + tile_row(lane) * stride + tile_column(lane) / 2;
    for (int i = 0; i < 2; i++) x.v[i] = from[i * 8 * stride];
    return x;
}

#else

DEVICE tile_columns tile_load_columns(SHARED const int *columns, int lane, bool) {
    tile_columns x;
    SHARED const int *from = columns + lane / 4 * TILE_STRIDE + lane % 4;
    for (int i = 0; i < 2; i++) x.v[i] = from[i * 4];
    return x;
}

DEVICE tile_columns tile_load_across(SHARED const int *values, int stride, int lane) {
    tile_columns x;
    for (int i = 0; i < 2; i++) {
        SHARED const int *from = values + (8 * i + lane % 4 * 2) * stride + lane / 8;
        uint low = (uint)from[0], high = (uint)from[stride];
        bool odd = lane / 4 % 2;
        x.v[i] = (int)(odd ? low >> 16 | (high & 0xffff0000u) : (low & 0xffffu) | high << 16);
    }
    return x;
}

#endif
#endif

/* ---- products ------------------------------------------------------------------------- */

#if defined(__CUDACC__)

/* v = TILE_START + the dots of part of the words, 16 int8. */
DEVICE void tile_int8(LOCAL float (&v)[4], tile_rows w, tile_columns x, int part) {
    int c[4], start = __float_as_int(TILE_START);
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 "
                 "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};"
                 : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
                 : "r"(w.v[2 * part]), "r"(w.v[2 * part + 1]), "r"(x.v[part]), "r"(start));
#else
    UNROLL
    for (int i = 0; i < 2; i++)
        asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 "
                     "{%0, %1}, {%2}, {%3}, {%4, %4};"
                     : "=r"(c[2 * i]), "=r"(c[2 * i + 1])
                     : "r"(w.v[2 * part + i]), "r"(x.v[part]), "r"(start));
#endif
    for (int i = 0; i < 4; i++) v[i] = __int_as_float(c[i]);
}

/* The same of all words, 32 int8. */
DEVICE void tile_int8(LOCAL float (&v)[4], tile_rows w, tile_columns x) {
    int c[4], start = __float_as_int(TILE_START);
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
                 : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
                 : "r"(w.v[0]), "r"(w.v[1]), "r"(w.v[2]), "r"(w.v[3]), "r"(x.v[0]), "r"(x.v[1]),
                   "r"(start));
#else
    UNROLL
    for (int i = 0; i < 2; i++)
        asm volatile("{ .reg .s32 p, q;\n"
                     "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 "
                     "{p, q}, {%2}, {%3}, {%6, %6};\n"
                     "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 "
                     "{%0, %1}, {%4}, {%5}, {p, q}; }"
                     : "=r"(c[2 * i]), "=r"(c[2 * i + 1])
                     : "r"(w.v[i]), "r"(x.v[0]), "r"(w.v[2 + i]), "r"(x.v[1]), "r"(start));
#endif
    for (int i = 0; i < 4; i++) v[i] = __int_as_float(c[i]);
}

/* v += the dots of 16 f16. */
DEVICE void tile_add_f16(LOCAL float (&v)[4], tile_rows w, tile_columns x) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(v[0]), "+f"(v[1]), "+f"(v[2]), "+f"(v[3])
                 : "r"(w.v[0]), "r"(w.v[1]), "r"(w.v[2]), "r"(w.v[3]), "r"(x.v[0]), "r"(x.v[1]));
#else
    UNROLL
    for (int part = 0; part < 2; part++)
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                     : "+f"(v[0]), "+f"(v[1]), "+f"(v[2]), "+f"(v[3])
                     : "r"(w.v[2 * part]), "r"(w.v[2 * part + 1]), "r"(x.v[part]));
#endif
}

/* v += the dots of 32 int8, where v came from TILE_START. */
DEVICE void tile_add_int8(LOCAL float (&v)[4], tile_rows w, tile_columns x) {
    int c[4];
    for (int i = 0; i < 4; i++) c[i] = __float_as_int(v[i]);
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(w.v[0]), "r"(w.v[1]), "r"(w.v[2]), "r"(w.v[3]), "r"(x.v[0]), "r"(x.v[1]));
#else
    UNROLL
    for (int i = 0; i < 4; i++)
        asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 "
                     "{%0, %1}, {%2}, {%3}, {%0, %1};"
                     : "+r"(c[i % 2 * 2]), "+r"(c[i % 2 * 2 + 1])
                     : "r"(w.v[i]), "r"(x.v[i / 2]));
#endif
    for (int i = 0; i < 4; i++) v[i] = __int_as_float(c[i]);
}

#elif defined(__METAL_VERSION__)

/* Matrices of halves, in which int8 are exact, summed in float, in which sums of 32 products
 * are. Of a word's four int8 the first two belong to one matrix, the others to the next. */
DEVICE void tile_add(LOCAL simdgroup_float8x8 (&sum)[2], half2 w0, half2 w1, half2 x) {
    simdgroup_half8x8 a, b;
    b.thread_elements()[0] = x.x;
    b.thread_elements()[1] = x.y;
    UNROLL
    for (int i = 0; i < 2; i++) {
        a.thread_elements()[0] = i ? w1.x : w0.x;
        a.thread_elements()[1] = i ? w1.y : w0.y;
        simdgroup_multiply_accumulate(sum[i], a, b, sum[i]);
    }
}

DEVICE void tile_give(LOCAL simdgroup_float8x8 (&sum)[2], LOCAL const float (&v)[4]) {
    UNROLL
    for (int i = 0; i < 4; i++) sum[i / 2].thread_elements()[i % 2] = v[i];
}

DEVICE void tile_take(LOCAL float (&v)[4], LOCAL simdgroup_float8x8 (&sum)[2]) {
    UNROLL
    for (int i = 0; i < 4; i++) v[i] = sum[i / 2].thread_elements()[i % 2];
}

DEVICE void tile_half_int8(LOCAL simdgroup_float8x8 (&sum)[2], tile_rows w, tile_columns x,
                           int half_) {
    char4 w0 = as_type<char4>(w.v[2 * half_]), w1 = as_type<char4>(w.v[2 * half_ + 1]);
    char4 c = as_type<char4>(x.v[half_]);
    tile_add(sum, half2(w0.xy), half2(w1.xy), half2(c.xy));
    tile_add(sum, half2(w0.zw), half2(w1.zw), half2(c.zw));
}

/* v = TILE_START + the dots of 32 int8. */
DEVICE void tile_int8(LOCAL float (&v)[4], tile_rows w, tile_columns x) {
    simdgroup_float8x8 sum[2] = {simdgroup_float8x8(0), simdgroup_float8x8(0)};
    tile_half_int8(sum, w, x, 0);
    tile_half_int8(sum, w, x, 1);
    tile_take(v, sum);
}

/* The same of one part: 16 int8. */
DEVICE void tile_int8(LOCAL float (&v)[4], tile_rows w, tile_columns x, int half_) {
    simdgroup_float8x8 sum[2] = {simdgroup_float8x8(0), simdgroup_float8x8(0)};
    tile_half_int8(sum, w, x, half_);
    tile_take(v, sum);
}

/* v += the dots of 32 int8, where v came from TILE_START. */
DEVICE void tile_add_int8(LOCAL float (&v)[4], tile_rows w, tile_columns x) {
    simdgroup_float8x8 sum[2];
    tile_give(sum, v);
    tile_half_int8(sum, w, x, 0);
    tile_half_int8(sum, w, x, 1);
    tile_take(v, sum);
}

/* v += the dots of 16 f16. */
DEVICE void tile_add_f16(LOCAL float (&v)[4], tile_rows w, tile_columns x) {
    simdgroup_float8x8 sum[2];
    tile_give(sum, v);
    UNROLL
    for (int i = 0; i < 2; i++)
        tile_add(sum, as_type<half2>(w.v[2 * i]), as_type<half2>(w.v[2 * i + 1]),
                 as_type<half2>(x.v[i]));
    tile_take(v, sum);
}

#else

/* v + the products of four words of w and of x, of int8 exactly. */
DEVICE float add_int8(float v, const int *w, const int *x) {
    int dot = 0;
    for (int j = 0; j < 4; j++) dot = dot4(w[j], x[j], dot);
    return v + (float)dot;
}

/* Four products at a time are added exactly and then cut off, not rounded (Fasi et al., Numerical
 * behavior of NVIDIA tensor cores, 2021): sums of many drift towards zero. */
DEVICE float add_f16(float v, const int *w, const int *x) {
    double sum = v;
    for (int j = 0; j < 4; j++) {
        uint a = (uint)w[j], b = (uint)x[j];
        sum += (double)low_half(a) * low_half(b) + (double)high_half(a) * high_half(b);
        if (j % 2 == 0) continue;
        v = (float)sum;
        if (std::fabs((double)v) > std::fabs(sum)) v = std::nextafter(v, 0.0f);
        sum = v;
    }
    return v;
}

/* v += the products of parts [first, last): what lanes hold, laid out as CUDA documents it. */
template <float add(float, const int *, const int *)>
DEVICE void tile_words(LOCAL float (&v)[4], tile_rows w, tile_columns x, int first, int last) {
    int own[6] = {w.v[0], w.v[1], w.v[2], w.v[3], x.v[0], x.v[1]};
    const int(*all)[6] = emulated::exchange6(own, __builtin_LINE());
    int lane = emulated::lane();
    for (int part = first; part < last; part++)
        for (int i = 0; i < 4; i++) {
            int row[4], column[4];
            for (int j = 0; j < 4; j++) {
                row[j] = all[lane / 4 * 4 + j][2 * part + i / 2];
                column[j] = all[(lane % 4 * 2 + i % 2) * 4 + j][4 + part];
            }
            v[i] = add(v[i], row, column);
        }
}

/* v += the dots of 32 int8, where v came from TILE_START. */
DEVICE void tile_add_int8(LOCAL float (&v)[4], tile_rows w, tile_columns x) {
    tile_words<add_int8>(v, w, x, 0, 2);
}

/* v = TILE_START + the dots of 32 int8. */
DEVICE void tile_int8(LOCAL float (&v)[4], tile_rows w, tile_columns x) {
    for (int i = 0; i < 4; i++) v[i] = TILE_START;
    tile_add_int8(v, w, x);
}

/* The same of one part: 16 int8. */
DEVICE void tile_int8(LOCAL float (&v)[4], tile_rows w, tile_columns x, int part) {
    for (int i = 0; i < 4; i++) v[i] = TILE_START;
    tile_words<add_int8>(v, w, x, part, part + 1);
}

/* v += the dots of 16 f16. */
DEVICE void tile_add_f16(LOCAL float (&v)[4], tile_rows w, tile_columns x) {
    tile_words<add_f16>(v, w, x, 0, 2);
}

#endif

#endif
