/* blocks.h - the weight blocks of the GGUF format, defined once.
 *
 * A row of weights is a run of blocks; a block of the first family holds 32
 * weights, a super-block of the K and XS family 256. d is the f16 scale, dmin
 * the f16 scale of the minima. Weight = scale * (quant - offset) - minimum.
 * Layouts follow the GGUF ecosystem, so that files are exchanged both ways.
 */
#ifndef QWEN3_BLOCKS_H
#define QWEN3_BLOCKS_H

#if !defined(__METAL_VERSION__) /* which has both */
#include <assert.h>
#include <stdint.h>
#endif

enum { /* ggml type numbers */
    TYPE_F32 = 0, TYPE_F16 = 1, TYPE_Q4_0 = 2, TYPE_Q4_1 = 3, TYPE_Q5_0 = 6, TYPE_Q5_1 = 7,
    TYPE_Q8_0 = 8, TYPE_Q2_K = 10, TYPE_Q3_K = 11, TYPE_Q4_K = 12, TYPE_Q5_K = 13,
    TYPE_Q6_K = 14, TYPE_IQ4_NL = 20, TYPE_IQ4_XS = 23, TYPE_BF16 = 30,
    TYPE_COUNT = 31,
};

typedef uint16_t f16_t; /* IEEE binary16, as bits */

typedef struct { f16_t d; uint8_t qs[16]; } block_q4_0;                    /* q - 8 */
typedef struct { f16_t d, m; uint8_t qs[16]; } block_q4_1;                 /* d q + m */
typedef struct { f16_t d; uint8_t qh[4]; uint8_t qs[16]; } block_q5_0;     /* q - 16 */
typedef struct { f16_t d, m; uint8_t qh[4]; uint8_t qs[16]; } block_q5_1;  /* d q + m */
typedef struct { f16_t d; int8_t qs[32]; } block_q8_0;
typedef struct { f16_t d; uint8_t qs[16]; } block_iq4_nl;                  /* table value */

typedef struct { uint8_t scales[16]; uint8_t qs[64]; f16_t d, dmin; } block_q2_K;
typedef struct { uint8_t hmask[32]; uint8_t qs[64]; uint8_t scales[12]; f16_t d; } block_q3_K;
typedef struct { f16_t d, dmin; uint8_t scales[12]; uint8_t qs[128]; } block_q4_K;
typedef struct { f16_t d, dmin; uint8_t scales[12]; uint8_t qh[32]; uint8_t qs[128]; } block_q5_K;
typedef struct { uint8_t ql[128]; uint8_t qh[64]; int8_t scales[16]; f16_t d; } block_q6_K;
typedef struct { f16_t d; uint16_t scales_h; uint8_t scales_l[4]; uint8_t qs[128]; } block_iq4_xs;

static_assert(sizeof(block_q4_0) == 18, "layout");
static_assert(sizeof(block_q4_1) == 20, "layout");
static_assert(sizeof(block_q5_0) == 22, "layout");
static_assert(sizeof(block_q5_1) == 24, "layout");
static_assert(sizeof(block_q8_0) == 34, "layout");
static_assert(sizeof(block_iq4_nl) == 18, "layout");
static_assert(sizeof(block_q2_K) == 84, "layout");
static_assert(sizeof(block_q3_K) == 110, "layout");
static_assert(sizeof(block_q4_K) == 144, "layout");
static_assert(sizeof(block_q5_K) == 176, "layout");
static_assert(sizeof(block_q6_K) == 210, "layout");
static_assert(sizeof(block_iq4_xs) == 136, "layout");

#endif
