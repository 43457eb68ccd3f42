/* dialect.h - the language of the kernels: C++ that CUDA, Metal and a host compiler read alike.
 *
 * A kernel is KERNEL(name, args) { ... }, where the code sees the struct of its arguments as a,
 * where it is as `at`, and its block's scratch as `shared`. It is written against what follows
 * here and nothing else: no lambdas, no recursion, no pointer without an address space.
 *
 *   GLOBAL, SHARED, LOCAL, CONSTANT  address spaces of what a pointer points to
 *   DEVICE                           before every function
 *   barrier()                        all threads of the block meet; memory is seen behind it
 *   warp_barrier()                   the same of a warp's lanes, for shared memory
 *   lane_sum, lane_max, lane_xor, lane_from   all 32 lanes of a warp meet and exchange values
 *   dot4(a, b, c)                    c + the products of four signed bytes
 *   f16                              a half as it lies in memory; to_float, to_f16, bits_to_f16,
 *                                    f16_to_bits; two in a word: low_half, high_half, f16_word
 *   uint2, int2, uint4, int4, float4  words loaded at once, from where they are aligned to 8, 16
 *   UNROLL                           before a loop whose arrays are to stay in registers
 *
 * No name is a word of Metal's, such as thread, half, kernel, device, sampler; a block's scratch is
 * at most 32 KiB there. Numbers with a fraction end in f.
 *
 * Every thread of a block reaches the same barriers, every lane of a warp the same exchanges: who
 * has nothing to do passes with an idle value. A warp has 32 lanes everywhere.
 */
#ifndef QWEN3_GPU_DIALECT_H
#define QWEN3_GPU_DIALECT_H

#if defined(__METAL_VERSION__)
#include <metal_stdlib>
#pragma METAL fp contract(off)
using namespace metal;
#elif !defined(__CUDACC__)
#include "emulate.h"
#endif

/* Where a thread is. */
struct place {
    int tid, threads;           /* in the block */
    int lane, warp, warps;      /* of 32 threads each */
    int x, y, z;                /* the block in the grid */
};

#if defined(__METAL_VERSION__)

#define GLOBAL device
#define SHARED threadgroup
#define LOCAL thread
#define CONSTANT constant
#define DEVICE static inline
#define UNROLL _Pragma("clang loop unroll(full)")
#define KERNEL(name, args)                                                                     \
    DEVICE void name##_body(CONSTANT args &a, place at, SHARED char *shared);                  \
    kernel void name(CONSTANT args &a [[buffer(0)]], SHARED char *shared [[threadgroup(0)]],   \
                     uint thread_ [[thread_index_in_threadgroup]],                             \
                     uint3 threads_ [[threads_per_threadgroup]],                               \
                     uint3 block_ [[threadgroup_position_in_grid]]) {                          \
        name##_body(a, place_of((int)thread_, (int)threads_.x, (int)block_.x, (int)block_.y,   \
                                (int)block_.z), shared);                                       \
    }                                                                                          \
    DEVICE void name##_body(CONSTANT args &a, place at, SHARED char *shared)

typedef half f16;
DEVICE float to_float(f16 h) { return (float)h; }
DEVICE f16 to_f16(float x) { return (f16)x; }
DEVICE f16 bits_to_f16(ushort bits) { return as_type<half>(bits); }
DEVICE ushort f16_to_bits(f16 h) { return as_type<ushort>(h); }
DEVICE void barrier() { threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup); }
DEVICE void warp_barrier() { simdgroup_barrier(mem_flags::mem_threadgroup); }
DEVICE float lane_xor(float x, int mask) { return simd_shuffle_xor(x, (ushort)mask); }
DEVICE int lane_xor(int x, int mask) { return simd_shuffle_xor(x, (ushort)mask); }
DEVICE float lane_from(float x, int lane) { return simd_shuffle(x, (ushort)lane); }
DEVICE int lane_from(int x, int lane) { return simd_shuffle(x, (ushort)lane); }
DEVICE int dot4(int a, int b, int c) {
    char4 x = as_type<char4>(a), y = as_type<char4>(b);
    return c + x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
}
DEVICE float bits_to_float(uint bits) { return as_type<float>(bits); }
DEVICE uint float_to_bits(float x) { return as_type<uint>(x); }

#elif defined(__CUDACC__)

#include <cuda_fp16.h>

#define GLOBAL
#define SHARED
#define LOCAL
#define CONSTANT const
#define DEVICE static __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define KERNEL(name, args)                                                                     \
    DEVICE void name##_body(CONSTANT args &a, place at, SHARED char *shared);                  \
    extern "C" __global__ void name(const __grid_constant__ args a) {                          \
        extern __shared__ __align__(16) char shared[];                                         \
        name##_body(a, place_of((int)threadIdx.x, (int)blockDim.x, (int)blockIdx.x,            \
                                (int)blockIdx.y, (int)blockIdx.z), shared);                    \
    }                                                                                          \
    DEVICE void name##_body(CONSTANT args &a, place at, SHARED char *shared)

typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uchar;
typedef __half f16;
DEVICE float to_float(f16 h) { return __half2float(h); }
DEVICE f16 to_f16(float x) { return __float2half_rn(x); }
DEVICE f16 bits_to_f16(ushort bits) { return __ushort_as_half(bits); }
DEVICE ushort f16_to_bits(f16 h) { return __half_as_ushort(h); }
DEVICE void barrier() { __syncthreads(); }
DEVICE void warp_barrier() { __syncwarp(); }
DEVICE float lane_xor(float x, int mask) { return __shfl_xor_sync(0xffffffff, x, mask); }
DEVICE int lane_xor(int x, int mask) { return __shfl_xor_sync(0xffffffff, x, mask); }
DEVICE float lane_from(float x, int lane) { return __shfl_sync(0xffffffff, x, lane); }
DEVICE int lane_from(int x, int lane) { return __shfl_sync(0xffffffff, x, lane); }
DEVICE int dot4(int a, int b, int c) { return __dp4a(a, b, c); }
DEVICE float bits_to_float(uint bits) { return __uint_as_float(bits); }
DEVICE uint float_to_bits(float x) { return __float_as_uint(x); }

#endif /* the host: emulate.h */

DEVICE place place_of(int tid, int threads, int x, int y, int z) {
    place at = {tid, threads, tid % 32, tid / 32, threads / 32, x, y, z};
    return at;
}

/* The emulation tells meetings apart by their lines: those of who calls these. */
#if defined(__METAL_VERSION__) || defined(__CUDACC__)
#define CALLER
#define FOR_CALLER
#else
#define CALLER , int line = __builtin_LINE()
#define FOR_CALLER , line
#endif

DEVICE float lane_sum(float x CALLER) {
    for (int mask = 16; mask; mask /= 2) x += lane_xor(x, mask FOR_CALLER);
    return x;
}

DEVICE int lane_sum(int x CALLER) {
    for (int mask = 16; mask; mask /= 2) x += lane_xor(x, mask FOR_CALLER);
    return x;
}

DEVICE float lane_max(float x CALLER) {
    for (int mask = 16; mask; mask /= 2) {
        float other = lane_xor(x, mask FOR_CALLER);
        x = other > x ? other : x;
    }
    return x;
}

DEVICE float low_half(uint word) { return to_float(bits_to_f16((ushort)(word & 0xffffu))); }
DEVICE float high_half(uint word) { return to_float(bits_to_f16((ushort)(word >> 16))); }

DEVICE uint f16_word(float low, float high) {
    return (uint)f16_to_bits(to_f16(low)) | (uint)f16_to_bits(to_f16(high)) << 16;
}

#endif
