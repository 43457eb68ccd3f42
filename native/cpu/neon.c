/* neon.c - the backend for 64-bit ARM with the dot product instructions (ARMv8.2). */
#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>
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

static int available(void) {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
    int has = 0;
    size_t size = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, NULL, 0) == 0 && has;
#else
    return 0;
#endif
}

/* ---- reading quantized rows, see unpack.h ------------------------------------------------ */

/* How the row kernel reads a type: the scales of a unit into u, and 32 quants. */
typedef struct {
    unit_kind kind;
    void (*scales)(const void *src, int n_groups, unit *u); /* NULL: unpack all of it */
    int8x16x2_t (*group)(const void *src, const unit *u, int g);
} row_reader;

ALWAYS_INLINE int8x16_t low_nibbles(uint8x16_t v) {
    return vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8(15)));
}

ALWAYS_INLINE int8x16_t high_nibbles(uint8x16_t v) {
    return vreinterpretq_s8_u8(vshrq_n_u8(v, 4));
}

ALWAYS_INLINE int8x16x2_t q8_0_group(const void *src, const unit *u, int g) {
    (void)u;
    const int8_t *qs = ((const row_q8_0 *)src)[g].qs;
    return (int8x16x2_t){{vld1q_s8(qs), vld1q_s8(qs + 16)}};
}

ALWAYS_INLINE int8x16x2_t q4_0_group(const void *src, const unit *u, int g) {
    (void)u;
    uint8x16_t v = vld1q_u8(((const row_q4_0 *)src)[g].qs);
    return (int8x16x2_t){{low_nibbles(v), high_nibbles(v)}};
}

ALWAYS_INLINE int8x16x2_t q4_K_group(const void *src, const unit *u, int g) {
    (void)u;
    const uint8_t *qs = ((const row_q4_K *)src)->qs + g / 2 * 32;
    uint8x16_t a = vld1q_u8(qs), b = vld1q_u8(qs + 16);
    if (g % 2) return (int8x16x2_t){{high_nibbles(a), high_nibbles(b)}};
    return (int8x16x2_t){{low_nibbles(a), low_nibbles(b)}};
}

ALWAYS_INLINE int8x16_t q6_K_16(const uint8_t *ql, const uint8_t *qh, int g) {
    uint8x16_t low = vshlq_u8(vld1q_u8(ql), vdupq_n_s8((int8_t)(-(g % 4 / 2 * 4))));
    uint8x16_t high = vshlq_u8(vld1q_u8(qh), vdupq_n_s8((int8_t)(4 - g % 4 * 2)));
    return vreinterpretq_s8_u8(vorrq_u8(vandq_u8(low, vdupq_n_u8(15)),
                                        vandq_u8(high, vdupq_n_u8(0x30))));
}

ALWAYS_INLINE int8x16x2_t q6_K_group(const void *src, const unit *u, int g) {
    (void)u;
    const row_q6_K *b = src;
    const uint8_t *ql = b->ql + g / 4 * 64 + g % 2 * 32, *qh = b->qh + g / 4 * 32;
    return (int8x16x2_t){{q6_K_16(ql, qh, g), q6_K_16(ql + 16, qh + 16, g)}};
}

ALWAYS_INLINE int8x16x2_t unpacked_group(const void *src, const unit *u, int g) {
    (void)src;
    return (int8x16x2_t){{vld1q_s8(u->q + 32 * g), vld1q_s8(u->q + 32 * g + 16)}};
}

/* ---- few columns: each row as it lies ------------------------------------------------------ */

/* Four terms: of four groups of a unit, or of one group of four rows. */
ALWAYS_INLINE vf terms(unit_kind kind, int32x4_t a, int32x4_t b, vf d, vf dmin, vf dx) {
    vf scale = vf_mul(d, dx);
    if (kind == SIGNED) return vf_mul(vcvtq_f32_s32(a), scale);
    if (kind == OFFSET) return vf_mul(vcvtq_f32_s32(vsubq_s32(a, b)), scale);
    return vf_sub(vf_mul(vcvtq_f32_s32(a), scale), vf_mul(vcvtq_f32_s32(b), vf_mul(dmin, dx)));
}

/* Sums of neighbours in the products of eight int16. */
ALWAYS_INLINE int32x4_t dot_16bit(const int16_t *p, const int16_t *q) {
    int16x8_t a = vld1q_s16(p), b = vld1q_s16(q);
    return vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b));
}

/* Adds the terms of groups first to first + 3 to their lanes. */
ALWAYS_INLINE vf add_four(row_reader w, const void *src, const unit *u, int first, act x,
                          vf lanes) {
    int32x4_t dot[8];
    for (int g = 0; g < 4; g++) {
        int8x16x2_t q = w.group(src, u, first + g);
        const int8_t *xq = x.q + 32 * (first + g);
        dot[2 * g] = vdotq_s32(vdupq_n_s32(0), q.val[0], vld1q_s8(xq));
        dot[2 * g + 1] = vdotq_s32(vdupq_n_s32(0), q.val[1], vld1q_s8(xq + 16));
    }
    int32x4_t low = vpaddq_s32(vpaddq_s32(dot[0], dot[1]), vpaddq_s32(dot[2], dot[3]));
    int32x4_t high = vpaddq_s32(vpaddq_s32(dot[4], dot[5]), vpaddq_s32(dot[6], dot[7]));
    int16x8_t scale = vld1q_s16(u->scale + 2 * first);
    low = vmulq_s32(low, vmovl_s16(vget_low_s16(scale)));
    high = vmulq_s32(high, vmovl_high_s16(scale));
    int32x4_t b = dot_16bit(u->bias + 2 * first, x.sum + 2 * first);
    return vf_add(lanes, terms(w.kind, vpaddq_s32(low, high), b, vf_load(u->d + first),
                               vf_load(u->dmin + first), vf_load(x.d + first)));
}

enum {
    TILE = 32,      /* columns that share what is unpacked */
    PANEL_COLS = 8, /* columns from which on unpacking a panel pays */
};

ALWAYS_INLINE void product_rows(const matmul_args *a, row_reader w, int row0, int row1, int col,
                                int n_cols) {
    const unpacker *type = unpacker_of(a->type);
    unit u;
    for (int r = row0; r < row1; r++) {
        const uint8_t *src = row_w(a, r);
        vf lanes[TILE][2];
        int i = 0;
        for (int c = 0; c < n_cols; c++) lanes[c][0] = lanes[c][1] = vf_zero();
        for (; i + UNIT <= a->n_in; i += UNIT, src += type->bytes) {
            if (w.scales)
                w.scales(src, GROUPS, &u);
            else
                unpack(type, src, GROUPS, &u);
            for (int c = 0; c < n_cols; c++) {
                act x = act_at(column_x(a, col + c), a->n_in, i);
                lanes[c][0] = add_four(w, src, &u, 0, x, lanes[c][0]);
                lanes[c][1] = add_four(w, src, &u, 4, x, lanes[c][1]);
            }
        }
        if (i < a->n_in) { /* a partial unit: zeros behind it */
            int n_groups = groups_at(i, a->n_in);
            unpack(type, src, n_groups, &u);
            row_reader rest = {w.kind, NULL, unpacked_group};
            for (int c = 0; c < n_cols; c++) {
                padded_act padded;
                act x = pad(act_at(column_x(a, col + c), a->n_in, i), n_groups, &padded);
                lanes[c][0] = add_four(rest, NULL, &u, 0, x, lanes[c][0]);
                lanes[c][1] = add_four(rest, NULL, &u, 4, x, lanes[c][1]);
            }
        }
        for (int c = 0; c < n_cols; c++) {
            vf four = vf_add(lanes[c][0], lanes[c][1]);
            float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            column_y(a, col + c)[r] = vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
        }
    }
}

/* ---- many columns: panels of eight rows, whose lanes are rows ------------------------ */

/* Four quants of each row lie side by side, as the dot product takes them. */
typedef struct {
    int8_t q[UNIT / 4][8][4];
    int32_t scale[UNIT / 16][8], bias[UNIT / 16][8];
    float d[GROUPS][8], dmin[GROUPS][8];
} panel;

static void fill_panel(panel *p, const unpacker *type, const uint8_t *src, size_t row_bytes,
                       int n_groups) {
    unit u;
    for (int r = 0; r < 8; r++, src += row_bytes) {
        unpack(type, src, n_groups, &u);
        for (int i = 0; i < 8 * n_groups; i++) memcpy(p->q[i][r], u.q + 4 * i, 4);
        for (int i = 0; i < 2 * n_groups; i++) {
            p->scale[i][r] = u.scale[i];
            p->bias[i][r] = u.bias[i];
        }
        for (int g = 0; g < n_groups; g++) {
            p->d[g][r] = u.d[g];
            p->dmin[g][r] = u.dmin[g];
        }
    }
}

/* The sum of scale * q * x over 16 weights of four rows from row on. */
ALWAYS_INLINE int32x4_t dot_16(const panel *p, int i, int row, int8x16_t x) {
    int32x4_t dot = vdupq_n_s32(0);
    dot = vdotq_laneq_s32(dot, vld1q_s8(p->q[4 * i][row]), x, 0);
    dot = vdotq_laneq_s32(dot, vld1q_s8(p->q[4 * i + 1][row]), x, 1);
    dot = vdotq_laneq_s32(dot, vld1q_s8(p->q[4 * i + 2][row]), x, 2);
    dot = vdotq_laneq_s32(dot, vld1q_s8(p->q[4 * i + 3][row]), x, 3);
    return vmulq_s32(dot, vld1q_s32(p->scale[i] + row));
}

/* Adds group g of four rows to their lanes. */
ALWAYS_INLINE vf add_group(unit_kind kind, const panel *p, int g, int row, act x, vf lanes) {
    int32x4_t a = vaddq_s32(dot_16(p, 2 * g, row, vld1q_s8(x.q)),
                            dot_16(p, 2 * g + 1, row, vld1q_s8(x.q + 16)));
    int32x4_t b = vmulq_n_s32(vld1q_s32(p->bias[2 * g] + row), x.sum[0]);
    b = vmlaq_n_s32(b, vld1q_s32(p->bias[2 * g + 1] + row), x.sum[1]);
    return vf_add(lanes, terms(kind, a, b, vf_load(p->d[g] + row), vf_load(p->dmin[g] + row),
                               vf_set1(x.d[0])));
}

/* Rows [row, row + 8), n_cols columns from col on. */
ALWAYS_INLINE void product_panel(const matmul_args *a, unit_kind kind, int row, int col,
                                 int n_cols) {
    const unpacker *type = unpacker_of(a->type);
    const uint8_t *src = row_w(a, row);
    vf lanes[TILE][GROUPS][2];
    panel p;
    for (int c = 0; c < n_cols; c++)
        for (int g = 0; g < GROUPS; g++) lanes[c][g][0] = lanes[c][g][1] = vf_zero();
    for (int i = 0; i < a->n_in; i += UNIT, src += type->bytes) {
        int n_groups = groups_at(i, a->n_in);
        fill_panel(&p, type, src, a->row_bytes, n_groups);
        for (int c = 0; c < n_cols; c++)
            for (int g = 0; g < n_groups; g++) {
                act x = act_at(column_x(a, col + c), a->n_in, i + 32 * g);
                lanes[c][g][0] = add_group(kind, &p, g, 0, x, lanes[c][g][0]);
                lanes[c][g][1] = add_group(kind, &p, g, 4, x, lanes[c][g][1]);
            }
    }
    for (int c = 0; c < n_cols; c++)
        for (int half_row = 0; half_row < 2; half_row++) {
            vf(*l)[2] = lanes[c];
            for (int step = 4; step; step /= 2)
                for (int g = 0; g < step; g++)
                    l[g][half_row] = vf_add(l[g][half_row], l[g + step][half_row]);
            vf_store(column_y(a, col + c) + row + 4 * half_row, l[0][half_row]);
        }
}

/* ---- the products -------------------------------------------------------------------- */

ALWAYS_INLINE void product(const matmul_args *a, row_reader w, int row0, int row1) {
    for (int col = 0; col < a->n_cols; col += TILE) {
        int n_cols = a->n_cols - col < TILE ? a->n_cols - col : TILE, r = row0;
        if (n_cols >= PANEL_COLS)
            for (; r + 8 <= row1; r += 8) product_panel(a, w.kind, r, col, n_cols);
        product_rows(a, w, r, row1, col, n_cols);
    }
}

#define PRODUCT(name, kind, scales, group)                                   \
    static void product_##name(const matmul_args *a, int row0, int row1) {   \
        product(a, (row_reader){kind, scales, group}, row0, row1);           \
    }
PRODUCT(q8_0, SIGNED, q8_0_scales, q8_0_group)
PRODUCT(q4_0, OFFSET, q4_0_scales, q4_0_group)
PRODUCT(q4_K, MINIMUM, q4_K_scales, q4_K_group)
PRODUCT(q6_K, OFFSET, q6_K_scales, q6_K_group)
PRODUCT(signed, SIGNED, NULL, unpacked_group)
PRODUCT(offset, OFFSET, NULL, unpacked_group)
PRODUCT(minimum, MINIMUM, NULL, unpacked_group)

static void matmul(const matmul_args *a, int row0, int row1) {
    static void (*const products[TYPE_COUNT])(const matmul_args *, int, int) = {
        [TYPE_F32] = matmul_float, [TYPE_F16] = matmul_float, [TYPE_BF16] = matmul_float,
        [TYPE_Q8_0] = product_q8_0, [TYPE_Q4_0] = product_q4_0, [TYPE_Q4_1] = product_minimum,
        [TYPE_Q5_0] = product_offset, [TYPE_Q5_1] = product_minimum,
        [TYPE_IQ4_NL] = product_signed, [TYPE_Q2_K] = product_minimum,
        [TYPE_Q3_K] = product_offset, [TYPE_Q4_K] = product_q4_K, [TYPE_Q5_K] = product_minimum,
        [TYPE_Q6_K] = product_q6_K, [TYPE_IQ4_XS] = product_signed,
    };
    products[a->type](a, row0, row1);
}

/* ---- activations ------------------------------------------------------------------------- */

static void quantize(const float *x, void *row, int n, int first, int last) {
    int8_t *q = row;
    float *d = (float *)(void *)(q + n);
    int16_t *sum = (int16_t *)(void *)(d + n / 32);
    for (int i = first; i < last; i += 32) {
        uint32x4_t top = vdupq_n_u32(0), magnitude = vdupq_n_u32(0x7fffffff);
        for (int k = i; k < i + 32; k += 4)
            top = vmaxq_u32(top, vandq_u32(vreinterpretq_u32_f32(vf_load(x + k)), magnitude));
        float factor;
        bool some = act_scale(vmaxvq_u32(top), &d[i / 32], &factor);
        for (int k = i; k < i + 32; k += 16) {
            int16x4_t v[4] = {vdup_n_s16(0), vdup_n_s16(0), vdup_n_s16(0), vdup_n_s16(0)};
            for (int m = 0; some && m < 4; m++) /* rounds to nearest even */
                v[m] = vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(vf_load(x + k + 4 * m), factor)));
            int16x8_t low = vcombine_s16(v[0], v[1]), high = vcombine_s16(v[2], v[3]);
            vst1q_s8(q + k, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
            sum[k / 16] = vaddvq_s16(vaddq_s16(low, high));
        }
    }
}

const backend backend_neon = {
    .name = "neon",
    .available = available,
    .matmul = matmul,
    .quantize = quantize,
    .rmsnorm = rmsnorm,
    .rope = rope,
    .swiglu = swiglu,
    .axpy = axpy,
    .attend = attend,
    .merge = merge,
    .to_f16 = to_f16,
};
