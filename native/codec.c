/* codec.c - the table of weight types, and the public codec calls. */
#include "codec.h"

#include <float.h>
#include <string.h>

#include "backend.h"
#include "decode.h"
#include "error.h"

static const weight_type types[TYPE_COUNT] = {
    [TYPE_F32] = {"F32", 1, 4, decode_f32},
    [TYPE_F16] = {"F16", 1, 2, decode_f16},
    [TYPE_BF16] = {"BF16", 1, 2, decode_bf16},
    [TYPE_Q8_0] = {"Q8_0", 32, sizeof(block_q8_0), decode_q8_0},
    [TYPE_Q4_0] = {"Q4_0", 32, sizeof(block_q4_0), decode_q4_0},
    [TYPE_Q4_1] = {"Q4_1", 32, sizeof(block_q4_1), decode_q4_1},
    [TYPE_Q5_0] = {"Q5_0", 32, sizeof(block_q5_0), decode_q5_0},
    [TYPE_Q5_1] = {"Q5_1", 32, sizeof(block_q5_1), decode_q5_1},
    [TYPE_IQ4_NL] = {"IQ4_NL", 32, sizeof(block_iq4_nl), decode_iq4_nl},
    [TYPE_Q2_K] = {"Q2_K", 256, sizeof(block_q2_K), decode_q2_K},
    [TYPE_Q3_K] = {"Q3_K", 256, sizeof(block_q3_K), decode_q3_K},
    [TYPE_Q4_K] = {"Q4_K", 256, sizeof(block_q4_K), decode_q4_K},
    [TYPE_Q5_K] = {"Q5_K", 256, sizeof(block_q5_K), decode_q5_K},
    [TYPE_Q6_K] = {"Q6_K", 256, sizeof(block_q6_K), decode_q6_K},
    [TYPE_IQ4_XS] = {"IQ4_XS", 256, sizeof(block_iq4_xs), decode_iq4_xs},
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

/* Magnitudes are ordered as their bits, NaN above all. */
static int32_t magnitude_bits(float f) {
    int32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits & 0x7fffffff;
}

/* The first of n values beyond the limit or not a number; n if there is none. */
static size_t first_beyond(const float *x, size_t n, float limit) {
    int32_t most = magnitude_bits(limit), beyond = 0;
    for (size_t i = 0; i < n; i++) beyond |= magnitude_bits(x[i]) > most;
    size_t i = beyond ? 0 : n;
    while (i < n && magnitude_bits(x[i]) <= most) i++;
    return i;
}

/* Values checked, then encoded while they are in the first-level cache. */
enum { PIECE = 4096 };

qwen3_status qwen3_quantize(uint32_t type, const float *src, void *dst, size_t n, size_t n_per_row,
                            const float *weights, qwen3_error *err) {
    const weight_type *t = weight_type_of(type);
    if (!t) return fail(err, QWEN3_ERR_UNSUPPORTED, "unknown weight type %u", (unsigned)type);
    if (!encoders_baseline.of[type])
        return fail(err, QWEN3_ERR_UNSUPPORTED, "%s can be read but not written", t->name);
    if (n_per_row == 0 || n_per_row % (size_t)t->block)
        return fail(err, QWEN3_ERR_ARG, "rows of %zu values are not whole %s blocks of %d",
                    n_per_row, t->name, t->block);
    if (n % n_per_row)
        return fail(err, QWEN3_ERR_ARG, "%zu values are not whole rows of %zu", n, n_per_row);
    for (size_t i = 0; weights && i < n_per_row; i++)
        if (!(weights[i] >= 0 && weights[i] <= FLT_MAX))
            return fail(err, QWEN3_ERR_ARG,
                        "importance %g at index %zu is not a finite number of 0 or more",
                        (double)weights[i], i);
    const backend *cpu = backend_chosen(err);
    if (!cpu) return QWEN3_ERR_UNSUPPORTED;
    float limit = limit_of(type);
    for (size_t at = 0; at < n; at += PIECE) {
        size_t count = n - at < PIECE ? n - at : PIECE, bad = first_beyond(src + at, count, limit);
        if (bad < count)
            return fail(err, QWEN3_ERR_FORMAT,
                        "value %g at index %zu is not a number that %s holds (at most %g)",
                        (double)src[at + bad], at + bad, t->name, (double)limit);
        cpu->encode->of[type](src + at, (char *)dst + qwen3_type_bytes(type, at), count,
                              at % n_per_row, n_per_row, weights);
    }
    return QWEN3_OK;
}
