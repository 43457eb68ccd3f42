/* codec.h - the table of weight types: name, size, decoder and encoder. */
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

#endif
