/* codec.h - the table of weight types: name, size and decoder. encode.h has the
 * encoders. */
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
} weight_type;

/* NULL for a type this engine does not know. */
const weight_type *weight_type_of(uint32_t type);

#endif
