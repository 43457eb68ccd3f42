/* attention.h - grouped-query attention of one layer. */
#ifndef QWEN3_ATTENTION_H
#define QWEN3_ATTENTION_H

#include "step.h"

/* Called by all threads behind the barrier that completes ws->q, k and v: normalizes and
 * rotates queries and keys, appends keys and values to the cache of layer index, and leaves
 * ws->attended complete in the form that l->o takes, once the caller's barrier is passed. */
void attention(const step *, const layer *l, int index, int tid);

/* Appends keys and values alone, in the same way. */
void store_tokens(const step *, const layer *l, int index, int tid);

#endif
