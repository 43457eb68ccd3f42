/* test_hostile.c - every damaged header is an error or a model, never a crash.
 *
 * Flips every byte of the header of two small models and cuts the files at every length of
 * it; meant for the build with AddressSanitizer, which sees a read past the end.
 */
#include <stdio.h>

#include "exercise.h"

static uint8_t *read_file(const char *path, size_t *len) {
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    uint8_t *data = NULL;
    if (fseek(f, 0, SEEK_END) == 0 && ftell(f) > 0) {
        *len = (size_t)ftell(f);
        rewind(f);
        data = malloc(*len); /* exactly its size: a read behind it is seen */
        if (data && fread(data, 1, *len, f) != *len) {
            free(data);
            data = NULL;
        }
    }
    fclose(f);
    return data;
}

/* Where the tensor data begin. */
static size_t header_size(const uint8_t *image, size_t len) {
    qwen3_error err;
    qwen3_file *file = qwen3_file_from_memory(image, len, &err);
    if (!file) return 0;
    size_t size = (size_t)(qwen3_file_tensor(file, 0)->data - image);
    qwen3_file_close(file);
    return size;
}

static bool damage(const char *path) {
    static const uint8_t flips[] = {0xff, 0x01, 0x80};
    size_t len = 0, reached[COMPUTED + 1] = {0};
    uint8_t *image = read_file(path, &len);
    size_t header = image ? header_size(image, len) : 0;
    bool ok = header > 0 && exercise(image, len) == COMPUTED;
    if (!ok) fprintf(stderr, "%s is missing or does not run\n", path);
    for (size_t at = 0; at < header && ok; at++)
        for (size_t i = 0; i < sizeof flips; i++) {
            image[at] ^= flips[i];
            reached[exercise(image, len)]++;
            image[at] ^= flips[i];
        }
    for (size_t cut = 0; cut < header && ok; cut++) {
        uint8_t *copy = malloc(cut); /* its own end, so that a read past it is seen */
        if (copy && cut) memcpy(copy, image, cut);
        ok = copy && exercise(copy, cut) == REFUSED;
        free(copy);
        if (!ok) fprintf(stderr, "%s cut at byte %zu still opens\n", path, cut);
    }
    free(image);
    printf("%s: %zu header bytes flipped: %zu files refused, %zu models refused, %zu opened, "
           "%zu computed\n",
           path, header, reached[REFUSED], reached[LISTED], reached[OPENED], reached[COMPUTED]);
    return ok;
}

int main(void) {
    bool dense = damage("tests/data/tiny.gguf"), moe = damage("tests/data/tiny-moe.gguf");
    return dense && moe ? 0 : 1;
}
