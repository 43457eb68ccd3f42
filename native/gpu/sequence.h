/* sequence.h - the memory of a sequence on a device. */
#ifndef QWEN3_GPU_SEQUENCE_H
#define QWEN3_GPU_SEQUENCE_H

#include "resident.h"

/* Working memory of a sequence, and the kv cache of the device's layers, all of it there. */
typedef struct gpu_sequence {
    resident_model *model;
    int n_ctx, batch; /* most tokens of a pass */
    uint32_t kv_type; /* TYPE_F16 or TYPE_Q8_0 */
    size_t stream;    /* bytes of the keys, or values, of a head, as in kv.h */
    uint8_t *kv;      /* laid out as a kv_cache of these layers */
    size_t kv_bytes;
    int32_t *ids;
    token_place *places;
    float *x, *normed, *q, *k, *v, *attended, *hidden, *parts;
    float *logits; /* [FEW_COLUMNS][n_vocab] */
    act_group *normed_act, *attended_act, *hidden_act;
    float *router, *weights, *sorted_weights, *expert_out; /* of a mixture, as what follows */
    int32_t *experts, *start, *sorted_token, *position;
    uint8_t **matrices; /* [N_PARTS][entries or experts] */
    int32_t *penalized; /* of sampling, as what follows */
    top_part *top_parts;
    top_result *top;
    void *arena;
    struct { /* the host's, pinned: copies from and to here wait for nobody */
        int32_t *ids;        /* [batch] */
        token_place *places; /* [batch] */
        int32_t *penalized;  /* [n_vocab or n_ctx, the smaller] */
        top_result *top;
        void *memory;
    } staged;
    struct { /* routes, once there are any */
        int32_t *experts; /* [n_layers][tokens][n_used], then weights [tokens][n_used] */
        int32_t *host;    /* pinned: the same */
    } forced;
    bool logits_wait; /* row 0 of the logits is the last token's: the host has not asked for it */
    gpu_graph *step;  /* the launches of a single token, once they are recorded ... */
    bool unrecorded;  /* ... unless the device cannot */
} gpu_sequence;

qwen3_status gpu_sequence_open(gpu_sequence *, resident_model *, int n_ctx, uint32_t kv_type,
                               int batch, qwen3_error *err);
void gpu_sequence_close(gpu_sequence *);

/* n bytes of a stream of its kv cache, as kv.h counts them, from the byte `first` on. */
qwen3_status gpu_sequence_read(gpu_sequence *, size_t stream, size_t first, void *to, size_t n,
                               qwen3_error *err);
qwen3_status gpu_sequence_write(gpu_sequence *, size_t stream, size_t first, const void *from,
                                size_t n, qwen3_error *err);

#endif
