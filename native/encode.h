/* encode.h - the encoders of weight blocks, compiled once per instruction set: the same bytes. */
#ifndef QWEN3_ENCODE_H
#define QWEN3_ENCODE_H

#include <stddef.h>

#include "blocks.h"

/* Writes n finite values, whole blocks, each value within the limit of the type. importance:
 * NULL, or n_per_row non-negative numbers that say how much the square of an error costs in each
 * column of a row; the first value is in `column`. */
typedef void encode_fn(const float *src, void *dst, size_t n, size_t column, size_t n_per_row,
                       const float *importance);

/* NULL for a type that is not written. */
typedef struct {
    encode_fn *of[TYPE_COUNT];
} encoders;

extern const encoders encoders_baseline; /* what every processor of the architecture has */
#if defined(__x86_64__)
extern const encoders encoders_avx2, encoders_avx512;
#endif

#endif
