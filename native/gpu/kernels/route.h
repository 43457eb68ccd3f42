/* route.h - the router: which experts a token takes, the tokens of an expert, and which experts
 * are on the device. moe.c is the same for the CPU. */
#ifndef QWEN3_GPU_ROUTE_H
#define QWEN3_GPU_ROUTE_H

#include "../dialect.h"

#include "../args.h"

/* The sum of x over the threads before this one; *total: over all of the block. shared: an int
 * for each warp. */
DEVICE int block_before(int x, place at, SHARED int *shared, LOCAL int *total) {
    int sum = x; /* up to this lane */
    for (int distance = 1; distance < 32; distance *= 2) {
        int below = lane_from(sum, at.lane < distance ? at.lane : at.lane - distance);
        sum += at.lane < distance ? 0 : below;
    }
    if (at.lane == 31) shared[at.warp] = sum;
    barrier();
    int warp = at.lane < at.warps ? shared[at.lane] : 0;
    barrier(); /* shared may be written again */
    *total = lane_sum(warp);
    return lane_sum(at.lane < at.warp ? warp : 0) + sum - x;
}

/* Softmax, then the largest in turn, the lowest index first among equals. A lane has the experts
 * lane, lane + 32, and so on.
 * Grid: a warp for each token, in blocks of any size. */
KERNEL(route_experts, route_args) {
    int token = at.x * at.warps + at.warp;
    if (token >= a.n) return; /* the whole warp */
    GLOBAL const float *logits = a.logits + (size_t)token * (size_t)a.n_experts;
    float p[EXPERTS_MOST / 32], top = -INFINITY, sum = 0, chosen = 0, own = 0;
    UNROLL
    for (int i = 0; i < EXPERTS_MOST / 32; i++) {
        int e = at.lane + 32 * i;
        p[i] = e < a.n_experts ? logits[e] : -INFINITY;
        top = p[i] > top ? p[i] : top;
    }
    top = lane_max(top);
    UNROLL
    for (int i = 0; i < EXPERTS_MOST / 32; i++) {
        bool there = at.lane + 32 * i < a.n_experts;
        p[i] = there ? exp(p[i] - top) : -1.0f;
        sum += there ? p[i] : 0.0f;
    }
    sum = lane_sum(sum);
    int expert = 0; /* the one of slot `lane` */
    for (int slot = 0; slot < a.n_used; slot++) {
        float most = -1;
        int best = 0;
        UNROLL
        for (int i = 0; i < EXPERTS_MOST / 32; i++)
            if (p[i] > most) most = p[i], best = at.lane + 32 * i;
        for (int mask = 16; mask; mask /= 2) {
            float p_other = lane_xor(most, mask);
            int other = lane_xor(best, mask);
            if (p_other > most || (p_other == most && other < best)) most = p_other, best = other;
        }
        UNROLL
        for (int i = 0; i < EXPERTS_MOST / 32; i++)
            if (best == at.lane + 32 * i) p[i] = -1; /* taken: below every probability */
        chosen += most / sum;
        if (at.lane == slot) expert = best, own = most / sum;
    }
    if (at.lane >= a.n_used) return;
    size_t to = (size_t)token * (size_t)a.n_used + (size_t)at.lane;
    a.experts[to] = expert;
    a.weights[to] = a.renormalize ? own / chosen : own;
}

/* A block finds out for itself where its expert's entries begin: each thread counts in a run of
 * the entries, so that the run before it comes before it.
 * Grid: a block of up to 1024 threads for each expert. Shared: 32 ints. */
KERNEL(group_entries, group_args) {
    SHARED int *scratch = (SHARED int *)shared;
    int each = (a.n + at.threads - 1) / at.threads, expert = at.x;
    int first = at.tid * each, last = first + each < a.n ? first + each : a.n;
    int lower = 0, own = 0, start, n_own;
    for (int i = first; i < last; i++) {
        lower += a.experts[i] < expert;
        own += a.experts[i] == expert;
    }
    block_before(lower, at, scratch, &start);
    int to = start + block_before(own, at, scratch, &n_own);
    if (at.tid == 0) a.start[expert] = start;
    if (at.tid == 0 && expert == a.n_experts - 1) a.start[a.n_experts] = start + n_own;
    for (int i = first; i < last; i++) {
        if (a.experts[i] != expert) continue;
        a.token[to] = i / a.n_used;
        a.weight[to] = a.weights[i];
        a.position[i] = to++;
    }
}

/* Grid: a thread for each of n, in blocks of any size. */
KERNEL(locate_experts, locate_args) {
    int i = at.x * at.threads + at.tid;
    if (i >= a.n) return;
    int expert = a.experts[i], slot = expert < 0 ? -1 : a.slot_of[expert];
    for (int part = 0; part < a.n_parts; part++)
        a.matrices[(size_t)part * (size_t)a.n + (size_t)i] =
            slot < 0 ? 0 : a.part[part] + (size_t)slot * a.stride[part];
}

#endif
