/* codec.c - the weight types: their table, their decoders, the public codec calls.
 *
 * Each decoder multiplies in the order of the formulas in blocks.h, in float, so
 * that every reader of the format gets the same bits.
 */
#include "codec.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "encode.h"
#include "error.h"

/* ---- half precision -------------------------------------------------------- */

static float float_of(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static uint32_t bits_of(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

float f16_to_f32(f16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    if (exponent == 0) return float_of(sign | bits_of((float)mantissa * 0x1p-24f));
    exponent = exponent == 31 ? 255 : exponent + 112;
    return float_of(sign | exponent << 23 | mantissa << 13);
}

f16_t f32_to_f16(float f) {
    uint32_t bits = bits_of(f), sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return (f16_t)(sign | 0x7e00 | (bits >> 13 & 0x3ff)); /* a quiet NaN */
    if (bits >= 0x477ff000) return (f16_t)(sign | 0x7c00); /* 65520 and more */
    /* Below the normal range: at 0.5 one ulp is 2^-24, so the addition rounds. */
    if (bits < 0x38800000) return (f16_t)(sign | (bits_of(float_of(bits) + 0.5f) - 0x3f000000));
    bits += 0xfff + (bits >> 13 & 1);
    return (f16_t)(sign | (bits - (112u << 23)) >> 13);
}

/* ---- decoders -------------------------------------------------------------- */

static void decode_f32(const void *src, float *y, size_t n) {
    memcpy(y, src, n * sizeof *y);
}

static void decode_f16(const void *src, float *y, size_t n) {
    const char *from = src;
    for (size_t i = 0; i < n; i++) {
        f16_t h;
        memcpy(&h, from + i * sizeof h, sizeof h);
        y[i] = f16_to_f32(h);
    }
}

static void decode_bf16(const void *src, float *y, size_t n) {
    const char *from = src;
    for (size_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, from + i * sizeof h, sizeof h);
        y[i] = float_of((uint32_t)h << 16);
    }
}

/* decode_TYPE(src, y, n) from the function that follows, which decodes one block. */
#define DECODER(type, count)                                                   \
    static void type##_values(const block_##type *b, float *y);                \
    static void decode_##type(const void *src, float *y, size_t n) {           \
        const char *from = src;                                                \
        for (size_t i = 0; i < n; i += count, from += sizeof(block_##type)) {  \
            block_##type b;                                                    \
            memcpy(&b, from, sizeof b);                                        \
            type##_values(&b, y + i);                                          \
        }                                                                      \
    }                                                                          \
    static void type##_values(const block_##type *b, float *y)

DECODER(q8_0, 32) {
    float d = f16_to_f32(b->d);
    for (int i = 0; i < 32; i++) y[i] = d * b->qs[i];
}

DECODER(q4_0, 32) {
    float d = f16_to_f32(b->d);
    for (int i = 0; i < 16; i++) {
        y[i] = d * ((b->qs[i] & 15) - 8);
        y[i + 16] = d * ((b->qs[i] >> 4) - 8);
    }
}

DECODER(q4_1, 32) {
    float d = f16_to_f32(b->d), m = f16_to_f32(b->m);
    for (int i = 0; i < 16; i++) {
        y[i] = d * (b->qs[i] & 15) + m;
        y[i + 16] = d * (b->qs[i] >> 4) + m;
    }
}

/* Quant i of the 32 in a Q5_0 or Q5_1 block: a nibble and its fifth bit. */
static int q5_quant(const uint8_t qs[16], const uint8_t qh[4], int i) {
    int low = i < 16 ? qs[i] & 15 : qs[i - 16] >> 4;
    return low | (qh[i / 8] >> i % 8 & 1) << 4;
}

DECODER(q5_0, 32) {
    float d = f16_to_f32(b->d);
    for (int i = 0; i < 32; i++) y[i] = d * (q5_quant(b->qs, b->qh, i) - 16);
}

DECODER(q5_1, 32) {
    float d = f16_to_f32(b->d), m = f16_to_f32(b->m);
    for (int i = 0; i < 32; i++) y[i] = d * q5_quant(b->qs, b->qh, i) + m;
}

DECODER(iq4_nl, 32) {
    float d = f16_to_f32(b->d);
    for (int i = 0; i < 16; i++) {
        y[i] = d * iq4_levels[b->qs[i] & 15];
        y[i + 16] = d * iq4_levels[b->qs[i] >> 4];
    }
}

/* 16 sub-blocks of 16; sub-block j lies in bits 2 (j/2 % 4) of 16 bytes. */
DECODER(q2_K, 256) {
    float d = f16_to_f32(b->d), dmin = f16_to_f32(b->dmin);
    for (int j = 0; j < 16; j++) {
        float scale = d * (b->scales[j] & 15), min = dmin * (b->scales[j] >> 4);
        const uint8_t *qs = b->qs + j / 8 * 32 + j % 2 * 16;
        for (int i = 0; i < 16; i++) y[16 * j + i] = scale * (qs[i] >> j / 2 % 4 * 2 & 3) - min;
    }
}

/* As Q2_K, with a third bit in bit j/2 of hmask: set means no offset. */
DECODER(q3_K, 256) {
    float d = f16_to_f32(b->d);
    for (int j = 0; j < 16; j++) {
        float scale = d * k3_scale(b->scales, j);
        const uint8_t *qs = b->qs + j / 8 * 32 + j % 2 * 16, *high = b->hmask + j % 2 * 16;
        for (int i = 0; i < 16; i++) {
            int q = (qs[i] >> j / 2 % 4 * 2 & 3) | (high[i] >> j / 2 & 1) << 2;
            y[16 * j + i] = scale * (q - 4);
        }
    }
}

/* 8 sub-blocks of 32; two share 32 bytes, the even one in the low nibbles. */
DECODER(q4_K, 256) {
    float d = f16_to_f32(b->d), dmin = f16_to_f32(b->dmin);
    for (int j = 0; j < 8; j++) {
        uint8_t sc, mn;
        k4_scale_min(b->scales, j, &sc, &mn);
        float scale = d * sc, min = dmin * mn;
        const uint8_t *qs = b->qs + j / 2 * 32;
        for (int i = 0; i < 32; i++) y[32 * j + i] = scale * (qs[i] >> j % 2 * 4 & 15) - min;
    }
}

/* As Q4_K, with a fifth bit in bit j of qh. */
DECODER(q5_K, 256) {
    float d = f16_to_f32(b->d), dmin = f16_to_f32(b->dmin);
    for (int j = 0; j < 8; j++) {
        uint8_t sc, mn;
        k4_scale_min(b->scales, j, &sc, &mn);
        float scale = d * sc, min = dmin * mn;
        const uint8_t *qs = b->qs + j / 2 * 32;
        for (int i = 0; i < 32; i++) {
            int q = (qs[i] >> j % 2 * 4 & 15) | (b->qh[i] >> j & 1) << 4;
            y[32 * j + i] = scale * q - min;
        }
    }
}

/* 16 sub-blocks of 16. Each half of 128 has 64 bytes of nibbles, low before high,
 * and 32 bytes of upper bits, two for each quarter. */
DECODER(q6_K, 256) {
    float d = f16_to_f32(b->d);
    for (int j = 0; j < 16; j++) {
        float scale = d * b->scales[j];
        const uint8_t *ql = b->ql + j / 8 * 64 + j % 4 * 16, *qh = b->qh + j / 8 * 32 + j % 2 * 16;
        for (int i = 0; i < 16; i++) {
            int q = (ql[i] >> j / 4 % 2 * 4 & 15) | (qh[i] >> j / 2 % 4 * 2 & 3) << 4;
            y[16 * j + i] = scale * (q - 32);
        }
    }
}

DECODER(iq4_xs, 256) {
    float d = f16_to_f32(b->d);
    for (int j = 0; j < 8; j++) {
        float scale = d * iq4_xs_scale(b->scales_h, b->scales_l, j);
        for (int i = 0; i < 16; i++) {
            y[32 * j + i] = scale * iq4_levels[b->qs[16 * j + i] & 15];
            y[32 * j + i + 16] = scale * iq4_levels[b->qs[16 * j + i] >> 4];
        }
    }
}

/* ---- the table ------------------------------------------------------------- */

const int8_t iq4_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                               1,    13,   25,  38,  53,  69,  89,  113};

static const weight_type types[TYPE_COUNT] = {
    [TYPE_F32] = {"F32", 1, 4, decode_f32, encode_f32},
    [TYPE_F16] = {"F16", 1, 2, decode_f16, encode_f16},
    [TYPE_BF16] = {"BF16", 1, 2, decode_bf16, encode_bf16},
    [TYPE_Q8_0] = {"Q8_0", 32, sizeof(block_q8_0), decode_q8_0, encode_q8_0},
    [TYPE_Q4_0] = {"Q4_0", 32, sizeof(block_q4_0), decode_q4_0, encode_q4_0},
    [TYPE_Q4_1] = {"Q4_1", 32, sizeof(block_q4_1), decode_q4_1, encode_q4_1},
    [TYPE_Q5_0] = {"Q5_0", 32, sizeof(block_q5_0), decode_q5_0, encode_q5_0},
    [TYPE_Q5_1] = {"Q5_1", 32, sizeof(block_q5_1), decode_q5_1, encode_q5_1},
    [TYPE_IQ4_NL] = {"IQ4_NL", 32, sizeof(block_iq4_nl), decode_iq4_nl, encode_iq4_nl},
    [TYPE_Q2_K] = {"Q2_K", 256, sizeof(block_q2_K), decode_q2_K, NULL},
    [TYPE_Q3_K] = {"Q3_K", 256, sizeof(block_q3_K), decode_q3_K, NULL},
    [TYPE_Q4_K] = {"Q4_K", 256, sizeof(block_q4_K), decode_q4_K, encode_q4_K},
    [TYPE_Q5_K] = {"Q5_K", 256, sizeof(block_q5_K), decode_q5_K, encode_q5_K},
    [TYPE_Q6_K] = {"Q6_K", 256, sizeof(block_q6_K), decode_q6_K, encode_q6_K},
    [TYPE_IQ4_XS] = {"IQ4_XS", 256, sizeof(block_iq4_xs), decode_iq4_xs, encode_iq4_xs},
};

const weight_type *weight_type_of(uint32_t type) {
    return type < TYPE_COUNT && types[type].name ? &types[type] : NULL;
}

/* ---- public calls ---------------------------------------------------------- */

const char *qwen3_type_name(uint32_t type) {
    const weight_type *t = weight_type_of(type);
    return t ? t->name : NULL;
}

size_t qwen3_type_bytes(uint32_t type, size_t n) {
    const weight_type *t = weight_type_of(type);
    if (!t || n % (size_t)t->block) return 0;
    size_t blocks = n / (size_t)t->block;
    return blocks <= SIZE_MAX / (size_t)t->bytes ? blocks * (size_t)t->bytes : 0;
}

qwen3_status qwen3_dequantize(uint32_t type, const void *src, float *dst, size_t n,
                              qwen3_error *err) {
    const weight_type *t = weight_type_of(type);
    if (!t) return fail(err, QWEN3_ERR_UNSUPPORTED, "unknown weight type %u", (unsigned)type);
    if (n % (size_t)t->block)
        return fail(err, QWEN3_ERR_ARG, "%zu values are not whole %s blocks of %d", n, t->name,
                    t->block);
    t->decode(src, dst, n);
    return QWEN3_OK;
}

/* The largest magnitude a type takes. A scale never exceeds the largest value it
 * stands for, so a block type takes what an f16 does. */
static float limit_of(uint32_t type) {
    if (type == TYPE_F32) return FLT_MAX;
    if (type == TYPE_BF16) return 0x1.fep127f;
    return 65504;
}

qwen3_status qwen3_quantize(uint32_t type, const float *src, void *dst, size_t n, size_t n_per_row,
                            const float *weights, qwen3_error *err) {
    const weight_type *t = weight_type_of(type);
    if (!t) return fail(err, QWEN3_ERR_UNSUPPORTED, "unknown weight type %u", (unsigned)type);
    if (!t->encode)
        return fail(err, QWEN3_ERR_UNSUPPORTED, "%s can be read but not written", t->name);
    if (n_per_row == 0 || n_per_row % (size_t)t->block)
        return fail(err, QWEN3_ERR_ARG, "rows of %zu values are not whole %s blocks of %d",
                    n_per_row, t->name, t->block);
    if (n % n_per_row)
        return fail(err, QWEN3_ERR_ARG, "%zu values are not whole rows of %zu", n, n_per_row);
    float limit = limit_of(type);
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(src[i]) <= limit))
            return fail(err, QWEN3_ERR_FORMAT,
                        "value %g at index %zu is not a number that %s holds (at most %g)",
                        (double)src[i], i, t->name, (double)limit);
    for (size_t i = 0; weights && i < n_per_row; i++)
        if (!(weights[i] >= 0 && weights[i] <= FLT_MAX))
            return fail(err, QWEN3_ERR_ARG,
                        "importance %g at index %zu is not a finite number of 0 or more",
                        (double)weights[i], i);
    size_t row_bytes = qwen3_type_bytes(type, n_per_row);
    for (size_t r = 0; r < n / n_per_row; r++)
        t->encode(src + r * n_per_row, (char *)dst + r * row_bytes, n_per_row, weights);
    return QWEN3_OK;
}
