/* encode.h - the encoders of weight blocks.
 *
 * encode_TYPE(src, dst, n, importance) writes n finite values, whole blocks, each
 * within the limit of the type. importance: NULL, or n non-negative numbers that
 * say how much the square of an error at that place costs.
 */
#ifndef QWEN3_ENCODE_H
#define QWEN3_ENCODE_H

#include <stddef.h>

void encode_f32(const float *src, void *dst, size_t n, const float *importance);
void encode_f16(const float *src, void *dst, size_t n, const float *importance);
void encode_bf16(const float *src, void *dst, size_t n, const float *importance);
void encode_q8_0(const float *src, void *dst, size_t n, const float *importance);
void encode_q4_0(const float *src, void *dst, size_t n, const float *importance);
void encode_q4_1(const float *src, void *dst, size_t n, const float *importance);
void encode_q5_0(const float *src, void *dst, size_t n, const float *importance);
void encode_q5_1(const float *src, void *dst, size_t n, const float *importance);
void encode_iq4_nl(const float *src, void *dst, size_t n, const float *importance);
void encode_q4_K(const float *src, void *dst, size_t n, const float *importance);
void encode_q5_K(const float *src, void *dst, size_t n, const float *importance);
void encode_q6_K(const float *src, void *dst, size_t n, const float *importance);
void encode_iq4_xs(const float *src, void *dst, size_t n, const float *importance);

#endif
