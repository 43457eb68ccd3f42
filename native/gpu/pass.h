/* pass.h - a forward pass as it is queued: what the files of the pass share. */
#ifndef QWEN3_GPU_PASS_H
#define QWEN3_GPU_PASS_H

#include <stdatomic.h>

#include "sequence.h"

/* FEW_PAIRS: a pair of rows for each warp of a block. With more to a block, those of a small matrix
 * would not reach all multiprocessors. */
enum { THREADS = 256, MOST_THREADS = 1024, FEW_PAIRS = THREADS / 32 };

/* A pass; after an error nothing more is queued. */
typedef struct {
    gpu_sequence *s;
    resident_model *m;
    const qwen3_config *c;
    int n, n_ctx;              /* tokens, and positions that none of them is behind */
    const token_place *places; /* [n], on the host */
    struct workspace *host;    /* see gpu_tokens, */
    atomic_bool *cancel;       /* here, too */
    qwen3_status status;
    qwen3_error *err;
    /* Of a mixture: the experts of its tokens and their weights [n][n_used], on the device. */
    const int32_t *experts;
    const float *weights;
} pass;

/* Vectors in the forms that products take. */
typedef struct {
    float *f;
    act_group *q;
} vectors;

static inline void launch(pass *p, kernel_id id, gpu_grid grid, const void *args, size_t bytes) {
    if (p->status == QWEN3_OK)
        p->status = p->m->api->launch(p->m->device, GPU_COMPUTE, id, grid, args, bytes, p->err);
}

static inline void upload(pass *p, void *to, const void *from, size_t bytes) {
    if (p->status == QWEN3_OK)
        p->status = p->m->api->upload(p->m->device, GPU_COMPUTE, to, from, bytes, p->err);
}

static inline void download(pass *p, void *to, const void *from, size_t bytes) {
    if (p->status == QWEN3_OK)
        p->status = p->m->api->download(p->m->device, GPU_COMPUTE, to, from, bytes, p->err);
}

/* After an error, too: the host's memory is its owner's again. */
static inline void sync(pass *p) {
    qwen3_error late;
    bool well = p->status == QWEN3_OK;
    qwen3_status status = p->m->api->sync(p->m->device, GPU_COMPUTE, well ? p->err : &late);
    if (well) p->status = status;
}

#define LAUNCH(p, name, grid, ...) \
    launch(p, KERNEL_##name, grid, &(__VA_ARGS__), sizeof(__VA_ARGS__))

/* Then matrices meet the tokens as columns, and an expert those that chose it. */
static inline bool many(const pass *p) { return p->n > FEW_COLUMNS; }

static inline int blocks(int n, int size) { return (n + size - 1) / size; }

static inline const void *form(const weight *w, vectors x) {
    return type_takes_float(w->type) ? (const void *)x.f : x.q;
}

/* y = W x of n columns; up: y = silu(W x) * (up x), as floats and as groups. */
void gpu_multiply(pass *, const weight *, const weight *up, vectors x, int n, vectors y, int add);

/* The same in float for any n, each column with the bits that it has alone: slow for many. */
void gpu_multiply_each(pass *, const weight *, const weight *up, vectors x, int n, vectors y,
                       int add);

/* y[i] = W[i] x of n columns, for up to 1 + MORE_OUTPUTS matrices. */
void gpu_multiply_alike(pass *, const weight *const *w, float *const *y, int n_w, vectors x, int n);

/* The residual stream += the experts of its tokens, of which s->normed has the input. */
void gpu_mixture(pass *, int layer);

/* The products of those experts of a layer that a row of slot_of has: an entry's go to its row of
 * s->expert_out, in the order of the tokens or, of many, sorted by expert. */
void gpu_experts(pass *, int layer, const int32_t *slot_of);

/* Whether the tokens' experts are given, see qwen3_session_force_routes; and lets the pass have
 * those of a layer, the first one first. */
bool is_forced(const pass *);
void force_experts(pass *, int layer);

/* ---- missing.c: the experts that the device does not have ---- */

/* Lets the host know what is wanted, as soon as the experts are chosen. */
void ask_for_missing(pass *);
/* Of few tokens: copies some, has the CPU compute the others; returns where s->expert_out has each
 * entry, on the device, or NULL: in its own row. */
const int32_t *add_missing(pass *, int layer);
/* Of a prompt: computes them as they pass. */
void pass_missing(pass *, int layer);

#endif
