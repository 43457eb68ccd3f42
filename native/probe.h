/* probe.h - what the machine can do at this moment, for `qwen3 bench`.
 *
 * A probe measures with the threads and the backend of a model: how fast memory is read,
 * and how fast numbers are multiplied and added. These are the limits of decoding and of
 * prefill. They drift with whatever else runs, so measure close to what they judge.
 */
#ifndef QWEN3_PROBE_H
#define QWEN3_PROBE_H

#include "qwen3.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qwen3_probe qwen3_probe;

/* Takes and fills about that many bytes, at least 1 MB; to measure memory and not a cache,
 * they are many times the largest cache. The model outlives the probe. */
qwen3_probe *qwen3_probe_new(qwen3_model *, size_t bytes, qwen3_error *err);
void qwen3_probe_free(qwen3_probe *);
/* Bytes a second that all threads read together: the best of some passes over pages of the
 * usual and of the huge size. */
double qwen3_probe_read(qwen3_probe *);
/* Products a second, each with its addition, of all threads together: of 8-bit integers,
 * and of f32. */
double qwen3_probe_int8(qwen3_probe *);
double qwen3_probe_f32(qwen3_probe *);

/* Makes the session n arbitrary tokens with a kv cache of arbitrary finite values, in real
 * memory, as if they had been computed: then decoding can be timed at any depth. There are
 * no logits. */
qwen3_status qwen3_session_fill(qwen3_session *, size_t n, qwen3_error *err);

/* From now on the token at position p takes the experts routes[p % n_tokens][n_layers]
 * [n_experts_used], distinct in a layer, all with the same weight, whatever the router says: to
 * replay a trace, or the worst case. guesses, of the same shape: what a store takes a layer's
 * choice for before it is known; NULL: it does not guess. The arrays outlive the session; NULL
 * for both gives the router its say back. */
qwen3_status qwen3_session_force_routes(qwen3_session *, const int32_t *routes,
                                        const int32_t *guesses, size_t n_tokens, qwen3_error *err);

#ifdef __cplusplus
}
#endif
#endif
