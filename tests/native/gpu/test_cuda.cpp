/* cuda.cpp where calls of CUDA fail: on fake/cuda_runtime_api.h. */
#include "gpu/cuda.cpp"

#include "device.h"

const void *const kernel_functions[N_KERNELS] = {};

static qwen3_error err;
static bool quiet; /* the call failed where nobody is told */

template <typename Work> static void quietly(Work work) {
    bool before = fake.failed;
    work();
    quiet |= !before && fake.failed;
}

static bool ok(qwen3_status status) { return status == QWEN3_OK; }

static const norm_args nothing = {};

static qwen3_status launch_norm(gpu *g, int shared) {
    return api.launch(g, GPU_COMPUTE, KERNEL_rms_norm, {1, 1, 1, 32, shared}, &nothing,
                      sizeof nothing, &err);
}

/* Begun, it must be ended. */
static gpu_graph *record(gpu *g) {
    if (!ok(api.capture_begin(g, GPU_COMPUTE, &err))) return nullptr;
    bool launched = ok(launch_norm(g, 128));
    gpu_graph *graph = api.capture_end(g, GPU_COMPUTE, launched ? &err : nullptr);
    if (launched) return graph;
    api.release_graph(g, graph);
    return nullptr;
}

static bool work(gpu *g, void *at, void *pinned) {
    gpu_info info;
    if (!ok(api.describe(g, &info, &err)) || !ok(api.upload(g, GPU_COPY, at, pinned, 16, &err)) ||
        !ok(api.wait(g, GPU_COMPUTE, GPU_COPY, &err)) || !ok(launch_norm(g, 64 << 10)) ||
        !ok(api.download(g, GPU_COMPUTE, pinned, at, 16, &err)))
        return false;
    gpu_graph *graph = record(g);
    bool done = graph && ok(api.replay(g, GPU_COMPUTE, graph, &err)) &&
                ok(api.sync(g, GPU_COMPUTE, &err));
    quietly([&] { api.release_graph(g, graph); });
    return done;
}

/* All that a device is asked for. */
static bool session() {
    if (!api.count(&err)) return false;
    gpu *g = api.open(0, &err);
    if (!g) return false;
    void *at = api.alloc(g, 16, &err), *pinned = at ? api.alloc_pinned(g, 16, &err) : nullptr;
    if (at) std::memset(at, 0, 16);
    if (pinned) std::memset(pinned, 0, 16);
    bool done = pinned && work(g, at, pinned);
    quietly([&] {
        if (done && api.pin(g, &err, sizeof err)) api.unpin(g, &err);
        api.release_pinned(g, pinned);
        api.release(g, at);
        api.close(g);
    });
    return done;
}

/* Each call in turn: it is named, nothing is left, and no later call tells of it again. */
static void test_each() {
    fake = {};
    CHECK(session(), "%s", err.text);
    for (int n = 0, calls = fake.calls; n < calls; n++) {
        fake = {};
        fake.fails = n;
        quiet = false;
        err = {};
        bool done = session();
        CHECK(fake.live == 0, "%s fails: %d objects are left", fake.failed, fake.live);
        CHECK(fake.last == cudaSuccess, "%s fails: it would be told again", fake.failed);
        CHECK(done == (quiet || !std::strcmp(fake.failed, "cudaGraphDestroy")),
              "%s fails, the %dth call: %s", fake.failed, n, done ? "unnoticed" : "fatally");
        CHECK(done || std::strstr(err.text, fake.failed), "%s fails: %s", fake.failed, err.text);
    }
}

static void test_memory() {
    fake = {};
    gpu *g = api.open(0, &err);
    fake.with = cudaErrorMemoryAllocation;
    fake.fails = fake.calls + 1; /* behind cudaSetDevice */
    CHECK(!api.alloc(g, 123, &err) && err.status == QWEN3_ERR_MEMORY, "%s", err.text);
    CHECK(std::strstr(err.text, "cudaMalloc of 123 bytes"), "%s", err.text);
    void *at = api.alloc(g, 0, &err);
    CHECK(at && ok(api.sync(g, GPU_COMPUTE, &err)), "%s", err.text);
    api.release(g, at);
    api.close(g);
}

static void test_launch() {
    fake = {};
    gpu *g = api.open(0, &err);
    for (int shared : {48 << 10, 64 << 10, 50 << 10, 64 << 10})
        CHECK(ok(launch_norm(g, shared)), "%s", err.text);
    CHECK(fake.grants == 1 && fake.launches == 4, "%d grants", fake.grants);
    CHECK(api.launch(g, GPU_COMPUTE, KERNEL_rms_norm, {1, 1, 1, 32, 0}, &nothing, 1, &err) ==
              QWEN3_ERR_ARG && fake.launches == 4, "arguments of another build");
    CHECK(ok(api.launch(g, GPU_COMPUTE, KERNEL_rms_norm, {0, 1, 1, 32, 0}, &nothing, sizeof nothing,
                        &err)) && fake.launches == 4, "a grid without blocks");
    fake.with = cudaErrorLaunchOutOfResources;
    fake.fails = fake.calls + 1;
    CHECK(launch_norm(g, 128) == QWEN3_ERR_ARG && std::strstr(err.text, "rms_norm"), "%s",
          err.text);
    fake.with = cudaErrorIllegalAddress;
    fake.fails = fake.calls + 1;
    CHECK(api.sync(g, GPU_COMPUTE, &err) == QWEN3_ERR_IO && std::strstr(err.text, "rms_norm"), "%s",
          err.text);
    api.close(g);
}

static void expect_none(const char *reason) {
    err = {};
    CHECK(api.count(&err) == 0 && err.status == QWEN3_ERR_UNSUPPORTED, "%s", err.text);
    CHECK(std::strstr(err.text, reason), "%s: %s", reason, err.text);
}

static void test_none() {
    fake = {};
    fake.fails = 0;
    fake.with = cudaErrorInsufficientDriver;
    fake.driver = 0;
    expect_none("there is no NVIDIA driver here");
    fake.calls = 0;
    fake.driver = 12040;
    expect_none("the NVIDIA driver is for CUDA 12.4, this build of qwen3 needs one for 13.2");
    fake.devices = 0;
    setenv("CUDA_VISIBLE_DEVICES", "", 1);
    expect_none("CUDA_VISIBLE_DEVICES");
}

int main() {
    test_each();
    test_memory();
    test_launch();
    test_none();
    return finish();
}
