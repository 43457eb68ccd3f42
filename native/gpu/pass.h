/* pass.h - a forward pass as it is queued: what forward.c, products.c and mixture.c share. */
#ifndef QWEN3_GPU_PASS_H
#define QWEN3_GPU_PASS_H

#include "sequence.h"

enum { THREADS = 256 };

/* A pass; after an error nothing more is queued. */
typedef struct {
    gpu_sequence *s;
    resident_model *m;
    const qwen3_config *c;
    int n, n_ctx;           /* tokens, and positions that none of them is behind */
    struct workspace *host; /* see gpu_tokens */
    qwen3_status status;
    qwen3_error *err;
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

static inline int blocks(int n, int size) { return (n + size - 1) / size; }

static inline const void *form(const weight *w, vectors x) {
    return type_takes_float(w->type) ? (const void *)x.f : x.q;
}

/* The kernel for many columns; N_KERNELS: there is none for this type. */
kernel_id gemm_kernel(uint32_t type);

/* y = W x of n columns; up: y = silu(W x) * (up x), as floats and as groups. */
void gpu_multiply(pass *, const weight *, const weight *up, vectors x, int n, vectors y, int add);

/* The same in float for any n, each column with the bits that it has alone: slow for many. */
void gpu_multiply_each(pass *, const weight *, const weight *up, vectors x, int n, vectors y,
                       int add);

/* The residual stream += the experts of its tokens, of which s->normed has the input. */
void gpu_mixture(pass *, const layer *, const gpu_bank *);

#endif
