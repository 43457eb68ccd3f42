/* moe.h - the router of a mixture-of-experts layer. */
#ifndef QWEN3_MOE_H
#define QWEN3_MOE_H

#include "step.h"

/* Chooses the experts of every token from its normalized vector x. Called by all threads at a
 * barrier; the router's product claims, so no claim may stand before it. */
routing route(const step *, const layer *, const vectors *x, int tid);

#endif
