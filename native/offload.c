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
static qwen3_status move_dense(offload *o, layer *layers, int n_layers, weight *output,
                               qwen3_error *err) {
    weight *w[DENSE_OF_LAYER];
    size_t bytes = aligned_bytes(output);
    for (int i = 0; i < n_layers; i++) {
        dense_of_layer(&layers[i], w);
        for (int k = 0; k < DENSE_OF_LAYER; k++) bytes += aligned_bytes(w[k]);
    }
    o->dense_bytes = bytes;
    o->dense = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (o->dense == MAP_FAILED) {
        o->dense = NULL;
        return fail(err, QWEN3_ERR_MEMORY, "out of memory for %.2f GB of weights that every token "
                    "needs", (double)bytes * 1e-9);
    }
    uint8_t *to = move(output, o->dense);
    for (int i = 0; i < n_layers; i++) {
        dense_of_layer(&layers[i], w);
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

static qwen3_status open_store(offload *o, const qwen3_file *file, const qwen3_config *c,
                               const layer *layers, const char **paths, expert_extent *extents,
                               uint64_t expert_bytes, qwen3_error *err) {
    int n_paths = (int)gguf_n_shards(file);
    for (int i = 0; i < n_paths; i++)
        if (!(paths[i] = gguf_path(file, (uint32_t)i)))
            return fail(err, QWEN3_ERR_ARG, "a model in memory has no file to read experts from");
    for (int i = 0; i < c->n_layers; i++) {
        expert_extent *e = extents + (size_t)i * EXPERT_PARTS;
        e[EXPERT_GATE] = extent_of(file, &layers[i].gate);
        e[EXPERT_UP] = extent_of(file, &layers[i].up);
        e[EXPERT_DOWN] = extent_of(file, &layers[i].down);
    }
    expert_bank bank = {c->n_layers, c->n_experts, c->n_experts_used, extents, paths, n_paths};
    qwen3_error why;
    o->experts = experts_open(&bank, expert_bytes, N_READERS, &why);
    return o->experts ? QWEN3_OK : fail(err, why.status, "%s", why.text);
}

qwen3_status offload_open(offload *o, const qwen3_file *file, const qwen3_config *c, layer *layers,
                          weight *output, uint64_t expert_bytes, qwen3_error *err) {
    if (!c->n_experts)
        return fail(err, QWEN3_ERR_ARG, "the model has no experts that could stay in its file");
    const char **paths = calloc(gguf_n_shards(file), sizeof *paths);
    expert_extent *extents = calloc((size_t)c->n_layers * EXPERT_PARTS, sizeof *extents);
    qwen3_status status =
        paths && extents ? open_store(o, file, c, layers, paths, extents, expert_bytes, err)
                         : fail(err, QWEN3_ERR_MEMORY, "out of memory");
    free(paths);
    free(extents);
    if (status == QWEN3_OK) status = move_dense(o, layers, c->n_layers, output, err);
    if (status == QWEN3_OK) gguf_forget(file);
    return status;
}

void offload_release(offload *o) {
    experts_close(o->experts);
    if (o->dense) munmap(o->dense, o->dense_bytes);
}
