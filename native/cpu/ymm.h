/* ymm.h - what the backends with 256-bit vectors share: floats, reading of rows, activations.
 *
 * The file that includes this needs AVX2, FMA and F16C.
 */
#ifndef QWEN3_YMM_H
#define QWEN3_YMM_H

#include <cpuid.h>
#include <immintrin.h>

/* ---- the float vector, see vector.h ------------------------------------------------ */

typedef __m256 vf;
enum { LANES = 8 };

static inline vf vf_zero(void) { return _mm256_setzero_ps(); }
static inline vf vf_set1(float f) { return _mm256_set1_ps(f); }
static inline vf vf_load(const void *p) { return _mm256_loadu_ps(p); }
static inline void vf_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
static inline vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf vf_round(vf a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline vf vf_pow2(vf a) {
    __m256i n = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(n, 23));
}
static inline vf vf_load_f16(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128(p)); }
static inline vf vf_load_bf16(const void *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
static inline vf vf_load_i8(const void *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p)));
}
static inline void vf_store_f16(void *p, vf a) {
    _mm_storeu_si128(p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
static inline float vf_sum(vf a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline float vf_top(vf a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

#include "vector.h"
#include "attend.h"

static inline bool has_avx2(void) {
    unsigned a, b, c, d; /* not every compiler's __builtin_cpu_supports knows f16c */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

/* ---- reading, see panel.h ------------------------------------------------------------- */

typedef uint32_t vu __attribute__((vector_size(32)));

/* 16 bytes of a row, and of the fourth after it. */
ALWAYS_INLINE __m256i row_and_fourth(const uint8_t *src, size_t stride) {
    __m256i v = _mm256_castsi128_si256(_mm_loadu_si128((const void *)src));
    return _mm256_inserti128_si256(v, _mm_loadu_si128((const void *)(src + 4 * stride)), 1);
}

/* The dwords of each half: out[k] has the k-th of a, b, c and d. */
ALWAYS_INLINE void transpose(__m256i a, __m256i b, __m256i c, __m256i d, vu out[4]) {
    __m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
    out[0] = (vu)_mm256_unpacklo_epi64(ab, cd);
    out[1] = (vu)_mm256_unpackhi_epi64(ab, cd);
    ab = _mm256_unpackhi_epi32(a, b), cd = _mm256_unpackhi_epi32(c, d);
    out[2] = (vu)_mm256_unpacklo_epi64(ab, cd);
    out[3] = (vu)_mm256_unpackhi_epi64(ab, cd);
}

ALWAYS_INLINE void load_quads(const uint8_t *src, size_t stride, vu out[4]) {
    transpose(row_and_fourth(src, stride), row_and_fourth(src + stride, stride),
              row_and_fourth(src + 2 * stride, stride), row_and_fourth(src + 3 * stride, stride),
              out);
}

/* Four bytes at p in every lane. */
ALWAYS_INLINE __m256i every_lane(const void *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm256_set1_epi32(four);
}

/* Blends, as broadcasts cost no more than loads; a gather is slow on most of these processors. */
ALWAYS_INLINE vu load_dwords(const uint8_t *src, size_t stride) {
    const uint8_t *far = src + 4 * stride;
    __m256i a = _mm256_blend_epi32(every_lane(src), every_lane(src + stride), 0x02);
    __m256i b = _mm256_blend_epi32(every_lane(far), every_lane(far + stride), 0x20);
    src += 2 * stride, far += 2 * stride;
    __m256i c = _mm256_blend_epi32(every_lane(src), every_lane(src + stride), 0x08);
    __m256i d = _mm256_blend_epi32(every_lane(far), every_lane(far + stride), 0x80);
    return (vu)_mm256_blend_epi32(_mm256_blend_epi32(a, c, 0x0c), _mm256_blend_epi32(b, d, 0xc0),
                                  0xf0);
}

ALWAYS_INLINE vf half_low(vu v) {
    __m256i order = _mm256_setr_epi64x(0x0d0c090805040100, 0, 0x0d0c090805040100, 0);
    __m256i halves = _mm256_permute4x64_epi64(_mm256_shuffle_epi8((__m256i)v, order), 0x08);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
}

ALWAYS_INLINE vu iq4_lookup(vu v) {
    __m128i levels = _mm_loadu_si128((const void *)iq4_levels);
    return (vu)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(levels), (__m256i)v);
}

/* ---- one column, see wide.h ------------------------------------------------------------- */

ALWAYS_INLINE __m256i load_chunks(const uint8_t *p, int odd, int pair) {
    (void)pair; /* there are two */
    if (odd == 16) return _mm256_loadu_si256((const void *)p);
    __m256i v = _mm256_castsi128_si256(_mm_loadu_si128((const void *)p));
    return _mm256_inserti128_si256(v, _mm_loadu_si128((const void *)(p + odd)), 1);
}

ALWAYS_INLINE void repeat_dwords(__m256i v, vu out[4]) {
    out[0] = (vu)_mm256_shuffle_epi32(v, 0x00);
    out[1] = (vu)_mm256_shuffle_epi32(v, 0x55);
    out[2] = (vu)_mm256_shuffle_epi32(v, 0xaa);
    out[3] = (vu)_mm256_shuffle_epi32(v, 0xff);
}

ALWAYS_INLINE void one_by_one(const vu v[2], vu out[2]) {
    out[0] = (vu)_mm256_permute2x128_si256((__m256i)v[0], (__m256i)v[1], 0x20);
    out[1] = (vu)_mm256_permute2x128_si256((__m256i)v[0], (__m256i)v[1], 0x31);
}

ALWAYS_INLINE void add_pairs_of_chunks(const vu v[2], vu out[1]) {
    vu both[2];
    one_by_one(v, both);
    out[0] = both[0] + both[1];
}

/* ---- activations ------------------------------------------------------------------------- */

static inline uint32_t top_bits(const vf x[4]) {
    __m256i top = _mm256_setzero_si256(), magnitude = _mm256_set1_epi32(0x7fffffff);
    for (int k = 0; k < 4; k++)
        top = _mm256_max_epu32(top, _mm256_and_si256(_mm256_castps_si256(x[k]), magnitude));
    __m128i t = _mm_max_epu32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    t = _mm_max_epu32(t, _mm_shuffle_epi32(t, 0x4e));
    t = _mm_max_epu32(t, _mm_shuffle_epi32(t, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(t);
}

static void quantize(const float *x, act_unit *act, int n, int first, int last) {
    for (int i = first; i < last; i += 32) {
        act_unit *u = act + i / UNIT;
        int g = i % UNIT / 32;
        vf v[4] = {vf_load(x + i), vf_load(x + i + 8), vf_load(x + i + 16), vf_load(x + i + 24)};
        __m256i q[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                        _mm256_setzero_si256()};
        float factor;
        if (act_scale(top_bits(v), &u->d[g], &factor))
            for (int k = 0; k < 4; k++) /* rounds to nearest even */
                q[k] = _mm256_cvtps_epi32(vf_mul(v[k], vf_set1(factor)));
        __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]),
                                            _mm256_packs_epi32(q[2], q[3]));
        /* Packing works within halves: fours of quants come out as 0 2 4 6 1 3 5 7. */
        packed = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((void *)(u->q + 32 * g), packed);
        __m256i sums = _mm256_hadd_epi32(_mm256_add_epi32(q[0], q[1]),
                                         _mm256_add_epi32(q[2], q[3]));
        sums = _mm256_hadd_epi32(sums, sums);
        __m128i both = _mm_add_epi32(_mm256_castsi256_si128(sums),
                                     _mm256_extracti128_si256(sums, 1));
        act_sums(u, g, _mm_extract_epi32(both, 0), _mm_extract_epi32(both, 1));
    }
    if (last == n) act_fill(act, n);
}

#endif
