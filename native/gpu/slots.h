/* slots.h - which experts a device holds, of more than it has slots for, and who leaves.
 *
 * The host decides, by the measure of heat.h, from what it is told alone: never by a clock.
 */
#ifndef QWEN3_GPU_SLOTS_H
#define QWEN3_GPU_SLOTS_H

#include "../heat.h"
#include "qwen3.h"

typedef struct {
    int n_layers, n_experts, n_slots;
    int32_t *slot_of;  /* [n_layers][n_experts], -1: in none */
    int32_t *owner;    /* [n_slots]: layer * n_experts + expert, -1: nobody */
    expert_heat *heat; /* as slot_of */
    double *order;     /* likewise: the lowest leaves first */
    uint64_t *wanted;  /* [n_slots]: at which call it was wanted last */
    uint64_t call, token;
    int layer; /* of the last call */
} expert_slots;

/* All slots empty. slot_of is the caller's memory. */
qwen3_status slots_init(expert_slots *, int32_t *slot_of, int n_layers, int n_experts, int n_slots,
                        qwen3_error *err);
void slots_free(expert_slots *);

/* Gives the slots to the first experts of all layers, to each layer as many. */
void slots_fill(expert_slots *);
/* A layer computes with n experts, each named once: counts a use of each, and until the next call
 * none of them leaves. Returns how many are in no slot; those, the most used first (of equal ones
 * the lower number), into missing[n]. */
int slots_want(expert_slots *, int layer, const int32_t *experts, int n, int32_t *missing);
/* The slot that an expert has from now on: an empty one, or that of the least used; -1: all of
 * them are wanted. */
int slots_admit(expert_slots *, int layer, int expert);
/* Empties the slot of an expert that is in one. */
void slots_drop(expert_slots *, int layer, int expert);

#endif
