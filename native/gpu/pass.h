/* pass.h - a forward pass as it is queued: what forward.c, products.c and mixture.c share. */
#ifndef QWEN3_GPU_PASS_H
#define QWEN3_GPU_PASS_H

#include "sequence.h"

enum { THREADS = 256 };

/* A pass; after an error nothing more is launched. */
typedef struct {
    gpu_sequence *s;
    const resident_model *m;
    const qwen3_config *c;
    int n, pos;
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

/* The residual stream += the experts of its tokens, of which s->normed has the input. */
void gpu_mixture(pass *, const layer *, const gpu_bank *);

#endif
