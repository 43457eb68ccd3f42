/* avx2.c - the backend for x86-64 with AVX2, FMA and F16C.
 *
 * vpmaddubsw multiplies unsigned by signed bytes and adds pairs of products to an int16, which
 * holds several pairs if quants are small: 258 * 127 < 2^15. So quants stay unsigned, as they
 * are stored, and what a sum starts from makes up for their offset. Quants of a full byte are
 * split in two nibbles for tiles; few columns, where splitting costs more than it saves, take
 * |q| times x with the sign of q, and widen each pair at once.
 *
 * Sums start from the bits of the float M = 1.5 * 2^23, see avx512.c.
 */
#include "ymm.h"

static int available(void) { return has_avx2(); }

/* ---- panels, see panel.h ------------------------------------------------------------- */

enum { BYTE = 128 };

typedef struct {
    int run;
    bool min;
    int top;    /* the greatest quant; BYTE: they have a sign */
    int offset; /* a power of two which these quants contain, or 0 */
} shape;

ALWAYS_INLINE vu center(vu v, int offset) {
    (void)offset;
    return v;
}

/* M - offset * the sum of x. The act unit has M - 128 * that, and 2^22 divides the bits of M. */
ALWAYS_INLINE vu start_less(int offset, const shape t, const act_unit *x, int j) {
    if (offset == 0) return (vu)_mm256_set1_epi32(ACT_START);
    uint32_t part = 128 / (uint32_t)offset;
    vu bits = (vu)every_lane(t.run == 32 ? &x->start32[j] : &x->start16[j]);
    return bits / part + (ACT_START - ACT_START / part);
}

ALWAYS_INLINE vu start(const shape t, const act_unit *x, int j) {
    return start_less(t.offset, t, x, j);
}

/* The pairs of how many quads, of at most n, fit an int16. */
ALWAYS_INLINE int summable(int top, int n) { return 129 / top < n ? 129 / top : n; }

ALWAYS_INLINE __m256i pairs(const shape t, __m256i q, __m256i x) {
    return t.top == BYTE ? _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(x, q))
                         : _mm256_maddubs_epi16(q, x);
}

ALWAYS_INLINE vu add_pairs(vu dot, __m256i sum, int times) {
    return dot + (vu)_mm256_madd_epi16(sum, _mm256_set1_epi16((short)times));
}

ALWAYS_INLINE vu add_products(const shape t, vu dot, const vu q[4], const vu x[4]) {
    const int step = summable(t.top, 4);
    __m256i sum = _mm256_setzero_si256();
    UNROLL for (int k = 0; k < 4; k++) {
        __m256i more = pairs(t, (__m256i)q[k], (__m256i)x[k]);
        sum = k % step ? _mm256_add_epi16(sum, more) : more;
        if (k % step == step - 1) dot = add_pairs(dot, sum, 1);
    }
    return dot;
}

ALWAYS_INLINE vu add_dot(const shape t, vu dot, const vu q[4], const int8_t *x) {
    const vu four[4] = {(vu)every_lane(x), (vu)every_lane(x + 4), (vu)every_lane(x + 8),
                        (vu)every_lane(x + 12)};
    return add_products(t, dot, q, four);
}

/* Tiles take a byte as the low nibbles of q + 128 and the high ones. */
enum { PARTS = 2, FEW = 1 };
ALWAYS_INLINE void store_quads(const shape t, vu *to, const vu q[4]) {
    UNROLL for (int k = 0; k < 4; k++) {
        vu byte = q[k] ^ 0x80808080;
        to[k] = t.top == BYTE ? byte & 0x0f0f0f0f : q[k];
        if (t.top == BYTE) to[UNIT / 4 + k] = byte >> 4 & 0x0f0f0f0f;
    }
}

#include "panel.h"

enum { BYTE_OFFSET = 0, HIGH = 0 };
#include "wide.h"

/* ---- tiles, see tile.h ------------------------------------------------------------- */

enum { MAX_R = 2, MAX_C = 4 }; /* 8 sums in 16 registers; those of floats are in memory */
#define FOR_COLUMNS(F, shape, R) F(shape, R, 1) F(shape, R, 2) F(shape, R, 3) F(shape, R, 4)

/* dot[r][c] = M + the sum of q x over run j, as the bits of a float. */
ALWAYS_INLINE void dots(const shape t, const panel *p, const int R, const act_unit *const *x,
                        const int C, int j, vu (*dot)[MAX_C]) {
    const int n = t.run / 4, parts = t.top == BYTE ? 2 : 1;
    const int step = summable(parts == 2 ? 15 : t.top, n), offset = parts == 2 ? 128 : t.offset;
    UNROLL for (int i = 0; i < n * parts; i += step) {
        __m256i sum[MAX_R][MAX_C];
        UNROLL for (int k = 0; k < step; k++)
            UNROLL for (int c = 0; c < C; c++) {
                __m256i four = every_lane(x[c]->q + t.run * j + 4 * (i % n + k));
                UNROLL for (int r = 0; r < R; r++) {
                    __m256i q = (__m256i)p[r].q[i / n * UNIT / 4 + n * j + i % n + k];
                    if (k == 0) sum[r][c] = _mm256_setzero_si256();
                    sum[r][c] = _mm256_add_epi16(sum[r][c], _mm256_maddubs_epi16(q, four));
                    /* or gcc adds up in another order, with all products in memory */
                    __asm__("" : "+x"(sum[r][c]));
                }
            }
        UNROLL for (int c = 0; c < C; c++)
            UNROLL for (int r = 0; r < R; r++) {
                if (i == 0) dot[r][c] = start_less(offset, t, x[c], j);
                dot[r][c] = add_pairs(dot[r][c], sum[r][c], i < n ? 1 : 16);
            }
        __asm__("" ::: "memory"); /* or it keeps what is loaded, by storing it elsewhere */
    }
}

ALWAYS_INLINE vf scaled(vu dot, vf scale) {
    return vf_fma((vf)dot, scale, vf_mul(scale, vf_set1(-0x1.8p23f)));
}

#include "tile.h"

static const shape byte = {32, false, BYTE, 0};
static const shape q2_min = {16, true, 3, 0}, q3_offset = {16, false, 7, 4};
static const shape q4_min = {32, true, 15, 0}, q4_offset = {32, false, 15, 8};
static const shape q5_min = {32, true, 31, 0}, q5_offset = {32, false, 31, 16};
static const shape q6_offset = {16, false, 63, 32};
TILES(byte)
TILES(q2_min)
TILES(q3_offset)
TILES(q4_min)
TILES(q4_offset)
TILES(q5_min)
TILES(q5_offset)
TILES(q6_offset)
KERNEL(q8_0, byte, wide)
KERNEL(q4_0, q4_offset, wide)
KERNEL(q4_1, q4_min, wide)
KERNEL(q5_0, q5_offset, panel)
KERNEL(q5_1, q5_min, panel)
KERNEL(iq4_nl, byte, panel)
KERNEL(q2_K, q2_min, panel)
KERNEL(q3_K, q3_offset, panel)
KERNEL(q4_K, q4_min, wide)
KERNEL(q5_K, q5_min, wide)
KERNEL(q6_K, q6_offset, wide)
KERNEL(iq4_xs, byte, panel)

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

/* The least that products of small quants take: sums of pairs, added as int16. */
ALWAYS_INLINE void int8_step(__m256i *sum, const __m256i *w) {
    *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(*w, *w));
}
DEFINE_PEAK(peak_int8, __m256i, _mm256_set1_epi8(3), int8_step, 32)

const backend backend_avx2 = {
    .name = "avx2",
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
