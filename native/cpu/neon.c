/* neon.c - the backend for 64-bit ARM with the dot product instructions (ARMv8.2). */
#include "neon.h"

static int available(void) {
    return CPU_HAS("DotProd", AT_HWCAP, HWCAP_ASIMDDP);
}

ALWAYS_INLINE void store_quads(const shape t, vu *to, const vu q[4]) {
    (void)t;
    for (int k = 0; k < 4; k++) to[k] = q[k];
}

ALWAYS_INLINE void dots(const shape t, const panel *p, const int R, const act_unit *const *x,
                        const int C, int j, vu (*dot)[MAX_C]) {
    UNROLL for (int c = 0; c < C; c++)
        UNROLL for (int r = 0; r < R; r++) dot[r][c] = start(t, x[c], j);
    UNROLL for (int h = 0; h < t.run / 16; h++) {
        int i = j * t.run / 16 + h;
        int8x16_t x16[MAX_C];
        UNROLL for (int c = 0; c < C; c++) x16[c] = vld1q_s8(x[c]->q + 16 * i);
#define QUAD(k)                                                             \
    UNROLL for (int r = 0; r < R; r++)                     \
        UNROLL for (int c = 0; c < C; c++)                 \
            dot[r][c] = ADD_QUAD(dot[r][c], p[r].q[4 * i + k], x16[c], k);
        QUAD(0)
        QUAD(1)
        QUAD(2)
        QUAD(3)
#undef QUAD
    }
}

ALWAYS_INLINE void int8_step(int32x4_t *sum, const int32x4_t *w) {
    int8x16_t bytes = vreinterpretq_s8_s32(*w);
    *sum = vdotq_s32(*sum, bytes, bytes);
}
DEFINE_PEAK(peak_int8, int32x4_t, vdupq_n_s32(3), int8_step, 16)

const backend backend_neon = NEON_BACKEND("neon");
