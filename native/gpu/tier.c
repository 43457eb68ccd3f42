/* tier.c - see tier.h. */
#include "tier.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"

/* ---- sizes ----------------------------------------------------------------------------- */

enum { MOST_OF_GROUP = 8 };

static size_t aligned(size_t bytes) { return (bytes + 255) & ~(size_t)255; }

static size_t matrix_bytes(const weight *w) { return (size_t)w->n_out * w->row_bytes; }

static const weight *part_of(const layer *l, int part) {
    return part == PART_GATE ? &l->gate : part == PART_UP ? &l->up : &l->down;
}

gpu_bank bank_of(const layer *l) {
    gpu_bank bank = {0};
    for (int part = 0; part < N_PARTS; part++) {
        bank.offset[part] = bank.bytes;
        bank.bytes += aligned(matrix_bytes(part_of(l, part)));
    }
    return bank;
}

void bank_lies_in(gpu_bank *bank, const uint8_t *slots, size_t slot_bytes) {
    for (int part = 0; part < N_PARTS; part++) {
        bank->part[part] = slots + bank->offset[part];
        bank->stride[part] = slot_bytes;
    }
}

bool tier_is_needed(const qwen3_model *m, int n_layers, uint64_t expert_bytes) {
    uint64_t all = 0;
    for (int i = m->config.n_layers - n_layers; i < m->config.n_layers; i++)
        all += (uint64_t)bank_of(&m->layers[i]).bytes * (uint64_t)m->config.n_experts;
    return expert_bytes > 0 && expert_bytes < all;
}

static size_t largest_expert(const gpu_tier *t) {
    size_t largest = 0;
    for (int i = 0; i < t->n_layers; i++)
        largest = t->banks[i].bytes > largest ? t->banks[i].bytes : largest;
    return largest;
}

/* Of n slots in all; both groups must have room in the store below. */
static int group_of(const qwen3_model *m, int n) {
    int group = n / 16 < 1 ? 1 : n / 16 < MOST_OF_GROUP ? n / 16 : MOST_OF_GROUP;
    int most = m->offload.experts ? experts_most(m->offload.experts) / 2 : group;
    return group < most ? group : most;
}

/* Rows of the table. */
static size_t n_rows(const gpu_tier *t) {
    return (size_t)(t->n_layers + (t->host->config.n_experts + t->group - 1) / t->group);
}

/* ---- copies ---------------------------------------------------------------------------- */

qwen3_status find_expert(const qwen3_model *m, int layer, int expert, const uint8_t *part[N_PARTS],
                         const atomic_bool *cancel, qwen3_error *err) {
    expert_store *store = m->offload.experts;
    for (int i = 0; i < N_PARTS; i++) {
        const weight *w = part_of(&m->layers[layer], i);
        part[i] = store ? experts_matrix(store, layer, expert, (expert_part)i, cancel)
                        : w->data + (size_t)expert * matrix_bytes(w);
    }
    qwen3_status status = store ? experts_status(store, err) : QWEN3_OK;
    return status == QWEN3_OK && cancel && atomic_load(cancel) ? QWEN3_ERR_CANCELLED : status;
}

typedef struct {
    uint8_t *to[N_PARTS];
    const uint8_t *from[N_PARTS];
    size_t bytes[N_PARTS];
} gathering;

static void gather(void *arg, int tid, int n_threads) {
    const gathering *g = arg;
    for (int part = 0; part < N_PARTS; part++) {
        size_t first = g->bytes[part] * (size_t)tid / (size_t)n_threads;
        size_t last = g->bytes[part] * (size_t)(tid + 1) / (size_t)n_threads;
        memcpy(g->to[part] + first, g->from[part] + first, last - first);
    }
}

/* What of an expert goes where, as a slot has it. */
static qwen3_status locate(gpu_tier *t, int layer, int expert, uint8_t *to, gathering *g,
                           const atomic_bool *cancel, qwen3_error *err) {
    int index = t->first + layer;
    for (int part = 0; part < N_PARTS; part++) {
        g->bytes[part] = matrix_bytes(part_of(&t->host->layers[index], part));
        g->to[part] = to + t->banks[layer].offset[part];
    }
    return find_expert(t->host, index, expert, g->from, cancel, err);
}

/* By all threads: one alone is slower than PCIe. */
static qwen3_status copy_buffered(gpu_tier *t, gathering *g, uint8_t *from, uint8_t *to,
                                  size_t bytes, qwen3_error *err) {
    pool_run(t->host->pool, gather, g);
    qwen3_status status = t->api->sync(t->device, GPU_COPY, err); /* of the other buffer */
    if (status == QWEN3_OK) status = t->api->upload(t->device, GPU_COPY, to, from, bytes, err);
    return status;
}

static qwen3_status copy_from_store(gpu_tier *t, const gathering *g, qwen3_error *err) {
    qwen3_status status = QWEN3_OK;
    for (int i = 0; i < N_PARTS && status == QWEN3_OK; i++)
        status = t->api->upload(t->device, GPU_COPY, g->to[i], g->from[i], g->bytes[i], err);
    return status;
}

qwen3_status tier_copy(gpu_tier *t, int layer, int expert, int slot, const atomic_bool *cancel,
                       qwen3_error *err) {
    uint8_t *there = t->memory + (size_t)slot * t->slot_bytes, *buffer = t->buffer[t->filled ^= 1];
    gathering g;
    qwen3_status status =
        locate(t, layer, expert, t->store_slots ? there : buffer, &g, cancel, err);
    if (status != QWEN3_OK) return status;
    return t->store_slots ? copy_from_store(t, &g, err)
                          : copy_buffered(t, &g, buffer, there, t->banks[layer].bytes, err);
}

qwen3_status tier_want(gpu_tier *t, int layer, const int32_t *experts, int n, const int32_t *next,
                       int n_next, bool passing, qwen3_error *err) {
    expert_store *store = t->host->offload.experts;
    qwen3_status status = QWEN3_OK;
    if (t->store_slots && passing) /* a step waits for the copies of the layer before anyway */
        status = t->api->sync(t->device, GPU_COPY, err);
    if (store && status == QWEN3_OK)
        experts_want(store, t->first + layer, experts, n, next, n_next, passing);
    return status;
}

qwen3_status tier_publish(gpu_tier *t, qwen3_error *err) {
    size_t n = (size_t)(t->n_layers + 1) * (size_t)t->host->config.n_experts;
    return t->api->upload(t->device, GPU_COMPUTE, t->table, t->host_table, n * sizeof *t->table,
                          err);
}

void tier_settle(gpu_tier *t) {
    qwen3_error why; /* it is told already */
    (void)t->api->sync(t->device, GPU_COPY, &why);
}

/* ---- life ------------------------------------------------------------------------------ */

/* Hands out 256-aligned parts of the pinned memory; a first pass with no base only adds up. */
static void *carve(uint8_t *base, size_t *used, size_t bytes) {
    void *part = base ? base + *used : NULL;
    *used += aligned(bytes);
    return part;
}

static size_t carve_all(gpu_tier *t, uint8_t *base) {
    const qwen3_config *c = &t->host->config;
    size_t used = 0, row = (size_t)c->n_experts * sizeof(int32_t), few = FEW_COLUMNS;
    size_t entries = few * (size_t)c->n_experts_used, vector = (size_t)c->n_embd * sizeof(float);
    t->host_table = carve(base, &used, n_rows(t) * row);
    for (int i = 0; i < 2; i++) t->buffer[i] = carve(base, &used, t->slot_bytes);
    t->experts = carve(base, &used, entries * sizeof(int32_t));
    t->start = carve(base, &used, row + sizeof(int32_t));
    t->position = carve(base, &used, entries * sizeof(int32_t));
    t->normed = carve(base, &used, few * vector);
    t->rows = carve(base, &used, entries * vector);
    return used;
}

static qwen3_status allocate(gpu_tier *t, int n_slots, qwen3_error *err) {
    const qwen3_config *c = &t->host->config;
    size_t rows = n_rows(t) * (size_t)c->n_experts * sizeof(int32_t);
    t->memory = t->api->alloc(t->device, (size_t)n_slots * t->slot_bytes, err);
    if (t->memory) t->table = t->api->alloc(t->device, rows, err);
    if (t->table) t->pinned = t->api->alloc_pinned(t->device, carve_all(t, NULL), err);
    if (!t->pinned) return err->status;
    carve_all(t, t->pinned);
    return slots_init(&t->slots, t->host_table, t->n_layers, c->n_experts, n_slots - 2 * t->group,
                      err);
}

/* Where that fails copies are slower, and slots stay as large. */
static void pin_store(gpu_tier *t) {
    expert_store *store = t->host->offload.experts;
    size_t bytes;
    uint8_t *slots = store ? experts_fix_slots(store, &bytes) : NULL;
    if (slots && t->api->pin(t->device, slots, bytes)) t->store_slots = slots;
}

/* The first experts of a layer, as many as have slots. */
static qwen3_status fill_layer(gpu_tier *t, int layer, qwen3_error *err) {
    int n_experts = t->host->config.n_experts, n = 0;
    const int32_t *slot_of = t->slots.slot_of + (size_t)layer * (size_t)n_experts;
    while (n < n_experts && slot_of[n] >= 0) n++;
    qwen3_status status = QWEN3_OK;
    for (int32_t e = 0; e < n && status == QWEN3_OK; e++) {
        int32_t next = e + 1;
        status = tier_want(t, layer, &e, 1, &next, next < n, true, err);
        if (status == QWEN3_OK) status = tier_copy(t, layer, e, slot_of[e], NULL, err);
    }
    return status;
}

static qwen3_status fill(gpu_tier *t, qwen3_error *err) {
    qwen3_status status = QWEN3_OK;
    slots_fill(&t->slots);
    for (int i = 0; i < t->n_layers && status == QWEN3_OK; i++) status = fill_layer(t, i, err);
    if (status == QWEN3_OK) status = tier_publish(t, err);
    if (status == QWEN3_OK) status = t->api->sync(t->device, GPU_COPY, err);
    return status == QWEN3_OK ? t->api->sync(t->device, GPU_COMPUTE, err) : status;
}

/* What a token meets in a layer, and two that pass. */
static qwen3_status check(const gpu_tier *t, uint64_t expert_bytes, qwen3_error *err) {
    int used = t->host->config.n_experts_used;
    uint64_t least = (uint64_t)t->slot_bytes * (uint64_t)(used + 2);
    if (expert_bytes >= least) return QWEN3_OK;
    return fail(err, QWEN3_ERR_ARG,
                "%.1f MB for experts on the GPU are too few: %d of a token and two that are copied "
                "take %.1f MB",
                (double)expert_bytes * 1e-6, used, ceil((double)least * 1e-5) * 0.1);
}

gpu_tier *tier_open(const gpu_api *api, gpu *device, const qwen3_model *m, gpu_bank *banks,
                    int n_layers, uint64_t expert_bytes, float copy_share, qwen3_error *err) {
    size_t n_experts = (size_t)m->config.n_experts;
    gpu_tier *t = calloc(1, sizeof *t);
    if (!t) {
        fail(err, QWEN3_ERR_MEMORY, "out of memory");
        return NULL;
    }
    *t = (gpu_tier){.api = api, .device = device, .host = m, .n_layers = n_layers,
                    .first = m->config.n_layers - n_layers, .banks = banks,
                    .copy_share = copy_share};
    for (int i = 0; i < n_layers; i++) banks[i] = bank_of(&m->layers[t->first + i]);
    t->slot_bytes = largest_expert(t);
    int n_slots = (int)(expert_bytes / t->slot_bytes);
    t->group = group_of(m, n_slots);
    qwen3_status status = check(t, expert_bytes, err);
    if (status == QWEN3_OK) status = allocate(t, n_slots, err);
    if (status == QWEN3_OK) pin_store(t);
    for (int i = 0; i < n_layers && status == QWEN3_OK; i++) {
        bank_lies_in(&banks[i], t->memory, t->slot_bytes);
        banks[i].slot_of = t->table + (size_t)i * n_experts;
    }
    if (status == QWEN3_OK) status = fill(t, err);
    if (status == QWEN3_OK) return t;
    tier_close(t);
    return NULL;
}

uint64_t tier_bytes(const gpu_tier *t) {
    return (uint64_t)(t->slots.n_slots + 2 * t->group) * t->slot_bytes;
}

void tier_close(gpu_tier *t) {
    if (!t) return;
    if (t->store_slots) {
        tier_settle(t);
        t->api->unpin(t->device, t->store_slots);
    }
    slots_free(&t->slots);
    if (t->memory) t->api->release(t->device, t->memory);
    if (t->table) t->api->release(t->device, t->table);
    if (t->pinned) t->api->release_pinned(t->device, t->pinned);
    free(t);
}
