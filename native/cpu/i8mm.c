/* i8mm.c - the backend for 64-bit ARM with the integer matrix products (ARMv8.6).
 *
 * smmla multiplies two rows of eight by two columns of eight: twice the work of sdot. Panels
 * hold eight quants of row 0 and eight of row 1 in a vector, those of rows 2 and 3 in the
 * next; tiles take columns in pairs. Few columns are left to sdot: pairs cost to form and
 * to undo about what they save.
 */
#include "neon.h"

static int available(void) {
    return CPU_HAS("DotProd", AT_HWCAP, HWCAP_ASIMDDP) && CPU_HAS("I8MM", AT_HWCAP2, HWCAP2_I8MM);
}

ALWAYS_INLINE void store_quads(const shape t, vu *to, const vu q[4]) {
    (void)t;
    for (int k = 0; k < 4; k += 2) {
        to[k] = (vu)vzip1q_u32((uint32x4_t)q[k], (uint32x4_t)q[k + 1]);
        to[k + 1] = (vu)vzip2q_u32((uint32x4_t)q[k], (uint32x4_t)q[k + 1]);
    }
}

/* Eight quants of column a and eight of column b: those at i, and the next. */
ALWAYS_INLINE void column_pair(const act_unit *a, const act_unit *b, int i, int8x16_t out[2]) {
    int64x2_t qa = vreinterpretq_s64_s8(vld1q_s8(a->q + i));
    int64x2_t qb = vreinterpretq_s64_s8(vld1q_s8(b->q + i));
    out[0] = vreinterpretq_s8_s64(vzip1q_s64(qa, qb));
    out[1] = vreinterpretq_s8_s64(vzip2q_s64(qa, qb));
}

/* The last of an odd number of columns is its own pair. */
ALWAYS_INLINE void dots(const shape t, const panel *p, const int R, const act_unit *const *x,
                        const int C, int j, vu (*dot)[MAX_C]) {
    const int pairs = (C + 1) / 2;
    int32x4_t sum[MAX_R][2][(MAX_C + 1) / 2]; /* of two rows by two columns */
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < pairs; c++)
            sum[r][0][c] = sum[r][1][c] = vdupq_n_s32(ACT_START);
    UNROLL for (int h = 0; h < t.run / 16; h++) {
        int i = j * t.run + 16 * h;
        int8x16_t x8[(MAX_C + 1) / 2][2];
        UNROLL for (int c = 0; c < pairs; c++)
            column_pair(x[2 * c], x[2 * c + 1 < C ? 2 * c + 1 : 2 * c], i, x8[c]);
        UNROLL for (int k = 0; k < 4; k++)
            UNROLL for (int r = 0; r < R; r++)
                UNROLL for (int c = 0; c < pairs; c++)
                    sum[r][k % 2][c] = vmmlaq_s32(sum[r][k % 2][c],
                                                  (int8x16_t)p[r].q[i / 4 + k], x8[c][k / 2]);
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < C; c++) {
            int32x4_t a = sum[r][0][c / 2], b = sum[r][1][c / 2];
            dot[r][c] = (vu)(c % 2 ? vuzp2q_s32(a, b) : vuzp1q_s32(a, b));
        }
}

ALWAYS_INLINE void int8_step(int32x4_t *sum, const int32x4_t *w) {
    int8x16_t bytes = vreinterpretq_s8_s32(*w);
    *sum = vmmlaq_s32(*sum, bytes, bytes);
}
DEFINE_PEAK(peak_int8, int32x4_t, vdupq_n_s32(3), int8_step, 32)

const backend backend_i8mm = NEON_BACKEND("i8mm");
