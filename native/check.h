/* check.h - finds weights that are not finite numbers, before anything is computed with them. */
#ifndef QWEN3_CHECK_H
#define QWEN3_CHECK_H

#include "cpu/pool.h"
#include "qwen3.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Of n_blocks blocks of a weight type this engine knows: the first that stands for a NaN or an
 * infinity, n_blocks when there is none. The blocks may have any alignment. */
size_t find_not_finite(uint32_t type, const void *blocks, size_t n_blocks);
/* Of n_rows rows of n_per_row weights: the first that holds one, n_rows when there is none. */
size_t first_row_not_finite(uint32_t type, const void *rows, size_t n_rows, size_t n_per_row);

/* Reads every tensor of the file once, on the threads of the pool. QWEN3_ERR_FORMAT names the
 * tensor, row and block (of F32, F16 and BF16: value) of the one at the lowest offset that is not
 * finite. Experts are left out when the tensors are larger than half of memory (bytes): reading
 * them all would take minutes and evict what is needed. */
qwen3_status check_weights(const qwen3_file *, uint64_t memory, pool *, qwen3_error *err);

/* Bytes of the machine's memory. */
uint64_t physical_memory(void);

#ifdef __cplusplus
}
#endif
#endif
