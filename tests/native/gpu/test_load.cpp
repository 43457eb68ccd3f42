/* How a backend is found, and what is said where there is none. Each case is a process of its own,
 * as the answer is kept. With the argument "here": what this machine has, used if it is a GPU. */
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "gpu/load.h"

static int failures;

static bool check(bool ok, const char *what, const char *text) {
    if (!ok) std::fprintf(stderr, "%s: %s\n", what, text);
    failures += !ok;
    return ok;
}

static bool contains(const char *text, const char *part) { return std::strstr(text, part); }

/* RMSNorm of a row of ones, launched and replayed, on whatever device there is. */
static void use(const gpu_api *api) {
    qwen3_error err = {};
    gpu *g = api->open(0, &err);
    if (!check(g, "open", err.text)) return;
    const int n = 64;
    const size_t bytes = n * sizeof(float);
    std::vector<float> ones(n, 1), y(n, 0);
    auto *x = static_cast<float *>(api->alloc(g, bytes, &err));
    auto *out = static_cast<float *>(api->alloc(g, bytes, &err));
    if (!check(x && out, "alloc", err.text)) return;
    norm_args args = {x, x, out, nullptr, n, 0};
    auto ok = [&](qwen3_status status, const char *what) {
        return check(status == QWEN3_OK, what, err.text);
    };
    auto result = [&](const char *what) {
        ok(api->download(g, GPU_COMPUTE, y.data(), out, bytes, &err), what);
        ok(api->sync(g, GPU_COMPUTE, &err), what);
        check(y == ones, what, "another result");
    };
    gpu_info info;
    ok(api->describe(g, &info, &err), "describe");
    check(info.name[0] && info.total_bytes >= info.free_bytes, "describe", info.name);
    ok(api->upload(g, GPU_COPY, x, ones.data(), bytes, &err), "upload");
    ok(api->wait(g, GPU_COMPUTE, GPU_COPY, &err), "wait");
    const gpu_grid grid = {1, 1, 1, 32, 128};
    ok(api->launch(g, GPU_COMPUTE, KERNEL_rms_norm, grid, &args, sizeof args, &err), "launch");
    result("launch");

    ok(api->capture_begin(g, GPU_COMPUTE, &err), "capture_begin");
    ok(api->launch(g, GPU_COMPUTE, KERNEL_rms_norm, grid, &args, sizeof args, &err), "captured");
    gpu_graph *graph = api->capture_end(g, GPU_COMPUTE, &err);
    if (check(graph, "capture_end", err.text)) {
        std::vector<float> zeros(n, 0);
        ok(api->upload(g, GPU_COMPUTE, out, zeros.data(), bytes, &err), "upload");
        ok(api->replay(g, GPU_COMPUTE, graph, &err), "replay");
        result("replay");
        api->release_graph(g, graph);
    }
    api->release(g, x);
    api->release(g, out);
    api->close(g);
}

/* A device whose memory does not suffice says so and goes on. */
static void exhaust(const gpu_api *api) {
    qwen3_error err = {};
    gpu *g = api->open(0, &err);
    if (!check(g, "open", err.text)) return;
    check(!api->alloc(g, (size_t)1 << 50, &err), "alloc", "a petabyte was allocated");
    check(err.status == QWEN3_ERR_MEMORY, "alloc", err.text);
    api->close(g);
    use(api);
}

static const gpu_api *expect_none(const char *reason, qwen3_status status) {
    qwen3_error why = {};
    const gpu_api *api = gpu_find(&why);
    if (check(!api, reason, "a backend was found"))
        check(why.status == status && contains(why.text, reason), reason, why.text);
    return api;
}

static const gpu_api *expect_one() {
    qwen3_error why = {};
    const gpu_api *api = gpu_find(&why);
    check(api, "gpu_find", why.text);
    return api;
}

template <typename Case> static void in_child(const char *library, const char *spoiled, Case run) {
    pid_t child = fork();
    if (child == 0) {
        if (library) setenv("QWEN3_GPU_LIBRARY", library, 1);
        else unsetenv("QWEN3_GPU_LIBRARY");
        if (spoiled) setenv("QWEN3_TEST_BACKEND", spoiled, 1);
        run();
        std::fflush(nullptr);
        _exit(failures != 0);
    }
    int status = -1;
    failures += child < 0 || waitpid(child, &status, 0) != child || status != 0;
}

static void from_threads() {
    const gpu_api *seen[8] = {};
    std::vector<std::thread> threads;
    for (auto &each : seen) threads.emplace_back([&each] { each = gpu_find(nullptr); });
    for (auto &thread : threads) thread.join();
    for (auto each : seen) check(each && each == seen[0], "threads", "they found different ones");
}

/* This program beside a backend, through links in a folder of their own. */
static void beside(const char *program) {
    char folder[] = P_tmpdir "/qwen3-load-XXXXXX";
    if (!check(mkdtemp(folder), "beside", "no temporary folder")) return;
    std::string at = folder, copy = at + "/program", library = at + "/libqwen3_cuda.so";
    check(symlink(program, copy.c_str()) == 0 && symlink(BACKEND, library.c_str()) == 0, "beside",
          "no links");
    in_child(nullptr, nullptr, [&] {
        execl(copy.c_str(), copy.c_str(), "found", static_cast<char *>(nullptr));
        check(false, "beside", "the program does not start");
    });
    unlink(copy.c_str());
    unlink(library.c_str());
    rmdir(folder);
}

/* Where CUDA is built: without a driver the reason says so. */
static void here() {
    qwen3_error why = {};
    const gpu_api *api = gpu_find(&why);
    std::printf("%s\n", api ? api->name : why.text);
    if (api) exhaust(api);
    else check(contains(why.text, "cudaGetDeviceCount: ") && contains(why.text, " (CUDA error "),
               "here", why.text);
}

int main(int argc, char **argv) {
    std::string mode = argc > 1 ? argv[1] : "";
    if (mode == "found") {
        expect_one();
    } else if (mode == "here") {
        here();
    } else {
        in_child(nullptr, nullptr, [] {
            expect_none("no GPU backend", QWEN3_ERR_UNSUPPORTED);
        });
        in_child("/nowhere/backend.so", nullptr, [] {
            expect_none("/nowhere/backend.so", QWEN3_ERR_IO);
            expect_none("QWEN3_GPU_LIBRARY names this file", QWEN3_ERR_IO);
        });
        in_child("libm.so.6", nullptr, [] {
            expect_none("libm.so.6 is no GPU backend", QWEN3_ERR_FORMAT);
        });
        in_child(BACKEND, "old", [] { expect_none("of another version", QWEN3_ERR_FORMAT); });
        in_child(BACKEND, "none", [] {
            expect_none("the driver is asleep", QWEN3_ERR_UNSUPPORTED);
        });
        in_child(BACKEND, nullptr, [] { if (const gpu_api *api = expect_one()) exhaust(api); });
        in_child(BACKEND, nullptr, from_threads);
        beside("/proc/self/exe");
    }
    return failures != 0;
}
