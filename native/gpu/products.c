/* products.c - products of a weight matrix with few columns and with many. */
#include "pass.h"

void gpu_multiply_each(pass *p, const weight *w, const weight *up, vectors x, int n, vectors y,
                       int add) {
    int pairs = up ? w->n_out : blocks(w->n_out, 2), of_block = y.q ? 32 : FEW_PAIRS;
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
    if (n <= FEW_COLUMNS) {
        gpu_multiply_each(p, w, up, x, n, y, add);
        return;
    }
    gemm_args a = {.w = w->data, .up = up ? up->data : NULL, .x = form(w, x), .y = y.f,
                   .act = y.q, .n_in = w->n_in, .n_out = w->n_out, .n_columns = n, .add = add};
    int rows = up ? GEMM_ROWS / 2 : GEMM_ROWS;
    launch(p, gemm_kernel(w->type),
           (gpu_grid){blocks(w->n_out, rows), blocks(n, GEMM_COLUMNS), 1, GEMM_THREADS,
                      GEMM_SHARED}, &a, sizeof a);
}

/* Those of one type that follow each other in one launch: k and v alone would not fill a device. */
void gpu_multiply_alike(pass *p, const weight *const *w, float *const *y, int n_w, vectors x,
                        int n) {
    for (int i = 0; i < n_w && n > FEW_COLUMNS; i++)
        gpu_multiply(p, w[i], NULL, x, n, (vectors){y[i], NULL}, 0);
    for (int i = 0, alike; i < n_w && n <= FEW_COLUMNS; i += alike) {
        matvec_args a = {.w = w[i]->data, .x = form(w[i], x), .y = y[i], .n_in = w[i]->n_in,
                         .n_out = w[i]->n_out, .n_columns = n, .n_pairs = FEW_PAIRS};
        int most = a.n_out;
        for (alike = 1; i + alike < n_w && w[i + alike]->type == w[i]->type; alike++) {
            const weight *next = w[i + alike];
            a.more[alike - 1] = (matvec_output){next->data, y[i + alike], next->n_out};
            most = next->n_out > most ? next->n_out : most;
        }
        launch(p, matvec_kernel(w[i]->type, n),
               (gpu_grid){blocks(blocks(most, 2), FEW_PAIRS), 1, alike, THREADS, 0}, &a, sizeof a);
    }
}
