/* codec.h - what a weight type is, and its reference decoder and encoder. */
#ifndef QWEN3_CODEC_H
#define QWEN3_CODEC_H

#include <stddef.h>

#include "blocks.h"

typedef struct {
    const char *name;  /* "Q4_K" */
    int block;         /* weights in a block */
    int bytes;         /* bytes of a block */
    void (*decode)(const void *src, float *dst, size_t n);
    /* NULL: this type can be read, not written. weights: NULL or n importances. */
    void (*encode)(const float *src, void *dst, size_t n, const float *weights);
} weight_type;

/* NULL for a type this engine does not know. */
const weight_type *weight_type_of(uint32_t type);

float f16_to_f32(f16_t h);
f16_t f32_to_f16(float f); /* round to nearest even */

/* The 16 levels of IQ4_NL and IQ4_XS. */
extern const int8_t iq4_levels[16];

#endif
