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

void gpu_multiply_each(pass *p, const weight *w, const weight *up, vectors x, int n, vectors y,
                       int add) {
    int pairs = up ? w->n_out : blocks(w->n_out, 2), of_block = y.q ? 32 : 16;
    int columns = n < FEW_COLUMNS ? n : FEW_COLUMNS;
    int shared = y.q ? GROUP_SIZE * columns * (int)sizeof(float) : 0;
    matvec_args a = {.w = w->data, .up = up ? up->data : NULL, .x = form(w, x), .y = y.f,
                     .act = y.q, .n_in = w->n_in, .n_out = w->n_out, .n_columns = n,
                     .n_pairs = of_block, .add = add};
    launch(p, matvec_kernel(w->type, n),
           (gpu_grid){blocks(pairs, of_block), blocks(n, FEW_COLUMNS), 1, THREADS, shared}, &a,
           sizeof a);
}

void gpu_multiply(pass *p, const weight *w, const weight *up, vectors x, int n, vectors y,
                  int add) {
    kernel_id many = n > FEW_COLUMNS ? gemm_kernel(w->type) : N_KERNELS;
    if (many == N_KERNELS) {
        gpu_multiply_each(p, w, up, x, n, y, add);
        return;
    }
    gemm_args a = {.w = w->data, .up = up ? up->data : NULL, .x = form(w, x), .y = y.f,
                   .act = y.q, .n_in = w->n_in, .n_out = w->n_out, .n_columns = n, .add = add};
    int rows = up ? GEMM_ROWS / 2 : GEMM_ROWS;
    launch(p, many, (gpu_grid){blocks(w->n_out, rows), blocks(n, GEMM_COLUMNS), 1, GEMM_THREADS,
                               GEMM_SHARED}, &a, sizeof a);
}
