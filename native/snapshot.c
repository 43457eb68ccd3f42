/* snapshot.c - sessions in memory; see snapshot.h. saved.c has those in files. */
#include "snapshot.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "session.h"

struct qwen3_snapshot {
    const qwen3_model *model;
    uint32_t type;      /* of the kv cache */
    size_t start, n;
    size_t first_tile, tile_bytes, stream; /* tiles from the one that holds start; bytes of each */
    int32_t *ids;       /* [n] */
    float *logits;      /* [n_vocab], NULL when there were none */
    uint8_t *tiles;     /* [session_n_streams][stream] */
    size_t bytes;
};

static void *copy(const void *from, size_t bytes) {
    void *to = malloc(bytes ? bytes : 1);
    if (to) memcpy(to, from, bytes);
    return to;
}

qwen3_snapshot *qwen3_session_snapshot(const qwen3_session *s, size_t start, qwen3_error *err) {
    const kv_cache *kv = &s->kv;
    size_t n_logits = (size_t)s->model->config.n_vocab * sizeof *s->logits;
    if (start > s->n) {
        fail(err, QWEN3_ERR_ARG, "a snapshot from token %zu on, but the session has %zu", start,
             s->n);
        return NULL;
    }
    if (session_fetch_logits(s, err) != QWEN3_OK) return NULL;
    qwen3_snapshot *x = calloc(1, sizeof *x);
    if (!x) {
        fail(err, QWEN3_ERR_MEMORY, "out of memory");
        return NULL;
    }
    *x = (qwen3_snapshot){.model = s->model, .type = kv->type, .start = start, .n = s->n};
    x->tile_bytes = kv_tile_bytes(kv->type, kv->head_dim);
    x->first_tile = start / KV_TILE;
    x->stream = ((s->n + KV_TILE - 1) / KV_TILE - x->first_tile) * x->tile_bytes;
    size_t n_streams = session_n_streams(s), n_tiles = n_streams * x->stream;
    x->bytes = sizeof *x + s->n * sizeof *s->ids + n_tiles + (s->has_logits ? n_logits : 0);
    x->ids = copy(s->ids, s->n * sizeof *s->ids);
    x->logits = s->has_logits ? copy(s->logits, n_logits) : NULL;
    x->tiles = malloc(n_tiles ? n_tiles : 1);
    if (!x->ids || !x->tiles || (s->has_logits && !x->logits)) {
        fail(err, QWEN3_ERR_MEMORY, "a snapshot of %zu tokens needs %.1f MB, which the system "
             "refused", s->n - start, (double)x->bytes / 1e6);
        qwen3_snapshot_free(x);
        return NULL;
    }
    for (size_t i = 0; i < n_streams; i++)
        if (session_read_stream(s, i, x->first_tile * x->tile_bytes, x->tiles + i * x->stream,
                                x->stream, err) != QWEN3_OK) {
            qwen3_snapshot_free(x);
            return NULL;
        }
    return x;
}

void qwen3_snapshot_free(qwen3_snapshot *x) {
    if (!x) return;
    free(x->ids);
    free(x->logits);
    free(x->tiles);
    free(x);
}

qwen3_status qwen3_session_restore(qwen3_session *s, const qwen3_snapshot *x, qwen3_error *err) {
    if (x->model != s->model || x->type != s->kv.type)
        return fail(err, QWEN3_ERR_ARG, "the snapshot is of a session of another %s",
                    x->model != s->model ? "model" : "type of kv cache");
    if (x->n > s->n_ctx)
        return fail(err, QWEN3_ERR_CONTEXT,
                    "the %zu tokens of the snapshot do not fit the context of %zu: %zu too many",
                    x->n, s->n_ctx, x->n - s->n_ctx);
    size_t same = 0;
    while (same < x->start && same < s->n && s->ids[same] == x->ids[same]) same++;
    if (same < x->start)
        return fail(err, QWEN3_ERR_ARG,
                    "the snapshot begins at token %zu, but only %zu tokens of the session are those "
                    "before it: sync it to them first", x->start, same);
    for (size_t i = 0; i < session_n_streams(s); i++) {
        qwen3_status status = session_write_stream(s, i, x->first_tile * x->tile_bytes,
                                                   x->tiles + i * x->stream, x->stream, err);
        if (status == QWEN3_OK) continue;
        s->n = x->start; /* a device that fails */
        s->has_logits = false;
        return status;
    }
    memcpy(s->ids, x->ids, x->n * sizeof *s->ids);
    s->n = x->n;
    session_has_logits(s, x->logits != NULL);
    if (x->logits)
        memcpy(s->logits, x->logits, (size_t)s->model->config.n_vocab * sizeof *s->logits);
    return QWEN3_OK;
}

size_t qwen3_snapshot_start(const qwen3_snapshot *x) { return x->start; }
size_t qwen3_snapshot_len(const qwen3_snapshot *x) { return x->n; }
const int32_t *qwen3_snapshot_ids(const qwen3_snapshot *x) { return x->ids; }
size_t qwen3_snapshot_bytes(const qwen3_snapshot *x) { return x->bytes; }
