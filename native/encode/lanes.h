/* lanes.h - the vectors of the encoders, for whatever instruction set a file is compiled.
 *
 * A lane is a group of weights that share a scale, so that a sum over a group needs no
 * sum over lanes: its order, and with it every byte written, is the same for vectors of
 * any width. No fused multiply-add for the same reason.
 */
#ifndef QWEN3_ENCODE_LANES_H
#define QWEN3_ENCODE_LANES_H

#include <float.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
enum { LANES = 16 };
#elif defined(__AVX2__)
#include <immintrin.h>
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

typedef float vf __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t vi __attribute__((vector_size(LANES * sizeof(int32_t))));

static inline vf vf_set1(float f) { return f - (vf){0}; } /* - keeps the sign of a zero */

static inline vf vf_load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void vf_store(float *p, vf v) { memcpy(p, &v, sizeof v); }

/* The lanes of a where the comparison that gave the mask holds, else those of b. */
static inline vf vf_pick(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }

#if defined(__AVX512F__)
static inline vf vf_min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
static inline vf vf_max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
static inline vf vf_min(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
static inline vf vf_max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
#else
static inline vf vf_min(vf a, vf b) { return vf_pick(a < b, a, b); }
static inline vf vf_max(vf a, vf b) { return vf_pick(a > b, a, b); }
#endif

/* The whole part of each. */
static inline vi vi_of(vf a) { return __builtin_convertvector(a, vi); }

/* The low byte of each. gcc 12 does not find the two instructions of AVX2. */
static inline void vi_store_bytes(uint8_t *p, vi a) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    __m256i v = (__m256i)(a & 255);
    __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packus_epi16(words, words));
#else
    typedef uint8_t vb __attribute__((vector_size(LANES)));
    vb bytes = __builtin_convertvector(a, vb);
    memcpy(p, &bytes, sizeof bytes);
#endif
}

static inline vf vf_abs(vf a) { return (vf)((vi)a & 0x7fffffff); }

/* To the nearest whole number, ties to even, of |a| < 2^22. */
static inline vf vf_round(vf a) {
    const float magic = 0x1.8p23f;
    return (a + magic) - magic;
}

/* The whole number below, of |a| < 2^22. */
static inline vf vf_floor(vf a) {
    vf r = vf_round(a);
    return r - vf_pick(r > a, vf_set1(1), vf_set1(0));
}

/* 0 for what has no inverse. */
static inline vf vf_inverse(vf a) {
    vi small = vf_abs(a) < FLT_MIN;
    return vf_pick(small, vf_set1(0), 1 / vf_pick(small, vf_set1(1), a));
}

#endif
