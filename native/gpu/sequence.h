/* sequence.h - the memory of a sequence on a device. */
#ifndef QWEN3_GPU_SEQUENCE_H
#define QWEN3_GPU_SEQUENCE_H

#include "resident.h"

enum { FEW_COLUMNS = 8 }; /* up to so many tokens are multiplied as vectors */

/* Working memory and kv cache of a sequence, all of it on the device. */
typedef struct {
    const resident_model *model;
    int n_ctx, batch; /* most tokens of a pass */
    uint32_t kv_type; /* TYPE_F16 or TYPE_Q8_0 */
    size_t stream;    /* bytes of the keys, or values, of a head, as in kv.h */
    uint8_t *kv;      /* laid out as a kv_cache */
    int32_t *ids;
    token_place *places;
    float *x, *normed, *q, *k, *v, *attended, *hidden, *parts, *logits;
    act_group *normed_act, *attended_act, *hidden_act;
    float *router, *weights, *sorted_weights, *expert_out; /* of a mixture, as what follows */
    int32_t *experts, *start, *sorted_token, *position, *missing, *last_used;
    uint8_t **matrices;
    void *arena;
} gpu_sequence;

qwen3_status gpu_sequence_open(gpu_sequence *, const resident_model *, int n_ctx,
                               uint32_t kv_type, int batch, qwen3_error *err);
void gpu_sequence_close(gpu_sequence *);

#endif
