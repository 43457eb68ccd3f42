/* offload.c - see offload.h. */
#include "offload.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "error.h"
#include "gguf.h"

enum { N_READERS = 4 };

/* ---- what every token needs --------------------------------------------------------- */

enum { DENSE_OF_LAYER = 5 };

static void dense_of_layer(layer *l, weight *out[DENSE_OF_LAYER]) {
    weight *all[DENSE_OF_LAYER] = {&l->q, &l->k, &l->v, &l->o, &l->router};
    memcpy(out, all, sizeof all);
}

static size_t aligned_bytes(const weight *w) {
    return ((size_t)w->n_out * w->row_bytes + 63) & ~(size_t)63;
}

static uint8_t *move(weight *w, uint8_t *to) {
    memcpy(to, w->data, (size_t)w->n_out * w->row_bytes);
    w->data = to;
    return to + aligned_bytes(w);
}

/* The embedding stays: a token reads a row of it, if it is not the output, too. */
static qwen3_status move_dense(qwen3_model *m, qwen3_error *err) {
    weight *w[DENSE_OF_LAYER];
    size_t bytes = aligned_bytes(&m->output);
    for (int i = 0; i < m->config.n_layers; i++) {
        dense_of_layer(&m->layers[i], w);
        for (int k = 0; k < DENSE_OF_LAYER; k++) bytes += aligned_bytes(w[k]);
    }
    m->dense_bytes = bytes;
    m->dense = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m->dense == MAP_FAILED) {
        m->dense = NULL;
        return fail(err, QWEN3_ERR_MEMORY, "out of memory for %.2f GB of weights that every token "
                    "needs", (double)bytes * 1e-9);
    }
    uint8_t *to = move(&m->output, m->dense);
    for (int i = 0; i < m->config.n_layers; i++) {
        dense_of_layer(&m->layers[i], w);
        for (int k = 0; k < DENSE_OF_LAYER; k++) to = move(w[k], to);
    }
    return QWEN3_OK;
}

/* ---- experts --------------------------------------------------------------------------- */

static expert_extent extent_of(const qwen3_file *file, const weight *w) {
    size_t i = 0; /* the tensor is there: the weight points to its data */
    while (qwen3_file_tensor(file, i)->data != w->data) i++;
    const qwen3_tensor *t = qwen3_file_tensor(file, i);
    return (expert_extent){(int)t->shard, t->offset, (size_t)w->n_out * w->row_bytes, w->type};
}

static qwen3_status open_store(qwen3_model *m, const char **paths, expert_extent *extents,
                               uint64_t expert_bytes, qwen3_error *err) {
    int n_paths = (int)gguf_n_shards(m->file);
    for (int i = 0; i < n_paths; i++)
        if (!(paths[i] = gguf_path(m->file, (uint32_t)i)))
            return fail(err, QWEN3_ERR_ARG, "a model in memory has no file to read experts from");
    for (int i = 0; i < m->config.n_layers; i++) {
        const layer *l = &m->layers[i];
        expert_extent *e = extents + (size_t)i * EXPERT_PARTS;
        e[EXPERT_GATE] = extent_of(m->file, &l->gate);
        e[EXPERT_UP] = extent_of(m->file, &l->up);
        e[EXPERT_DOWN] = extent_of(m->file, &l->down);
    }
    expert_bank bank = {m->config.n_layers, m->config.n_experts, m->config.n_experts_used,
                        extents, paths, n_paths};
    m->experts = experts_open(&bank, expert_bytes, N_READERS, err);
    return m->experts ? QWEN3_OK : err ? err->status : QWEN3_ERR_ARG;
}

qwen3_status offload_experts(qwen3_model *m, uint64_t expert_bytes, qwen3_error *err) {
    if (!m->config.n_experts)
        return fail(err, QWEN3_ERR_ARG, "the model has no experts that could stay in its file");
    const char **paths = calloc(gguf_n_shards(m->file), sizeof *paths);
    expert_extent *extents =
        calloc((size_t)m->config.n_layers * EXPERT_PARTS, sizeof *extents);
    qwen3_status status = paths && extents
                              ? open_store(m, paths, extents, expert_bytes, err)
                              : fail(err, QWEN3_ERR_MEMORY, "out of memory");
    free(paths);
    free(extents);
    return status == QWEN3_OK ? move_dense(m, err) : status;
}

void release_experts(qwen3_model *m) {
    experts_close(m->experts);
    if (m->dense) munmap(m->dense, m->dense_bytes);
}

qwen3_expert_stats qwen3_model_expert_stats(const qwen3_model *m) {
    return m->experts ? experts_stats(m->experts) : (qwen3_expert_stats){0};
}
