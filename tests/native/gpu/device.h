/* device.h - kernels on the emulated device, beside what the CPU computes. */
#ifndef QWEN3_TEST_DEVICE_H
#define QWEN3_TEST_DEVICE_H

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "gpu/emulated.h"

extern "C" {
#include "backend.h"
#include "codec.h"
}

inline int failures;

#define CHECK(condition, ...)                                                     \
    do {                                                                          \
        if (!(condition) && failures++ < 20) {                                    \
            std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);  \
            std::fprintf(stderr, __VA_ARGS__);                                    \
            std::fputc('\n', stderr);                                             \
        }                                                                         \
    } while (0)

/* ---- random data ------------------------------------------------------------------ */

struct Random {
    uint64_t state;

    uint32_t bits() { /* splitmix64 */
        uint64_t z = state += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        return (uint32_t)(z >> 32);
    }
    int below(int n) { return (int)(bits() % (uint32_t)n); }
    float uniform() { return (float)(int32_t)bits() * 0x1p-31f; } /* in [-1, 1) */
    std::vector<float> floats(size_t n, float size) {
        std::vector<float> x(n);
        for (float &each : x) each = uniform() * size;
        return x;
    }
};

/* ---- the device ------------------------------------------------------------------- */

/* An array in the device's memory. */
template <typename T> class Array {
  public:
    Array(gpu *g, size_t n) : g_(g), n_(n) {
        qwen3_error err;
        at_ = static_cast<T *>(gpu_emulated.alloc(g, n * sizeof(T), &err));
        if (!at_) std::abort();
    }
    Array(gpu *g, const std::vector<T> &from) : Array(g, from.size()) {
        if (n_) std::memcpy((void *)at_, from.data(), n_ * sizeof(T));
    }
    Array(const Array &) = delete;
    ~Array() { gpu_emulated.release(g_, at_); }

    operator T *() const { return at_; }
    std::vector<T> read() const { return std::vector<T>(at_, at_ + n_); }

  private:
    gpu *g_;
    size_t n_;
    T *at_;
};

class Device {
  public:
    explicit Device(uint64_t seed) {
        gpu_emulated_seed(seed);
        qwen3_error err;
        g_ = gpu_emulated.open(0, &err);
        if (!g_) std::abort();
    }
    Device(const Device &) = delete;
    ~Device() { gpu_emulated.close(g_); }

    operator gpu *() const { return g_; }

    template <typename Args> void run(kernel_id id, gpu_grid grid, const Args &args) {
        qwen3_error err;
        bool done = gpu_emulated.launch(g_, GPU_COMPUTE, id, grid, &args, sizeof args, &err) ==
                        QWEN3_OK &&
                    gpu_emulated.sync(g_, GPU_COMPUTE, &err) == QWEN3_OK;
        CHECK(done, "%s", err.text);
    }

  private:
    gpu *g_;
};

/* ---- activations ------------------------------------------------------------------ */

/* Rows of n values, as the CPU quantizes them. */
inline std::vector<act_group> groups_of(const std::vector<float> &x, int n) {
    std::vector<act_group> groups;
    std::vector<act_unit> units(act_bytes(n) / sizeof(act_unit));
    for (size_t row = 0; row < x.size(); row += (size_t)n) {
        backend_scalar.quantize(x.data() + row, units.data(), n, 0, n);
        for (int i = 0; i < n; i += 32) {
            const act_unit &u = units[(size_t)i / UNIT];
            int g = i % UNIT / 32;
            act_group group = {u.d[g], u.s[g], {}};
            std::memcpy(group.q, u.q + 32 * g, 32);
            groups.push_back(group);
        }
    }
    return groups;
}

/* ---- comparisons ------------------------------------------------------------------ */

/* The largest difference, in units of the largest value. */
inline double distance(const std::vector<float> &got, const std::vector<float> &wanted) {
    double most = 0, scale = 1e-30;
    for (size_t i = 0; i < wanted.size(); i++) {
        scale = std::fmax(scale, std::fabs(wanted[i]));
        most = std::fmax(most, std::fabs((double)got[i] - wanted[i]));
        if (std::isnan(got[i]) != std::isnan(wanted[i])) return INFINITY;
    }
    return most / scale;
}

template <typename T> bool same_bits(const std::vector<T> &a, const std::vector<T> &b) {
    return a.size() == b.size() && !std::memcmp(a.data(), b.data(), a.size() * sizeof(T));
}

inline int finish() {
    if (failures) std::fprintf(stderr, "%d failures\n", failures);
    return failures != 0;
}

#endif
