/* part.h - what the CPU does for a device that computes a layer: a part of its experts. */
#ifndef QWEN3_PART_H
#define QWEN3_PART_H

#include <stdatomic.h>

#include "qwen3.h"

struct workspace; /* of step.h: the working memory of the host's session */

/* y[i] = down(silu(gate x) * (up x)) of every entry i, for the normalized vector x[token[i]] of
 * n <= batch tokens [n][n_embd]; the entries of expert e are [start[e], start[e + 1]), at most one
 * of each token. Not yet weighted. The experts come from the model's store, of which they must
 * have been wanted, or from its mapping; a failed read is an error. Uses the working memory.
 * cancel, which may be NULL, ends it as QWEN3_ERR_CANCELLED without a text. */
qwen3_status part_compute(struct workspace *, int layer, float *x, int n, const int32_t *start,
                          const int32_t *token, float *y, atomic_bool *cancel, qwen3_error *err);

/* The experts that a token at this position takes in a layer, whatever the router says: see
 * qwen3_session_force_routes. NULL: it is the router's choice. */
const int32_t *part_route(const struct workspace *, int layer, int pos);

#endif
