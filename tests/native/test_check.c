/* test_check.c - a NaN or an infinity in any weight is found, and nothing else is taken for one. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blocks.h"
#include "check.h"
#include "codec.h"

enum { N_BLOCKS = 67, MAX_BYTES = 210, MAX_VALUES = 256 };

static uint32_t seed = 1;

static uint32_t draw(void) {
    seed = seed * 1664525u + 1013904223u;
    return seed >> 8;
}

static void expect(bool ok, const char *what, const char *where) {
    if (ok) return;
    fprintf(stderr, "check: %s: %s\n", what, where);
    exit(1);
}

/* ---- blocks: the decoder says what a block stands for --------------------------- */

static bool decodes_finite(const weight_type *type, const uint8_t *block) {
    float values[MAX_VALUES];
    type->decode(block, values, (size_t)type->block);
    for (int i = 0; i < type->block; i++)
        if (!isfinite(values[i])) return false;
    return true;
}

/* Puts NaN, infinities and the largest finite values of each format at every place of a block. */
static void every_field(uint32_t id, const weight_type *type) {
    static const uint32_t patterns[] = {0x7c00, 0xfc00, 0x7e00, 0x7c01, 0xffff,  /* f16 */
                                        0x7bff, 0xfbff, 0x0001, 0x8000, 0x0000,  /* finite */
                                        0x7f80, 0xff80, 0x7fc0, 0x7f7f, 0xff7f,  /* bf16 */
                                        0x7f800000, 0xff800000, 0x7f800001, 0xffc00000, /* f32 */
                                        0x7f7fffff, 0xff7fffff, 0x00000001};
    static const size_t places[] = {0, 1, N_BLOCKS / 2, N_BLOCKS - 2, N_BLOCKS - 1};
    uint8_t memory[N_BLOCKS * MAX_BYTES + 1], *blocks = memory + 1; /* unaligned */
    size_t bytes = (size_t)type->bytes, n_bad = 0;
    memset(blocks, 0, N_BLOCKS * bytes);
    for (size_t place = 0; place < sizeof places / sizeof *places; place++)
        for (size_t field = 0; field + 2 <= bytes; field += 2)
            for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
                uint8_t *block = blocks + places[place] * bytes;
                memcpy(block + field, &patterns[i], field + 4 <= bytes ? 4 : 2);
                bool finite = decodes_finite(type, block);
                size_t found = find_not_finite(id, blocks, N_BLOCKS);
                expect(found == (finite ? N_BLOCKS : places[place]), "one field", type->name);
                n_bad += !finite;
                memset(block, 0, bytes);
            }
    expect(n_bad > 0, "no field was made bad", type->name);
}

/* Random bits: the first block that does not decode to finite values is the one that is found. */
static void random_blocks(uint32_t id, const weight_type *type) {
    uint8_t blocks[N_BLOCKS * MAX_BYTES];
    size_t bytes = (size_t)type->bytes;
    for (int round = 0; round < 400; round++) {
        for (size_t i = 0; i < N_BLOCKS * bytes; i++) blocks[i] = (uint8_t)draw();
        size_t first = 0;
        while (first < N_BLOCKS && decodes_finite(type, blocks + first * bytes)) first++;
        expect(find_not_finite(id, blocks, N_BLOCKS) == first, "random bits", type->name);
        expect(find_not_finite(id, blocks, first) == first, "a finite part", type->name);
    }
    expect(find_not_finite(id, blocks, 0) == 0, "no blocks", type->name);
}

/* ---- models ---------------------------------------------------------------------- */

static uint8_t *read_file(const char *path, size_t *len) {
    FILE *f = fopen(path, "rb");
    expect(f && fseek(f, 0, SEEK_END) == 0 && ftell(f) > 0, "cannot be read", path);
    *len = (size_t)ftell(f);
    rewind(f);
    uint8_t *image = malloc(*len);
    expect(image && fread(image, 1, *len, f) == *len, "cannot be read", path);
    fclose(f);
    return image;
}

static bool opens(const uint8_t *image, size_t len, int threads, qwen3_error *err) {
    qwen3_file *file = qwen3_file_from_memory(image, len, err);
    qwen3_model *model = file ? qwen3_model_from_file(file, threads, 0, err) : NULL;
    qwen3_model_close(model);
    return model != NULL;
}

static bool names(const qwen3_error *err, const qwen3_tensor *t, unsigned row, unsigned block) {
    char want[160];
    snprintf(want, sizeof want, "'%.*s' holds a NaN or an infinity in row %u, block %u (",
             (int)t->name.len, t->name.data, row, block);
    return err->status == QWEN3_ERR_FORMAT && strstr(err->text, want);
}

/* The first and the last value of every tensor, and both at once, for several threads. */
static void every_tensor(const char *path) {
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    qwen3_error err;
    size_t len;
    uint8_t *image = read_file(path, &len);
    qwen3_file *file = qwen3_file_from_memory(image, len, &err);
    expect(file && opens(image, len, 2, &err), "opens as it is", path);
    for (size_t i = 0; i < qwen3_file_n_tensors(file); i++) {
        const qwen3_tensor *t = qwen3_file_tensor(file, i);
        uint8_t *first = image + (t->data - image), *last = first + t->bytes - 4, kept[2][4];
        unsigned columns = (unsigned)t->shape[0], rows = (unsigned)(t->bytes / 4 / columns);
        expect(t->type == TYPE_F32, "is of F32", path);
        memcpy(kept[0], first, 4);
        memcpy(kept[1], last, 4);
        for (int threads = 1; threads <= 4; threads++) {
            const float *value = &bad[(i + (size_t)threads) % 3];
            memcpy(last, value, 4);
            expect(!opens(image, len, threads, &err) && names(&err, t, rows - 1, columns - 1),
                   "the last value is found", err.text);
            memcpy(first, value, 4);
            expect(!opens(image, len, threads, &err) && names(&err, t, 0, 0),
                   "the first of two is named", err.text);
            memcpy(first, kept[0], 4);
            memcpy(last, kept[1], 4);
        }
    }
    expect(opens(image, len, 2, &err), "opens again", path);
    qwen3_file_close(file);
    free(image);
}

/* With too little memory the experts, and nothing else, are left to be checked when used. */
static void experts(const char *path) {
    qwen3_error err;
    size_t len, n_experts = 0;
    uint8_t *image = read_file(path, &len);
    qwen3_file *file = qwen3_file_from_memory(image, len, &err);
    pool *pool = pool_new(2);
    expect(file && pool, "opens", path);
    for (size_t i = 0; i < qwen3_file_n_tensors(file); i++) {
        const qwen3_tensor *t = qwen3_file_tensor(file, i);
        uint8_t *first = image + (t->data - image), kept[4];
        bool expert = t->n_dims == 3;
        n_experts += expert;
        memcpy(kept, first, 4);
        memcpy(first, &(float){NAN}, 4);
        expect((check_weights(file, len, pool, &err) == QWEN3_OK) == expert, "little memory",
               err.text);
        expect(check_weights(file, 3 * len, pool, &err) != QWEN3_OK, "much memory", path);
        memcpy(first, kept, 4);
    }
    expect(n_experts == 3, "there are experts", path);
    pool_free(pool);
    qwen3_file_close(file);
    free(image);
}

int main(void) {
    for (uint32_t id = 0; id < TYPE_COUNT; id++) {
        const weight_type *type = weight_type_of(id);
        if (!type) continue;
        every_field(id, type);
        random_blocks(id, type);
    }
    every_tensor("tests/data/tiny.gguf");
    every_tensor("tests/data/tiny-moe.gguf");
    experts("tests/data/tiny-moe.gguf");
    puts("check: ok");
    return 0;
}
