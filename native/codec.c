/* codec.c - the table of weight types, and the public calls that need no more than it. */
#include "codec.h"

#include "decode.h"
#include "error.h"
#include "rows.h"

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
