/* forward.c - see forward.h. The graph is that of native/graph.c, a launch for each line. */
#include "forward.h"

#include <math.h>

#include "pass.h"

/* As many threads as a block can have: a warp quantizes its groups one after the other. */
static void norm(pass *p, const float *x, const float *w, int n) {
    int threads = p->c->n_embd < MOST_THREADS ? p->c->n_embd : MOST_THREADS;
    LAUNCH(p, rms_norm, ((gpu_grid){n, 1, 1, threads, 32 * sizeof(float)}),
           (norm_args){x, w, p->s->normed, p->s->normed_act, p->c->n_embd, p->c->rms_eps});
}

/* ---- attention ----------------------------------------------------------------- */

static void attend_tokens(pass *p, int layer) {
    const gpu_sequence *s = p->s;
    const qwen3_config *c = p->c;
    int hd = c->head_dim, group = c->n_heads / c->n_kv_heads, q8 = s->kv_type == TYPE_Q8_0;
    attention_args a = {.q = s->q, .tokens = s->places, .parts = s->parts, .y = s->attended,
                        .act = s->attended_act, .n = p->n, .n_heads = c->n_heads,
                        .n_kv_heads = c->n_kv_heads, .head_dim = hd, .layer = layer};
    if (many(p)) {
        gpu_grid grid = {blocks(p->n * group, PREFILL_ROWS), c->n_kv_heads, 1, PREFILL_THREADS,
                         PREFILL_SHARED};
        launch(p, q8 ? KERNEL_prefill_q8 : KERNEL_prefill_f16, grid, &a, sizeof a);
        return;
    }
    static const kernel_id kernels[2][3] = {
        {KERNEL_attend_f16_4, KERNEL_attend_f16_8, KERNEL_attend_f16_16},
        {KERNEL_attend_q8_4, KERNEL_attend_q8_8, KERNEL_attend_q8_16}};
    int size = group <= 4 ? 0 : group <= 8 ? 1 : 2, g = 4 << size;
    int parts = blocks(p->n_ctx, ATTEND_ROUND), floats = (hd + 136) * g;
    if (floats < 32 * hd) floats = 32 * hd;
    launch(p, kernels[q8][size],
           (gpu_grid){parts < ATTEND_PARTS ? parts : ATTEND_PARTS,
                      c->n_kv_heads * blocks(group, g), p->n, 256,
                      (floats + 16 * g) * (int)sizeof(float)}, &a, sizeof a);
    launch(p, KERNEL_attend_merge,
           (gpu_grid){c->n_heads, p->n, 1, hd, ATTEND_PARTS * (int)sizeof(float)}, &a, sizeof a);
}

static void attention(pass *p, const layer *l, int index) {
    const gpu_sequence *s = p->s;
    const qwen3_config *c = p->c;
    vectors normed = {s->normed, s->normed_act}, attended = {s->attended, s->attended_act};
    int heads = c->n_heads + 2 * c->n_kv_heads, warps = THREADS / 32;
    norm(p, s->x, l->attn_norm, p->n);
    gpu_multiply_alike(p, (const weight *[]){&l->q, &l->k, &l->v}, (float *[]){s->q, s->k, s->v}, 3,
                       normed, p->n);
    LAUNCH(p, rope, ((gpu_grid){blocks(heads, warps), p->n, 1, THREADS,
                                warps * c->head_dim * (int)sizeof(float)}),
           (rope_args){.q = s->q, .k = s->k, .v = s->v, .q_norm = l->q_norm, .k_norm = l->k_norm,
                       .freq = p->m->rope_freq, .tokens = s->places, .n_heads = c->n_heads,
                       .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim, .layer = index,
                       .q8 = s->kv_type == TYPE_Q8_0, .eps = c->rms_eps,
                       .rope_scale = p->m->host->rope_scale,
                       .q_scale = 1 / sqrtf((float)c->head_dim)});
    attend_tokens(p, index);
    gpu_multiply(p, &l->o, NULL, attended, p->n, (vectors){s->x, NULL}, 1);
}

/* ---- feed-forward -------------------------------------------------------------- */

static void feed_forward(pass *p, int index) {
    const gpu_sequence *s = p->s;
    const layer *l = &p->m->layers[index];
    vectors normed = {s->normed, s->normed_act}, hidden = {s->hidden, s->hidden_act};
    norm(p, s->x, l->ffn_norm, p->n);
    if (p->c->n_experts) {
        gpu_mixture(p, index);
        return;
    }
    gpu_multiply(p, &l->gate, &l->up, normed, p->n, hidden, 0);
    gpu_multiply(p, &l->down, NULL, hidden, p->n, (vectors){s->x, NULL}, 1);
}

/* ---- the pass ------------------------------------------------------------------ */

/* Of many tokens when the device has come here: they take their time. */
static void look_for_cancel(pass *p) {
    if (!p->cancel || p->status != QWEN3_OK) return; /* a recorded step has none */
    if (many(p)) sync(p);
    if (p->status == QWEN3_OK && atomic_load(p->cancel)) p->status = QWEN3_ERR_CANCELLED;
}

/* The residual stream is there already where the first layers are the host's. */
static void layers(pass *p) {
    const gpu_sequence *s = p->s;
    const weight *embedding = &p->m->embedding;
    if (embedding->data)
        LAUNCH(p, embed_rows, ((gpu_grid){p->n, 1, 1, THREADS, 0}),
               (embed_args){embedding->data, s->ids, s->x, embedding->type, p->c->n_embd,
                            p->c->n_vocab, embedding->row_bytes});
    for (int i = 0; i < p->m->n_layers; i++) {
        attention(p, &p->m->layers[i], i);
        feed_forward(p, i);
        look_for_cancel(p);
    }
}

/* Of n tokens from the index `first` of the pass on, up to FEW_COLUMNS. */
static void logits_of(pass *p, int first, int n) {
    const gpu_sequence *s = p->s;
    norm(p, s->x + (size_t)first * (size_t)p->c->n_embd, p->m->output_norm, n);
    gpu_multiply(p, &p->m->output, NULL, (vectors){s->normed, s->normed_act}, n,
                 (vectors){s->logits, NULL}, 0);
}

static void step(pass *p) {
    layers(p);
    logits_of(p, 0, 1);
}

/* Where the device cannot, nothing is lost: the step is launched each time. */
static void record(pass *p) {
    qwen3_error why;
    const gpu_api *api = p->m->api;
    gpu *device = p->m->device;
    pass recorded = *p;
    recorded.err = &why;
    recorded.cancel = NULL;
    p->s->unrecorded = true;
    if (!api->capture_begin || api->capture_begin(device, GPU_COMPUTE, &why) != QWEN3_OK) return;
    step(&recorded);
    gpu_graph *graph = api->capture_end(device, GPU_COMPUTE, &why);
    if (recorded.status == QWEN3_OK) p->s->step = graph;
    else if (graph) api->release_graph(device, graph);
}

/* What decoding repeats: the same launches for every token of a sequence, unless the host has a
 * say in it. */
static void repeat_step(pass *p) {
    gpu_sequence *s = p->s;
    bool same = !p->m->tier && !is_forced(p);
    if (p->status != QWEN3_OK) return;
    if (same && !s->step && !s->unrecorded) record(p);
    if (same && s->step) p->status = p->m->api->replay(p->m->device, GPU_COMPUTE, s->step, p->err);
    else step(p);
}

static void queue(pass *p, int n_logits, float *logits) {
    const gpu_sequence *s = p->s;
    size_t n_vocab = (size_t)p->c->n_vocab;
    bool single = p->n == 1 && n_logits == 1;
    if (single) repeat_step(p);
    else layers(p);
    for (int i = 0; i < n_logits; i += FEW_COLUMNS) {
        int n = n_logits - i < FEW_COLUMNS ? n_logits - i : FEW_COLUMNS;
        if (!single) logits_of(p, p->n - n_logits + i, n);
        if (logits)
            download(p, logits + (size_t)i * n_vocab, s->logits,
                     (size_t)n * n_vocab * sizeof *logits);
    }
}

/* The same for every single token, as its launches are. */
static int n_ctx_of(const gpu_sequence *s, const gpu_tokens *t) {
    int n_ctx = t->n == 1 ? s->n_ctx : 0;
    for (int i = 0; i < t->n; i++)
        if (t->places[i].pos >= n_ctx) n_ctx = t->places[i].pos + 1;
    return n_ctx;
}

qwen3_status gpu_forward(gpu_sequence *s, const gpu_tokens *t, int n_logits, float *logits,
                         qwen3_error *err) {
    resident_model *m = s->model;
    size_t n = (size_t)t->n, n_embd = (size_t)m->host->config.n_embd;
    pass p = {.s = s, .m = m, .c = &m->host->config, .n = t->n, .n_ctx = n_ctx_of(s, t),
              .places = t->places, .host = t->host, .cancel = t->cancel, .err = err};
    pthread_mutex_lock(&m->turn);
    upload(&p, s->places, t->places, n * sizeof *t->places);
    if (t->ids) upload(&p, s->ids, t->ids, n * sizeof *t->ids);
    else upload(&p, s->x, t->x, n * n_embd * sizeof *t->x);
    queue(&p, n_logits, logits);
    sync(&p);
    if (m->tier && p.status != QWEN3_OK) tier_settle(m->tier);
    pthread_mutex_unlock(&m->turn);
    return p.status;
}
