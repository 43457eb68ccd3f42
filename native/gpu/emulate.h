/* emulate.h - the dialect on the host, for tests: every thread of a block is a fiber.
 *
 * Fibers run one at a time, in an order drawn anew at every barrier, so that a barrier that is
 * missing shows as a wrong result; who waits where others do not is an error. Shared memory and
 * the device's begin as garbage, and as allocations of their own: with AddressSanitizer no access
 * beside them goes unseen.
 */
#ifndef QWEN3_GPU_EMULATE_H
#define QWEN3_GPU_EMULATE_H

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define GLOBAL
#define SHARED
#define LOCAL
#define CONSTANT const
#define DEVICE [[maybe_unused]] static inline
#define UNROLL
#define KERNEL(name, args)                                                                     \
    DEVICE void name##_body(CONSTANT args &a, place at, SHARED char *shared);                  \
    static void name(const void *a, int thread, int threads, int x, int y, int z,              \
                     char *shared) {                                                           \
        name##_body(*static_cast<const args *>(a), place_of(thread, threads, x, y, z), shared); \
    }                                                                                          \
    DEVICE void name##_body([[maybe_unused]] CONSTANT args &a, [[maybe_unused]] place at,      \
                            [[maybe_unused]] SHARED char *shared)

using uint = unsigned int;
using ushort = unsigned short;
using uchar = unsigned char;
using std::exp;
using std::fma;
using std::sqrt;

struct f16 {
    uint16_t bits;
};

/* Of memory that was written as something else. */
struct alignas(8) [[gnu::may_alias]] int2 {
    int x, y;
};
struct alignas(16) [[gnu::may_alias]] int4 {
    int x, y, z, w;
};
struct alignas(8) [[gnu::may_alias]] uint2 {
    uint x, y;
};
struct alignas(16) [[gnu::may_alias]] uint4 {
    uint x, y, z, w;
};
struct alignas(16) [[gnu::may_alias]] float4 {
    float x, y, z, w;
};

namespace emulated {

/* Waits for all threads of the block. line: where, for the error. */
void meet(int line);
/* Waits for the warp's lanes; returns what the lane `from` brought. */
uint32_t exchange(uint32_t value, int from, int line);
/* The same of six values, as a matrix product takes them: what all lanes brought. */
const int (*exchange6(const int value[6], int line))[6];
int lane();

float half_to_float(uint16_t);
uint16_t float_to_half(float);

} // namespace emulated

DEVICE float to_float(f16 h) { return emulated::half_to_float(h.bits); }
DEVICE f16 to_f16(float x) { return f16{emulated::float_to_half(x)}; }
DEVICE f16 bits_to_f16(ushort bits) { return f16{bits}; }
DEVICE ushort f16_to_bits(f16 h) { return h.bits; }

DEVICE float bits_to_float(uint bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

DEVICE uint float_to_bits(float x) {
    uint bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* __builtin_LINE as a default argument is the line of the caller. */
DEVICE void barrier(int line = __builtin_LINE()) { emulated::meet(line); }
DEVICE void warp_barrier(int line = __builtin_LINE()) { emulated::exchange(0, 0, line); }
DEVICE int lane_from(int x, int lane, int line = __builtin_LINE()) {
    return (int)emulated::exchange((uint32_t)x, lane, line);
}
DEVICE float lane_from(float x, int lane, int line = __builtin_LINE()) {
    return bits_to_float(emulated::exchange(float_to_bits(x), lane, line));
}
DEVICE int lane_xor(int x, int mask, int line = __builtin_LINE()) {
    return lane_from(x, emulated::lane() ^ mask, line);
}
DEVICE float lane_xor(float x, int mask, int line = __builtin_LINE()) {
    return lane_from(x, emulated::lane() ^ mask, line);
}

DEVICE int dot4(int a, int b, int c) {
    for (int i = 0; i < 32; i += 8) c += (int)(int8_t)(a >> i) * (int)(int8_t)(b >> i);
    return c;
}

#endif
