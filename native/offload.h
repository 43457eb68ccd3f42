/* offload.h - a model whose experts come from a store instead of the mapping. */
#ifndef QWEN3_OFFLOAD_H
#define QWEN3_OFFLOAD_H

#include "model.h"

/* Opens a store of expert_bytes over the files of the model, and copies what every token needs out of
 * the mapping: the page cache may drop what it likes then. Refuses a dense model. */
qwen3_status offload_experts(qwen3_model *, uint64_t expert_bytes, qwen3_error *err);
/* Undoes it, if it was done. */
void release_experts(qwen3_model *);

#endif
