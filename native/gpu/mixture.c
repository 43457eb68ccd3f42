/* mixture.c - the feed-forward of a mixture of experts. */
#include "pass.h"

static void choose(pass *p, int index) {
    const gpu_sequence *s = p->s;
    const qwen3_config *c = p->c;
    if (is_forced(p)) {
        force_experts(p, index);
        return;
    }
    p->experts = s->experts;
    p->weights = s->weights;
    /* rounded as f16, near ties would turn */
    gpu_multiply_each(p, &p->m->layers[index].router, NULL, (vectors){s->normed, s->normed_act},
                      p->n, (vectors){s->router, NULL}, 0);
    LAUNCH(p, route_experts, ((gpu_grid){blocks(p->n, THREADS / 32), 1, 1, THREADS, 0}),
           (route_args){s->router, s->experts, s->weights, p->n, c->n_experts,
                        c->n_experts_used, c->norm_topk});
}

static void group(pass *p) {
    const gpu_sequence *s = p->s;
    const qwen3_config *c = p->c;
    LAUNCH(p, group_entries, ((gpu_grid){c->n_experts, 1, 1, THREADS, 32 * sizeof(int)}),
           (group_args){.experts = p->experts, .weights = p->weights, .start = s->start,
                        .token = s->sorted_token, .weight = s->sorted_weights,
                        .position = s->position, .n = p->n * c->n_experts_used,
                        .n_experts = c->n_experts, .n_used = c->n_experts_used});
}

void gpu_mixture(pass *p, int index) {
    const gpu_sequence *s = p->s;
    const qwen3_config *c = p->c;
    bool tier = p->m->tier != NULL;
    const int32_t *position = many(p) ? s->position : NULL;
    choose(p, index);
    if (many(p)) group(p);
    if (tier) ask_for_missing(p);
    gpu_experts(p, index, p->m->banks[index].slot_of);
    if (tier && many(p)) pass_missing(p, index);
    if (tier && !many(p)) position = add_missing(p, index);
    LAUNCH(p, add_experts, ((gpu_grid){blocks(c->n_embd, THREADS), p->n, 1, THREADS, 0}),
           (add_experts_args){.x = s->expert_out, .experts = p->experts, .weights = p->weights,
                              .position = position, .y = s->x, .n = c->n_embd,
                              .n_used = c->n_experts_used});
}
