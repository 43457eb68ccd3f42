/* share.c - see share.h. */
#include "share.h"

#include <string.h>

#include "gpu/forward.h"
#include "gpu/logits.h"
#include "graph.h"

static bool take_cancels(const sequence *to, int n_sequences) {
    bool any = false;
    for (int i = 0; i < n_sequences; i++) any |= atomic_exchange(to[i].cancel, false);
    return any;
}

/* Tokens [first, first + n) of the step, whose places are in staged. */
static qwen3_status on_device(const sequence *to, workspace *ws, const int32_t *ids, int first,
                              int n, int n_logits, float *logits, qwen3_error *err) {
    gpu_sequence *s = to->gpu;
    gpu_tokens tokens = {.places = s->staged.places, .n = n, .host = ws, .cancel = to->cancel};
    if (ws->model->n_host_layers) {
        tokens.x = ws->x + (size_t)first * (size_t)ws->model->config.n_embd;
    } else {
        memcpy(s->staged.ids, ids + first, (size_t)n * sizeof *ids);
        tokens.ids = s->staged.ids;
    }
    s->logits_wait = n_logits && !logits;
    return gpu_forward(s, &tokens, n_logits, logits, err);
}

static qwen3_status in_a_row(workspace *ws, const sequence *to, const int32_t *ids, int n,
                             int n_logits, qwen3_error *err) {
    gpu_sequence *s = to->gpu;
    for (int i = 0; i < n; i++)
        s->staged.places[i] = (token_place){s->kv, s->stream, to->pos + i};
    return on_device(to, ws, ids, 0, n, n_logits, to->logits, err);
}

/* One token of each: at once where their caches are of one type. */
static qwen3_status side_by_side(workspace *ws, const sequence *to, int n, const int32_t *ids,
                                 int n_logits, qwen3_error *err) {
    qwen3_status status = QWEN3_OK;
    gpu_sequence *first = to->gpu;
    bool alike = true;
    for (int i = 0; i < n; i++) alike &= to[i].gpu->kv_type == first->kv_type;
    for (int i = 0; i < n; i++) {
        gpu_sequence *s = to[i].gpu;
        token_place *place = alike ? &first->staged.places[i] : s->staged.places;
        *place = (token_place){s->kv, s->stream, to[i].pos};
        if (!alike && status == QWEN3_OK)
            status = on_device(&to[i], ws, ids, i, 1, n_logits > 0, NULL, err);
    }
    if (alike) status = on_device(to, ws, ids, 0, n, n_logits, NULL, err);
    for (int i = 1; alike && i < n && n_logits && status == QWEN3_OK; i++) {
        status = gpu_take_logits(to[i].gpu, first, i, err);
        to[i].gpu->logits_wait = true;
    }
    return status;
}

/* The store is one thread's at a time: not while another thread's pass on the device, which may
 * take experts from it, has its turn. */
static qwen3_status on_host(workspace *ws, sequence *to, int n_sequences, const int32_t *ids,
                            int n, qwen3_error *err) {
    resident_model *there = ws->model->gpu;
    bool shared = there->tier && ws->model->offload.experts;
    if (shared) pthread_mutex_lock(&there->turn);
    qwen3_status status = graph_forward(ws, to, n_sequences, ids, n, 0, err);
    if (shared) pthread_mutex_unlock(&there->turn);
    return status;
}

qwen3_status forward(workspace *ws, sequence *to, int n_sequences, const int32_t *ids, int n,
                     int n_logits, qwen3_error *err) {
    const qwen3_model *m = ws->model;
    if (!m->gpu) return graph_forward(ws, to, n_sequences, ids, n, n_logits, err);
    qwen3_status status = QWEN3_OK;
    if (m->n_host_layers) status = on_host(ws, to, n_sequences, ids, n, err);
    else if (take_cancels(to, n_sequences)) status = QWEN3_ERR_CANCELLED;
    if (status != QWEN3_OK) return status;
    status = n_sequences > 1 ? side_by_side(ws, to, n_sequences, ids, n_logits, err)
                             : in_a_row(ws, to, ids, n, n_logits, err);
    if (take_cancels(to, n_sequences) && status == QWEN3_OK) status = QWEN3_ERR_CANCELLED;
    return status;
}
