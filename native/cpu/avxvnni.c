/* avxvnni.c - the backend for x86-64 with AVX-VNNI: vpdpbusd of 256 bits, as on laptops from
 * Alder Lake on. The products are those of avx512.c, the rest is that of AVX2. */
#include "ymm.h"

static int available(void) {
    unsigned a, b, c, d;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
}

/* ---- panels, see panel.h ------------------------------------------------------------- */

/* Bytes stay below 256, so that none carries into the next. */
ALWAYS_INLINE vu center(vu v, int offset) {
    return offset ? v + (uint32_t)(128 - offset) * 0x01010101 : v ^ 0x80808080;
}

typedef struct {
    int run;
    bool min;
} shape;

ALWAYS_INLINE vu start(const shape t, const act_unit *x, int j) {
    if (t.min) return (vu)_mm256_set1_epi32(ACT_START);
    return (vu)every_lane(t.run == 32 ? &x->start32[j] : &x->start16[j]);
}

/* As in avx512.c. */
ALWAYS_INLINE vu start_less(int offset, const shape t, const act_unit *x, int j) {
    if (offset == 0) return (vu)_mm256_set1_epi32(ACT_START);
    uint32_t part = 128 / (uint32_t)offset;
    vu bits = (vu)every_lane(t.run == 32 ? &x->start32[j] : &x->start16[j]);
    return bits / part + (ACT_START - ACT_START / part);
}

ALWAYS_INLINE vu add_quad(vu dot, vu q, __m256i x) {
    return (vu)_mm256_dpbusd_avx_epi32((__m256i)dot, (__m256i)q, x);
}

ALWAYS_INLINE vu add_products(const shape t, vu dot, const vu q[4], const vu x[4]) {
    (void)t;
    for (int k = 0; k < 4; k++) dot = add_quad(dot, q[k], (__m256i)x[k]);
    return dot;
}

ALWAYS_INLINE vu add_dot(const shape t, vu dot, const vu q[4], const int8_t *x) {
    (void)t;
    for (int k = 0; k < 4; k++) dot = add_quad(dot, q[k], every_lane(x + 4 * k));
    return dot;
}

enum { PARTS = 1, FEW = 1 };
ALWAYS_INLINE void store_quads(const shape t, vu *to, const vu q[4]) {
    (void)t;
    memcpy(to, q, 4 * sizeof *q);
}

#include "panel.h"

enum { BYTE_OFFSET = 128, HIGH = 4 };
#include "wide.h"

/* ---- tiles, see tile.h ------------------------------------------------------------- */

enum { MAX_R = 2, MAX_C = 6 };
#define FOR_COLUMNS(F, shape, R) \
    F(shape, R, 1) F(shape, R, 2) F(shape, R, 3) F(shape, R, 4) F(shape, R, 5) F(shape, R, 6)

/* dot[r][c] = M + the sum of q x over run j, as the bits of a float. */
ALWAYS_INLINE void dots(const shape t, const panel *p, const int R, const act_unit *const *x,
                        const int C, int j, vu (*dot)[MAX_C]) {
    UNROLL for (int c = 0; c < C; c++)
        UNROLL for (int r = 0; r < R; r++) dot[r][c] = start(t, x[c], j);
    UNROLL for (int k = 0; k < t.run / 4; k++)
        UNROLL for (int c = 0; c < C; c++) {
            __m256i four = every_lane(x[c]->q + t.run * j + 4 * k);
            UNROLL for (int r = 0; r < R; r++)
                dot[r][c] = add_quad(dot[r][c], p[r].q[t.run / 4 * j + k], four);
        }
}

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
KERNEL(q8_0, plain, wide)
KERNEL(q4_0, plain, wide)
KERNEL(q4_1, minimum, wide)
KERNEL(q5_0, plain, panel)
KERNEL(q5_1, minimum, panel)
KERNEL(iq4_nl, plain, panel)
KERNEL(q2_K, minimum_16, panel)
KERNEL(q3_K, plain_16, panel)
KERNEL(q4_K, minimum, wide)
KERNEL(q5_K, minimum, wide)
KERNEL(q6_K, plain_16, wide)
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

ALWAYS_INLINE void int8_step(__m256i *sum, const __m256i *w) {
    *sum = _mm256_dpbusd_avx_epi32(*sum, *w, *w);
}
DEFINE_PEAK(peak_int8, __m256i, _mm256_set1_epi8(3), int8_step, 32)

const backend backend_avxvnni = {
    .name = "avxvnni",
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
    .peak = peak,
    .encode = &encoders_avx2,
};
