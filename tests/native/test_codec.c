/* test_codec.c - no bytes and no floats take a codec beyond defined behaviour.
 *
 * Meant for the build with sanitizers: any bit pattern through every decoder, from any
 * address; finite floats of every size through every encoder, whose blocks must decode
 * to finite values no larger than what went in. All backends write the same bytes.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "codec.h"
#include "decode.h"
#include "rows.h"

enum { N = 512, ROUNDS = 200 };

#define CHECK(condition, ...)                                     \
    do {                                                          \
        if (!(condition)) {                                       \
            fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);       \
            fprintf(stderr, __VA_ARGS__);                         \
            fprintf(stderr, "\n");                                \
            exit(1);                                              \
        }                                                         \
    } while (0)

static uint64_t state = 0x9e3779b97f4a7c15;

static uint32_t random_bits(void) { /* xorshift64* */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)(state * 0x2545f4914f6cdd1d >> 32);
}

static float random_float(float limit) { /* any finite float, of any exponent */
    for (;;) {
        uint32_t bits = random_bits();
        float f;
        memcpy(&f, &bits, sizeof f);
        if (fabsf(f) <= limit) return f;
    }
}

static float uniform(void) { return (float)(int32_t)random_bits() * 0x1p-31f; }

/* Values that have broken encoders: every magnitude, ties, constants, spikes, nothing. */
static void fill(float *x, int kind, float limit) {
    float constant = random_float(limit), size = fabsf(random_float(limit));
    for (int i = 0; i < N; i++) {
        switch (kind) {
        case 0: x[i] = random_float(limit); break;
        case 1: x[i] = uniform() * size; break;
        case 2: x[i] = uniform(); break;
        case 3: x[i] = constant; break;
        case 4: x[i] = i % 37 == 5 ? constant : 0; break;
        case 5: x[i] = i % 2 ? limit : -limit; break;
        case 6: x[i] = (float)(i % 2 ? i : -i) * 1e-45f; break;
        case 7: x[i] = uniform() * 1e-7f; break;
        case 8: x[i] = i < N / 2 ? -1 - 0.001f * uniform() : 1 + 0.001f * uniform(); break;
        default: x[i] = 0;
        }
    }
}

static void decode_anything(uint32_t type) {
    size_t bytes = qwen3_type_bytes(type, N);
    for (int round = 0; round < ROUNDS; round++) {
        size_t shift = random_bits() % 8;
        uint8_t *src = malloc(bytes + shift); /* exactly its size: a read behind it is seen */
        float y[N];
        CHECK(src, "out of memory");
        for (size_t i = 0; i < bytes; i++) src[shift + i] = (uint8_t)random_bits();
        CHECK(qwen3_dequantize(type, src + shift, y, N, NULL) == QWEN3_OK, "type %u", type);
        free(src);
    }
}

static void encode_anything(uint32_t type) {
    static const float weight_sizes[] = {1, 1e30f, 1e-40f, 0};
    size_t bytes = qwen3_type_bytes(type, N);
    float limit = type == TYPE_F32 || type == TYPE_BF16 ? 0x1.fep127f : 65504;
    for (int round = 0; round < ROUNDS; round++) {
        float x[N], y[N], weights[N], size = weight_sizes[round % 4];
        fill(x, round / 5 % 10, limit);
        for (int i = 0; i < N; i++) weights[i] = random_bits() % 4 ? size * fabsf(uniform()) : 0;
        size_t shift = random_bits() % 8;
        uint8_t *block = malloc(bytes + shift);
        qwen3_error err = {0};
        CHECK(block, "out of memory");
        qwen3_status status = qwen3_quantize(type, x, block + shift, N, N / 2,
                                             round % 5 ? weights : NULL, &err);
        CHECK(status == QWEN3_OK, "type %u: %s", type, err.text);
        CHECK(qwen3_dequantize(type, block + shift, y, N, &err) == QWEN3_OK, "%s", err.text);
        float largest = 0;
        for (int i = 0; i < N; i++) largest = fmaxf(largest, fabsf(x[i]));
        for (int i = 0; i < N; i++)
            CHECK(fabsf(y[i]) <= 1.5f * largest + 1e-7f, "%s, kind %d: %g became %g (largest %g)",
                  qwen3_type_name(type), round / 5 % 10, (double)x[i], (double)y[i],
                  (double)largest);
        free(block);
    }
}

/* Up to 19 blocks, so that batches end anywhere, from any column of a row of 5. */
static void encode_alike(uint32_t type) {
    enum { BLOCKS = 19, ROW = 5 };
    const weight_type *t = weight_type_of(type);
    size_t block = (size_t)t->block, bytes = (size_t)(t->bytes * BLOCKS);
    float *x = malloc((BLOCKS * block + N) * sizeof *x), *weights = malloc(ROW * block * sizeof *x);
    uint8_t *want = malloc(bytes), *got = malloc(bytes);
    CHECK(x && weights && want && got, "out of memory");
    for (int round = 0; round < ROUNDS; round++) {
        size_t n_blocks = 1 + random_bits() % BLOCKS, n = n_blocks * block;
        size_t column = random_bits() % ROW * block;
        const float *importance = round % 3 ? weights : NULL;
        for (size_t i = 0; i < n; i += N) fill(x + i, round / 3 % 10, 65504);
        for (size_t i = 0; i < ROW * block; i++) weights[i] = fabsf(uniform());
        encoders_baseline.of[type](x, want, n, column, ROW * block, importance);
        for (const backend *const *b = backend_all(); *b; b++) {
            if (!(*b)->available()) continue;
            memset(got, 0xa5, bytes);
            (*b)->encode->of[type](x, got, n, column, ROW * block, importance);
            CHECK(memcmp(got, want, n_blocks * (size_t)t->bytes) == 0, "%s by %s, kind %d", t->name,
                  (*b)->name, round / 3 % 10);
        }
    }
    free(x), free(weights), free(want), free(got);
}

/* Every half there is, and the nearest half of every float near one. */
static void halves(void) {
    for (uint32_t h = 0; h < 0x10000; h++) {
        float f = f16_to_f32((f16_t)h);
        if (isnan(f)) CHECK(isnan(f16_to_f32(f32_to_f16(f))), "a NaN was lost: %x", h);
        else CHECK(f32_to_f16(f) == h, "%x became %x", h, f32_to_f16(f));
    }
    for (uint32_t h = 0; h < 0x7bff; h++) { /* between two neighbours the even one wins a tie */
        float low = f16_to_f32((f16_t)h), high = f16_to_f32((f16_t)(h + 1)), tie = (low + high) / 2;
        CHECK(f32_to_f16(tie) == h + (h & 1), "tie above %x", h);
        CHECK(f32_to_f16(nextafterf(tie, low)) == h, "below the tie above %x", h);
        CHECK(f32_to_f16(nextafterf(tie, high)) == h + 1, "over the tie above %x", h);
    }
    CHECK(f32_to_f16(65519.996f) == 0x7bff && f32_to_f16(65520) == 0x7c00, "overflow");
}

static void refusals(void) {
    float x[N] = {0};
    uint8_t out[N * 4];
    qwen3_error err;
    CHECK(qwen3_type_bytes(99, 32) == 0 && !qwen3_type_name(99), "type 99 is unknown");
    CHECK(qwen3_type_bytes(TYPE_F32, SIZE_MAX / 2) == 0, "more bytes than there can be");
    CHECK(qwen3_dequantize(99, out, x, 32, &err) == QWEN3_ERR_UNSUPPORTED, "type 99");
    CHECK(qwen3_dequantize(TYPE_Q4_K, out, x, 255, &err) == QWEN3_ERR_ARG, "part of a block");
    CHECK(qwen3_quantize(99, x, out, N, N, NULL, &err) == QWEN3_ERR_UNSUPPORTED, "type 99");
    CHECK(qwen3_quantize(TYPE_Q2_K, x, out, N, N, NULL, &err) == QWEN3_ERR_UNSUPPORTED, "Q2_K");
    CHECK(qwen3_quantize(TYPE_Q8_0, x, out, N, 0, NULL, &err) == QWEN3_ERR_ARG, "rows of 0");
    CHECK(qwen3_quantize(TYPE_Q8_0, x, out, N, 48, NULL, &err) == QWEN3_ERR_ARG, "rows of 48");
    CHECK(qwen3_quantize(TYPE_Q8_0, x, out, N, 96, NULL, &err) == QWEN3_ERR_ARG, "part of a row");
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (uint32_t type = 0; type < TYPE_COUNT; type++) {
        const weight_type *t = weight_type_of(type);
        if (!t || !encoders_baseline.of[type]) continue;
        for (int i = 0; i < 3; i++) {
            x[300] = bad[i];
            qwen3_status status = qwen3_quantize(type, x, out, N, N, NULL, &err);
            CHECK(status == QWEN3_ERR_FORMAT, "%s took %g", t->name, (double)bad[i]);
            CHECK(err.status == status && strstr(err.text, "300"), "%s", err.text);
        }
        x[300] = 0;
        float weights[N] = {[7] = -1};
        CHECK(qwen3_quantize(type, x, out, N, N, weights, &err) == QWEN3_ERR_ARG, "%s", t->name);
    }
}

int main(void) {
    for (uint32_t type = 0; type < TYPE_COUNT; type++) {
        const weight_type *t = weight_type_of(type);
        if (!t) continue;
        decode_anything(type);
        if (!encoders_baseline.of[type]) continue;
        encode_anything(type);
        encode_alike(type);
    }
    halves();
    refusals();
    return 0;
}
