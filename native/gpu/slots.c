/* slots.c - see slots.h. */
#include "slots.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"

qwen3_status slots_init(expert_slots *s, int32_t *slot_of, int n_layers, int n_experts, int n_slots,
                        qwen3_error *err) {
    size_t n_keys = (size_t)n_layers * (size_t)n_experts, n = (size_t)n_slots;
    *s = (expert_slots){.n_layers = n_layers, .n_experts = n_experts, .n_slots = n_slots,
                        .slot_of = slot_of, .layer = n_layers,
                        .owner = malloc(n * sizeof *s->owner),
                        .heat = calloc(n_keys, sizeof *s->heat),
                        .order = malloc(n_keys * sizeof *s->order),
                        .wanted = calloc(n, sizeof *s->wanted)};
    if (!s->owner || !s->heat || !s->order || !s->wanted) {
        slots_free(s);
        return fail(err, QWEN3_ERR_MEMORY, "out of memory for the table of experts");
    }
    memset(slot_of, -1, n_keys * sizeof *slot_of);
    memset(s->owner, -1, n * sizeof *s->owner);
    for (size_t i = 0; i < n_keys; i++) s->order[i] = -INFINITY;
    return QWEN3_OK;
}

void slots_free(expert_slots *s) {
    free(s->owner);
    free(s->heat);
    free(s->order);
    free(s->wanted);
    *s = (expert_slots){0};
}

static void give(expert_slots *s, int slot, int key) {
    s->owner[slot] = key;
    s->slot_of[key] = slot;
}

void slots_fill(expert_slots *s) {
    for (int i = 0; i < s->n_slots; i++)
        give(s, i, i % s->n_layers * s->n_experts + i / s->n_layers);
}

/* Among the first n of missing. */
static void insert(const double *order, int32_t expert, int32_t *missing, int n) {
    for (; n > 0; n--) {
        double before = order[missing[n - 1]];
        if (before > order[expert] || (before == order[expert] && missing[n - 1] < expert)) break;
        missing[n] = missing[n - 1];
    }
    missing[n] = expert;
}

int slots_want(expert_slots *s, int layer, const int32_t *experts, int n, int32_t *missing) {
    size_t row = (size_t)layer * (size_t)s->n_experts;
    int n_missing = 0;
    s->call++;
    s->token += layer <= s->layer;
    s->layer = layer;
    for (int i = 0; i < n; i++) {
        size_t key = row + (size_t)experts[i];
        s->order[key] = heat_use(&s->heat[key], s->token, HEAT_HALF_LIFE);
        if (s->slot_of[key] >= 0) s->wanted[s->slot_of[key]] = s->call;
        else insert(s->order + row, experts[i], missing, n_missing++);
    }
    return n_missing;
}

static int find_victim(const expert_slots *s) {
    int victim = -1;
    double lowest = INFINITY;
    for (int i = 0; i < s->n_slots; i++) {
        if (s->owner[i] < 0) return i;
        double order = s->order[s->owner[i]];
        if (order < lowest && s->wanted[i] != s->call) victim = i, lowest = order;
    }
    return victim;
}

int slots_admit(expert_slots *s, int layer, int expert) {
    int at = find_victim(s);
    if (at < 0) return -1;
    if (s->owner[at] >= 0) s->slot_of[s->owner[at]] = -1;
    give(s, at, layer * s->n_experts + expert);
    s->wanted[at] = s->call;
    return at;
}

void slots_drop(expert_slots *s, int layer, int expert) {
    int32_t *slot = &s->slot_of[layer * s->n_experts + expert];
    s->owner[*slot] = -1;
    *slot = -1;
}
