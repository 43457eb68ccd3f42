/* decode.c - weight blocks to floats.
 *
 * Each decoder multiplies in the order of the formulas in blocks.h, in float, so
 * that every reader of the format gets the same bits.
 */
#include "decode.h"

#include <string.h>

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

const int8_t iq4_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                               1,    13,   25,  38,  53,  69,  89,  113};

/* ---- decoders -------------------------------------------------------------- */

void decode_f32(const void *src, float *y, size_t n) {
    memcpy(y, src, n * sizeof *y);
}

void decode_f16(const void *src, float *y, size_t n) {
    const char *from = src;
    for (size_t i = 0; i < n; i++) {
        f16_t h;
        memcpy(&h, from + i * sizeof h, sizeof h);
        y[i] = f16_to_f32(h);
    }
}

void decode_bf16(const void *src, float *y, size_t n) {
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
    void decode_##type(const void *src, float *y, size_t n) {                  \
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
