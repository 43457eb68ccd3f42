/* tier.h - the experts of a device that has no room for all of them: its memory is the first tier,
 * the second is RAM, the third, behind a store, the file.
 *
 * Slots hold those that decoding used most; a few more, in two halves, let those of a prompt pass,
 * so that it leaves the others alone.
 */
#ifndef QWEN3_GPU_TIER_H
#define QWEN3_GPU_TIER_H

#include "gpu.h"
#include "model.h"
#include "slots.h"

enum { PART_GATE, PART_UP, PART_DOWN, N_PARTS };
enum { FEW_COLUMNS = 8 }; /* up to so many tokens are multiplied as vectors */

/* Where a layer has its experts: matrix p of slot s from part[p] + s * stride[p] on. In slots of the
 * device's own an expert is one piece, with the matrices at these offsets. */
typedef struct {
    const uint8_t *part[N_PARTS];
    size_t stride[N_PARTS], offset[N_PARTS];
    size_t bytes;           /* of such a piece */
    const int32_t *slot_of; /* [n_experts], on the device as the slots are */
} gpu_bank;

/* The sizes of a layer's bank, which is nowhere yet. */
gpu_bank bank_of(const layer *);
/* Slots of slot_bytes from here on. */
void bank_lies_in(gpu_bank *, const uint8_t *slots, size_t slot_bytes);

/* Where a layer of the host has an expert's matrices: in its store, which reads it and says why it
 * could not, or in the file's mapping. cancel, which may be NULL, ends the wait for a read, as
 * QWEN3_ERR_CANCELLED without a text. */
qwen3_status find_expert(const qwen3_model *, int layer, int expert, const uint8_t *part[N_PARTS],
                         const atomic_bool *cancel, qwen3_error *err);

/* Layers are counted from the device's first one on. */
typedef struct {
    const gpu_api *api;
    gpu *device;
    const qwen3_model *host;
    int n_layers, first; /* the first one's number among the host's */
    gpu_bank *banks;     /* [n_layers] of the resident model */
    expert_slots slots;
    int group;           /* slots of each half behind them */
    uint8_t *memory;     /* of all slots */
    size_t slot_bytes;
    float copy_share, owed; /* owed: of an expert, by the steps until now */
    /* Rows of n_experts: each layer's slot_of, then those of groups that pass. */
    int32_t *table;      /* on the device */
    int32_t *host_table; /* what it is to become */
    uint8_t *store_slots; /* the store's memory where it is pinned: copies run from there, or */
    uint8_t *buffer[2];   /* an expert each: one is filled while a copy runs from the other */
    int filled;
    /* What a layer tells the host, and what that answers. */
    int32_t *experts, *start, *position;
    float *normed, *rows;
    void *pinned; /* memory of all that is the host's */
} gpu_tier;

/* Whether expert_bytes are too few for all experts of the last n_layers; 0 stands for all. */
bool tier_is_needed(const qwen3_model *, int n_layers, uint64_t expert_bytes);

/* For the last n_layers: sets up their banks, and fills the slots evenly. copy_share, 0 to 1, of
 * the experts that decoding misses are copied, the CPU computes the others: B_copy / (B_copy +
 * B_cpu) makes both take the same time, with the bandwidths of copying and of the CPU's memory.
 * NULL: the error says why. */
gpu_tier *tier_open(const gpu_api *, gpu *, const qwen3_model *, gpu_bank *banks, int n_layers,
                    uint64_t expert_bytes, float copy_share, qwen3_error *err);
/* Of its slots, those for what passes included. */
uint64_t tier_bytes(const gpu_tier *);
/* NULL is ignored. */
void tier_close(gpu_tier *);

/* With a store: wants experts as experts_want does, when no copy runs from one that may leave. */
qwen3_status tier_want(gpu_tier *, int layer, const int32_t *experts, int n, const int32_t *next,
                       int n_next, bool passing, qwen3_error *err);
/* Queues the copy of an expert on the copy stream. With a store it must have been wanted; for
 * cancel see find_expert. */
qwen3_status tier_copy(gpu_tier *, int layer, int expert, int slot, const atomic_bool *cancel,
                       qwen3_error *err);
/* Queues the table's rows of layers, and the one behind them, on the compute stream. */
qwen3_status tier_publish(gpu_tier *, qwen3_error *err);
/* After a pass that failed: until no copy runs any more. */
void tier_settle(gpu_tier *);

#endif
