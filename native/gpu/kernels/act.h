/* act.h - activations as groups of 32 bytes, by the rule of cpu/product.h. */
#ifndef QWEN3_GPU_ACT_H
#define QWEN3_GPU_ACT_H

#include "../dialect.h"

#include "../args.h"

/* The byte of x in the group that is the x of a warp's lanes, and the group's d. A NaN or an
 * infinity makes d NaN and q zero, a group below 2^-100 is zero. */
DEVICE int quantize(float x, LOCAL float *d) {
    uint top = float_to_bits(x) & 0x7fffffffu;
    for (int mask = 16; mask; mask /= 2) {
        uint other = (uint)lane_xor((int)top, mask);
        top = other > top ? other : top; /* as bits: their order is that of the numbers, NaN last */
    }
    float most = bits_to_float(top);
    bool finite = top < 0x7f800000u, none = !finite || most < 0x1p-100f;
    *d = !finite ? bits_to_float(0x7fc00000u) : none ? 0.0f : most / 127.0f;
    /* 1.5 * 2^23 leaves no bits for a fraction: the addition rounds to nearest even. */
    return none ? 0 : (int)((x * (127.0f / most) + 12582912.0f) - 12582912.0f);
}

/* The x of a warp's lanes as a group. */
DEVICE void store_group(GLOBAL act_group *group, float x, int lane) {
    float d;
    int q = quantize(x, &d);
    int sum = lane_sum(q);
    int word = (q & 255) << 8 * (lane % 4);
    word |= lane_xor(word, 1);
    word |= lane_xor(word, 2);
    if (lane % 4 == 0) group->q[lane / 4] = word;
    if (lane == 0) {
        group->d = d;
        group->s = d * (float)sum;
    }
}

#endif
