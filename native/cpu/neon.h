/* neon.h - the backends for 64-bit ARM, but for the products of a tile: neon.c has them for
 * the dot product instructions of ARMv8.2, i8mm.c for the matrix products of ARMv8.6.
 *
 * sdot multiplies signed bytes: panels hold q - offset. Sums start from the bits of the float
 * M = 1.5 * 2^23, as in avx512.c: a Neoverse converts integers at a quarter of the rate of
 * an fma.
 *
 * The file that includes this then defines available, and of panel.h and tile.h store_quads
 * and dots.
 */
#ifndef QWEN3_NEON_H
#define QWEN3_NEON_H

#include <arm_neon.h>
#include <string.h>
#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

/* ---- the float vector, see vector.h ------------------------------------------------ */

typedef float32x4_t vf;
enum { LANES = 4 };

static inline vf vf_zero(void) { return vdupq_n_f32(0); }
static inline vf vf_set1(float f) { return vdupq_n_f32(f); }
static inline vf vf_load(const void *p) { return vreinterpretq_f32_u8(vld1q_u8(p)); }
static inline void vf_store(float *p, vf a) { vst1q_f32(p, a); }
static inline vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
static inline vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
static inline vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
static inline vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
static inline vf vf_max(vf a, vf b) { return vmaxq_f32(a, b); }
static inline vf vf_min(vf a, vf b) { return vminq_f32(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
static inline vf vf_round(vf a) { return vrndnq_f32(a); }
static inline vf vf_pow2(vf a) {
    int32x4_t n = vaddq_s32(vcvtq_s32_f32(a), vdupq_n_s32(127));
    return vreinterpretq_f32_s32(vshlq_n_s32(n, 23));
}
static inline vf vf_load_f16(const void *p) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
}
static inline vf vf_load_bf16(const void *p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
}
static inline vf vf_load_i8(const void *p) {
    int32_t bytes;
    memcpy(&bytes, p, sizeof bytes);
    int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(bytes)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
}
static inline void vf_store_f16(uint16_t *p, vf a) {
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a)));
}
static inline float vf_sum(vf a) { return vaddvq_f32(a); }
static inline float vf_top(vf a) { return vmaxvq_f32(a); }

#include "vector.h"
#include "attend.h"

/* ---- what the processor has -------------------------------------------------------------- */

#if defined(__linux__)
#ifndef HWCAP2_I8MM /* headers of before 2020 */
#define HWCAP2_I8MM (1 << 13)
#endif
#define CPU_HAS(feature, word, bit) ((getauxval(word) & (bit)) != 0)
#elif defined(__APPLE__)
#define CPU_HAS(feature, word, bit) sysctl_flag("hw.optional.arm.FEAT_" feature)
static inline int sysctl_flag(const char *name) {
    int has = 0;
    size_t size = sizeof has;
    return sysctlbyname(name, &has, &size, NULL, 0) == 0 && has;
}
#else
#define CPU_HAS(feature, word, bit) 0
#endif

static int available(void);

/* ---- panels, see panel.h ------------------------------------------------------------- */

typedef uint32_t vu __attribute__((vector_size(16)));

/* 16 bytes of four rows are a matrix of 4 x 4 dwords: transposed. */
ALWAYS_INLINE void load_quads(const uint8_t *src, size_t stride, vu out[4]) {
    uint32x4_t a = vreinterpretq_u32_u8(vld1q_u8(src));
    uint32x4_t b = vreinterpretq_u32_u8(vld1q_u8(src + stride));
    uint32x4_t c = vreinterpretq_u32_u8(vld1q_u8(src + 2 * stride));
    uint32x4_t d = vreinterpretq_u32_u8(vld1q_u8(src + 3 * stride));
    uint64x2_t ab = vreinterpretq_u64_u32(vtrn1q_u32(a, b));
    uint64x2_t cd = vreinterpretq_u64_u32(vtrn1q_u32(c, d));
    out[0] = (vu)vtrn1q_u64(ab, cd);
    out[2] = (vu)vtrn2q_u64(ab, cd);
    ab = vreinterpretq_u64_u32(vtrn2q_u32(a, b)), cd = vreinterpretq_u64_u32(vtrn2q_u32(c, d));
    out[1] = (vu)vtrn1q_u64(ab, cd);
    out[3] = (vu)vtrn2q_u64(ab, cd);
}

ALWAYS_INLINE vu load_dwords(const uint8_t *src, size_t stride) {
    vu v;
    for (int r = 0; r < LANES; r++) {
        uint32_t dword;
        memcpy(&dword, src + (size_t)r * stride, sizeof dword);
        v[r] = dword;
    }
    return v;
}

ALWAYS_INLINE vf half_low(vu v) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32((uint32x4_t)v)));
}

ALWAYS_INLINE vu iq4_lookup(vu v) { return (vu)vqtbl1q_s8(vld1q_s8(iq4_levels), (uint8x16_t)v); }

ALWAYS_INLINE vu center(vu v, int offset) {
    return offset ? (vu)vsubq_s8((int8x16_t)v, vdupq_n_s8((int8_t)offset)) : v;
}

typedef struct {
    int run;
    bool min;
} shape;

ALWAYS_INLINE vu start(const shape t, const act_unit *x, int j) {
    (void)t, (void)x, (void)j;
    return (vu)vdupq_n_s32(ACT_START);
}

/* dot + the products of a quad of each row with quad k of x, a constant. */
#define ADD_QUAD(dot, q, x, k) ((vu)vdotq_laneq_s32((int32x4_t)(dot), (int8x16_t)(q), x, k))

ALWAYS_INLINE vu add_dot(const shape t, vu dot, const vu q[4], const int8_t *x) {
    (void)t;
    int8x16_t x16 = vld1q_s8(x);
    dot = ADD_QUAD(dot, q[0], x16, 0);
    dot = ADD_QUAD(dot, q[1], x16, 1);
    dot = ADD_QUAD(dot, q[2], x16, 2);
    return ADD_QUAD(dot, q[3], x16, 3);
}

enum { PARTS = 1, FEW = 4 };
ALWAYS_INLINE void store_quads(const shape t, vu *to, const vu q[4]);

#include "panel.h"

/* ---- tiles, see tile.h ------------------------------------------------------------- */

enum { MAX_R = 2, MAX_C = 6 }; /* 12 sums of each kind in 32 registers */
#define FOR_COLUMNS(F, shape, R) \
    F(shape, R, 1) F(shape, R, 2) F(shape, R, 3) F(shape, R, 4) F(shape, R, 5) F(shape, R, 6)

/* dot[r][c] = M + the sum of q x over run j, as the bits of a float. */
ALWAYS_INLINE void dots(const shape t, const panel *p, const int R, const act_unit *const *x,
                        const int C, int j, vu (*dot)[MAX_C]);

ALWAYS_INLINE vf scaled(vu dot, vf scale) {
    return vf_fma((vf)dot, scale, vf_mul(scale, vf_set1(-0x1.8p23f)));
}

#include "tile.h"

static const shape plain = {32, false}, minimum = {32, true};
static const shape plain_16 = {16, false}, minimum_16 = {16, true};
TILES(plain)
TILES(minimum)
TILES(plain_16)
TILES(minimum_16)
KERNEL(q8_0, plain, panel)
KERNEL(q4_0, plain, panel)
KERNEL(q4_1, minimum, panel)
KERNEL(q5_0, plain, panel)
KERNEL(q5_1, minimum, panel)
KERNEL(iq4_nl, plain, panel)
KERNEL(q2_K, minimum_16, panel)
KERNEL(q3_K, plain_16, panel)
KERNEL(q4_K, minimum, panel)
KERNEL(q5_K, minimum, panel)
KERNEL(q6_K, plain_16, panel)
KERNEL(iq4_xs, plain, panel)

static void matmul(const matmul_args *a, int row0, int row1) {
    static const panel_kernel *const kernels[TYPE_COUNT] = {
        [TYPE_Q8_0] = &q8_0_kernel, [TYPE_Q4_0] = &q4_0_kernel, [TYPE_Q4_1] = &q4_1_kernel,
        [TYPE_Q5_0] = &q5_0_kernel, [TYPE_Q5_1] = &q5_1_kernel, [TYPE_IQ4_NL] = &iq4_nl_kernel,
        [TYPE_Q2_K] = &q2_K_kernel, [TYPE_Q3_K] = &q3_K_kernel, [TYPE_Q4_K] = &q4_K_kernel,
        [TYPE_Q5_K] = &q5_K_kernel, [TYPE_Q6_K] = &q6_K_kernel, [TYPE_IQ4_XS] = &iq4_xs_kernel,
    };
    if (type_takes_float(a->type))
        matmul_float(a, row0, row1);
    else
        panel_product(a, *kernels[a->type], row0, row1);
}

/* ---- activations ------------------------------------------------------------------------- */

static void quantize(const float *x, act_unit *act, int n, int first, int last) {
    for (int i = first; i < last; i += 32) {
        act_unit *u = act + i / UNIT;
        int g = i % UNIT / 32, sum[2];
        uint32x4_t top = vdupq_n_u32(0), magnitude = vdupq_n_u32(0x7fffffff);
        for (int k = i; k < i + 32; k += 4)
            top = vmaxq_u32(top, vandq_u32(vreinterpretq_u32_f32(vf_load(x + k)), magnitude));
        float factor;
        bool some = act_scale(vmaxvq_u32(top), &u->d[g], &factor);
        for (int h = 0; h < 2; h++) {
            int16x4_t v[4] = {vdup_n_s16(0), vdup_n_s16(0), vdup_n_s16(0), vdup_n_s16(0)};
            for (int k = 0; some && k < 4; k++) { /* rounds to nearest even */
                vf scaled_x = vmulq_n_f32(vf_load(x + i + 16 * h + 4 * k), factor);
                v[k] = vmovn_s32(vcvtnq_s32_f32(scaled_x));
            }
            int16x8_t low = vcombine_s16(v[0], v[1]), high = vcombine_s16(v[2], v[3]);
            vst1q_s8(u->q + 32 * g + 16 * h, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
            sum[h] = vaddvq_s16(vaddq_s16(low, high));
        }
        act_sums(u, g, sum[0], sum[1]);
    }
    if (last == n) act_fill(act, n);
}

/* The table of a backend, all but its name the same. */
#define NEON_BACKEND(its_name)                                                              \
    {.name = its_name, .available = available, .matmul = matmul, .quantize = quantize,      \
     .rmsnorm = rmsnorm, .rope = rope, .swiglu = swiglu, .axpy = axpy, .attend = attend,    \
     .merge = merge,                                                                        \
     .to_f16 = to_f16, .peak = peak, .encode = &encoders_baseline}

#endif
