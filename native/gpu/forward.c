/* forward.c - see forward.h. The graph is that of native/graph.c, a launch for each line. */
#include "forward.h"

#include <math.h>
#include <stdlib.h>

#include "error.h"

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

static void launch(pass *p, kernel_id id, gpu_grid grid, const void *args, size_t bytes) {
    if (p->status == QWEN3_OK)
        p->status = p->m->api->launch(p->m->device, GPU_COMPUTE, id, grid, args, bytes, p->err);
}

#define LAUNCH(p, name, grid, ...) \
    launch(p, KERNEL_##name, grid, &(__VA_ARGS__), sizeof(__VA_ARGS__))

static int blocks(int n, int size) { return (n + size - 1) / size; }

static const void *form(const weight *w, vectors x) {
    return type_takes_float(w->type) ? (const void *)x.f : x.q;
}

static void norm(pass *p, const float *x, const float *w, int n) {
    LAUNCH(p, rms_norm, ((gpu_grid){n, 1, 1, THREADS, 32 * sizeof(float)}),
           (norm_args){x, w, p->s->normed, p->s->normed_act, p->c->n_embd, p->c->rms_eps});
}

/* ---- products ------------------------------------------------------------------ */

/* The kernel for many columns; N_KERNELS: there is none for this type. */
static kernel_id gemm_kernel(uint32_t type) {
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

/* y = W x of n columns; up: y = silu(W x) * (up x), as floats and as groups. */
static void multiply(pass *p, const weight *w, const weight *up, vectors x, int n, vectors y,
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

/* ---- attention ----------------------------------------------------------------- */

static void attend_tokens(pass *p, int layer) {
    const gpu_sequence *s = p->s;
    const qwen3_config *c = p->c;
    int hd = c->head_dim, group = c->n_heads / c->n_kv_heads, q8 = s->kv_type == TYPE_Q8_0;
    attention_args a = {.q = s->q, .tokens = s->places, .parts = s->parts, .y = s->attended,
                        .act = s->attended_act, .n = p->n, .n_heads = c->n_heads,
                        .n_kv_heads = c->n_kv_heads, .head_dim = hd, .layer = layer};
    if (p->n > FEW_COLUMNS) {
        gpu_grid grid = {blocks(p->n * group, 64), c->n_kv_heads, 1, 128,
                         (80 * hd + 1024) * (int)sizeof(float)};
        launch(p, q8 ? KERNEL_prefill_q8 : KERNEL_prefill_f16, grid, &a, sizeof a);
        return;
    }
    static const kernel_id kernels[2][3] = {
        {KERNEL_attend_f16_4, KERNEL_attend_f16_8, KERNEL_attend_f16_16},
        {KERNEL_attend_q8_4, KERNEL_attend_q8_8, KERNEL_attend_q8_16}};
    int size = group <= 4 ? 0 : group <= 8 ? 1 : 2, g = 4 << size;
    int parts = blocks(s->n_ctx, ATTEND_ROUND), floats = (hd + 136) * g;
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
    multiply(p, &l->q, NULL, normed, p->n, (vectors){s->q, NULL}, 0);
    multiply(p, &l->k, NULL, normed, p->n, (vectors){s->k, NULL}, 0);
    multiply(p, &l->v, NULL, normed, p->n, (vectors){s->v, NULL}, 0);
    LAUNCH(p, rope, ((gpu_grid){blocks(heads, warps), p->n, 1, THREADS,
                                warps * c->head_dim * (int)sizeof(float)}),
           (rope_args){.q = s->q, .k = s->k, .v = s->v, .q_norm = l->q_norm, .k_norm = l->k_norm,
                       .freq = p->m->rope_freq, .tokens = s->places, .n_heads = c->n_heads,
                       .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim, .layer = index,
                       .q8 = s->kv_type == TYPE_Q8_0, .eps = c->rms_eps,
                       .rope_scale = p->m->host->rope_scale,
                       .q_scale = 1 / sqrtf((float)c->head_dim)});
    attend_tokens(p, index);
    multiply(p, &l->o, NULL, attended, p->n, (vectors){s->x, NULL}, 1);
}

/* ---- feed-forward -------------------------------------------------------------- */

/* An entry is a token and one of its experts; of few tokens each finds its matrices. */
static void few_experts(pass *p, const layer *l, const gpu_bank *bank, int entries) {
    const gpu_sequence *s = p->s;
    const qwen3_config *c = p->c;
    const uint8_t *const *of[N_PARTS];
    for (int part = 0; part < N_PARTS; part++)
        of[part] = (const uint8_t *const *)s->matrices + part * entries;
    locate_args locate = {.experts = s->experts, .slot_of = p->m->slot_of, .slots = bank->slots,
                          .matrices = (const uint8_t **)s->matrices, .missing = s->missing,
                          .last_used = s->last_used, .slot_bytes = bank->slot_bytes,
                          .n = entries, .n_experts = c->n_experts, .n_parts = N_PARTS};
    for (int part = 0; part < N_PARTS; part++) locate.offset[part] = bank->offset[part];
    LAUNCH(p, locate_experts,
           ((gpu_grid){1, 1, 1, 32 * blocks(c->n_experts, 32), 32 * sizeof(int)}), locate);
    matvec_args a = {.entry_w = of[PART_GATE], .entry_up = of[PART_UP],
                     .x = form(&l->gate, (vectors){s->normed, s->normed_act}), .y = s->hidden,
                     .act = s->hidden_act, .n_in = l->gate.n_in, .n_out = l->gate.n_out,
                     .n_columns = 1, .entries_per_x = c->n_experts_used, .n_pairs = 32};
    launch(p, matvec_kernel(l->gate.type, 1),
           (gpu_grid){blocks(a.n_out, 32), entries, 1, THREADS, 32 * sizeof(float)}, &a, sizeof a);
    a = (matvec_args){.entry_w = of[PART_DOWN],
                      .x = form(&l->down, (vectors){s->hidden, s->hidden_act}),
                      .y = s->expert_out, .n_in = l->down.n_in, .n_out = l->down.n_out,
                      .n_columns = 1, .entries_per_x = 1, .n_pairs = 16};
    launch(p, matvec_kernel(l->down.type, 1),
           (gpu_grid){blocks(blocks(a.n_out, 2), 16), entries, 1, THREADS, 0}, &a, sizeof a);
}

/* Of many tokens each expert multiplies those that chose it. */
static void many_experts(pass *p, const layer *l, const gpu_bank *bank, int entries) {
    const gpu_sequence *s = p->s;
    const qwen3_config *c = p->c;
    const uint8_t *const *of[N_PARTS];
    for (int part = 0; part < N_PARTS; part++)
        of[part] = (const uint8_t *const *)bank->matrices + part * c->n_experts;
    LAUNCH(p, group_entries, ((gpu_grid){c->n_experts, 1, 1, THREADS, 32 * sizeof(int)}),
           (group_args){.experts = s->experts, .weights = s->weights, .start = s->start,
                        .token = s->sorted_token, .weight = s->sorted_weights,
                        .position = s->position, .n = entries, .n_experts = c->n_experts,
                        .n_used = c->n_experts_used});
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

static void mixture(pass *p, const layer *l, const gpu_bank *bank) {
    const gpu_sequence *s = p->s;
    const qwen3_config *c = p->c;
    int entries = p->n * c->n_experts_used;
    bool many = p->n > FEW_COLUMNS && gemm_kernel(l->gate.type) != N_KERNELS &&
                gemm_kernel(l->down.type) != N_KERNELS;
    multiply(p, &l->router, NULL, (vectors){s->normed, s->normed_act}, p->n,
             (vectors){s->router, NULL}, 0);
    LAUNCH(p, route_experts, ((gpu_grid){blocks(p->n, THREADS / 32), 1, 1, THREADS, 0}),
           (route_args){s->router, s->experts, s->weights, p->n, c->n_experts,
                        c->n_experts_used, c->norm_topk});
    if (many) many_experts(p, l, bank, entries);
    else few_experts(p, l, bank, entries);
    LAUNCH(p, add_experts, ((gpu_grid){blocks(c->n_embd, THREADS), p->n, 1, THREADS, 0}),
           (add_experts_args){.x = s->expert_out, .experts = s->experts, .weights = s->weights,
                              .position = many ? s->position : NULL, .y = s->x,
                              .n = c->n_embd, .n_used = c->n_experts_used});
}

static void feed_forward(pass *p, int index) {
    const gpu_sequence *s = p->s;
    const layer *l = &p->m->layers[index];
    vectors normed = {s->normed, s->normed_act}, hidden = {s->hidden, s->hidden_act};
    norm(p, s->x, l->ffn_norm, p->n);
    if (p->c->n_experts) {
        mixture(p, l, &p->m->banks[index]);
        return;
    }
    multiply(p, &l->gate, &l->up, normed, p->n, hidden, 0);
    multiply(p, &l->down, NULL, hidden, p->n, (vectors){s->x, NULL}, 1);
}

/* ---- the pass ------------------------------------------------------------------ */

static void upload(pass *p, void *to, const void *from, size_t bytes) {
    if (p->status == QWEN3_OK)
        p->status = p->m->api->upload(p->m->device, GPU_COMPUTE, to, from, bytes, p->err);
}

static void sync(pass *p) {
    if (p->status == QWEN3_OK) p->status = p->m->api->sync(p->m->device, GPU_COMPUTE, p->err);
}

/* Of the last n_logits tokens, a few at a time. */
static void download_logits(pass *p, int n_logits, float *logits) {
    const gpu_sequence *s = p->s;
    size_t n_vocab = (size_t)p->c->n_vocab, n_embd = (size_t)p->c->n_embd;
    for (int i = 0; i < n_logits && p->status == QWEN3_OK; i += FEW_COLUMNS) {
        int n = n_logits - i < FEW_COLUMNS ? n_logits - i : FEW_COLUMNS;
        norm(p, s->x + (size_t)(p->n - n_logits + i) * n_embd, p->m->output_norm, n);
        multiply(p, &p->m->output, NULL, (vectors){s->normed, s->normed_act}, n,
                 (vectors){s->logits, NULL}, 0);
        if (p->status == QWEN3_OK)
            p->status = p->m->api->download(p->m->device, GPU_COMPUTE,
                                            logits + (size_t)i * n_vocab, s->logits,
                                            (size_t)n * n_vocab * sizeof *logits, p->err);
    }
}

qwen3_status gpu_forward(gpu_sequence *s, const int32_t *ids, int n, int pos, int n_logits,
                         float *logits, qwen3_error *err) {
    const resident_model *m = s->model;
    pass p = {s, m, &m->host->config, n, pos, QWEN3_OK, err};
    token_place *places = malloc((size_t)n * sizeof *places);
    if (!places) return fail(err, QWEN3_ERR_MEMORY, "out of memory");
    for (int t = 0; t < n; t++) places[t] = (token_place){s->kv, s->stream, pos + t};
    upload(&p, s->ids, ids, (size_t)n * sizeof *ids);
    upload(&p, s->places, places, (size_t)n * sizeof *places);
    LAUNCH(&p, embed_rows, ((gpu_grid){n, 1, 1, THREADS, 0}),
           (embed_args){m->embedding.data, s->ids, s->x, m->embedding.type, p.c->n_embd,
                        p.c->n_vocab, m->embedding.row_bytes});
    for (int i = 0; i < p.c->n_layers; i++) {
        attention(&p, &m->layers[i], i);
        feed_forward(&p, i);
    }
    download_logits(&p, n_logits, logits);
    sync(&p);
    free(places);
    return p.status;
}

/* ---- working memory ------------------------------------------------------------ */

/* Hands out 256-aligned parts of the arena; a first pass with no base only adds up. */
typedef struct {
    uint8_t *base;
    size_t used;
} carver;

static void *carve(carver *c, size_t count, size_t size) {
    void *part = c->base ? c->base + c->used : NULL;
    c->used += (count * size + 255) & ~(size_t)255;
    return part;
}

static void carve_all(carver *v, gpu_sequence *s) {
    const qwen3_config *c = &s->model->host->config;
    size_t n = (size_t)s->batch, few = FEW_COLUMNS, hd = (size_t)c->head_dim;
    size_t used = c->n_experts ? (size_t)c->n_experts_used : 1, entries = n * used;
    size_t n_ff = (size_t)(c->n_experts ? c->n_ff_expert : c->n_ff), embd = (size_t)c->n_embd;
    size_t q = (size_t)c->n_heads * hd, kv = (size_t)c->n_kv_heads * hd;
    s->kv = carve(v, 2 * (size_t)c->n_layers * (size_t)c->n_kv_heads, s->stream);
    s->ids = carve(v, n, sizeof *s->ids);
    s->places = carve(v, n, sizeof *s->places);
    s->x = carve(v, n, embd * sizeof(float));
    s->normed = carve(v, n, embd * sizeof(float));
    s->normed_act = carve(v, n, embd / GROUP_SIZE * sizeof(act_group));
    s->q = carve(v, n, q * sizeof(float));
    s->k = carve(v, n, kv * sizeof(float));
    s->v = carve(v, n, kv * sizeof(float));
    s->attended = carve(v, n, q * sizeof(float));
    s->attended_act = carve(v, n, q / GROUP_SIZE * sizeof(act_group));
    s->parts = carve(v, few * (size_t)c->n_heads * ATTEND_PARTS, (hd + 2) * sizeof(float));
    s->hidden = carve(v, entries, n_ff * sizeof(float));
    s->hidden_act = carve(v, entries, n_ff / GROUP_SIZE * sizeof(act_group));
    s->logits = carve(v, few, (size_t)c->n_vocab * sizeof(float));
    if (!c->n_experts) return;
    size_t n_experts = (size_t)c->n_experts;
    s->router = carve(v, n, n_experts * sizeof(float));
    s->weights = carve(v, entries, sizeof(float));
    s->sorted_weights = carve(v, entries, sizeof(float));
    s->expert_out = carve(v, entries, embd * sizeof(float));
    s->experts = carve(v, entries, sizeof(int32_t));
    s->start = carve(v, n_experts + 1, sizeof(int32_t));
    s->sorted_token = carve(v, entries, sizeof(int32_t));
    s->position = carve(v, entries, sizeof(int32_t));
    s->missing = carve(v, n_experts + 1, sizeof(int32_t));
    s->last_used = carve(v, n_experts, sizeof(int32_t));
    s->matrices = carve(v, N_PARTS * entries, sizeof(uint8_t *));
}

qwen3_status gpu_sequence_open(gpu_sequence *s, const resident_model *m, int n_ctx,
                               uint32_t kv_type, int batch, qwen3_error *err) {
    *s = (gpu_sequence){.model = m, .n_ctx = n_ctx, .batch = batch, .kv_type = kv_type};
    if (kv_type != TYPE_F16 && kv_type != TYPE_Q8_0)
        return fail(err, QWEN3_ERR_UNSUPPORTED, "a GPU keeps keys and values as f16 or q8");
    s->stream = ((size_t)n_ctx + KV_TILE - 1) / KV_TILE *
                kv_tile_bytes(kv_type, m->host->config.head_dim);
    carver v = {0};
    carve_all(&v, s);
    s->arena = m->api->alloc(m->device, v.used, err);
    if (!s->arena) return err->status;
    v = (carver){.base = s->arena};
    carve_all(&v, s);
    return QWEN3_OK;
}

void gpu_sequence_close(gpu_sequence *s) {
    if (s->arena) s->model->api->release(s->model->device, s->arena);
    *s = (gpu_sequence){0};
}
