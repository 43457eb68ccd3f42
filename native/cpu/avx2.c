/* avx2.c - the backend for x86-64 with AVX2, FMA and F16C.
 *
 * vpmaddubsw multiplies unsigned by signed bytes and adds pairs of products to an int16. Quants
 * without a sign stay as they are stored: sums of several pairs fit an int16 as long as the
 * quants of a lane, the greatest each time, add up to no more than 258 (258 * 127 < 2^15). The
 * offset is made good by what a sum starts from. Quants with a sign lend it to the activations,
 * and each pair is widened at once.
 *
 * Sums start from the bits of the float M = 1.5 * 2^23, as in avx512.c.
 */
#include "ymm.h"

static int available(void) { return has_avx2(); }

/* ---- panels, see panel.h ------------------------------------------------------------- */

enum { SIGNED = 128 };

typedef struct {
    int run;
    bool min;
    int top;    /* the greatest quant as it is multiplied, or SIGNED */
    int offset; /* a power of two that these quants contain, or 0 */
} shape;

ALWAYS_INLINE vu center(vu v, int offset) {
    (void)offset;
    return v;
}

/* M - offset * the sum of x: the act unit has M - 128 * that, and 2^22 divides the bits of M. */
ALWAYS_INLINE vu start(const shape t, const act_unit *x, int j) {
    if (t.offset == 0) return (vu)_mm256_set1_epi32(ACT_START);
    uint32_t part = 128 / (uint32_t)t.offset;
    vu bits = (vu)every_lane(t.run == 32 ? &x->start32[j] : &x->start16[j]);
    return bits / part + (ACT_START - ACT_START / part);
}

ALWAYS_INLINE __m256i pairs(const shape t, __m256i q, __m256i x) {
    return t.top == SIGNED ? _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(x, q))
                           : _mm256_maddubs_epi16(q, x);
}

/* How many of n quads may be added up in an int16. */
ALWAYS_INLINE int summable(const shape t, int n) { return 129 / t.top < n ? 129 / t.top : n; }

ALWAYS_INLINE vu add_pairs(vu dot, __m256i pairs) {
    return dot + (vu)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

ALWAYS_INLINE vu add_dot(const shape t, vu dot, const vu q[4], const int8_t *x) {
    int step = summable(t, 4);
    for (int k = 0; k < 4; k += step) {
        __m256i sum = pairs(t, (__m256i)q[k], every_lane(x + 4 * k));
        for (int i = k + 1; i < k + step; i++)
            sum = _mm256_add_epi16(sum, pairs(t, (__m256i)q[i], every_lane(x + 4 * i)));
        dot = add_pairs(dot, sum);
    }
    return dot;
}

#include "panel.h"

/* ---- tiles, see tile.h ------------------------------------------------------------- */

enum { MAX_R = 2, MAX_C = 4 };
#define FOR_COLUMNS(F, shape, R) F(shape, R, 1) F(shape, R, 2) F(shape, R, 3) F(shape, R, 4)

/* dot[r][c] = M + the sum of q x over run j, as the bits of a float. */
ALWAYS_INLINE void dots(const shape t, const panel *p, const int R, const act_unit *const *x,
                        const int C, int j, vu (*dot)[MAX_C]) {
    const int n = t.run / 4, step = summable(t, n);
    __m256i sum[MAX_R][MAX_C];
    _Pragma("GCC unroll 8") for (int k = 0; k < n; k++)
        _Pragma("GCC unroll 8") for (int c = 0; c < C; c++) {
            __m256i four = every_lane(x[c]->q + t.run * j + 4 * k);
            _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) {
                __m256i more = pairs(t, (__m256i)p[r].q[n * j + k], four);
                sum[r][c] = k % step ? _mm256_add_epi16(sum[r][c], more) : more;
                if (k < step) dot[r][c] = start(t, x[c], j);
                if (k % step == step - 1) dot[r][c] = add_pairs(dot[r][c], sum[r][c]);
            }
        }
}

ALWAYS_INLINE vf scaled(vu dot, vf scale) {
    return vf_fma((vf)dot, scale, vf_mul(scale, vf_set1(-0x1.8p23f)));
}

#include "tile.h"

static const shape q_signed = {32, false, SIGNED, 0};
static const shape q4_offset = {32, false, 15, 8}, q5_offset = {32, false, 31, 16};
static const shape q4_min = {32, true, 15, 0}, q5_min = {32, true, 31, 0};
static const shape q2_min = {16, true, 3, 0};
static const shape q3_offset = {16, false, 7, 4}, q6_offset = {16, false, 63, 32};
TILES(q_signed)
TILES(q4_offset)
TILES(q5_offset)
TILES(q4_min)
TILES(q5_min)
TILES(q2_min)
TILES(q3_offset)
TILES(q6_offset)
KERNEL(q8_0, q_signed)
KERNEL(q4_0, q4_offset)
KERNEL(q4_1, q4_min)
KERNEL(q5_0, q5_offset)
KERNEL(q5_1, q5_min)
KERNEL(iq4_nl, q_signed)
KERNEL(q2_K, q2_min)
KERNEL(q3_K, q3_offset)
KERNEL(q4_K, q4_min)
KERNEL(q5_K, q5_min)
KERNEL(q6_K, q6_offset)
KERNEL(iq4_xs, q_signed)

static void matmul(const matmul_args *a, int row0, int row1) {
    static const panel_kernel *const kernels[TYPE_COUNT] = {
        [TYPE_Q8_0] = &q8_0_kernel, [TYPE_Q4_0] = &q4_0_kernel, [TYPE_Q4_1] = &q4_1_kernel,
        [TYPE_Q5_0] = &q5_0_kernel, [TYPE_Q5_1] = &q5_1_kernel, [TYPE_IQ4_NL] = &iq4_nl_kernel,
        [TYPE_Q2_K] = &q2_K_kernel, [TYPE_Q3_K] = &q3_K_kernel, [TYPE_Q4_K] = &q4_K_kernel,
        [TYPE_Q5_K] = &q5_K_kernel, [TYPE_Q6_K] = &q6_K_kernel, [TYPE_IQ4_XS] = &iq4_xs_kernel,
    };
    if (type_takes_float(a->type))
        matmul_float(a, row0, row1);
    else
        panel_product(a, *kernels[a->type], row0, row1);
}

/* The least that products of small quants take: sums of pairs, added as int16. */
ALWAYS_INLINE void int8_step(__m256i *sum, const __m256i *w) {
    *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(*w, *w));
}
DEFINE_PEAK(peak_int8, __m256i, _mm256_set1_epi8(3), int8_step, 32)

const backend backend_avx2 = {
    .name = "avx2",
    .available = available,
    .matmul = matmul,
    .quantize = quantize,
    .rmsnorm = rmsnorm,
    .rope = rope,
    .swiglu = swiglu,
    .axpy = axpy,
    .attend = attend,
    .merge = merge,
    .to_f16 = to_f16,
    .peak = peak,
};
