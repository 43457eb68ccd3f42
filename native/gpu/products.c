/* products.c - products of a weight matrix with few columns and with many. */
#include "pass.h"

kernel_id gemm_kernel(uint32_t type) {
    switch (type) {
    case TYPE_Q8_0: return KERNEL_gemm_q8_0;
    case TYPE_Q4_0: return KERNEL_gemm_q4_0;
    case TYPE_Q4_K: return KERNEL_gemm_q4_k;
    case TYPE_Q5_K: return KERNEL_gemm_q5_k;
    case TYPE_Q6_K: return KERNEL_gemm_q6_k;
    case TYPE_F16: return KERNEL_gemm_f16;
    case TYPE_BF16: return KERNEL_gemm_bf16;
    case TYPE_F32: return KERNEL_gemm_f32;
    default: return N_KERNELS;
    }
}

static void few_columns(pass *p, matvec_args a, uint32_t type) {
    int pairs = a.up ? a.n_out : blocks(a.n_out, 2);
    a.n_pairs = a.act ? 32 : 16;
    a.entries_per_x = 1;
    int shared = a.act ? 32 * a.n_columns * (int)sizeof(float) : 0;
    launch(p, matvec_kernel(type, a.n_columns),
           (gpu_grid){blocks(pairs, a.n_pairs), 1, 1, THREADS, shared}, &a, sizeof a);
}

void gpu_multiply(pass *p, const weight *w, const weight *up, vectors x, int n, vectors y,
                  int add) {
    size_t out = (size_t)w->n_out, in = (size_t)w->n_in;
    const uint8_t *up_data = up ? up->data : NULL;
    kernel_id many = n > FEW_COLUMNS ? gemm_kernel(w->type) : N_KERNELS;
    if (many != N_KERNELS) {
        gemm_args a = {.w = w->data, .up = up_data, .x = form(w, x), .y = y.f, .act = y.q,
                       .n_in = w->n_in, .n_out = w->n_out, .n_columns = n, .add = add};
        int rows = up ? GEMM_ROWS / 2 : GEMM_ROWS;
        launch(p, many, (gpu_grid){blocks(w->n_out, rows), blocks(n, GEMM_COLUMNS), 1,
                                   GEMM_THREADS, GEMM_SHARED}, &a, sizeof a);
        return;
    }
    for (int i = 0; i < n; i += FEW_COLUMNS) {
        size_t first = (size_t)i;
        vectors from = {x.f + first * in, x.q + first * in / GROUP_SIZE};
        few_columns(p, (matvec_args){.w = w->data, .up = up_data, .x = form(w, from),
                                     .y = y.f + first * out,
                                     .act = y.q ? y.q + first * out / GROUP_SIZE : NULL,
                                     .n_in = w->n_in, .n_out = w->n_out,
                                     .n_columns = n - i < FEW_COLUMNS ? n - i : FEW_COLUMNS,
                                     .add = add}, w->type);
    }
}
