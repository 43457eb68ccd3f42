/* logits.c - see logits.h. */
#include "logits.h"

#include "pass.h"

enum { MOST_WARPS = 8, AT_ONCE = 64 /* logits that a warp takes */ };

/* Of each of the TOP_BLOCKS blocks. */
static int warps_for(int n_vocab) {
    int warps = 1;
    while (warps < MOST_WARPS && AT_ONCE * TOP_BLOCKS * warps < n_vocab) warps *= 2;
    return warps;
}

static pass begin(gpu_sequence *s, qwen3_error *err) {
    pthread_mutex_lock(&s->model->turn);
    return (pass){.s = s, .m = s->model, .c = &s->model->host->config, .n = 1, .err = err};
}

static qwen3_status end(pass *p) {
    sync(p);
    pthread_mutex_unlock(&p->s->model->turn);
    return p->status;
}

/* As a row of an embedding is. */
static void copy_row(pass *p, const float *table, int row, float *to) {
    gpu_sequence *s = p->s;
    int n_vocab = p->c->n_vocab;
    s->staged.ids[0] = row;
    upload(p, s->ids, s->staged.ids, sizeof *s->ids);
    LAUNCH(p, embed_rows, ((gpu_grid){1, 1, 1, MOST_THREADS, 0}),
           (embed_args){(const void *)table, s->ids, to, TYPE_F32, n_vocab, FEW_COLUMNS,
                        (size_t)n_vocab * sizeof *table});
}

qwen3_status gpu_logits(gpu_sequence *s, float *to, qwen3_error *err) {
    pass p = begin(s, err);
    download(&p, to, s->logits, (size_t)p.c->n_vocab * sizeof *to);
    return end(&p);
}

qwen3_status gpu_take_logits(gpu_sequence *s, const gpu_sequence *from, int row,
                             qwen3_error *err) {
    pass p = begin(s, err);
    copy_row(&p, from->logits, row, s->logits);
    return end(&p);
}

qwen3_status gpu_best(gpu_sequence *s, const gpu_penalties *penalties, int k, qwen3_error *err) {
    pass p = begin(s, err);
    float *logits = s->logits;
    int n = penalties->n, warps = warps_for(p.c->n_vocab), shared = warps * (int)sizeof(top_part);
    if (n) {
        logits += p.c->n_vocab; /* another row, to change it */
        copy_row(&p, s->logits, 0, logits);
        upload(&p, s->penalized, s->staged.penalized, (size_t)n * sizeof *s->penalized);
        LAUNCH(&p, penalize, ((gpu_grid){blocks(n, THREADS), 1, 1, THREADS, 0}),
               (penalize_args){logits, s->penalized, n, penalties->n_generated,
                               penalties->repetition, penalties->presence});
    }
    top_args top = {logits, s->top_parts, s->top, p.c->n_vocab, k, 1};
    LAUNCH(&p, top_parts, ((gpu_grid){TOP_BLOCKS, 1, 1, 32 * warps, shared}), top);
    LAUNCH(&p, top_merge, ((gpu_grid){1, 1, 1, 32 * warps, shared}), top);
    download(&p, s->staged.top, s->top, sizeof *s->top);
    return end(&p);
}
