/* The emulation itself: mistakes that a GPU would forgive today show here. */
#include <algorithm>
#include <string>

#include "gpu/dialect.h"

#include "device.h"

enum { THREADS = 64 };

struct test_args {
    int *out;
    int n;
};

enum { LINES_BELOW = __LINE__ }; /* the lines of the kernels are counted from here */
KERNEL(reversed, test_args) {
    SHARED int *seen = (SHARED int *)shared;
    seen[at.tid] = at.tid;
    barrier();
    a.out[at.tid] = seen[at.threads - 1 - at.tid];
}

KERNEL(reversed_without_barrier, test_args) {
    SHARED int *seen = (SHARED int *)shared;
    seen[at.tid] = at.tid;
    a.out[at.tid] = seen[at.threads - 1 - at.tid];
}

KERNEL(reversed_twice, test_args) { /* a barrier is missing between reading and writing anew */
    SHARED int *seen = (SHARED int *)shared;
    for (int round = 0; round < 2; round++) {
        seen[at.tid] = at.tid + round;
        barrier();
        if (round == 0) a.out[at.tid] = seen[at.threads - 1 - at.tid];
    }
}

KERNEL(divergent, test_args) {
    if (at.warp == 1) barrier(); /* line 24 */
    else barrier();              /* line 25 */
}

KERNEL(one_leaves, test_args) {
    if (at.tid == 40) return;
    a.out[at.tid] = lane_sum(1); /* line 30 */
}

KERNEL(divergent_sums, test_args) {
    if (at.lane < 16) a.out[at.tid] = lane_sum(1); /* line 34 */
    else a.out[at.tid] = lane_sum(2);              /* line 35 */
}

KERNEL(neighbour_without_barrier, test_args) { /* right where threads run one after the other */
    SHARED int *seen = (SHARED int *)shared;
    seen[at.tid] = THREADS - 1 - at.tid;
    a.out[at.tid] = at.lane ? seen[at.tid - 1] - 1 : THREADS - 1 - at.tid;
}

KERNEL(overtaken, test_args) { /* a barrier is missing before the second writing */
    SHARED int *seen = (SHARED int *)shared;
    if (at.lane == 0) seen[at.warp] = at.warp;
    barrier();
    a.out[at.tid] = THREADS - 1 - at.tid + seen[1 - at.warp] - 1 + at.warp;
    lane_sum(1);
    if (at.lane == 0) seen[at.warp] = 100;
}

KERNEL(warps_apart, test_args) { /* each warp as many exchanges as it likes, and then all meet */
    int x = 0;
    for (int i = 0; i < at.warp; i++) x += lane_sum(at.lane);
    barrier();
    a.out[at.tid] = x + lane_from(at.lane, 31 - at.lane);
}

KERNEL(garbage, test_args) { a.out[at.tid] = ((SHARED int *)shared)[at.tid]; }

KERNEL(blocks, test_args) {
    a.out[((at.z * 2 + at.y) * 3 + at.x) * at.threads + at.tid] = at.lane + 100 * at.warp;
}

static std::vector<int> run(gpu_emulated_kernel *kernel, uint64_t seed, std::string *error,
                            gpu_grid grid = {1, 1, 1, THREADS, 4 * THREADS}) {
    std::vector<int> out((size_t)(grid.x * grid.y * grid.z * grid.threads));
    test_args args = {out.data(), 0};
    gpu_emulated_seed(seed);
    qwen3_error err = {};
    *error = gpu_emulated_run(kernel, grid, &args, &err) == QWEN3_OK ? "" : err.text;
    return out;
}

/* How many of 20 seeds give another result than `wanted`. */
static int wrong(gpu_emulated_kernel *kernel, const std::vector<int> &wanted) {
    int n = 0;
    std::string error;
    for (uint64_t seed = 0; seed < 20; seed++) {
        n += run(kernel, seed, &error) != wanted;
        CHECK(error.empty(), "%s", error.c_str());
    }
    return n;
}

static void test_barriers() {
    std::vector<int> wanted(THREADS);
    for (int t = 0; t < THREADS; t++) wanted[(size_t)t] = THREADS - 1 - t;
    CHECK(wrong(reversed, wanted) == 0, "a right kernel gives wrong results");
    CHECK(wrong(reversed_without_barrier, wanted) > 0, "a missing barrier does not show");
    CHECK(wrong(reversed_twice, wanted) > 0, "a missing second barrier does not show");
    CHECK(wrong(neighbour_without_barrier, wanted) > 0, "threads run in their order");
    CHECK(wrong(overtaken, wanted) > 0, "no warp gets ahead of another");
}

static void expect(gpu_emulated_kernel *kernel, const char *what, int line, int other) {
    std::string error, text;
    for (uint64_t seed = 0; seed < 3; seed++) {
        run(kernel, seed, &error);
        for (int n : {line, other}) {
            text = n ? "at line " + std::to_string(LINES_BELOW + n) : "has ended";
            CHECK(error.find(what) == 0 && error.find(text) != std::string::npos, "'%s', not %s %s",
                  error.c_str(), what, text.c_str());
        }
    }
}

static void test_errors() {
    expect(divergent, "a barrier is not reached", 24, 25);
    expect(one_leaves, "a lane is missing", 30, 0);
    expect(divergent_sums, "a lane is missing", 34, 35);
    std::string error;
    run(reversed, 1, &error);
    CHECK(error.empty(), "an error stays: %s", error.c_str());
}

static void test_warps() {
    std::vector<int> wanted(THREADS);
    for (int t = 0; t < THREADS; t++) wanted[(size_t)t] = t / 32 * (31 * 32 / 2) + 31 - t % 32;
    CHECK(wrong(warps_apart, wanted) == 0, "warps disturb each other");
}

static void test_garbage() {
    std::string error;
    std::vector<int> one = run(garbage, 1, &error), other = run(garbage, 2, &error);
    CHECK(one != other, "shared memory has the same content with every seed");
    CHECK(std::count(one.begin(), one.end(), 0) < 3, "shared memory begins as zeros");
    CHECK(one == run(garbage, 1, &error), "a seed does not give the same run again");
}

static void test_grid() {
    std::string error;
    std::vector<int> out = run(blocks, 3, &error, {3, 2, 2, 96, 0});
    for (int i = 0; i < (int)out.size(); i++)
        CHECK(out[(size_t)i] == i % 32 + i % 96 / 32 * 100, "at %d: %d", i, out[(size_t)i]);
}

int main() {
    test_barriers();
    test_errors();
    test_warps();
    test_garbage();
    test_grid();
    return finish();
}
