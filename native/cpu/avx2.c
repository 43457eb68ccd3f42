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

static int available(void) {
    unsigned a, b, c, d; /* not every compiler's __builtin_cpu_supports knows f16c */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

/* ---- quantized weights, few columns: the row as it lies --------------------------------- */

static inline __m256i load_256(const void *p) { return _mm256_loadu_si256(p); }

/* How the row kernel reads a type: the unit's scales, and group g of its quants. */
typedef struct {
    unit_kind kind;
    void (*scales)(const void *src, int n_groups, unit *u);
    __m256i (*group)(const void *src, const unit *u, int g);
} row_reader;

/* The low nibbles of 16 bytes, then the high ones. */
ALWAYS_INLINE __m256i nibbles_16(const uint8_t *qs) {
    __m128i packed = _mm_loadu_si128((const void *)qs);
    __m256i both = _mm256_set_m128i(_mm_srli_epi16(packed, 4), packed);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

ALWAYS_INLINE __m256i nibbles_32(const uint8_t *qs, int shift) {
    return _mm256_and_si256(_mm256_srli_epi16(load_256(qs), shift), _mm256_set1_epi8(15));
}

ALWAYS_INLINE __m256i q8_0_group(const void *src, const unit *u, int g) {
    (void)u;
    return load_256(((const row_q8_0 *)src)[g].qs);
}

ALWAYS_INLINE __m256i q4_0_group(const void *src, const unit *u, int g) {
    (void)u;
    return nibbles_16(((const row_q4_0 *)src)[g].qs);
}

ALWAYS_INLINE __m256i q4_K_group(const void *src, const unit *u, int g) {
    (void)u;
    return nibbles_32(((const row_q4_K *)src)->qs + g / 2 * 32, g % 2 * 4);
}

ALWAYS_INLINE __m256i q6_K_group(const void *src, const unit *u, int g) {
    (void)u;
    const row_q6_K *b = src;
    __m256i low = nibbles_32(b->ql + g / 4 * 64 + g % 2 * 32, g % 4 / 2 * 4);
    __m256i high = load_256(b->qh + g / 4 * 32); /* two bits of it, to bits 4 and 5 */
    high = g % 4 == 3 ? _mm256_srli_epi16(high, 2) : _mm256_slli_epi16(high, 4 - g % 4 * 2);
    return _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi8(0x30)));
}

ALWAYS_INLINE __m256i unpacked_group(const void *src, const unit *u, int g) {
    (void)src;
    return load_256(u->q + 32 * g);
}

/* Sums of pairs of products q x as int16, exact: the unsigned operand is at most 128, the
 * other at most 127 in size, and 2 * 128 * 127 < 2^15. */
ALWAYS_INLINE __m256i dot_pairs(unit_kind kind, __m256i q, __m256i x) {
    return kind == SIGNED ? _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(x, q))
                          : _mm256_maddubs_epi16(q, x);
}

/* The terms of the eight groups of a unit. */
ALWAYS_INLINE vf terms(unit_kind kind, __m256i a, __m256i b, vf d, vf dmin, vf dx) {
    vf scale = vf_mul(d, dx);
    if (kind != MINIMUM) return vf_mul(_mm256_cvtepi32_ps(_mm256_sub_epi32(a, b)), scale);
    return vf_sub(vf_mul(_mm256_cvtepi32_ps(a), scale),
                  vf_mul(_mm256_cvtepi32_ps(b), vf_mul(dmin, dx)));
}

ALWAYS_INLINE vf unit_terms(row_reader w, const void *src, const unit *u, act x) {
    __m256i ones = _mm256_set1_epi16(1), dot[GROUPS];
    for (int g = 0; g < GROUPS; g++)
        dot[g] = _mm256_madd_epi16(dot_pairs(w.kind, w.group(src, u, g), load_256(x.q + 32 * g)),
                                   ones);
    /* Add up fours of lanes: the low lanes are the first 16 weights of groups 0-3 (4-7), the
     * high lanes the second 16. Then bring all first halves together, and all second. */
    __m256i low = _mm256_hadd_epi32(_mm256_hadd_epi32(dot[0], dot[1]),
                                    _mm256_hadd_epi32(dot[2], dot[3]));
    __m256i high = _mm256_hadd_epi32(_mm256_hadd_epi32(dot[4], dot[5]),
                                     _mm256_hadd_epi32(dot[6], dot[7]));
    __m256i first = _mm256_permute2x128_si256(low, high, 0x20);
    __m256i second = _mm256_permute2x128_si256(low, high, 0x31);
    __m256i scale = load_256(u->scale);
    __m256i scale1 = _mm256_srai_epi32(_mm256_slli_epi32(scale, 16), 16);
    __m256i scale2 = _mm256_srai_epi32(scale, 16);
    __m256i a = _mm256_add_epi32(_mm256_mullo_epi32(first, scale1),
                                 _mm256_mullo_epi32(second, scale2));
    __m256i b = _mm256_madd_epi16(load_256(u->bias), load_256(x.sum));
    return terms(w.kind, a, b, vf_load(u->d), vf_load(u->dmin), vf_load(x.d));
}

/* Copies of what the last, partial unit of a row needs, with zeros behind. */
typedef struct {
    int8_t q[UNIT];
    float d[GROUPS];
    int16_t sum[UNIT / 16];
} padded_act;

static act pad(act x, int n_groups, padded_act *p) {
    memset(p, 0, sizeof *p);
    memcpy(p->q, x.q, 32 * (size_t)n_groups);
    memcpy(p->d, x.d, sizeof(float) * (size_t)n_groups);
    memcpy(p->sum, x.sum, 2 * sizeof(int16_t) * (size_t)n_groups);
    return (act){p->q, p->d, p->sum};
}

enum { FEW = 8 }; /* columns below which unpacking a panel does not pay */

ALWAYS_INLINE void rows_few(const matmul_args *a, row_reader w, int row0, int row1, int first,
                            int n_cols) {
    const unpacker *type = unpacker_of(a->type);
    row_reader any = {w.kind, NULL, unpacked_group};
    unit u;
    for (int r = row0; r < row1; r++) {
        const uint8_t *src = row_w(a, r);
        vf lane[FEW];
        int i = 0;
        for (int c = 0; c < n_cols; c++) lane[c] = vf_zero();
        for (; i + UNIT <= a->n_in; i += UNIT, src += type->bytes) {
            if (w.scales)
                w.scales(src, GROUPS, &u);
            else
                unpack(type, src, GROUPS, &u);
            for (int c = 0; c < n_cols; c++)
                lane[c] = vf_add(lane[c], unit_terms(w, src, &u,
                                                     act_at(column_x(a, first + c), a->n_in, i)));
        }
        if (i < a->n_in) {
            int n_groups = groups_at(i, a->n_in);
            unpack(type, src, n_groups, &u);
            for (int c = 0; c < n_cols; c++) {
                padded_act copy;
                act x = pad(act_at(column_x(a, first + c), a->n_in, i), n_groups, &copy);
                lane[c] = vf_add(lane[c], unit_terms(any, NULL, &u, x));
            }
        }
        for (int c = 0; c < n_cols; c++) column_y(a, first + c)[r] = vf_sum(lane[c]);
    }
}

static void matmul_few(const matmul_args *a, int row0, int row1, int first, int n_cols) {
    switch (a->type) {
    case TYPE_Q8_0:
        rows_few(a, (row_reader){SIGNED, q8_0_scales, q8_0_group}, row0, row1, first, n_cols);
        return;
    case TYPE_Q4_0:
        rows_few(a, (row_reader){OFFSET, q4_0_scales, q4_0_group}, row0, row1, first, n_cols);
        return;
    case TYPE_Q4_K:
        rows_few(a, (row_reader){MINIMUM, q4_K_scales, q4_K_group}, row0, row1, first, n_cols);
        return;
    case TYPE_Q6_K:
        rows_few(a, (row_reader){OFFSET, q6_K_scales, q6_K_group}, row0, row1, first, n_cols);
        return;
    }
    switch (unpacker_of(a->type)->kind) {
    case SIGNED:
        rows_few(a, (row_reader){SIGNED, NULL, unpacked_group}, row0, row1, first, n_cols);
        return;
    case OFFSET:
        rows_few(a, (row_reader){OFFSET, NULL, unpacked_group}, row0, row1, first, n_cols);
        return;
    case MINIMUM:
        rows_few(a, (row_reader){MINIMUM, NULL, unpacked_group}, row0, row1, first, n_cols);
        return;
    }
}

/* ---- quantized weights, many columns: panels of eight rows -------------------------------- */

enum { TILE = 32 }; /* columns that share an unpacked panel */

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

/* Adds group g of the panel to the lanes of n_cols columns; i is its first weight. */
ALWAYS_INLINE void add_group(unit_kind kind, const panel *p, int g, const void *const *x, int n,
                             int i, vf (*lane)[GROUPS], int n_cols) {
    __m256i q[8], scale1 = load_256(p->scale[2 * g]), scale2 = load_256(p->scale[2 * g + 1]);
    __m256i bias = load_256(p->bias[g]);
    vf d = vf_load(p->d[g]), dmin = vf_load(p->dmin[g]);
    for (int k = 0; k < 8; k++) q[k] = load_256(p->q[8 * g + k]);
    for (int c = 0; c < n_cols; c++) {
        act at = act_at(x[c], n, i);
        int32_t sums;
        memcpy(&sums, at.sum, sizeof sums);
        __m256i dot = _mm256_add_epi32(dot_16(kind, q, at.q, scale1),
                                       dot_16(kind, q + 4, at.q + 16, scale2));
        __m256i b = _mm256_madd_epi16(bias, _mm256_set1_epi32(sums));
        lane[c][g] = vf_add(lane[c][g], terms(kind, dot, b, d, dmin, vf_set1(at.d[0])));
    }
}

ALWAYS_INLINE void panels(const matmul_args *a, unit_kind kind, int row0, int row1, int first,
                          int n_cols) {
    const unpacker *type = unpacker_of(a->type);
    const void *x[TILE];
    panel p;
    for (int c = 0; c < n_cols; c++) x[c] = column_x(a, first + c);
    for (int r = row0; r < row1; r += PANEL) {
        const uint8_t *src = row_w(a, r);
        vf lane[TILE][GROUPS];
        memset(lane, 0, sizeof lane);
        for (int i = 0; i < a->n_in; i += UNIT, src += type->bytes) {
            int n_groups = groups_at(i, a->n_in);
            unpack_panel(type, src, a->row_bytes, n_groups, &p);
            for (int g = 0; g < n_groups; g++)
                add_group(kind, &p, g, x, a->n_in, i + 32 * g, lane, n_cols);
        }
        for (int c = 0; c < n_cols; c++) {
            vf *l = lane[c];
            for (int step = 4; step; step /= 2)
                for (int g = 0; g < step; g++) l[g] = vf_add(l[g], l[g + step]);
            vf_store(column_y(a, first + c) + r, l[0]);
        }
    }
}

static void matmul_panels(const matmul_args *a, int row0, int row1, int first, int n_cols) {
    switch (unpacker_of(a->type)->kind) {
    case SIGNED:
        panels(a, SIGNED, row0, row1, first, n_cols);
        return;
    case OFFSET:
        panels(a, OFFSET, row0, row1, first, n_cols);
        return;
    case MINIMUM:
        panels(a, MINIMUM, row0, row1, first, n_cols);
        return;
    }
}

static void matmul(const matmul_args *a, int row0, int row1) {
    if (type_takes_float(a->type)) {
        matmul_float(a, row0, row1);
        return;
    }
    int whole = row0 + (row1 - row0) / PANEL * PANEL, first = 0;
    for (int n; a->n_cols - first >= FEW; first += n) {
        n = a->n_cols - first < TILE ? a->n_cols - first : TILE;
        matmul_panels(a, row0, whole, first, n);
    }
    if (first < a->n_cols) matmul_few(a, row0, whole, first, a->n_cols - first);
    for (int c = 0; c < a->n_cols; c += FEW)
        matmul_few(a, whole, row1, c, a->n_cols - c < FEW ? a->n_cols - c : FEW);
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

static void quantize(const float *x, void *row, int n) {
    int8_t *q = row;
    float *d = (float *)(void *)(q + n);
    int16_t *sum = (int16_t *)(void *)(d + n / 32);
    for (int i = 0; i < n; i += 32, sum += 2) {
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
        sum[0] = (int16_t)_mm_extract_epi32(both, 0);
        sum[1] = (int16_t)_mm_extract_epi32(both, 1);
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
    .to_f16 = to_f16,
};
