/* test_hostile.c - every damaged header is an error or a model, never a crash.
 *
 * Flips every byte of the header of two small models, and of each shard of a split one, and
 * cuts the files at every length of it; meant for the build with AddressSanitizer, which sees a read past the end.
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

/* ---- shards --------------------------------------------------------------- */

static bool write_file(const char *path, const uint8_t *data, size_t len) {
    FILE *f = fopen(path, "wb");
    if (!f) return false;
    bool ok = fwrite(data, 1, len, f) == len;
    return fclose(f) == 0 && ok;
}

/* One of two shards of a model, the other whole. */
static bool damage_shard(const char *folder, int no) {
    char from[64], path[96], first[96];
    snprintf(from, sizeof from, "tests/data/tiny-0000%d-of-00002.gguf", no);
    snprintf(path, sizeof path, "%s/tiny-0000%d-of-00002.gguf", folder, no);
    snprintf(first, sizeof first, "%s/tiny-00001-of-00002.gguf", folder);
    size_t len = 0, reached[COMPUTED + 1] = {0};
    uint8_t *image = read_file(from, &len);
    size_t header = image ? header_size(image, len) : 0;
    bool ok = header > 0 && exercise_path(first) == COMPUTED;
    if (!ok) fprintf(stderr, "%s is missing or does not run\n", from);
    for (size_t at = 0; at < header && ok; at++) {
        image[at] ^= 0xff;
        ok = write_file(path, image, len);
        reached[exercise_path(first)]++;
        image[at] ^= 0xff;
    }
    for (size_t cut = 0; cut < header && ok; cut++) {
        ok = write_file(path, image, cut) && exercise_path(first) == REFUSED;
        if (!ok) fprintf(stderr, "%s cut at byte %zu still opens\n", from, cut);
    }
    ok = image && write_file(path, image, len) && ok;
    free(image);
    printf("%s: %zu header bytes flipped: %zu files refused, %zu models refused, %zu opened, "
           "%zu computed\n",
           from, header, reached[REFUSED], reached[LISTED], reached[OPENED], reached[COMPUTED]);
    return ok;
}

static bool damage_shards(void) {
    char folder[] = P_tmpdir "/qwen3-hostile-XXXXXX", path[96];
    if (!mkdtemp(folder)) return false;
    bool ok = true;
    for (int no = 1; no <= 2; no++) {
        size_t len = 0;
        snprintf(path, sizeof path, "tests/data/tiny-0000%d-of-00002.gguf", no);
        uint8_t *image = read_file(path, &len);
        snprintf(path, sizeof path, "%s/tiny-0000%d-of-00002.gguf", folder, no);
        ok = image && write_file(path, image, len) && ok;
        free(image);
    }
    for (int no = 1; no <= 2 && ok; no++) ok = damage_shard(folder, no);
    for (int no = 1; no <= 2; no++) {
        snprintf(path, sizeof path, "%s/tiny-0000%d-of-00002.gguf", folder, no);
        remove(path);
    }
    remove(folder);
    return ok;
}

int main(void) {
    bool dense = damage("tests/data/tiny.gguf"), moe = damage("tests/data/tiny-moe.gguf");
    return damage_shards() && dense && moe ? 0 : 1;
}
