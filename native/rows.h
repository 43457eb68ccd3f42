/* rows.h - numbers to weight blocks and back, for the quantizer. */
#ifndef QWEN3_ROWS_H
#define QWEN3_ROWS_H

#include "qwen3.h"

#ifdef __cplusplus
extern "C" {
#endif

/* n floats, a multiple of the type's block size; type is a ggml type number and src
 * may have any alignment. */
qwen3_status qwen3_dequantize(uint32_t type, const void *src, float *dst, size_t n,
                              qwen3_error *err);
/* weights: NULL, or n_per_row importances shared by every row. Refuses values that
 * are not finite or beyond the type: 65504 for all but F32 and BF16. The bytes do not depend on
 * the processor. */
qwen3_status qwen3_quantize(uint32_t type, const float *src, void *dst, size_t n, size_t n_per_row,
                            const float *weights, qwen3_error *err);
/* Bytes of n items, 0 for an unknown type or an n that is not whole blocks. */
size_t qwen3_type_bytes(uint32_t type, size_t n);

#ifdef __cplusplus
}
#endif
#endif
