/* resident.c - see resident.h. */
#include "resident.h"

#include <stdlib.h>

#include "error.h"

/* Uploads one after the other; after an error nothing more is done. */
typedef struct {
    resident_model *m;
    qwen3_status status;
    qwen3_error *err;
} uploader;

/* Room to hold one more. */
static bool can_hold(uploader *u) {
    resident_model *m = u->m;
    if (u->status != QWEN3_OK) return false;
    void *more = realloc(m->held, ((size_t)m->n_held + 1) * sizeof *m->held);
    if (more) m->held = more;
    else u->status = fail(u->err, QWEN3_ERR_MEMORY, "out of memory");
    return more != NULL;
}

static void hold(uploader *u, void *at, bool mapped, size_t bytes) {
    resident_model *m = u->m;
    m->held[m->n_held].at = at;
    m->held[m->n_held++].mapped = mapped;
    m->stats.bytes += bytes;
}

static void *take(uploader *u, size_t bytes) {
    if (!can_hold(u)) return NULL;
    void *to = u->m->api->alloc(u->m->device, bytes, u->err);
    if (to) hold(u, to, false, bytes);
    else u->status = u->err->status;
    return to;
}

static void put(uploader *u, void *to, const void *from, size_t bytes) {
    if (u->status == QWEN3_OK)
        u->status = u->m->api->upload(u->m->device, GPU_COPY, to, from, bytes, u->err);
}

static void *copy(uploader *u, const void *from, size_t bytes) {
    void *to = take(u, bytes);
    put(u, to, from, bytes);
    return to;
}

static size_t matrix_bytes(const weight *w) { return (size_t)w->n_out * w->row_bytes; }

enum { ALIGNMENT = 16 }; /* of a matrix, for the kernels */

/* In place, if the device can: it has the host's memory. */
static void *map(uploader *u, const void *from, size_t bytes) {
    if ((uintptr_t)from % ALIGNMENT || !can_hold(u)) return NULL;
    void *at = u->m->api->map(u->m->device, from, bytes);
    if (at) hold(u, at, true, bytes);
    return at;
}

static weight copy_weight(uploader *u, const weight *w) {
    weight there = *w;
    void *at = map(u, w->data, matrix_bytes(w));
    there.data = at ? at : copy(u, w->data, matrix_bytes(w));
    return there;
}

static float *copy_floats(uploader *u, const float *x, int n) {
    return copy(u, x, (size_t)n * sizeof *x);
}

/* In place: each of the three lies in one piece, expert behind expert. */
static bool map_experts(uploader *u, gpu_bank *bank, const weight *const w[N_PARTS],
                        size_t n_experts) {
    if (u->m->host->offload.experts) return false; /* the mapping is not where they are */
    for (int p = 0; p < N_PARTS; p++) {
        bank->stride[p] = matrix_bytes(w[p]);
        if (bank->stride[p] % ALIGNMENT) return false;
        bank->part[p] = map(u, w[p]->data, n_experts * bank->stride[p]);
        if (!bank->part[p]) return false; /* what was mapped is let go with the model */
    }
    return true;
}

/* All of a layer. */
static gpu_bank copy_experts(uploader *u, int index, int n_experts) {
    const qwen3_model *host = u->m->host;
    const layer *l = &host->layers[index];
    const weight *const w[N_PARTS] = {&l->gate, &l->up, &l->down};
    expert_store *store = host->offload.experts;
    gpu_bank bank = bank_of(l);
    bank.slot_of = u->m->every_expert;
    u->m->stats.n_slots += (uint64_t)n_experts;
    u->m->stats.expert_bytes += (uint64_t)n_experts * bank.bytes;
    if (map_experts(u, &bank, w, (size_t)n_experts)) return bank;
    uint8_t *slots = take(u, (size_t)n_experts * bank.bytes);
    if (slots) bank_lies_in(&bank, slots, bank.bytes);
    for (int32_t e = 0; e < n_experts && u->status == QWEN3_OK; e++) {
        const uint8_t *part[N_PARTS];
        int32_t next = e + 1;
        if (store) experts_want(store, index, &e, 1, &next, next < n_experts, true);
        u->status = find_expert(host, index, e, part, NULL, u->err);
        for (int p = 0; p < N_PARTS; p++)
            put(u, slots + (size_t)e * bank.bytes + bank.offset[p], part[p], matrix_bytes(w[p]));
        if (store && u->status == QWEN3_OK) /* before another takes its place */
            u->status = u->m->api->sync(u->m->device, GPU_COPY, u->err);
    }
    return bank;
}

static void open_tier(uploader *u, uint64_t expert_bytes, float copy_share) {
    resident_model *m = u->m;
    if (u->status != QWEN3_OK || !tier_is_needed(m->host, m->n_layers, expert_bytes)) return;
    m->tier = tier_open(m->api, m->device, m->host, m->banks, m->n_layers, expert_bytes, copy_share,
                        u->err);
    if (!m->tier) {
        u->status = u->err->status;
        return;
    }
    m->stats.n_slots = (uint64_t)m->tier->slots.n_slots;
    m->stats.expert_bytes = tier_bytes(m->tier);
    m->stats.bytes += m->stats.expert_bytes;
}

static void copy_layer(uploader *u, int i) {
    resident_model *m = u->m;
    const qwen3_config *c = &m->host->config;
    const layer *from = &m->host->layers[c->n_layers - m->n_layers + i];
    layer *to = &m->layers[i];
    to->attn_norm = copy_floats(u, from->attn_norm, c->n_embd);
    to->ffn_norm = copy_floats(u, from->ffn_norm, c->n_embd);
    to->q_norm = copy_floats(u, from->q_norm, c->head_dim);
    to->k_norm = copy_floats(u, from->k_norm, c->head_dim);
    to->q = copy_weight(u, &from->q);
    to->k = copy_weight(u, &from->k);
    to->v = copy_weight(u, &from->v);
    to->o = copy_weight(u, &from->o);
    if (!c->n_experts) {
        to->gate = copy_weight(u, &from->gate);
        to->up = copy_weight(u, &from->up);
        to->down = copy_weight(u, &from->down);
        return;
    }
    to->gate = from->gate; /* their shapes */
    to->up = from->up;
    to->down = from->down;
    to->router = copy_weight(u, &from->router);
    if (!m->tier) m->banks[i] = copy_experts(u, c->n_layers - m->n_layers + i, c->n_experts);
}

/* What the kernels take: see args.h. */
static qwen3_status check(const qwen3_model *m, const qwen3_gpu_share *share, qwen3_error *err) {
    const qwen3_config *c = &m->config;
    if (share->n_layers < 1 || share->n_layers > c->n_layers)
        return fail(err, QWEN3_ERR_ARG, "%d layers for the GPU: the model has 1 to %d",
                    share->n_layers, c->n_layers);
    if (c->head_dim % 32 || c->head_dim > ATTEND_HEAD_DIM)
        return fail(err, QWEN3_ERR_UNSUPPORTED,
                    "heads of %d: a GPU takes multiples of 32 up to %d", c->head_dim,
                    ATTEND_HEAD_DIM);
    if (c->n_embd % 32 || c->n_ff % 32 || c->n_ff_expert % 32)
        return fail(err, QWEN3_ERR_UNSUPPORTED, "rows of %d and %d: a GPU takes multiples of 32",
                    c->n_embd, c->n_experts ? c->n_ff_expert : c->n_ff);
    if (c->n_experts > EXPERTS_MOST)
        return fail(err, QWEN3_ERR_UNSUPPORTED, "%d experts: a GPU takes up to %d", c->n_experts,
                    EXPERTS_MOST);
    if (c->n_experts_used > USED_MOST)
        return fail(err, QWEN3_ERR_UNSUPPORTED, "%d experts of a token: a GPU takes up to %d",
                    c->n_experts_used, USED_MOST);
    for (int i = c->n_layers - share->n_layers; i < c->n_layers; i++)
        if (m->layers[i].gate.type != m->layers[i].up.type)
            return fail(err, QWEN3_ERR_UNSUPPORTED,
                        "layer %d: gate and up differ in type, which a GPU does not take", i);
    return QWEN3_OK;
}

qwen3_status resident_open(resident_model *m, const gpu_api *api, gpu *device,
                           const qwen3_model *host, const qwen3_gpu_share *share, float copy_share,
                           qwen3_error *err) {
    const qwen3_config *c = &host->config;
    *m = (resident_model){.api = api, .device = device, .host = host,
                          .n_layers = share->n_layers, .stats.n_layers = share->n_layers};
    uploader u = {m, check(host, share, err), err};
    pthread_mutex_init(&m->turn, NULL);
    if (u.status == QWEN3_OK) {
        m->layers = calloc((size_t)m->n_layers, sizeof *m->layers);
        m->banks = calloc((size_t)m->n_layers, sizeof *m->banks);
        if (!m->layers || !m->banks) u.status = fail(err, QWEN3_ERR_MEMORY, "out of memory");
    }
    int32_t own[EXPERTS_MOST];
    for (int e = 0; e < EXPERTS_MOST; e++) own[e] = e;
    m->every_expert = copy(&u, own, sizeof own);
    m->rope_freq = copy_floats(&u, host->rope_freq, c->head_dim / 2);
    m->output_norm = copy_floats(&u, host->output_norm, c->n_embd);
    m->output = copy_weight(&u, &host->output);
    if (m->n_layers == c->n_layers)
        m->embedding = c->tied_embedding ? m->output : copy_weight(&u, &host->embedding);
    if (c->n_experts) open_tier(&u, share->expert_bytes, copy_share);
    for (int i = 0; i < m->n_layers && u.status == QWEN3_OK; i++) copy_layer(&u, i);
    if (u.status == QWEN3_OK) u.status = api->sync(device, GPU_COPY, err);
    if (u.status != QWEN3_OK) resident_close(m);
    return u.status;
}

void resident_close(resident_model *m) {
    tier_close(m->tier);
    for (int i = 0; i < m->n_held; i++)
        (m->held[i].mapped ? m->api->unmap : m->api->release)(m->device, m->held[i].at);
    pthread_mutex_destroy(&m->turn);
    free(m->held);
    free(m->layers);
    free(m->banks);
    *m = (resident_model){0};
}
