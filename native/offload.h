/* offload.h - a model whose experts come from a store instead of the mapping. */
#ifndef QWEN3_OFFLOAD_H
#define QWEN3_OFFLOAD_H

#include "experts.h"
#include "weights.h"

typedef struct {
    expert_store *experts;
    uint8_t *dense; /* the weights that every token needs, out of the mapping */
    size_t dense_bytes;
} offload;

/* Opens a store of expert_bytes over the files of a model, and moves what every token needs, and
 * output, out of the mapping: the page cache may drop what it likes then. Refuses a dense model.
 * *o is all 0 before, and to be released, also on failure. */
qwen3_status offload_open(offload *o, const qwen3_file *, const qwen3_config *, layer *layers,
                          weight *output, uint64_t expert_bytes, qwen3_error *err);
void offload_release(offload *);

#endif
