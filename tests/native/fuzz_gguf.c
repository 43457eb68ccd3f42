/* fuzz_gguf.c - libFuzzer target: any bytes as a model file.
 *
 *   cmake -S . -B build/fuzz -DCMAKE_C_COMPILER=clang -DQWEN3_PYTHON=OFF -DQWEN3_FUZZ=ON \
 *         -DQWEN3_SANITIZE=address,undefined,fuzzer-no-link
 *   cmake --build build/fuzz
 *   build/fuzz/tests/native/fuzz_gguf -max_total_time=20 \
 *         -seed_inputs=tests/data/tiny.gguf,tests/data/tiny-moe.gguf
 */
#include "exercise.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    exercise(data, size);
    return 0;
}
