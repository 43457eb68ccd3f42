/* vector.h - the float operations of a backend, written once over its float vector.
 *
 * The file that includes this defines vf, LANES and, as inline functions: vf_zero,
 * vf_set1, vf_load, vf_store, vf_load_f16, vf_load_bf16, vf_load_i8, vf_store_f16
 * (unaligned addresses), vf_add, vf_sub, vf_mul, vf_div, vf_max, vf_min (a NaN in the second
 * operand wins), vf_fma(a, b, c) = a * b + c, vf_round (to nearest even), vf_pow2 (of
 * a whole number in [-126, 127]), vf_sum and vf_top (of all lanes).
 *
 * What is left of n after whole vectors goes through scalar fmaf, so that an element's
 * result does not depend on where it lies.
 */
#ifndef QWEN3_VECTOR_H
#define QWEN3_VECTOR_H

#include <math.h>

#include "product.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Before a loop whose count is a small constant: its arrays of vectors become registers. */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* ---- loading -------------------------------------------------------------------- */

/* How one float type is read: a vector at item i, and a single item. */
typedef struct {
    vf (*vector)(const void *p, int i);
    float (*item)(const void *p, int i);
} loader;

ALWAYS_INLINE vf f32_vector(const void *p, int i) {
    return vf_load((const char *)p + (size_t)i * sizeof(float));
}

ALWAYS_INLINE float f32_item(const void *p, int i) {
    float f;
    memcpy(&f, (const char *)p + (size_t)i * sizeof f, sizeof f);
    return f;
}

ALWAYS_INLINE vf f16_vector(const void *p, int i) {
    return vf_load_f16((const char *)p + (size_t)i * sizeof(f16_t));
}

ALWAYS_INLINE float f16_item(const void *p, int i) {
    f16_t h;
    memcpy(&h, (const char *)p + (size_t)i * sizeof h, sizeof h);
    return half(h);
}

ALWAYS_INLINE vf bf16_vector(const void *p, int i) {
    return vf_load_bf16((const char *)p + (size_t)i * sizeof(uint16_t));
}

ALWAYS_INLINE float bf16_item(const void *p, int i) {
    uint16_t h;
    memcpy(&h, (const char *)p + (size_t)i * sizeof h, sizeof h);
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static const loader read_f32 = {f32_vector, f32_item};
static const loader read_f16 = {f16_vector, f16_item};
static const loader read_bf16 = {bf16_vector, bf16_item};

/* ---- products of float weights ----------------------------------------------------
 * Every dot product is one chain of vector fma, one sum over lanes, then the rest: the same
 * for one column or many, however they are tiled. */

enum {
    FLOAT_R = LANES == 8 ? 4 : 8, /* rows and columns of a tile: AVX2 has 16 registers, the */
    FLOAT_C = LANES == 8 ? 2 : 3, /* others 32; rows are reused from nearer than columns */
    FLOAT_COLS = 48,              /* columns that share converted rows */
    FLOAT_K = 512,                /* of which this much at a time is in the first-level cache */
};

/* sum[j][i] += the products of R rows and C columns, items [k, end) in whole vectors. Item k
 * of row i is item k - k0 at w + i * w_stride. */
ALWAYS_INLINE void float_tile(const matmul_args *a, loader w_of, const void *w, size_t w_stride,
                              int k0, const int R, int c, const int C, int k, int end,
                              vf (*sum)[FLOAT_R]) {
    vf part[FLOAT_C][FLOAT_R], wv[FLOAT_R];
    const float *x[FLOAT_C];
    for (int j = 0; j < C; j++) {
        x[j] = column_x(a, c + j);
        for (int i = 0; i < R; i++) part[j][i] = sum[j][i];
    }
    for (; k < end; k += LANES) {
        for (int i = 0; i < R; i++)
            wv[i] = w_of.vector((const char *)w + (size_t)i * w_stride, k - k0);
        _Pragma("GCC unroll 8") for (int j = 0; j < C; j++) {
            vf xv = vf_load(x[j] + k);
            for (int i = 0; i < R; i++) part[j][i] = vf_fma(wv[i], xv, part[j][i]);
        }
    }
    for (int j = 0; j < C; j++)
        for (int i = 0; i < R; i++) sum[j][i] = part[j][i];
}


/* R rows from r on, n_cols <= FLOAT_COLS columns from c on. */
ALWAYS_INLINE void float_block(const matmul_args *a, loader w_of, int r, const int R, int c,
                               int n_cols) {
    int n = a->n_in, whole = n - n % LANES;
    const uint8_t *w = row_w(a, r);
    vf sum[FLOAT_COLS][FLOAT_R];
    for (int j = 0; j < n_cols; j++)
        for (int i = 0; i < R; i++) sum[j][i] = vf_zero();
    if (n_cols < FLOAT_C) {
        for (int j = 0; j < n_cols; j++)
            float_tile(a, w_of, w, a->row_bytes, 0, R, c + j, 1, 0, whole, sum + j);
    } else {
        for (int k = 0; k < whole; k += FLOAT_K) {
            float f32[FLOAT_R][FLOAT_K];
            int end = whole - k < FLOAT_K ? whole : k + FLOAT_K, j = 0;
            for (int i = 0; i < R; i++)
                for (int m = k; m < end; m += LANES)
                    vf_store(f32[i] + m - k, w_of.vector(w + (size_t)i * a->row_bytes, m));
            for (; j + FLOAT_C <= n_cols; j += FLOAT_C)
                float_tile(a, read_f32, f32, sizeof f32[0], k, R, c + j, FLOAT_C, k, end, sum + j);
            for (; j < n_cols; j++)
                float_tile(a, read_f32, f32, sizeof f32[0], k, R, c + j, 1, k, end, sum + j);
        }
    }
    for (int j = 0; j < n_cols; j++)
        for (int i = 0; i < R; i++) {
            float dot = vf_sum(sum[j][i]);
            for (int k = whole; k < n; k++)
                dot = fmaf(w_of.item(w + (size_t)i * a->row_bytes, k),
                           f32_item(column_x(a, c + j), k), dot);
            column_y(a, c + j)[r + i] = dot;
        }
}

ALWAYS_INLINE void float_rows(const matmul_args *a, loader w_of, int row0, int row1) {
    for (int c = 0; c < a->n_cols; c += FLOAT_COLS) {
        int n_cols = a->n_cols - c < FLOAT_COLS ? a->n_cols - c : FLOAT_COLS, r = row0;
        for (; r + FLOAT_R <= row1; r += FLOAT_R) float_block(a, w_of, r, FLOAT_R, c, n_cols);
        for (; r < row1; r++) float_block(a, w_of, r, 1, c, n_cols);
    }
}

static void matmul_float(const matmul_args *a, int row0, int row1) {
    if (a->type == TYPE_F32)
        float_rows(a, read_f32, row0, row1);
    else if (a->type == TYPE_F16)
        float_rows(a, read_f16, row0, row1);
    else
        float_rows(a, read_bf16, row0, row1);
}

/* ---- the peak, see backend.h --------------------------------------------------------- */

/* Keeps a vector in a register and hides its value from the compiler. */
#if defined(__AVX512F__)
#define OPAQUE(v) __asm__ volatile("" : "+v"(v))
#elif defined(__x86_64__)
#define OPAQUE(v) __asm__ volatile("" : "+x"(v))
#else
#define OPAQUE(v) __asm__ volatile("" : "+w"(v))
#endif
#define PEAK_STEP(step, sum) OPAQUE(w); step(&sum, &w); OPAQUE(sum);

/* Defines name(n): n rounds of step(vector *sum, vector *w), which does some products, on
 * twelve independent sums. They hide the latency and fit 16 registers; as an array the
 * compiler would keep them in memory. */
#define DEFINE_PEAK(name, vector, start, step, products)                                       \
    static int64_t name(int64_t n) {                                                           \
        vector w = start, a = w, b = w, c = w, d = w, e = w, f = w, g = w, h = w, i = w,       \
               j = w, k = w, l = w;                                                            \
        for (int64_t round = 0; round < n; round++) {                                          \
            PEAK_STEP(step, a) PEAK_STEP(step, b) PEAK_STEP(step, c) PEAK_STEP(step, d)        \
            PEAK_STEP(step, e) PEAK_STEP(step, f) PEAK_STEP(step, g) PEAK_STEP(step, h)        \
            PEAK_STEP(step, i) PEAK_STEP(step, j) PEAK_STEP(step, k) PEAK_STEP(step, l)        \
        }                                                                                      \
        return n * 12 * products;                                                              \
    }

ALWAYS_INLINE void f32_step(vf *sum, const vf *w) {
    *sum = vf_fma(*w, *w, *sum);
}
DEFINE_PEAK(peak_f32, vf, vf_set1(0.5f), f32_step, LANES)

static int64_t peak_int8(int64_t n); /* the including file defines it */

static int64_t peak(peak_kind kind, int64_t n) {
    return kind == PEAK_INT8 ? peak_int8(n) : peak_f32(n);
}

/* ---- element by element -------------------------------------------------------------- */

/* e^x for x in [-87.3, 88.3], clamped to it; within 2 ulp. The argument is reduced by
 * Cody and Waite's split of ln 2; the polynomial is that of expf in Moshier's Cephes. */
ALWAYS_INLINE vf vf_exp(vf x) {
    x = vf_max(vf_set1(-87.3f), vf_min(vf_set1(88.3f), x));
    vf n = vf_round(vf_mul(x, vf_set1(1.44269504f)));
    vf r = vf_fma(n, vf_set1(-0.693359375f), x);
    r = vf_fma(n, vf_set1(2.12194440e-4f), r);
    vf p = vf_set1(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set1(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set1(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set1(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set1(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set1(5.0000001201e-1f));
    p = vf_fma(p, vf_mul(r, r), vf_add(r, vf_set1(1)));
    return vf_mul(p, vf_pow2(n));
}

static void rmsnorm(float *y, const float *x, const float *w, int n, float eps) {
    int i, whole = n - n % LANES;
    vf squares[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()}; /* else each waits for the last */
    for (i = 0; i + 4 * LANES <= whole; i += 4 * LANES)
        UNROLL for (int k = 0; k < 4; k++) {
            vf v = vf_load(x + i + k * LANES);
            squares[k] = vf_fma(v, v, squares[k]);
        }
    for (; i < whole; i += LANES) squares[0] = vf_fma(vf_load(x + i), vf_load(x + i), squares[0]);
    float sum = vf_sum(vf_add(vf_add(squares[0], squares[1]), vf_add(squares[2], squares[3])));
    for (; i < n; i++) sum = fmaf(x[i], x[i], sum);
    float scale = 1 / sqrtf(sum / (float)n + eps);
    for (i = 0; i < whole; i += LANES)
        vf_store(y + i, vf_mul(vf_mul(vf_load(x + i), vf_set1(scale)), vf_load(w + i)));
    for (; i < n; i++) y[i] = x[i] * scale * w[i];
}

static void rope(float *x, const float *cos, const float *sin, int n) {
    float *high = x + n / 2;
    int i, whole = n / 2 - n / 2 % LANES;
    for (i = 0; i < whole; i += LANES) {
        vf a = vf_load(x + i), b = vf_load(high + i), c = vf_load(cos + i), s = vf_load(sin + i);
        vf_store(x + i, vf_sub(vf_mul(a, c), vf_mul(b, s)));
        vf_store(high + i, vf_add(vf_mul(a, s), vf_mul(b, c)));
    }
    for (; i < n / 2; i++) {
        float a = x[i], b = high[i];
        x[i] = a * cos[i] - b * sin[i];
        high[i] = a * sin[i] + b * cos[i];
    }
}

ALWAYS_INLINE vf vf_swiglu(vf gate, vf up) {
    vf e = vf_exp(vf_sub(vf_zero(), gate));
    return vf_mul(vf_div(gate, vf_add(vf_set1(1), e)), up);
}

static void swiglu(float *gate, const float *up, int n) {
    int i, whole = n - n % LANES;
    for (i = 0; i < whole; i += LANES)
        vf_store(gate + i, vf_swiglu(vf_load(gate + i), vf_load(up + i)));
    if (i == n) return;
    float rest[2][LANES] = {{0}}; /* in whole vectors too: expf would round otherwise */
    memcpy(rest[0], gate + i, (size_t)(n - i) * sizeof(float));
    memcpy(rest[1], up + i, (size_t)(n - i) * sizeof(float));
    vf_store(rest[0], vf_swiglu(vf_load(rest[0]), vf_load(rest[1])));
    memcpy(gate + i, rest[0], (size_t)(n - i) * sizeof(float));
}

static void axpy(float *y, float a, const float *x, int n) {
    int i, whole = n - n % LANES;
    for (i = 0; i < whole; i += LANES)
        vf_store(y + i, vf_fma(vf_set1(a), vf_load(x + i), vf_load(y + i)));
    for (; i < n; i++) y[i] = fmaf(a, x[i], y[i]);
}

static void to_f16(const float *x, f16_t *y, int n) {
    int i, whole = n - n % LANES;
    for (i = 0; i < whole; i += LANES) vf_store_f16(y + i, vf_load(x + i));
    for (; i < n; i++) y[i] = f32_to_f16(x[i]);
}

#endif
