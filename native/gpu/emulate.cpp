/* emulate.cpp - see emulate.h; and a device that runs kernels so, at once. */
#include <algorithm>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#if defined(__has_feature)
#if __has_feature(memory_sanitizer)
#include <sanitizer/msan_interface.h>
#define WITH_MSAN 1
#endif
#endif

#include "dialect.h"

#include "emulated.h"
#include "fiber.h"
#include "kernels.h"
#include "kernels/all.h"

extern "C" {
#include "decode.h"
#include "error.h"
}

namespace emulated {

float half_to_float(uint16_t h) { return f16_to_f32(h); }
uint16_t float_to_half(float x) { return f32_to_f16(x); }

namespace {

enum { WARP = 32 };

enum class Wait { nothing /* it may go on */, lanes, block, over };

struct Thread {
    Fiber fiber;
    Wait waits;
    int line; /* where it waits */
};

/* What the lanes of a warp exchange. Two in turns: one may be at the next exchange while another
 * has not read this one. */
struct Warp {
    int value[2][WARP][6];
    int turn[WARP];
    bool slow; /* until the next barrier */
};

/* A block that runs. One at a time, in the thread that launched it. */
struct Block {
    gpu_emulated_kernel *kernel;
    const void *args;
    gpu_grid grid;
    int x, y, z;
    std::unique_ptr<char[]> shared;
    std::vector<Warp> warps;
    std::string error;
};

struct Machine {
    Fiber host; /* who launches */
    std::vector<std::unique_ptr<Thread>> threads; /* they serve one block after another */
    Block *block = nullptr;
    std::vector<int> round; /* threads that may go on, in this order */
    size_t next = 0;        /* of the round */
    int current = 0;
    std::mt19937_64 rng{1};
};

thread_local Machine machine;

Thread &thread(int i) { return *machine.threads[(size_t)i]; }

void draw_round(Block *block);

/* Lets another thread go on: the next of the round, or of a new one, or the host when all have
 * ended. */
void pass(Fiber *from) {
    if (machine.next == machine.round.size()) draw_round(machine.block);
    Fiber *to = &machine.host;
    if (!machine.round.empty()) {
        machine.current = machine.round[machine.next++];
        to = &thread(machine.current).fiber;
    }
    if (to != from) from->switch_to(to);
}

void wait(Wait where, int line) {
    Thread &self = thread(machine.current);
    self.waits = where;
    self.line = line;
    pass(&self.fiber);
}

void serve() {
    thread(machine.current).fiber.arrived();
    for (;;) {
        const Block &b = *machine.block;
        b.kernel(b.args, machine.current, b.grid.threads, b.x, b.y, b.z, b.shared.get());
        wait(Wait::over, 0);
    }
}

std::string whereabouts(int t) {
    return "thread " + std::to_string(t) +
           (thread(t).waits == Wait::over ? " has ended"
                                          : " waits at line " + std::to_string(thread(t).line));
}

/* Threads [first, last) if all of them wait at one line for each other; else why not. */
bool meets(int first, int last, Wait where, std::string *why) {
    for (int t = first; t < last; t++) {
        if (thread(t).waits == where && thread(t).line == thread(first).line) continue;
        *why = whereabouts(t) + ", " + whereabouts(first);
        return false;
    }
    return true;
}

/* Who waited for a meeting that has come about may go on; but slow warps, drawn anew at each
 * barrier, only when the others are at the next one. An empty round: all have ended, or the error
 * says who does not come. */
void draw_round(Block *block) {
    int threads = block->grid.threads;
    bool over = true, ready[2] = {false, false}; /* fast and slow ones */
    std::string why;
    machine.round.clear();
    machine.next = 0;
    for (int first = 0; first < threads; first += WARP) {
        bool lanes = false;
        for (int t = first; t < first + WARP; t++) {
            lanes |= thread(t).waits == Wait::lanes;
            over &= thread(t).waits == Wait::over;
        }
        if (lanes && !meets(first, first + WARP, Wait::lanes, &why)) {
            block->error = "a lane is missing: " + why;
            return;
        }
        for (int t = first; lanes && t < first + WARP; t++) thread(t).waits = Wait::nothing;
        if (thread(first).waits == Wait::nothing)
            ready[block->warps[(size_t)(first / WARP)].slow] = true;
    }
    if (over) return;
    if (!ready[0] && !ready[1]) {
        if (!meets(0, threads, Wait::block, &why)) {
            block->error = "a barrier is not reached: " + why;
            return;
        }
        for (int t = 0; t < threads; t++) thread(t).waits = Wait::nothing;
        for (Warp &warp : block->warps) ready[warp.slow = machine.rng() & 1] = true;
    }
    for (int first = 0; first < threads; first += WARP) {
        bool slow = block->warps[(size_t)(first / WARP)].slow;
        if (thread(first).waits != Wait::nothing || slow == ready[0]) continue;
        for (int t = first; t < first + WARP; t++) machine.round.push_back(t);
    }
    std::shuffle(machine.round.begin(), machine.round.end(), machine.rng);
}

void scramble(char *to, size_t n) {
    for (size_t i = 0; i < n; i += 8) {
        uint64_t garbage = machine.rng();
        std::memcpy(to + i, &garbage, std::min(n - i, sizeof garbage));
    }
#if WITH_MSAN
    __msan_allocated_memory(to, n); /* what depends on it is an error */
#endif
}

void run_block(Block *block) {
    block->shared.reset(new char[(size_t)block->grid.shared]);
    scramble(block->shared.get(), (size_t)block->grid.shared);
    block->warps.assign((size_t)(block->grid.threads / WARP), Warp{});
    for (Warp &warp : block->warps) warp.slow = machine.rng() & 1;
    machine.block = block;
    machine.next = 0;
    machine.round.clear();
    for (int t = 0; t < block->grid.threads; t++) {
        if (t == (int)machine.threads.size())
            machine.threads.emplace_back(new Thread{Fiber(serve), Wait::nothing, 0});
        thread(t).waits = Wait::nothing;
    }
    pass(&machine.host);
    if (!block->error.empty()) machine.threads.clear(); /* some are amid the kernel for ever */
}

} // namespace

void meet(int line) { wait(Wait::block, line); }

const int (*exchange6(const int value[6], int line))[6] {
    Warp &warp = machine.block->warps[(size_t)(machine.current / WARP)];
    int own = lane(), turn = warp.turn[own] ^= 1;
    std::copy(value, value + 6, warp.value[turn][own]);
    wait(Wait::lanes, line);
    return warp.value[turn];
}

uint32_t exchange(uint32_t value, int from, int line) {
    int six[6] = {(int)value};
    return (uint32_t)exchange6(six, line)[from & (WARP - 1)][0];
}

int lane() { return machine.current % WARP; }

} // namespace emulated

/* ---- the device ------------------------------------------------------------------------ */

struct recorded {
    kernel_id id;
    gpu_grid grid;
    std::vector<char> args;
};

struct gpu_graph {
    std::vector<recorded> launches;
};

struct gpu {
    std::string error; /* of a launch, until the next sync */
    std::unique_ptr<gpu_graph> records; /* what is launched now */
    int stream = 0;                     /* of what is recorded */
};

namespace {

gpu_emulated_kernel *const kernels[] = {
#define X(name, args) name,
    KERNELS(X)
#undef X
};

const char *const names[] = {
#define X(name, args) #name,
    KERNELS(X)
#undef X
};

const size_t args_bytes[] = {
#define X(name, args) sizeof(args),
    KERNELS(X)
#undef X
};

/* Before every call but launch. */
qwen3_status use(gpu *g, const char *call, qwen3_error *err) {
    if (!g->records) return QWEN3_OK;
    return fail(err, QWEN3_ERR_ARG, "%s while launches are recorded", call);
}

constexpr uint64_t MEMORY = (uint64_t)1 << 30;
constexpr int SHARED_BYTES = 48 << 10;

int count(qwen3_error *) { return 1; }

gpu *open(int index, qwen3_error *err) {
    if (index == 0) return new gpu;
    fail(err, QWEN3_ERR_ARG, "there is no device %d, only 0", index);
    return nullptr;
}

void close(gpu *g) { delete g; }

qwen3_status describe(gpu *, gpu_info *info, qwen3_error *) {
    *info = {"emulation", MEMORY, MEMORY, 1, SHARED_BYTES, 0};
    return QWEN3_OK;
}

void *allocate(gpu *g, size_t bytes, qwen3_error *err) {
    if (use(g, "alloc", err) != QWEN3_OK) return nullptr;
    void *to = bytes > MEMORY ? nullptr
                              : ::operator new(bytes, std::align_val_t(256), std::nothrow);
    if (to) emulated::scramble((char *)to, bytes);
    else fail(err, QWEN3_ERR_MEMORY, "out of memory for %zu bytes of an emulated device", bytes);
    return to;
}

void release(gpu *, void *at) { ::operator delete(at, std::align_val_t(256)); }

bool pin(gpu *, void *, size_t) { return true; }

void unpin(gpu *, void *) {}

void *map(gpu *, const void *at, size_t) { return const_cast<void *>(at); }

void unmap(gpu *, void *) {}

qwen3_status copy(gpu *g, int, void *to, const void *from, size_t n, qwen3_error *err) {
    qwen3_status status = use(g, "a copy", err);
    if (status == QWEN3_OK && n) std::memcpy(to, from, n);
    return status;
}

void run_grid(gpu *g, kernel_id id, gpu_grid grid, const void *args) {
    qwen3_error why;
    if (gpu_emulated_run(kernels[id], grid, args, &why) != QWEN3_OK && g->error.empty())
        g->error = std::string(names[id]) + ": " + why.text;
}

qwen3_status launch(gpu *g, int stream, kernel_id id, gpu_grid grid, const void *args, size_t n,
                    qwen3_error *err) {
    if (grid.threads < 32 || grid.threads > 1024 || grid.threads % 32)
        return fail(err, QWEN3_ERR_ARG, "%s: blocks of %d threads", names[id], grid.threads);
    if (grid.y > 65535 || grid.z > 65535)
        return fail(err, QWEN3_ERR_ARG, "%s: %d x %d x %d blocks", names[id], grid.x, grid.y,
                    grid.z);
    if (grid.shared > SHARED_BYTES)
        return fail(err, QWEN3_ERR_ARG, "%s: %d bytes of shared memory", names[id], grid.shared);
    if (n != args_bytes[id])
        return fail(err, QWEN3_ERR_ARG, "%s: arguments of %zu bytes, not %zu", names[id], n,
                    args_bytes[id]);
    if (g->records && stream == g->stream) {
        const char *from = static_cast<const char *>(args);
        g->records->launches.push_back({id, grid, {from, from + n}});
    } else {
        run_grid(g, id, grid, args);
    }
    return QWEN3_OK;
}

qwen3_status wait(gpu *g, int, int, qwen3_error *err) { return use(g, "wait", err); }

qwen3_status sync(gpu *g, int, qwen3_error *err) {
    qwen3_status status = use(g, "sync", err);
    if (status != QWEN3_OK || g->error.empty()) return status;
    std::string error;
    std::swap(error, g->error);
    return fail(err, QWEN3_ERR_ARG, "%s", error.c_str());
}

qwen3_status capture_begin(gpu *g, int stream, qwen3_error *err) {
    qwen3_status status = use(g, "capture_begin", err);
    if (status != QWEN3_OK) return status;
    g->records = std::make_unique<gpu_graph>();
    g->stream = stream;
    return QWEN3_OK;
}

gpu_graph *capture_end(gpu *g, int stream, qwen3_error *err) {
    if (g->records && g->stream == stream) return g->records.release();
    fail(err, QWEN3_ERR_ARG, "capture_end: no launches of this stream are recorded");
    return nullptr;
}

qwen3_status replay(gpu *g, int, gpu_graph *graph, qwen3_error *err) {
    qwen3_status status = use(g, "replay", err);
    if (status != QWEN3_OK) return status;
    for (const recorded &each : graph->launches) run_grid(g, each.id, each.grid, each.args.data());
    return QWEN3_OK;
}

void release_graph(gpu *, gpu_graph *graph) { delete graph; }

} // namespace

extern "C" {

const gpu_api gpu_emulated = {
    GPU_API_VERSION, "emulated", count, open, close, describe, allocate, release, allocate,
    release, pin, unpin, map, unmap, copy, copy, launch, wait, sync, capture_begin, capture_end,
    replay, release_graph,
};

void gpu_emulated_seed(uint64_t seed) { emulated::machine.rng.seed(seed); }

qwen3_status gpu_emulated_run(gpu_emulated_kernel *kernel, gpu_grid grid, const void *args,
                              qwen3_error *err) {
    std::vector<int> order((size_t)(grid.x * grid.y * grid.z));
    for (size_t i = 0; i < order.size(); i++) order[i] = (int)i;
    std::shuffle(order.begin(), order.end(), emulated::machine.rng);
    for (int i : order) {
        emulated::Block block = {kernel, args, grid, i % grid.x, i / grid.x % grid.y,
                                 i / grid.x / grid.y, nullptr, {}, {}};
        emulated::run_block(&block);
        if (!block.error.empty()) return fail(err, QWEN3_ERR_ARG, "%s", block.error.c_str());
    }
    return QWEN3_OK;
}

}
