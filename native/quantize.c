/* quantize.c - rows to weight blocks, by the encoders of the backend in use. */
#include <float.h>
#include <string.h>

#include "backend.h"
#include "codec.h"
#include "error.h"
#include "rows.h"

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
