/* moe.h - the router of a mixture-of-experts layer. */
#ifndef QWEN3_MOE_H
#define QWEN3_MOE_H

#include "step.h"

/* Chooses the experts of every token from its normalized vector x. Called by all threads at a
 * barrier; the router's product claims, so no claim may stand before it. */
routing route(const step *, const layer *, const vectors *x, int tid);

/* What a layer to come will probably choose for the only token, by its router: all threads
 * multiply it with the residual stream of now in that layer's norm, and claim; behind the next
 * barrier thread 0 gets a list of n_experts_used, the likeliest first. */
void guess(const step *, const layer *, const vectors *x, int tid);
const int32_t *guessed(const step *, const layer *);

#endif
