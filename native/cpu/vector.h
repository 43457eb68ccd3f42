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

#include "unpack.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

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

/* ---- products of float weights ---------------------------------------------------- */

/* R rows x C columns. Every dot product is one chain of vector fma, one sum over lanes,
 * then the rest: the same whatever R and C are. */
ALWAYS_INLINE void float_tile(const matmul_args *a, loader w_of, int r, const int R, int c,
                              const int C) {
    int n = a->n_in, whole = n - n % LANES;
    vf sum[4][2], wv[4];
    for (int i = 0; i < R; i++)
        for (int j = 0; j < C; j++) sum[i][j] = vf_zero();
    for (int k = 0; k < whole; k += LANES) {
        for (int i = 0; i < R; i++) wv[i] = w_of.vector(row_w(a, r + i), k);
        for (int j = 0; j < C; j++) {
            vf xv = f32_vector(column_x(a, c + j), k);
            for (int i = 0; i < R; i++) sum[i][j] = vf_fma(wv[i], xv, sum[i][j]);
        }
    }
    for (int i = 0; i < R; i++)
        for (int j = 0; j < C; j++) {
            float dot = vf_sum(sum[i][j]);
            for (int k = whole; k < n; k++)
                dot = fmaf(w_of.item(row_w(a, r + i), k), f32_item(column_x(a, c + j), k), dot);
            column_y(a, c + j)[r + i] = dot;
        }
}

ALWAYS_INLINE void float_rows(const matmul_args *a, loader w_of, int row0, int row1) {
    int r = row0, c;
    for (; r + 4 <= row1; r += 4) {
        for (c = 0; c + 2 <= a->n_cols; c += 2) float_tile(a, w_of, r, 4, c, 2);
        if (c < a->n_cols) float_tile(a, w_of, r, 4, c, 1);
    }
    for (; r < row1; r++)
        for (c = 0; c < a->n_cols; c++) float_tile(a, w_of, r, 1, c, 1);
}

static void matmul_float(const matmul_args *a, int row0, int row1) {
    if (a->type == TYPE_F32)
        float_rows(a, read_f32, row0, row1);
    else if (a->type == TYPE_F16)
        float_rows(a, read_f16, row0, row1);
    else
        float_rows(a, read_bf16, row0, row1);
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
    vf squares = vf_zero();
    for (i = 0; i < whole; i += LANES) squares = vf_fma(vf_load(x + i), vf_load(x + i), squares);
    float sum = vf_sum(squares);
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
