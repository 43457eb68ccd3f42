/* attention.h - from the products of q, k and v to the input of o. */
#ifndef QWEN3_ATTENTION_H
#define QWEN3_ATTENTION_H

#include "step.h"

/* Normalizes and rotates the heads of q and k, appends k and v to the cache of layer index,
 * and attends: leaves ws->attended as o takes it. Called by all threads at a barrier, and
 * followed by one. */
void attention(const step *, const layer *, int index, int tid);

#endif
