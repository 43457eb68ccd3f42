/* moe.h - the mixture-of-experts feed-forward. */
#ifndef QWEN3_MOE_H
#define QWEN3_MOE_H

#include "step.h"

/* x += FFN(normed) of every token of the step; called by all threads, at a barrier. */
void moe_ffn(const step *, const layer *, int tid);

#endif
