/* expert_products.c - products of the experts of a layer with the tokens that chose them. */
#include "pass.h"

/* An entry is a token and one of its experts; of few tokens each finds its matrices. */
static void few_experts(pass *p, const layer *l, int entries) {
    const gpu_sequence *s = p->s;
    const uint8_t *const *of[N_PARTS];
    for (int part = 0; part < N_PARTS; part++)
        of[part] = (const uint8_t *const *)s->matrices + part * entries;
    matvec_args a = {.entry_w = of[PART_GATE], .entry_up = of[PART_UP],
                     .x = form(&l->gate, (vectors){s->normed, s->normed_act}), .y = s->hidden,
                     .act = s->hidden_act, .n_in = l->gate.n_in, .n_out = l->gate.n_out,
                     .n_columns = 1, .entries_per_x = p->c->n_experts_used, .n_pairs = 32};
    launch(p, matvec_kernel(l->gate.type, 1),
           (gpu_grid){blocks(a.n_out, 32), entries, 1, THREADS, 32 * sizeof(float)}, &a, sizeof a);
    a = (matvec_args){.entry_w = of[PART_DOWN],
                      .x = form(&l->down, (vectors){s->hidden, s->hidden_act}),
                      .y = s->expert_out, .n_in = l->down.n_in, .n_out = l->down.n_out,
                      .n_columns = 1, .entries_per_x = 1, .n_pairs = FEW_PAIRS};
    launch(p, matvec_kernel(l->down.type, 1),
           (gpu_grid){blocks(blocks(a.n_out, 2), FEW_PAIRS), entries, 1, THREADS, 0}, &a, sizeof a);
}

/* Of many tokens each expert multiplies those that chose it. */
static void many_experts(pass *p, const layer *l) {
    const gpu_sequence *s = p->s;
    const qwen3_config *c = p->c;
    const uint8_t *const *of[N_PARTS];
    for (int part = 0; part < N_PARTS; part++)
        of[part] = (const uint8_t *const *)s->matrices + part * c->n_experts;
    gemm_args a = {.expert_w = of[PART_GATE], .expert_up = of[PART_UP], .start = s->start,
                   .token = s->sorted_token,
                   .x = form(&l->gate, (vectors){s->normed, s->normed_act}), .y = s->hidden,
                   .act = s->hidden_act, .n_in = l->gate.n_in, .n_out = l->gate.n_out};
    gpu_grid grid = {blocks(a.n_out, GEMM_ROWS / 2), blocks(p->n, GEMM_COLUMNS), c->n_experts,
                     GEMM_THREADS, GEMM_SHARED};
    launch(p, gemm_kernel(l->gate.type), grid, &a, sizeof a);
    a = (gemm_args){.expert_w = of[PART_DOWN], .start = s->start,
                    .x = form(&l->down, (vectors){s->hidden, s->hidden_act}),
                    .y = s->expert_out, .n_in = l->down.n_in, .n_out = l->down.n_out};
    grid.x = blocks(a.n_out, GEMM_ROWS);
    launch(p, gemm_kernel(l->down.type), grid, &a, sizeof a);
}

void gpu_experts(pass *p, int index, const int32_t *slot_of) {
    const layer *l = &p->m->layers[index];
    const gpu_bank *bank = &p->m->banks[index];
    int entries = p->n * p->c->n_experts_used, n = many(p) ? p->c->n_experts : entries;
    locate_args locate = {.experts = many(p) ? p->m->every_expert : p->experts,
                          .slot_of = slot_of, .matrices = (const uint8_t **)p->s->matrices,
                          .n = n, .n_parts = N_PARTS};
    for (int part = 0; part < N_PARTS; part++) {
        locate.part[part] = bank->part[part];
        locate.stride[part] = bank->stride[part];
    }
    LAUNCH(p, locate_experts, ((gpu_grid){blocks(n, THREADS), 1, 1, THREADS, 0}), locate);
    if (many(p)) many_experts(p, l);
    else few_experts(p, l, entries);
}
