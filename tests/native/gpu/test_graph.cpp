/* Graphs: what is recorded does not run, and replayed it takes what memory holds then. */
#include "device.h"

enum { N = 96 };

static const gpu_api &api = gpu_emulated;
static const gpu_grid grid = {1, 1, 1, 64, 128};

/* x normalized twice: y, then z. */
struct Chain {
    explicit Chain(gpu *g, const std::vector<float> &from)
        : x(g, from), w(g, std::vector<float>(N, 1)), y(g, std::vector<float>(N, 0)),
          z(g, std::vector<float>(N, 0)) {}

    Array<float> x, w, y, z;
};

static bool launch(gpu *g, int stream, const float *from, const float *w, float *to) {
    qwen3_error err = {};
    norm_args args = {from, w, to, nullptr, N, 1e-6f}; /* gone when the graph is replayed */
    return api.launch(g, stream, KERNEL_rms_norm, grid, &args, sizeof args, &err) == QWEN3_OK;
}

static void check_chain(const Chain &chain, const char *when) {
    std::vector<float> wanted = chain.x.read(), ones(N, 1);
    for (int i = 0; i < 2; i++)
        backend_scalar.rmsnorm(wanted.data(), wanted.data(), ones.data(), N, 1e-6f);
    CHECK(distance(chain.z.read(), wanted) < 1e-6, "%s", when);
}

static void test_replay(Random *r) {
    Device device(r->bits());
    qwen3_error err = {};
    Chain chain(device, r->floats(N, 2));
    CHECK(api.capture_begin(device, GPU_COMPUTE, &err) == QWEN3_OK, "%s", err.text);
    CHECK(launch(device, GPU_COMPUTE, chain.x, chain.w, chain.y), "the first");
    CHECK(launch(device, GPU_COMPUTE, chain.y, chain.w, chain.z), "the second");
    gpu_graph *graph = api.capture_end(device, GPU_COMPUTE, &err);
    CHECK(graph, "%s", err.text);
    CHECK(same_bits(chain.z.read(), std::vector<float>(N, 0)), "it ran when it was recorded");
    for (int step = 0; step < 3; step++) {
        std::vector<float> x = r->floats(N, 2);
        api.upload(device, GPU_COMPUTE, chain.x, x.data(), N * sizeof(float), &err);
        CHECK(api.replay(device, GPU_COMPUTE, graph, &err) == QWEN3_OK, "%s", err.text);
        CHECK(api.sync(device, GPU_COMPUTE, &err) == QWEN3_OK, "%s", err.text);
        check_chain(chain, "replayed");
    }
    api.release_graph(device, graph);
}

/* What CUDA would refuse, too. */
static void test_refused(Random *r) {
    Device device(r->bits());
    qwen3_error err = {};
    Chain chain(device, r->floats(N, 2));
    float x = 0;
    CHECK(!api.capture_end(device, GPU_COMPUTE, &err), "nothing is recorded");
    CHECK(api.capture_begin(device, GPU_COMPUTE, &err) == QWEN3_OK, "%s", err.text);
    CHECK(api.capture_begin(device, GPU_COPY, &err) == QWEN3_ERR_ARG, "two at once");
    CHECK(api.upload(device, GPU_COMPUTE, chain.x, &x, sizeof x, &err) == QWEN3_ERR_ARG, "upload");
    CHECK(api.download(device, GPU_COMPUTE, &x, chain.x, sizeof x, &err) == QWEN3_ERR_ARG,
          "download");
    CHECK(api.wait(device, GPU_COMPUTE, GPU_COPY, &err) == QWEN3_ERR_ARG, "wait");
    CHECK(api.sync(device, GPU_COMPUTE, &err) == QWEN3_ERR_ARG, "sync");
    CHECK(!api.alloc(device, 4, &err), "alloc");
    CHECK(!api.capture_end(device, GPU_COPY, &err), "another stream's");
    norm_args args = {};
    CHECK(api.launch(device, GPU_COMPUTE, KERNEL_rms_norm, grid, &args, 1, &err) == QWEN3_ERR_ARG,
          "arguments of another size");
    gpu_graph *graph = api.capture_end(device, GPU_COMPUTE, &err);
    CHECK(graph, "%s", err.text);
    CHECK(api.sync(device, GPU_COMPUTE, &err) == QWEN3_OK, "%s", err.text);
    api.release_graph(device, graph);
}

int main() {
    Random r{1};
    test_replay(&r);
    test_refused(&r);
    return finish();
}
