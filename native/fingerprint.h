/* fingerprint.h - a fast hash, and what tells a model from another. Against accidents, not against
 * attackers. */
#ifndef QWEN3_FINGERPRINT_H
#define QWEN3_FINGERPRINT_H

#include <stddef.h>
#include <stdint.h>

#include "qwen3.h"

/* A hash of n bytes and of seed, which may be that of what came before. At the speed of memory. */
uint64_t hash_bytes(const void *bytes, size_t n, uint64_t seed);

/* Of all that keys and values depend on beside the tokens: the figures of the forward pass, and of
 * each tensor name, type, shape and 16 pieces of its data. A model has the same one whole and in
 * shards, and whatever the rest of its metadata. */
uint64_t model_fingerprint(const qwen3_model *);

#endif
