/* encoders.h - floats to weight blocks; the file that includes this defines ENCODERS, the name
 * of the table, and is compiled for one instruction set.
 *
 * Without importances the 32-blocks with integer levels take their scale from the
 * largest value, as every writer of the format does: the same bits. All others search.
 */
#include "../encode.h"

#include "affine.h"
#include "scaled.h"

/* ---- plain floats ---------------------------------------------------------- */

static void encode_f32(const float *src, void *dst, size_t n, size_t column, size_t n_per_row,
                       const float *importance) {
    (void)column, (void)n_per_row, (void)importance;
    memcpy(dst, src, n * sizeof *src);
}

static void encode_f16(const float *src, void *dst, size_t n, size_t column, size_t n_per_row,
                       const float *importance) {
    (void)column, (void)n_per_row, (void)importance;
    for (size_t i = 0; i < n; i++) {
        f16_t h = f32_to_f16(src[i]);
        memcpy((char *)dst + i * sizeof h, &h, sizeof h);
    }
}

static void encode_bf16(const float *src, void *dst, size_t n, size_t column, size_t n_per_row,
                        const float *importance) {
    (void)column, (void)n_per_row, (void)importance;
    for (size_t i = 0; i < n; i++) { /* to nearest even; finite, and no overflow */
        uint32_t bits;
        memcpy(&bits, src + i, sizeof bits);
        uint16_t h = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
        memcpy((char *)dst + i * sizeof h, &h, sizeof h);
    }
}

/* Defines encode_TYPE from the function that follows, which encodes n_blocks blocks, the
 * next `step` weights from `at` on or what is left of them, into zeroed blocks. */
#define ENCODER(type, per_block, step)                                                           \
    static inline void type##_blocks(const weights *in, size_t at, int n_blocks,                 \
                                     block_##type *b);                                           \
    static void encode_##type(const float *src, void *dst, size_t n, size_t column,              \
                              size_t n_per_row, const float *importance) {                       \
        const weights in = {src, n, column, n_per_row, importance};                              \
        char *to = dst;                                                                          \
        for (size_t at = 0; at < n; at += step) {                                                \
            block_##type b[step / per_block] = {0};                                              \
            size_t left = (n - at) / per_block, most = step / per_block;                         \
            size_t n_blocks = left < most ? left : most;                                         \
            type##_blocks(&in, at, (int)n_blocks, b);                                            \
            memcpy(to, b, n_blocks * sizeof *b);                                                 \
            to += n_blocks * sizeof *b;                                                          \
        }                                                                                        \
    }                                                                                            \
    static inline void type##_blocks(const weights *in, size_t at, int n_blocks, block_##type *b)

/* ---- levels ------------------------------------------------------------------- */

/* x becomes (x - base) inv + offset, its whole part within 0 .. top. */
typedef struct {
    float base, inv, offset, top;
} rounding;

/* LANES neighbours of a block. */
static inline vi levels_at(const float *x, const rounding *r) {
    vf v = (vf_load(x) - r->base) * r->inv + r->offset;
    return vi_of(vf_min(vf_max(v, vf_set1(0)), vf_set1(r->top)));
}

/* A block of 32 in 4 or, with qh, 5 bits. */
static inline void store_levels(const float *x, const rounding *r, uint8_t qs[16], uint8_t qh[4]) {
    vi fifth = {0};
    for (int i = 0; i < 16; i += LANES) {
        vi low = levels_at(x + i, r), high = levels_at(x + i + 16, r), place;
        vi_store_bytes(qs + i, (low & 15) | (high & 15) << 4);
        for (int l = 0; l < LANES; l++) place[l] = 1 << (i + l);
        fifth |= ((low > 15) & place) | ((high > 15) & place << 16);
    }
    uint32_t bits = 0;
    for (int l = 0; qh && l < LANES; l++) bits |= (uint32_t)fifth[l];
    if (qh) memcpy(qh, &bits, sizeof bits);
}

static inline vi iq4_indices(const float *x, float inv) {
    vf v = vf_load(x) * inv;
    vi index = {0};
    for (int k = 0; k < 15; k++) index -= v > iq4_border[k];
    return index;
}

static inline void store_iq4(const float *x, float scale, uint8_t qs[16]) {
    float inv = inverse(scale);
    for (int i = 0; i < 16; i += LANES)
        vi_store_bytes(qs + i, iq4_indices(x + i, inv) | iq4_indices(x + i + 16, inv) << 4);
}

/* ---- blocks of 32 ------------------------------------------------------------ */

/* Ordered as the floats are; the inverse of itself. */
static inline int32_t ordered(int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); }

/* The smallest and the largest of 32 values. */
static inline void span_of(const float *x, float *low, float *high) {
    int32_t min = INT32_MAX, max = INT32_MIN;
    for (int i = 0; i < 32; i++) {
        int32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits = ordered(bits);
        min = bits < min ? bits : min;
        max = bits > max ? bits : max;
    }
    min = ordered(min);
    max = ordered(max);
    memcpy(low, &min, sizeof min);
    memcpy(high, &max, sizeof max);
}

/* The fit of 16 blocks, where there are importances. */
static inline void scaled_fit(const weights *in, size_t at, const grid t, float fit[BATCH]) {
    if (!in->importance) return;
    batch b;
    batch_load(&b, in, at, 32, 32);
    scaled_search(&b, 32, t, fit);
}

/* Q4_0 and Q5_0. The plain choice gives the value of the largest magnitude, the first of
 * them, the lowest level. */
static inline rounding scaled_block(const weights *in, const float *x, const grid t, float fit,
                                    f16_t *d) {
    float low, high;
    span_of(x, &low, &high);
    float extreme = -low > high ? low : high;
    for (int i = 0; -low == high && i < 32; i++)
        if (fabsf(x[i]) == high) {
            extreme = x[i];
            break;
        }
    float scale = extreme / -t.reach;
    if (in->importance && fabsf(extreme) >= tiny) scale = f16_to_f32(f32_to_f16(fit));
    *d = f32_to_f16(scale);
    return (rounding){0, inverse(scale), t.reach + 0.5f, 2 * t.reach - 1};
}

ENCODER(q4_0, 32, 512) {
    float fit[BATCH] = {0};
    rounding r[BATCH];
    scaled_fit(in, at, grid_4, fit);
    for (int k = 0; k < n_blocks; k++)
        r[k] = scaled_block(in, in->x + at + 32 * k, grid_4, fit[k], &b[k].d);
    for (int k = 0; k < n_blocks; k++) store_levels(in->x + at + 32 * k, &r[k], b[k].qs, NULL);
}

ENCODER(q5_0, 32, 512) {
    float fit[BATCH] = {0};
    rounding r[BATCH];
    scaled_fit(in, at, grid_5, fit);
    for (int k = 0; k < n_blocks; k++)
        r[k] = scaled_block(in, in->x + at + 32 * k, grid_5, fit[k], &b[k].d);
    for (int k = 0; k < n_blocks; k++) store_levels(in->x + at + 32 * k, &r[k], b[k].qs, b[k].qh);
}

static inline void affine_batch(const weights *in, size_t at, float top, affine_fit *fit) {
    if (!in->importance) return;
    batch b;
    batch_load(&b, in, at, 32, 32);
    affine_search(&b, 32, top, true, fit);
}

/* Q4_1 and Q5_1. The plain choice of scale and minimum spans the values. */
static inline rounding affine_block(const weights *in, const float *x, float top, float fit_scale,
                                    float fit_min, f16_t *d, f16_t *m) {
    float low, high;
    span_of(x, &low, &high);
    for (int i = 0; low == 0 && i < 32; i++) /* of zeros the first, with its sign */
        if (x[i] == 0) {
            low = x[i];
            break;
        }
    float scale = (high - low) / top;
    if (in->importance && fmaxf(-low, high) >= tiny) {
        scale = f16_to_f32(f32_to_f16(fit_scale));
        low = f16_to_f32(f32_to_f16(clampf(-fit_min, -f16_max, f16_max)));
    }
    *d = f32_to_f16(scale);
    *m = f32_to_f16(low);
    return (rounding){low, inverse(scale), 0.5f, top};
}

ENCODER(q4_1, 32, 512) {
    affine_fit fit = {0};
    rounding r[BATCH];
    affine_batch(in, at, 15, &fit);
    for (int k = 0; k < n_blocks; k++)
        r[k] = affine_block(in, in->x + at + 32 * k, 15, fit.scale[k], fit.min[k], &b[k].d,
                            &b[k].m);
    for (int k = 0; k < n_blocks; k++) store_levels(in->x + at + 32 * k, &r[k], b[k].qs, NULL);
}

ENCODER(q5_1, 32, 512) {
    affine_fit fit = {0};
    rounding r[BATCH];
    affine_batch(in, at, 31, &fit);
    for (int k = 0; k < n_blocks; k++)
        r[k] = affine_block(in, in->x + at + 32 * k, 31, fit.scale[k], fit.min[k], &b[k].d,
                            &b[k].m);
    for (int k = 0; k < n_blocks; k++) store_levels(in->x + at + 32 * k, &r[k], b[k].qs, b[k].qh);
}

/* Eight bits need no search: importance changes nothing. */
ENCODER(q8_0, 32, 512) {
    for (int k = 0; k < n_blocks; k++) {
        const float *x = in->x + at + 32 * k;
        float d = largest_magnitude(x, 32) / 127, inv = inverse(d);
        b[k].d = f32_to_f16(d);
        for (int i = 0; i < 32; i += LANES) { /* to nearest, halves away from zero */
            vf v = vf_load(x + i) * inv, size = vf_abs(v);
            vi whole = vi_of(size);
            vf part = size - __builtin_convertvector(whole, vf);
            vi q = whole - (part >= 0.5f), sign = (vi)v >> 31;
            vi_store_bytes((uint8_t *)b[k].qs + i, (q ^ sign) - sign);
        }
    }
}

ENCODER(iq4_nl, 32, 512) {
    float fit[BATCH] = {0};
    batch batch;
    batch_load(&batch, in, at, 32, 32);
    scaled_search(&batch, 32, grid_iq4, fit);
    for (int k = 0; k < n_blocks; k++) {
        b[k].d = f32_to_f16(fit[k]);
        store_iq4(in->x + at + 32 * k, f16_to_f32(b[k].d), b[k].qs);
    }
}

/* ---- super-blocks of 256 ------------------------------------------------------- */

static inline rounding affine_rounding(const affine_super *a, int j, float top) {
    return (rounding){-(f16_to_f32(a->dmin) * a->min[j]), inverse(f16_to_f32(a->d) * a->scale[j]),
                      0.5f, top};
}

/* Q4_K and Q5_K: two sub-blocks share 32 bytes, eight the bytes of their fifth bits. */
static inline void affine_super_block(const affine_super *a, const float *x, float top,
                                      uint8_t *qs, uint8_t *qh) {
    for (int j = 0; j < 8; j += 2, x += 64, qs += 32) {
        rounding first = affine_rounding(a, j, top), second = affine_rounding(a, j + 1, top);
        for (int i = 0; i < 32; i += LANES) {
            vi low = levels_at(x + i, &first), high = levels_at(x + 32 + i, &second);
            vi_store_bytes(qs + i, (low & 15) | (high & 15) << 4);
            for (int l = 0; qh && l < LANES; l++)
                qh[i + l] |= (uint8_t)((low[l] >> 4 | high[l] >> 4 << 1) << j);
        }
    }
}

ENCODER(q4_K, SUPER, 512) {
    affine_super a[2];
    affine_supers(in, at, 15, a);
    for (int k = 0; k < n_blocks; k++) {
        b[k].d = a[k].d;
        b[k].dmin = a[k].dmin;
        pack_scales(&a[k], b[k].scales);
        affine_super_block(&a[k], in->x + at + SUPER * k, 15, b[k].qs, NULL);
    }
}

ENCODER(q5_K, SUPER, 512) {
    affine_super a[2];
    affine_supers(in, at, 31, a);
    for (int k = 0; k < n_blocks; k++) {
        b[k].d = a[k].d;
        b[k].dmin = a[k].dmin;
        pack_scales(&a[k], b[k].scales);
        affine_super_block(&a[k], in->x + at + SUPER * k, 31, b[k].qs, b[k].qh);
    }
}

/* Each half has four quarters of 32, which are two sub-blocks: 64 bytes of low bits, 32 of high. */
ENCODER(q6_K, SUPER, SUPER) {
    (void)n_blocks;
    scaled_super s;
    scaled_supers(in, at, grid_6, 16, 128, &s);
    rounding r[16];
    for (int j = 0; j < 16; j++) {
        b->scales[j] = s.scale[j];
        r[j] = (rounding){0, inverse(f16_to_f32(s.d) * s.scale[j]), 32.5f, 63};
    }
    b->d = s.d;
    for (int h = 0; h < 2; h++)
        for (int i = 0; i < 32; i += LANES) {
            const float *x = in->x + at + 128 * h + i;
            const rounding *of = r + 8 * h + i / 16;
            vi a = levels_at(x, of), b1 = levels_at(x + 32, of + 2);
            vi c = levels_at(x + 64, of + 4), d = levels_at(x + 96, of + 6);
            vi_store_bytes(b->ql + 64 * h + i, (a & 15) | (c & 15) << 4);
            vi_store_bytes(b->ql + 64 * h + 32 + i, (b1 & 15) | (d & 15) << 4);
            vi_store_bytes(b->qh + 32 * h + i,
                           a >> 4 | b1 >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6);
        }
}

ENCODER(iq4_xs, SUPER, 512) {
    scaled_super s[2];
    scaled_supers(in, at, grid_iq4, 8, 32, s);
    for (int k = 0; k < n_blocks; k++) {
        b[k].d = s[k].d;
        for (int j = 0; j < 8; j++) {
            int packed = s[k].scale[j] + 32;
            b[k].scales_l[j / 2] |= (uint8_t)((packed & 15) << j % 2 * 4);
            b[k].scales_h |= (uint16_t)(packed >> 4 << j * 2);
            store_iq4(in->x + at + SUPER * k + 32 * j, f16_to_f32(b[k].d) * s[k].scale[j],
                      b[k].qs + 16 * j);
        }
    }
}

const encoders ENCODERS = {{
    [TYPE_F32] = encode_f32,
    [TYPE_F16] = encode_f16,
    [TYPE_BF16] = encode_bf16,
    [TYPE_Q8_0] = encode_q8_0,
    [TYPE_Q4_0] = encode_q4_0,
    [TYPE_Q4_1] = encode_q4_1,
    [TYPE_Q5_0] = encode_q5_0,
    [TYPE_Q5_1] = encode_q5_1,
    [TYPE_IQ4_NL] = encode_iq4_nl,
    [TYPE_Q4_K] = encode_q4_K,
    [TYPE_Q5_K] = encode_q5_K,
    [TYPE_Q6_K] = encode_q6_K,
    [TYPE_IQ4_XS] = encode_iq4_xs,
}};
