/* topk.h - what sampling needs of the logits, so that they need not leave the device. sample.c is
 * the same for the CPU.
 *
 * A warp keeps the best 64 it has seen as a sorted list: a lane has the items lane and lane + 32.
 * Another list of 64 is sorted by a bitonic network (Batcher, 1968) and merged with it.
 */
#ifndef QWEN3_GPU_TOPK_H
#define QWEN3_GPU_TOPK_H

#include "../dialect.h"

#include "../args.h"

/* ---- lists of a warp ------------------------------------------------------------- */

/* -0 and 0 are equal, NaN is last. */
DEVICE uint rank_of(float x) {
    uint bits = float_to_bits(x == 0 ? 0.0f : x);
    return x != x ? 0 : bits >> 31 ? ~bits : bits | 0x80000000u;
}

enum { NO_ID = 0x7fffffff };

/* Behind everything. */
DEVICE ranked nothing() {
    ranked none = {0, NO_ID};
    return none;
}

DEVICE bool before(ranked a, ranked b) {
    return a.rank > b.rank || (a.rank == b.rank && a.id < b.id);
}

/* The one before the other, or the one behind. */
DEVICE ranked either(ranked a, ranked b, bool first) { return before(a, b) == first ? a : b; }

DEVICE ranked ranked_from(ranked x, int lane CALLER) {
    uint rank = (uint)lane_from((int)x.rank, lane FOR_CALLER);
    ranked other = {rank, lane_from(x.id, lane FOR_CALLER)};
    return other;
}

/* Orders the pairs of a list that are so far apart. falls: for each item, whether its pair is to. */
DEVICE void sort_pairs(LOCAL ranked list[2], int distance, bool falls0, bool falls1, int lane) {
    if (distance == 32) {
        ranked first = either(list[0], list[1], true);
        list[1] = either(list[0], list[1], false);
        list[0] = first;
        return;
    }
    bool front = !(lane & distance);
    list[0] = either(list[0], ranked_from(list[0], lane ^ distance), front == falls0);
    list[1] = either(list[1], ranked_from(list[1], lane ^ distance), front == falls1);
}

DEVICE void sort_list(LOCAL ranked list[2], int lane) {
    UNROLL
    for (int size = 2; size <= 64; size *= 2) {
        UNROLL
        for (int distance = size / 2; distance; distance /= 2)
            sort_pairs(list, distance, !(lane & size), !((lane + 32) & size), lane);
    }
}

/* The first 64 of two sorted lists, sorted, in the first. */
DEVICE void merge_list(LOCAL ranked list[2], LOCAL const ranked other[2], int lane) {
    ranked back0 = ranked_from(other[1], 31 - lane), back1 = ranked_from(other[0], 31 - lane);
    list[0] = either(list[0], back0, true); /* item i with item 63 - i of the other */
    list[1] = either(list[1], back1, true);
    UNROLL
    for (int distance = 32; distance; distance /= 2) sort_pairs(list, distance, true, true, lane);
}

/* ---- what was seen ------------------------------------------------------------------ */

struct seen {
    ranked list[2];
    float top, sum; /* of a lane alone until meet_lanes; see top_result */
    int bad;        /* likewise; NO_ID: none */
};

/* e^((x - top) / temperature), `sum` of it, is added. */
DEVICE void add_powers(LOCAL seen &s, float x, float sum, float temperature) {
    if (x > s.top) {
        s.sum = (s.sum > 0 ? s.sum * exp((s.top - x) / temperature) : 0.0f) + sum;
        s.top = x;
    } else if (sum > 0) {
        s.sum += sum * exp((x - s.top) / temperature);
    }
}

DEVICE void add_seen(LOCAL seen &s, float top, float sum, int bad, float temperature) {
    add_powers(s, top, sum, temperature);
    s.bad = bad < s.bad ? bad : s.bad;
}

DEVICE seen see_nothing() {
    seen s = {{nothing(), nothing()}, -INFINITY, 0, NO_ID};
    return s;
}

DEVICE void see_logits(LOCAL seen &s, GLOBAL const float *logits, int first, int n, int lane,
                       float temperature) {
    ranked list[2] = {nothing(), nothing()};
    UNROLL
    for (int i = 0; i < 2; i++) {
        int id = first + lane + 32 * i;
        if (id >= n) continue;
        float x = logits[id];
        bool finite = x - x == 0;
        add_seen(s, finite ? x : -INFINITY, finite ? 1 : 0, finite ? NO_ID : id, temperature);
        list[i].rank = rank_of(x);
        list[i].id = id;
    }
    sort_list(list, lane);
    merge_list(s.list, list, lane);
}

DEVICE void meet_lanes(LOCAL seen &s, float temperature) {
    for (int mask = 16; mask; mask /= 2)
        add_seen(s, lane_xor(s.top, mask), lane_xor(s.sum, mask), lane_xor(s.bad, mask),
                 temperature);
}

/* Part: a pointer into any address space. */
template <typename Part>
DEVICE void see_part(LOCAL seen &s, Part part, float temperature, int lane) {
    ranked list[2] = {part->best[lane], part->best[lane + 32]};
    merge_list(s.list, list, lane);
    add_seen(s, part->top, part->sum, part->bad, temperature);
}

template <typename Part> DEVICE void keep_part(Part part, LOCAL const seen &s, int lane) {
    part->best[lane] = s.list[0];
    part->best[lane + 32] = s.list[1];
    if (lane) return;
    part->top = s.top;
    part->sum = s.sum;
    part->bad = s.bad;
}

/* All that the warps of the block saw, in warp 0. */
DEVICE void meet_warps(LOCAL seen &s, place at, SHARED top_part *parts, float temperature) {
    for (int reach = at.warps / 2; reach; reach /= 2) {
        if (at.warp >= reach && at.warp < 2 * reach) keep_part(parts + at.warp, s, at.lane);
        barrier();
        if (at.warp < reach) see_part(s, parts + at.warp + reach, temperature, at.lane);
    }
}

/* ---- kernels ------------------------------------------------------------------------- */

/* Grid: (TOP_BLOCKS, rows) blocks of a power of two of warps. Shared: a top_part for each. */
KERNEL(top_parts, top_args) {
    GLOBAL const float *logits = a.logits + (size_t)at.y * (size_t)a.n_vocab;
    seen s = see_nothing();
    for (int first = 64 * (at.x * at.warps + at.warp); first < a.n_vocab;
         first += 64 * TOP_BLOCKS * at.warps)
        see_logits(s, logits, first, a.n_vocab, at.lane, a.temperature);
    meet_lanes(s, a.temperature);
    meet_warps(s, at, (SHARED top_part *)shared, a.temperature);
    if (at.warp == 0) keep_part(a.parts + (size_t)at.y * TOP_BLOCKS + at.x, s, at.lane);
}

/* Behind top_parts. Grid: (1, rows) blocks of a power of two of warps. Shared: a top_part for
 * each. */
KERNEL(top_merge, top_args) {
    seen s = see_nothing();
    for (int i = at.warp; i < TOP_BLOCKS; i += at.warps)
        see_part(s, a.parts + (size_t)at.y * TOP_BLOCKS + i, a.temperature, at.lane);
    meet_warps(s, at, (SHARED top_part *)shared, a.temperature);
    if (at.warp > 0) return;
    GLOBAL top_result *result = a.results + at.y;
    UNROLL
    for (int i = 0; i < 2; i++) {
        int id = s.list[i].id, slot = at.lane + 32 * i;
        bool there = slot < a.k && id != NO_ID;
        result->id[slot] = there ? id : -1;
        result->logit[slot] =
            there ? a.logits[(size_t)at.y * (size_t)a.n_vocab + (size_t)id] : -INFINITY;
    }
    if (at.lane) return;
    result->top = s.top;
    result->sum = s.sum;
    result->bad = s.bad == NO_ID ? -1 : s.bad;
}

/* Grid: a thread for each id. */
KERNEL(penalize, penalize_args) {
    int i = at.x * at.threads + at.tid;
    if (i >= a.n) return;
    float x = a.logits[a.ids[i]];
    x = x > 0 ? x / a.repetition : x * a.repetition;
    a.logits[a.ids[i]] = i < a.n_generated ? x - a.presence : x;
}

#endif
