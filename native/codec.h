/* codec.h - what a weight type is, and its reference decoder and encoder. */
#ifndef QWEN3_CODEC_H
#define QWEN3_CODEC_H

#include <stddef.h>

#include "blocks.h"

typedef struct {
    const char *name;  /* "Q4_K" */
    int block;         /* weights in a block */
    int bytes;         /* bytes of a block */
    /* n is a multiple of block; src may have any alignment and any bit pattern. */
    void (*decode)(const void *src, float *dst, size_t n);
    /* NULL: this type can be read, not written. weights: NULL or n importances.
     * The values obey the limits that qwen3_quantize checks. */
    void (*encode)(const float *src, void *dst, size_t n, const float *weights);
} weight_type;

/* NULL for a type this engine does not know. */
const weight_type *weight_type_of(uint32_t type);

float f16_to_f32(f16_t h);
f16_t f32_to_f16(float f); /* round to nearest even */

/* The 16 levels of IQ4_NL and IQ4_XS. */
extern const int8_t iq4_levels[16];

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
