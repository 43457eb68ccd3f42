/* decode.h - reads the weight blocks: f16, packed scales, one reference decoder a type.
 *
 * decode_TYPE(src, dst, n) reads n weights, whole blocks; src may have any alignment
 * and any bit pattern.
 */
#ifndef QWEN3_DECODE_H
#define QWEN3_DECODE_H

#include <stddef.h>

#include "blocks.h"

float f16_to_f32(f16_t h);
f16_t f32_to_f16(float f); /* round to nearest even */

/* The 16 levels of IQ4_NL and IQ4_XS. */
extern const int8_t iq4_levels[16];

void decode_f32(const void *src, float *dst, size_t n);
void decode_f16(const void *src, float *dst, size_t n);
void decode_bf16(const void *src, float *dst, size_t n);
void decode_q8_0(const void *src, float *dst, size_t n);
void decode_q4_0(const void *src, float *dst, size_t n);
void decode_q4_1(const void *src, float *dst, size_t n);
void decode_q5_0(const void *src, float *dst, size_t n);
void decode_q5_1(const void *src, float *dst, size_t n);
void decode_iq4_nl(const void *src, float *dst, size_t n);
void decode_q2_K(const void *src, float *dst, size_t n);
void decode_q3_K(const void *src, float *dst, size_t n);
void decode_q4_K(const void *src, float *dst, size_t n);
void decode_q5_K(const void *src, float *dst, size_t n);
void decode_q6_K(const void *src, float *dst, size_t n);
void decode_iq4_xs(const void *src, float *dst, size_t n);

/* ---- packed scales, for decoders and for kernels --------------------------- */

/* Q4_K and Q5_K: 6-bit scale and minimum of sub-block j in [0, 8). The first four
 * pairs lie in bytes 0-3 and 4-7; bytes 8-11 hold the low four bits of the last
 * four pairs, whose high bits fill the spare bits of bytes 0-7. */
static inline void k4_scale_min(const uint8_t scales[12], int j, uint8_t *scale, uint8_t *min) {
    if (j < 4) {
        *scale = scales[j] & 63;
        *min = scales[j + 4] & 63;
    } else {
        *scale = (uint8_t)((scales[j + 4] & 15) | (scales[j - 4] >> 6 << 4));
        *min = (uint8_t)((scales[j + 4] >> 4) | (scales[j] >> 6 << 4));
    }
}

/* Q3_K: 6-bit scale of sub-block j in [0, 16), -32 to 31. Bytes 0-7 hold the low
 * four bits of j and j + 8, bytes 8-11 the high two bits of every fourth. */
static inline int k3_scale(const uint8_t scales[12], int j) {
    int low = scales[j % 8] >> (j / 8 * 4) & 15;
    int high = scales[8 + j % 4] >> (j / 4 * 2) & 3;
    return (low | high << 4) - 32;
}

/* IQ4_XS: 6-bit scale of sub-block j in [0, 8), -32 to 31. */
static inline int iq4_xs_scale(uint16_t scales_h, const uint8_t scales_l[4], int j) {
    int low = scales_l[j / 2] >> (j % 2 * 4) & 15;
    int high = scales_h >> (j * 2) & 3;
    return (low | high << 4) - 32;
}

#endif
