/* The emulation as a backend of its own file, or one that QWEN3_TEST_BACKEND spoils. */
#include <cstdlib>
#include <cstring>

#include "gpu/emulated.h"
#include "gpu/load.h"

extern "C" {
#include "error.h"
}

extern "C" __attribute__((visibility("default"))) gpu_entry qwen3_gpu;

const gpu_api *qwen3_gpu(void) {
    static gpu_api api = gpu_emulated;
    const char *spoiled = std::getenv("QWEN3_TEST_BACKEND");
    if (spoiled && !std::strcmp(spoiled, "old")) api.version--;
    if (spoiled && !std::strcmp(spoiled, "none"))
        api.count = [](qwen3_error *why) {
            fail(why, QWEN3_ERR_UNSUPPORTED, "the driver is asleep");
            return 0;
        };
    if (spoiled && !std::strcmp(spoiled, "small"))
        api.alloc = [](gpu *device, size_t bytes, qwen3_error *err) -> void * {
            if (bytes <= 12000000) return gpu_emulated.alloc(device, bytes, err);
            fail(err, QWEN3_ERR_MEMORY, "the GPU has no %zu bytes left", bytes);
            return nullptr;
        };
    return &api;
}
