/* avx512.c - the backend for x86-64 with AVX-512 (F, BW, DQ, VL) and VNNI.
 *
 * vpdpbusd multiplies unsigned by signed bytes: panels hold q + 128, and a sum starts from
 * -128 times the sum of the activations. It also starts from the bits of the float
 * M = 1.5 * 2^23, so that it ends as the bits of M + dot (|dot| < 2^22), and
 * fma(M + dot, scale, -M * scale) rounds dot * scale once, in one instruction: M * scale is
 * exact, as a scale has at most 19 significant bits. Types with minima store small unsigned
 * quants and start from M itself.
 */
#include <immintrin.h>

/* ---- the float vector, see vector.h ------------------------------------------------ */

typedef __m512 vf;
enum { LANES = 16 };

static inline vf vf_zero(void) { return _mm512_setzero_ps(); }
static inline vf vf_set1(float f) { return _mm512_set1_ps(f); }
static inline vf vf_load(const void *p) { return _mm512_loadu_ps(p); }
static inline void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
static inline vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf vf_round(vf a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline vf vf_pow2(vf a) {
    __m512i n = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(n, 23));
}
static inline vf vf_load_f16(const void *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(p));
}
static inline vf vf_load_bf16(const void *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
static inline vf vf_load_i8(const void *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p)));
}
static inline void vf_store_f16(void *p, vf a) {
    _mm256_storeu_si256(p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline float vf_sum(vf a) { return _mm512_reduce_add_ps(a); }
static inline float vf_top(vf a) { return _mm512_reduce_max_ps(a); }

#include "vector.h"
#include "attend.h"

static int available(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

/* ---- panels, see panel.h ------------------------------------------------------------- */

typedef uint32_t vu __attribute__((vector_size(64)));
/* Lane L of a vector: 16 bytes of rows i, 4 + i, 8 + i and 12 + i. */
ALWAYS_INLINE __m512i every_fourth_row(const uint8_t *src, size_t stride) {
    __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const void *)src));
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(src + 4 * stride)), 1);
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(src + 8 * stride)), 2);
    return _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(src + 12 * stride)), 3);
}

/* The dwords of each lane: out[k] has the k-th of a, b, c and d. */
ALWAYS_INLINE void transpose(__m512i a, __m512i b, __m512i c, __m512i d, vu out[4]) {
    __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
    out[0] = (vu)_mm512_unpacklo_epi64(ab, cd);
    out[1] = (vu)_mm512_unpackhi_epi64(ab, cd);
    ab = _mm512_unpackhi_epi32(a, b), cd = _mm512_unpackhi_epi32(c, d);
    out[2] = (vu)_mm512_unpacklo_epi64(ab, cd);
    out[3] = (vu)_mm512_unpackhi_epi64(ab, cd);
}

ALWAYS_INLINE void load_quads(const uint8_t *src, size_t stride, vu out[4]) {
    /* Hidden, lest the compiler keep 16 row addresses and spill most: four addresses and the
     * multiples that the instructions themselves form do. */
    __asm__("" : "+r"(stride));
    transpose(every_fourth_row(src, stride), every_fourth_row(src + stride, stride),
              every_fourth_row(src + 2 * stride, stride),
              every_fourth_row(src + 3 * stride, stride), out);
}

ALWAYS_INLINE vu load_dwords(const uint8_t *src, size_t stride) {
    __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i at = _mm512_mullo_epi32(lane, _mm512_set1_epi32((int)stride));
    return (vu)_mm512_i32gather_epi32(at, src, 1);
}

ALWAYS_INLINE vf half_low(vu v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)v)); }

ALWAYS_INLINE vu iq4_lookup(vu v) {
    __m128i levels = _mm_loadu_si128((const void *)iq4_levels);
    return (vu)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(levels), (__m512i)v);
}

/* Bytes stay below 256, so that none carries into the next. */
ALWAYS_INLINE vu center(vu v, int offset) {
    return offset ? v + (uint32_t)(128 - offset) * 0x01010101 : v ^ 0x80808080;
}

typedef struct {
    int run;
    bool min;
} shape;

ALWAYS_INLINE vu start(const shape t, const act_unit *x, int j) {
    int32_t bits = t.min ? ACT_START : t.run == 32 ? x->start32[j] : x->start16[j];
    return (vu)_mm512_set1_epi32(bits);
}

/* M - offset * the sum of x. The act unit has M - 128 * that, and 2^22 divides the bits of M. */
ALWAYS_INLINE vu start_less(int offset, const shape t, const act_unit *x, int j) {
    if (offset == 0) return (vu)_mm512_set1_epi32(ACT_START);
    uint32_t part = 128 / (uint32_t)offset;
    vu bits = (vu)_mm512_set1_epi32(t.run == 32 ? x->start32[j] : x->start16[j]);
    return bits / part + (ACT_START - ACT_START / part);
}

ALWAYS_INLINE vu add_quad(vu dot, vu q, const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return (vu)_mm512_dpbusd_epi32((__m512i)dot, (__m512i)q, _mm512_set1_epi32(four));
}

ALWAYS_INLINE vu add_dot(const shape t, vu dot, const vu q[4], const int8_t *x) {
    (void)t;
    for (int k = 0; k < 4; k++) dot = add_quad(dot, q[k], x + 4 * k);
    return dot;
}

enum { PARTS = 1, FEW = 4 };
ALWAYS_INLINE void store_quads(const shape t, vu *to, const vu q[4]) {
    (void)t;
    memcpy(to, q, 4 * sizeof *q);
}

#include "panel.h"

/* ---- one column, see wide.h ---------------------------------------------------------- */

enum { BYTE_OFFSET = 128, HIGH = 4 };

ALWAYS_INLINE __m512i load_chunks(const uint8_t *p, int odd, int pair) {
    if (odd != 16) {
        __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const void *)p));
        v = _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(p + odd)), 1);
        v = _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(p + pair)), 2);
        return _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(p + pair + odd)), 3);
    }
    if (pair == 32) return _mm512_loadu_si512(p);
    __m256i two = _mm256_loadu_si256((const void *)p);
    if (pair == 0) return _mm512_broadcast_i64x4(two);
    return _mm512_inserti64x4(_mm512_castsi256_si512(two),
                              _mm256_loadu_si256((const void *)(p + pair)), 1);
}

ALWAYS_INLINE void repeat_dwords(__m512i v, vu out[4]) {
    out[0] = (vu)_mm512_shuffle_epi32(v, 0x00);
    out[1] = (vu)_mm512_shuffle_epi32(v, 0x55);
    out[2] = (vu)_mm512_shuffle_epi32(v, 0xaa);
    out[3] = (vu)_mm512_shuffle_epi32(v, 0xff);
}

ALWAYS_INLINE vu add_products(const shape t, vu dot, const vu q[4], const vu x[4]) {
    (void)t;
    for (int k = 0; k < 4; k++)
        dot = (vu)_mm512_dpbusd_epi32((__m512i)dot, (__m512i)q[k], (__m512i)x[k]);
    return dot;
}

/* Lanes 0 and 2 of both, or 1 and 3. */
ALWAYS_INLINE vu even(vu a, vu b) {
    return (vu)_mm512_shuffle_i32x4((__m512i)a, (__m512i)b, 0x88);
}
ALWAYS_INLINE vu odd(vu a, vu b) {
    return (vu)_mm512_shuffle_i32x4((__m512i)a, (__m512i)b, 0xdd);
}

ALWAYS_INLINE void add_pairs_of_chunks(const vu v[4], vu out[2]) {
    vu a = even(v[0], v[1]) + odd(v[0], v[1]), b = even(v[2], v[3]) + odd(v[2], v[3]);
    out[0] = even(a, b);
    out[1] = odd(a, b);
}

ALWAYS_INLINE void one_by_one(const vu v[4], vu out[4]) {
    vu a = even(v[0], v[1]), b = even(v[2], v[3]), c = odd(v[0], v[1]), d = odd(v[2], v[3]);
    out[0] = even(a, b);
    out[1] = even(c, d);
    out[2] = odd(a, b);
    out[3] = odd(c, d);
}

#include "wide.h"

/* ---- tiles, see tile.h ------------------------------------------------------------- */

enum { MAX_R = 2, MAX_C = 6 }; /* 12 sums of each kind in 32 registers */
#define FOR_COLUMNS(F, shape, R) \
    F(shape, R, 1) F(shape, R, 2) F(shape, R, 3) F(shape, R, 4) F(shape, R, 5) F(shape, R, 6)

/* dot[r][c] = M + the sum of q x over run j, as the bits of a float. */
ALWAYS_INLINE void dots(const shape t, const panel *p, const int R, const act_unit *const *x,
                        const int C, int j, vu (*dot)[MAX_C]) {
    UNROLL for (int c = 0; c < C; c++)
        UNROLL for (int r = 0; r < R; r++) dot[r][c] = start(t, x[c], j);
    UNROLL for (int k = 0; k < t.run / 4; k++)
        UNROLL for (int c = 0; c < C; c++)
            UNROLL for (int r = 0; r < R; r++)
                dot[r][c] = add_quad(dot[r][c], p[r].q[t.run / 4 * j + k],
                                     x[c]->q + t.run * j + 4 * k);
}

ALWAYS_INLINE vf scaled(vu dot, vf scale) {
    return vf_fma((vf)dot, scale, vf_mul(scale, vf_set1(-0x1.8p23f)));
}

#include "tile.h"

static const shape plain = {32, false}, minimum = {32, true};
static const shape plain_16 = {16, false}, minimum_16 = {16, true};
TILES(plain)
TILES(minimum)
TILES(plain_16)
TILES(minimum_16)
KERNEL(q8_0, plain, wide)
KERNEL(q4_0, plain, wide)
KERNEL(q4_1, minimum, wide)
KERNEL(q5_0, plain, panel)
KERNEL(q5_1, minimum, panel)
KERNEL(iq4_nl, plain, panel)
KERNEL(q2_K, minimum_16, panel)
KERNEL(q3_K, plain_16, panel)
KERNEL(q4_K, minimum, wide)
KERNEL(q5_K, minimum, wide)
KERNEL(q6_K, plain_16, wide)
KERNEL(iq4_xs, plain, panel)

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

/* ---- activations ------------------------------------------------------------------------- */

static void quantize(const float *x, act_unit *act, int n, int first, int last) {
    for (int i = first; i < last; i += 32) {
        act_unit *u = act + i / UNIT;
        int g = i % UNIT / 32;
        vf a = vf_load(x + i), b = vf_load(x + i + 16);
        __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
        __m512i top = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(a), magnitude),
                                       _mm512_and_si512(_mm512_castps_si512(b), magnitude));
        __m512i qa = _mm512_setzero_si512(), qb = qa;
        float factor;
        if (act_scale(_mm512_reduce_max_epu32(top), &u->d[g], &factor)) {
            qa = _mm512_cvtps_epi32(vf_mul(a, vf_set1(factor))); /* rounds to nearest even */
            qb = _mm512_cvtps_epi32(vf_mul(b, vf_set1(factor)));
        }
        __m256i q = _mm256_set_m128i(_mm512_cvtepi32_epi8(qb), _mm512_cvtepi32_epi8(qa));
        _mm256_storeu_si256((void *)(u->q + 32 * g), q);
        __m256i sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), q);
        sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0x4e));
        sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0xb1));
        act_sums(u, g, _mm256_cvtsi256_si32(sums), _mm256_extract_epi32(sums, 4));
    }
    if (last == n) act_fill(act, n);
}

ALWAYS_INLINE void int8_step(__m512i *sum, const __m512i *w) {
    *sum = _mm512_dpbusd_epi32(*sum, *w, *w);
}
DEFINE_PEAK(peak_int8, __m512i, _mm512_set1_epi8(3), int8_step, 64)

const backend backend_avx512 = {
    .name = "avx512",
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
    .encode = &encoders_avx512,
};
