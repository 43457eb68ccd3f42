/* avx2.c - the backend for x86-64 with AVX2, FMA and F16C. */
#include <cpuid.h>
#include <immintrin.h>

/* ---- the float vector, see vector.h ------------------------------------------------ */

typedef __m256 vf;
enum { LANES = 8 };

static inline vf vf_zero(void) { return _mm256_setzero_ps(); }
static inline vf vf_set1(float f) { return _mm256_set1_ps(f); }
static inline vf vf_load(const void *p) { return _mm256_loadu_ps(p); }
static inline void vf_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
static inline vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf vf_round(vf a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline vf vf_pow2(vf a) {
    __m256i n = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(n, 23));
}
static inline vf vf_load_f16(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128(p)); }
static inline vf vf_load_bf16(const void *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
static inline vf vf_load_i8(const void *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p)));
}
static inline void vf_store_f16(void *p, vf a) {
    _mm_storeu_si128(p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
/* By halves: the order that unpack.h prescribes. */
static inline float vf_sum(vf a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline float vf_top(vf a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

#include "vector.h"
#include "attend.h"

static int available(void) {
    unsigned a, b, c, d; /* not every compiler's __builtin_cpu_supports knows f16c */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

/* ---- reading quantized rows, see unpack.h ------------------------------------------------ */

static inline __m256i load_256(const void *p) { return _mm256_loadu_si256(p); }
static inline __m128i load_128(const void *p) { return _mm_loadu_si128(p); }

/* The scales of a unit, in registers. */
typedef struct {
    __m256i scale, bias; /* int16 of each 16 weights */
    vf d, dmin;          /* of each 32 */
} unit_scales;

/* How a type is read: a whole unit's scales, and 32 of its quants. */
typedef struct {
    unit_kind kind;
    bool scaled; /* scale is not always 1 */
    unit_scales (*scales)(const void *src);
    __m256i (*group)(const void *src, int g);
} row_reader;

/* Eight f16, stride bytes apart. */
ALWAYS_INLINE vf halves(const void *src, int stride) {
    short h[8];
    for (int g = 0; g < 8; g++) memcpy(&h[g], (const char *)src + g * stride, sizeof h[g]);
    return _mm256_cvtph_ps(_mm_setr_epi16(h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]));
}

/* A unit of eight blocks that begin with d and, if the kind is MINIMUM, m = -minimum. */
ALWAYS_INLINE unit_scales block_scales(const void *src, int stride, unit_kind kind, int bias) {
    unit_scales s = {_mm256_set1_epi16(1), _mm256_set1_epi16((short)bias), halves(src, stride),
                     vf_zero()};
    if (kind == MINIMUM) s.dmin = vf_sub(vf_zero(), halves((const char *)src + 2, stride));
    return s;
}

#define BLOCK_SCALES(type, kind, bias)                                      \
    ALWAYS_INLINE unit_scales type##_scales_256(const void *src) {          \
        return block_scales(src, (int)sizeof(block_##type), kind, bias);    \
    }
BLOCK_SCALES(q8_0, SIGNED, 0)
BLOCK_SCALES(iq4_nl, SIGNED, 0)
BLOCK_SCALES(q4_0, OFFSET, 8)
BLOCK_SCALES(q5_0, OFFSET, 16)
BLOCK_SCALES(q4_1, MINIMUM, 1)
BLOCK_SCALES(q5_1, MINIMUM, 1)

ALWAYS_INLINE unit_scales super_scales_256(__m256i scale, __m256i bias, f16_t d, f16_t dmin) {
    return (unit_scales){scale, bias, vf_set1(half(d)), vf_set1(half(dmin))};
}

/* Eight bytes, each twice, as int16. */
ALWAYS_INLINE __m256i twice(__m128i bytes) {
    return _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(bytes, bytes));
}

ALWAYS_INLINE unit_scales k4_scales_256(const uint8_t packed[12], f16_t d, f16_t dmin) {
    k4_pairs p = k4_unpack(packed);
    return super_scales_256(twice(_mm_cvtsi64_si128((long long)p.scale)),
                            twice(_mm_cvtsi64_si128((long long)p.min)), d, dmin);
}

ALWAYS_INLINE unit_scales q4_K_scales_256(const void *src) {
    const row_q4_K *b = src;
    return k4_scales_256(b->scales, b->d, b->dmin);
}

ALWAYS_INLINE unit_scales q5_K_scales_256(const void *src) {
    const row_q5_K *b = src;
    return k4_scales_256(b->scales, b->d, b->dmin);
}

ALWAYS_INLINE unit_scales q2_K_scales_256(const void *src) {
    const row_q2_K *b = src;
    __m256i both = _mm256_cvtepu8_epi16(load_128(b->scales));
    return super_scales_256(_mm256_and_si256(both, _mm256_set1_epi16(15)),
                            _mm256_srli_epi16(both, 4), b->d, b->dmin);
}

ALWAYS_INLINE unit_scales q3_K_scales_256(const void *src) {
    const row_q3_K *b = src;
    uint32_t low[2], high;
    memcpy(low, b->scales, 8);
    memcpy(&high, b->scales + 8, 4);
    __m128i s = _mm_setr_epi32((int)low[0], (int)low[1], (int)(low[0] >> 4), (int)(low[1] >> 4));
    __m128i h = _mm_srlv_epi32(_mm_set1_epi32((int)high), _mm_setr_epi32(0, 2, 4, 6));
    s = _mm_or_si128(_mm_and_si128(s, _mm_set1_epi8(15)),
                     _mm_slli_epi16(_mm_and_si128(h, _mm_set1_epi8(3)), 4));
    __m256i scale = _mm256_cvtepi8_epi16(_mm_sub_epi8(s, _mm_set1_epi8(32)));
    return super_scales_256(scale, _mm256_slli_epi16(scale, 2), b->d, 0);
}

ALWAYS_INLINE unit_scales q6_K_scales_256(const void *src) {
    const row_q6_K *b = src;
    __m256i scale = _mm256_cvtepi8_epi16(load_128(b->scales));
    return super_scales_256(scale, _mm256_slli_epi16(scale, 5), b->d, 0);
}

ALWAYS_INLINE unit_scales iq4_xs_scales_256(const void *src) {
    const row_iq4_xs *b = src;
    uint64_t bytes = 0;
    for (int g = 0; g < GROUPS; g++)
        bytes |= (uint64_t)(uint8_t)iq4_xs_scale(b->scales_h, b->scales_l, g) << 8 * g;
    return super_scales_256(twice(_mm_cvtsi64_si128((long long)bytes)), _mm256_setzero_si256(),
                            b->d, 0);
}

/* The low nibbles of 16 bytes, then the high ones. */
ALWAYS_INLINE __m256i nibbles_16(const uint8_t *qs) {
    __m128i packed = load_128(qs);
    __m256i both = _mm256_set_m128i(_mm_srli_epi16(packed, 4), packed);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

/* bits, starting at bit shift, of each of 32 bytes. */
ALWAYS_INLINE __m256i bits_32(const uint8_t *p, int shift, int bits) {
    return _mm256_and_si256(_mm256_srli_epi16(load_256(p), shift),
                            _mm256_set1_epi8((char)((1 << bits) - 1)));
}

/* 16 where a bit of qh is set, else 0. */
ALWAYS_INLINE __m256i fifth_bits_256(const uint8_t qh[4]) {
    int32_t bits;
    memcpy(&bits, qh, sizeof bits);
    __m256i byte = _mm256_shuffle_epi8(_mm256_set1_epi32(bits),
                                       _mm256_setr_epi64x(0, 0x0101010101010101,
                                                          0x0202020202020202, 0x0303030303030303));
    __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201);
    __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(byte, bit), bit);
    return _mm256_and_si256(set, _mm256_set1_epi8(16));
}

ALWAYS_INLINE __m256i levels_256(const uint8_t *qs) {
    __m256i table = _mm256_broadcastsi128_si256(load_128(iq4_levels));
    return _mm256_shuffle_epi8(table, nibbles_16(qs));
}

ALWAYS_INLINE __m256i q8_0_group(const void *src, int g) {
    return load_256(((const row_q8_0 *)src)[g].qs);
}

ALWAYS_INLINE __m256i q4_0_group(const void *src, int g) {
    return nibbles_16(((const row_q4_0 *)src)[g].qs);
}

ALWAYS_INLINE __m256i q4_1_group(const void *src, int g) {
    return nibbles_16(((const row_q4_1 *)src)[g].qs);
}

ALWAYS_INLINE __m256i q5_0_group(const void *src, int g) {
    const row_q5_0 *b = (const row_q5_0 *)src + g;
    return _mm256_or_si256(nibbles_16(b->qs), fifth_bits_256(b->qh));
}

ALWAYS_INLINE __m256i q5_1_group(const void *src, int g) {
    const row_q5_1 *b = (const row_q5_1 *)src + g;
    return _mm256_or_si256(nibbles_16(b->qs), fifth_bits_256(b->qh));
}

ALWAYS_INLINE __m256i iq4_nl_group(const void *src, int g) {
    return levels_256(((const row_iq4_nl *)src)[g].qs);
}

ALWAYS_INLINE __m256i iq4_xs_group(const void *src, int g) {
    return levels_256(((const row_iq4_xs *)src)->qs + 16 * g);
}

ALWAYS_INLINE __m256i q2_K_group(const void *src, int g) {
    return bits_32(((const row_q2_K *)src)->qs + g / 4 * 32, g % 4 * 2, 2);
}

ALWAYS_INLINE __m256i q3_K_group(const void *src, int g) {
    const row_q3_K *b = src;
    return _mm256_or_si256(bits_32(b->qs + g / 4 * 32, g % 4 * 2, 2),
                           _mm256_slli_epi16(bits_32(b->hmask, g, 1), 2));
}

ALWAYS_INLINE __m256i q4_K_group(const void *src, int g) {
    return bits_32(((const row_q4_K *)src)->qs + g / 2 * 32, g % 2 * 4, 4);
}

ALWAYS_INLINE __m256i q5_K_group(const void *src, int g) {
    const row_q5_K *b = src;
    return _mm256_or_si256(bits_32(b->qs + g / 2 * 32, g % 2 * 4, 4),
                           _mm256_slli_epi16(bits_32(b->qh, g, 1), 4));
}

ALWAYS_INLINE __m256i q6_K_group(const void *src, int g) {
    const row_q6_K *b = src;
    return _mm256_or_si256(bits_32(b->ql + g / 4 * 64 + g % 2 * 32, g % 4 / 2 * 4, 4),
                           _mm256_slli_epi16(bits_32(b->qh + g / 4 * 32, g % 4 * 2, 2), 4));
}

/* A partial unit is unpacked first. */
ALWAYS_INLINE unit_scales unpacked_scales(const void *src) {
    const unit *u = src;
    return (unit_scales){load_256(u->scale), load_256(u->bias), vf_load(u->d), vf_load(u->dmin)};
}

ALWAYS_INLINE __m256i unpacked_group(const void *src, int g) {
    return load_256(((const unit *)src)->q + 32 * g);
}

/* ---- few columns: each row as it lies ------------------------------------------------------ */

/* Sums of pairs of products q x as int16, exact: the unsigned operand is at most 128, the
 * other at most 127 in size, and 2 * 128 * 127 < 2^15. */
ALWAYS_INLINE __m256i dot_pairs(unit_kind kind, __m256i q, __m256i x) {
    return kind == SIGNED ? _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(x, q))
                          : _mm256_maddubs_epi16(q, x);
}

/* Eight terms: of the groups of a unit, or of one group of eight rows. */
ALWAYS_INLINE vf terms(unit_kind kind, __m256i a, __m256i bias, __m256i sums, vf d, vf dmin,
                       vf dx) {
    vf scale = vf_mul(d, dx);
    if (kind == SIGNED) return vf_mul(_mm256_cvtepi32_ps(a), scale);
    __m256i b = _mm256_madd_epi16(bias, sums);
    if (kind == OFFSET) return vf_mul(_mm256_cvtepi32_ps(_mm256_sub_epi32(a, b)), scale);
    return vf_sub(vf_mul(_mm256_cvtepi32_ps(a), scale),
                  vf_mul(_mm256_cvtepi32_ps(b), vf_mul(dmin, dx)));
}

ALWAYS_INLINE vf unit_terms(row_reader w, const void *src, unit_scales s, act x) {
    __m256i ones = _mm256_set1_epi16(1), dot[GROUPS];
    for (int g = 0; g < GROUPS; g++)
        dot[g] = _mm256_madd_epi16(dot_pairs(w.kind, w.group(src, g), load_256(x.q + 32 * g)),
                                   ones);
    /* Add up fours of lanes: the low lanes are the first 16 weights of groups 0-3 (4-7), the
     * high lanes the second 16. Then bring all first halves together, and all second. */
    __m256i low = _mm256_hadd_epi32(_mm256_hadd_epi32(dot[0], dot[1]),
                                    _mm256_hadd_epi32(dot[2], dot[3]));
    __m256i high = _mm256_hadd_epi32(_mm256_hadd_epi32(dot[4], dot[5]),
                                     _mm256_hadd_epi32(dot[6], dot[7]));
    __m256i first = _mm256_permute2x128_si256(low, high, 0x20);
    __m256i second = _mm256_permute2x128_si256(low, high, 0x31);
    if (w.scaled) {
        __m256i scale1 = _mm256_srai_epi32(_mm256_slli_epi32(s.scale, 16), 16);
        first = _mm256_mullo_epi32(first, scale1);
        second = _mm256_mullo_epi32(second, _mm256_srai_epi32(s.scale, 16));
    }
    return terms(w.kind, _mm256_add_epi32(first, second), s.bias, load_256(x.sum), s.d, s.dmin,
                 vf_load(x.d));
}

/* The last, partial unit of a row. */
static vf partial_terms(const unpacker *type, const void *src, int n_groups, act x) {
    row_reader w = {type->kind, true, unpacked_scales, unpacked_group};
    padded_act padded;
    unit u;
    unpack(type, src, n_groups, &u);
    return unit_terms(w, &u, unpacked_scales(&u), pad(x, n_groups, &padded));
}

enum {
    TILE = 32,       /* columns that share what is unpacked */
    PREFETCH = 4096, /* bytes ahead: the hardware's stops at the end of a page */
};

ALWAYS_INLINE void product_rows(const matmul_args *a, row_reader w, int row0, int row1, int col,
                                int n_cols) {
    const unpacker *type = unpacker_of(a->type);
    for (int r = row0; r < row1; r++) {
        const uint8_t *src = row_w(a, r);
        vf lanes[TILE];
        int i = 0;
        for (int c = 0; c < n_cols; c++) lanes[c] = vf_zero();
        for (; i + UNIT <= a->n_in; i += UNIT, src += type->bytes) {
            for (int k = 0; k < type->bytes; k += 64)
                _mm_prefetch((const char *)((uintptr_t)src + PREFETCH + (unsigned)k), _MM_HINT_T0);
            unit_scales s = w.scales(src);
            for (int c = 0; c < n_cols; c++) {
                act x = act_at(column_x(a, col + c), a->n_in, i);
                lanes[c] = vf_add(lanes[c], unit_terms(w, src, s, x));
            }
        }
        for (int c = 0; c < n_cols && i < a->n_in; c++) {
            act x = act_at(column_x(a, col + c), a->n_in, i);
            lanes[c] = vf_add(lanes[c], partial_terms(type, src, groups_at(i, a->n_in), x));
        }
        for (int c = 0; c < n_cols; c++) column_y(a, col + c)[r] = vf_sum(lanes[c]);
    }
}

/* ---- many columns: panels of eight rows, whose lanes are rows ------------------------ */

enum { PANEL_COLS = 8 }; /* columns from which on unpacking a panel pays */

/* Four quants of each row lie side by side, each scale twice, biases in pairs: as 16-bit dot
 * products take them. */
typedef struct {
    __m256i q[UNIT / 4];
    int16_t scale[UNIT / 16][8][2], bias[GROUPS][8][2];
    float d[GROUPS][8], dmin[GROUPS][8];
} panel;

/* From rows as vectors of eight fours of quants to fours as vectors of eight rows. */
ALWAYS_INLINE void transpose(const __m256i row[8], __m256i four[8]) {
    __m256i pairs[8], quads[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_epi32(row[i], row[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_epi32(row[i], row[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; k++) {
            quads[i + 2 * k] = _mm256_unpacklo_epi64(pairs[i + k], pairs[i + k + 2]);
            quads[i + 2 * k + 1] = _mm256_unpackhi_epi64(pairs[i + k], pairs[i + k + 2]);
        }
    for (int i = 0; i < 4; i++) {
        four[i] = _mm256_permute2x128_si256(quads[i], quads[i + 4], 0x20);
        four[i + 4] = _mm256_permute2x128_si256(quads[i], quads[i + 4], 0x31);
    }
}

ALWAYS_INLINE void fill_panel(panel *p, row_reader w, const uint8_t *src, size_t row_bytes,
                              int n_groups) {
    for (int r = 0; r < 8; r++) {
        unit_scales s = w.scales(src + (size_t)r * row_bytes);
        unit u;
        _mm256_storeu_si256((void *)u.scale, s.scale);
        _mm256_storeu_si256((void *)u.bias, s.bias);
        vf_store(u.d, s.d);
        vf_store(u.dmin, s.dmin);
        for (int i = 0; i < UNIT / 16; i++) p->scale[i][r][0] = p->scale[i][r][1] = u.scale[i];
        for (int g = 0; g < GROUPS; g++) {
            memcpy(p->bias[g][r], u.bias + 2 * g, 2 * sizeof(int16_t));
            p->d[g][r] = u.d[g];
            p->dmin[g][r] = u.dmin[g];
        }
    }
    for (int g = 0; g < n_groups; g++) {
        __m256i rows[8];
        for (int r = 0; r < 8; r++) rows[r] = w.group(src + (size_t)r * row_bytes, g);
        transpose(rows, p->q + 8 * g);
    }
}

/* The sum of scale * q * x over 16 weights of each row; int16 sums stay below 2^15. */
ALWAYS_INLINE __m256i dot_16(unit_kind kind, const __m256i q[4], const int8_t *x, __m256i scale) {
    __m256i pairs[4];
    for (int i = 0; i < 4; i++) {
        int32_t four;
        memcpy(&four, x + 4 * i, sizeof four);
        pairs[i] = dot_pairs(kind, q[i], _mm256_set1_epi32(four));
    }
    if (kind == SIGNED) {
        for (int i = 0; i < 4; i++) pairs[i] = _mm256_madd_epi16(pairs[i], scale);
        return _mm256_add_epi32(_mm256_add_epi32(pairs[0], pairs[1]),
                                _mm256_add_epi32(pairs[2], pairs[3]));
    }
    __m256i low = _mm256_add_epi16(pairs[0], pairs[1]); /* at most 4 * 63 * 127 */
    __m256i high = _mm256_add_epi16(pairs[2], pairs[3]);
    if (kind == MINIMUM) return _mm256_madd_epi16(_mm256_add_epi16(low, high), scale);
    return _mm256_add_epi32(_mm256_madd_epi16(low, scale), _mm256_madd_epi16(high, scale));
}

/* Adds group g of the panel, whose first weight is i, to the lanes of n_cols columns. */
ALWAYS_INLINE void add_group(unit_kind kind, const panel *p, int g, const void *const *x, int n,
                             int i, vf (*lanes)[GROUPS], int n_cols) {
    __m256i q[8], scale1 = load_256(p->scale[2 * g]), scale2 = load_256(p->scale[2 * g + 1]);
    __m256i bias = load_256(p->bias[g]);
    vf d = vf_load(p->d[g]), dmin = vf_load(p->dmin[g]);
    for (int k = 0; k < 8; k++) q[k] = p->q[8 * g + k];
    for (int c = 0; c < n_cols; c++) {
        act at = act_at(x[c], n, i);
        int32_t sums;
        memcpy(&sums, at.sum, sizeof sums);
        __m256i dot = _mm256_add_epi32(dot_16(kind, q, at.q, scale1),
                                       dot_16(kind, q + 4, at.q + 16, scale2));
        lanes[c][g] = vf_add(lanes[c][g], terms(kind, dot, bias, _mm256_set1_epi32(sums), d, dmin,
                                                vf_set1(at.d[0])));
    }
}

/* Rows [row, row + 8), n_cols columns from col on. */
ALWAYS_INLINE void product_panel(const matmul_args *a, row_reader w, int row, int col,
                                 int n_cols) {
    const unpacker *type = unpacker_of(a->type);
    const uint8_t *src = row_w(a, row);
    const void *x[TILE];
    vf lanes[TILE][GROUPS];
    panel p;
    for (int c = 0; c < n_cols; c++) {
        x[c] = column_x(a, col + c);
        for (int g = 0; g < GROUPS; g++) lanes[c][g] = vf_zero();
    }
    int i = 0;
    for (; i + UNIT <= a->n_in; i += UNIT, src += type->bytes) {
        fill_panel(&p, w, src, a->row_bytes, GROUPS);
        for (int g = 0; g < GROUPS; g++)
            add_group(w.kind, &p, g, x, a->n_in, i + 32 * g, lanes, n_cols);
    }
    if (i < a->n_in) {
        unit u[8];
        int n_groups = groups_at(i, a->n_in);
        for (int r = 0; r < 8; r++)
            unpack(type, src + (size_t)r * a->row_bytes, n_groups, &u[r]);
        fill_panel(&p, (row_reader){w.kind, true, unpacked_scales, unpacked_group},
                   (const uint8_t *)u, sizeof u[0], n_groups);
        for (int g = 0; g < n_groups; g++)
            add_group(w.kind, &p, g, x, a->n_in, i + 32 * g, lanes, n_cols);
    }
    for (int c = 0; c < n_cols; c++) {
        vf *l = lanes[c];
        for (int step = 4; step; step /= 2)
            for (int g = 0; g < step; g++) l[g] = vf_add(l[g], l[g + step]);
        vf_store(column_y(a, col + c) + row, l[0]);
    }
}

/* ---- the products -------------------------------------------------------------------- */

ALWAYS_INLINE void product(const matmul_args *a, row_reader w, int row0, int row1) {
    for (int col = 0; col < a->n_cols; col += TILE) {
        int n_cols = a->n_cols - col < TILE ? a->n_cols - col : TILE, r = row0;
        if (n_cols >= PANEL_COLS)
            for (; r + 8 <= row1; r += 8) product_panel(a, w, r, col, n_cols);
        product_rows(a, w, r, row1, col, n_cols);
    }
}

#define PRODUCT(type, kind, scaled)                                                       \
    static void product_##type(const matmul_args *a, int row0, int row1) {                \
        product(a, (row_reader){kind, scaled, type##_scales_256, type##_group}, row0, row1); \
    }
PRODUCT(q8_0, SIGNED, false)
PRODUCT(q4_0, OFFSET, false)
PRODUCT(q4_1, MINIMUM, false)
PRODUCT(q5_0, OFFSET, false)
PRODUCT(q5_1, MINIMUM, false)
PRODUCT(iq4_nl, SIGNED, false)
PRODUCT(q2_K, MINIMUM, true)
PRODUCT(q3_K, OFFSET, true)
PRODUCT(q4_K, MINIMUM, true)
PRODUCT(q5_K, MINIMUM, true)
PRODUCT(q6_K, OFFSET, true)
PRODUCT(iq4_xs, SIGNED, true)

static void matmul(const matmul_args *a, int row0, int row1) {
    static void (*const products[TYPE_COUNT])(const matmul_args *, int, int) = {
        [TYPE_F32] = matmul_float, [TYPE_F16] = matmul_float, [TYPE_BF16] = matmul_float,
        [TYPE_Q8_0] = product_q8_0, [TYPE_Q4_0] = product_q4_0, [TYPE_Q4_1] = product_q4_1,
        [TYPE_Q5_0] = product_q5_0, [TYPE_Q5_1] = product_q5_1, [TYPE_IQ4_NL] = product_iq4_nl,
        [TYPE_Q2_K] = product_q2_K, [TYPE_Q3_K] = product_q3_K, [TYPE_Q4_K] = product_q4_K,
        [TYPE_Q5_K] = product_q5_K, [TYPE_Q6_K] = product_q6_K, [TYPE_IQ4_XS] = product_iq4_xs,
    };
    products[a->type](a, row0, row1);
}

/* ---- activations ------------------------------------------------------------------------- */

static uint32_t top_bits(const float *x) {
    __m256i all = _mm256_setzero_si256(), magnitude = _mm256_set1_epi32(0x7fffffff);
    for (int i = 0; i < 32; i += 8)
        all = _mm256_max_epi32(all, _mm256_and_si256(load_256(x + i), magnitude));
    __m128i top = _mm_max_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0x4e));
    top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(top);
}

static void quantize(const float *x, void *row, int n, int first, int last) {
    int8_t *q = row;
    float *d = (float *)(void *)(q + n);
    int16_t *sum = (int16_t *)(void *)(d + n / 32);
    for (int i = first; i < last; i += 32) {
        float factor;
        __m256i v[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                        _mm256_setzero_si256()};
        if (act_scale(top_bits(x + i), &d[i / 32], &factor))
            for (int k = 0; k < 4; k++) /* rounds to nearest even */
                v[k] = _mm256_cvtps_epi32(vf_mul(vf_load(x + i + 8 * k), vf_set1(factor)));
        __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]),
                                            _mm256_packs_epi32(v[2], v[3]));
        /* Packing works within halves: fours of quants come out as 0 2 4 6 1 3 5 7. */
        packed = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((void *)(q + i), packed);
        __m256i sums = _mm256_hadd_epi32(_mm256_add_epi32(v[0], v[1]),
                                         _mm256_add_epi32(v[2], v[3]));
        sums = _mm256_hadd_epi32(sums, sums);
        __m128i both = _mm_add_epi32(_mm256_castsi256_si128(sums),
                                     _mm256_extracti128_si256(sums, 1));
        sum[i / 16] = (int16_t)_mm_extract_epi32(both, 0);
        sum[i / 16 + 1] = (int16_t)_mm_extract_epi32(both, 1);
    }
}

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
};
