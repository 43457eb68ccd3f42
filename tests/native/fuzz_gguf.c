/* fuzz_gguf.c - libFuzzer target: any bytes as a model file, and two files in one input, cut at
 * the second "GGUF", as the two shards of a model too.
 *
 *   cmake -S . -B build/fuzz -DCMAKE_C_COMPILER=clang -DQWEN3_PYTHON=OFF -DQWEN3_FUZZ=ON \
 *         -DQWEN3_SANITIZE=address,undefined,fuzzer-no-link
 *   cmake --build build/fuzz
 *   build/fuzz/tests/native/fuzz_gguf -max_total_time=20 \
 *         -seed_inputs=tests/data/tiny.gguf,tests/data/tiny-moe.gguf
 *   cat tests/data/tiny-0000?-of-00002.gguf makes a seed of two shards.
 */
#include <stdio.h>

#include "exercise.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[] = P_tmpdir "/qwen3-fuzz-XXXXXX";
static char shards[2][64];

static void remove_shards(void) {
    for (int i = 0; i < 2; i++) remove(shards[i]);
    remove(folder);
}

static void write_shard(int no, const uint8_t *data, size_t size) {
    FILE *f = fopen(shards[no], "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f) != 0) abort();
}

static void exercise_shards(const uint8_t *data, size_t size, const uint8_t *second) {
    if (!shards[0][0]) {
        if (!mkdtemp(folder)) abort();
        for (int i = 0; i < 2; i++)
            snprintf(shards[i], sizeof shards[i], "%s/f-0000%d-of-00002.gguf", folder, i + 1);
        atexit(remove_shards);
    }
    write_shard(0, data, (size_t)(second - data));
    write_shard(1, second, (size_t)(data + size - second));
    exercise_path(shards[0]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *second = size > 8 ? memmem(data + 4, size - 4, "GGUF", 4) : NULL;
    if (second) exercise_shards(data, size, second);
    exercise(data, size);
    return 0;
}
