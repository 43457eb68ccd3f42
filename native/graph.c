/* graph.c - the forward pass of Qwen3 (Qwen3 Technical Report, 2025).
 *
 * All threads of the pool run this code. In each phase they claim tasks - tokens, heads or
 * stripes of rows - until none is left, and meet at the barrier behind it.
 */
#include "graph.h"

#include <math.h>
#include <string.h>

#include "attention.h"
#include "codec.h"
#include "moe.h"

/* The residual stream and the angles of every token. */
static void embed(const step *s, int tid) {
    const workspace *ws = s->work;
    const qwen3_model *m = ws->model;
    const weight *w = &m->embedding;
    int half = m->config.head_dim / 2;
    for (int t; (t = pool_claim(m->pool, tid, s->n)) >= 0;) {
        weight_type_of(w->type)->decode(w->data + (size_t)s->ids[t] * w->row_bytes,
                                        ws->x + (size_t)t * (size_t)w->n_in, (size_t)w->n_in);
        for (int i = 0; i < half; i++) {
            float angle = (float)position_of(s, t) * m->rope_freq[i];
            ws->cos[t * half + i] = cosf(angle) * m->rope_scale;
            ws->sin[t * half + i] = sinf(angle) * m->rope_scale;
        }
    }
}

/* RMSNorm of token t of the residual stream into y, in the quantized form too if it is read. */
static void norm_token(const step *s, int t, const float *w, bool act, vectors y) {
    const workspace *ws = s->work;
    const backend *cpu = ws->model->cpu;
    cpu->rmsnorm(y.f, ws->x + (size_t)t * (size_t)y.n, w, y.n, ws->model->config.rms_eps);
    if (act) cpu->quantize(y.f, y.q, y.n, 0, y.n);
}

/* Of all tokens. A single one is normalized by every thread for itself: that takes less time
 * than a barrier. */
static vectors norm(const step *s, const float *w, bool act, int tid) {
    vectors y = s->work->normed;
    pool *p = s->work->model->pool;
    if (s->n == 1) {
        y = vectors_from(y, tid);
        norm_token(s, 0, w, act, y);
        return y;
    }
    for (int t; (t = pool_claim(p, tid, s->n)) >= 0;) norm_token(s, t, w, act, vectors_from(y, t));
    pool_barrier(p, tid);
    return y;
}

/* Of the last layer a caller of few logits wants the last token alone; of the others, keys and
 * values. */
static void leave_last_token(step *s, const layer *l, int index, int tid) {
    workspace *ws = s->work;
    pool *p = ws->model->pool;
    size_t last = (size_t)s->n - 1, n_embd = (size_t)ws->model->config.n_embd;
    size_t half = (size_t)ws->model->config.head_dim / 2;
    vectors x = norm(s, l->attn_norm, takes_act(&l->k) || takes_act(&l->v), tid);
    multiply(s, &x, s->n, (product[]){{&l->k, ws->k}, {&l->v, ws->v}}, 2, tid);
    pool_barrier(p, tid);
    store_tokens(s, l, index, tid);
    pool_barrier(p, tid);
    if (tid == 0) {
        memmove(ws->x, ws->x + last * n_embd, n_embd * sizeof(float));
        memmove(ws->cos, ws->cos + last * half, half * sizeof(float));
        memmove(ws->sin, ws->sin + last * half, half * sizeof(float));
        s->sequences[0].pos += s->n - 1;
        s->n = 1;
    }
    pool_barrier(p, tid);
}

/* For an importance, if there is one: what enters the matrices at a site, the vector x[entry] or
 * x[token[entry]] of every entry. Nobody writes to x before the next barrier. */
static void observe(const step *s, int index, importance_site at, const vectors *x,
                    const routing *route, const int32_t *token, int tid) {
    qwen3_importance *im = s->work->importance;
    if (im) importance_add(im, index, at, x->f, route->last, route->start, token, tid);
}

/* Whether a sequence was cancelled since the last time. */
static bool take_cancels(const step *s) {
    bool any = false;
    for (int i = 0; i < s->n_sequences; i++) any |= atomic_exchange(s->sequences[i].cancel, false);
    return any;
}

/* Thread 0 decides for all whether to go on: with a store when nobody is in it any more. */
static void look_for_end(step *s, int tid) {
    expert_store *experts = s->work->model->offload.experts;
    if (experts) pool_barrier(s->work->model->pool, tid);
    if (tid != 0) return;
    if (experts) s->status = experts_status(experts, s->err);
    if (take_cancels(s)) s->status = QWEN3_ERR_CANCELLED;
}

/* ---- feed-forward ------------------------------------------------------------------ */

static void feed_forward(step *s, const layer *l, const vectors *x, const routing *route, int tid) {
    gate_and_up(s, l, x, route, tid);
    pool_barrier(s->work->model->pool, tid);
    multiply_add(s, &l->down, &s->work->hidden, route, tid);
}

/* At most n of the experts from *first on that have entries, into list; moves *first past them. */
static int next_experts(const routing *route, int *first, int n, int32_t *list) {
    int found = 0;
    for (; found < n && *first < route->last; ++*first)
        if (route->start[*first] < route->start[*first + 1]) list[found++] = *first;
    return found;
}

enum { GROUP = 8, FEW_TOKENS = 8 };

/* Lets the store read what the next layer will probably want: of a single token by its router, of
 * many the first group, for a prompt wants nearly all of them. Which guesses come in time depends
 * on the disk, and with them who leaves: an approximation, which asks who is there, takes none. */
static void look_ahead(const step *s, int next, int tid) {
    const workspace *ws = s->work;
    const qwen3_model *m = ws->model;
    if (m->approximates || !experts_guesses(m->offload.experts)) return;
    if (next == m->n_host_layers) return;
    const layer *l = &m->layers[next];
    if (s->n > FEW_TOKENS) {
        static const int32_t first[GROUP] = {0, 1, 2, 3, 4, 5, 6, 7};
        int n = m->config.n_experts < GROUP ? m->config.n_experts : GROUP;
        if (tid == 0) experts_guess(m->offload.experts, next, first, n);
    } else if (s->n == 1 && (!ws->routes || ws->guesses)) {
        vectors x = vectors_from(ws->ahead, tid);
        norm_token(s, 0, l->ffn_norm, takes_act(&l->router), x);
        guess(s, l, &x, tid);
        pool_barrier(m->pool, tid);
        if (tid == 0)
            experts_guess(m->offload.experts, next, guessed(s, l), m->config.n_experts_used);
    }
}

/* Gate and up of those that are there while the others come, then of the others; last: of this
 * layer. */
static void gate_and_up_as_they_come(const step *s, const layer *l, const vectors *x,
                                     const routing *group, bool last, int tid) {
    pool *p = s->work->model->pool;
    routing some = *group;
    some.which = THERE;
    gate_and_up(s, l, x, &some, tid);
    if (last) {
        pool_barrier(p, tid);
        look_ahead(s, group->layer + 1, tid);
    }
    if (experts_n_awaited(s->work->model->offload.experts)) {
        some.which = AWAITED;
        pool_barrier(p, tid);
        gate_and_up(s, l, x, &some, tid);
    }
    pool_barrier(p, tid);
}

/* The same with experts that may have to be read: in groups, and while one is computed the next
 * comes. The groups follow each other as the experts do, so that the sums are the same. */
static void feed_forward_from_store(step *s, const layer *l, const vectors *x,
                                    const routing *chosen, int tid) {
    qwen3_model *m = s->work->model;
    expert_store *experts = m->offload.experts;
    int most = experts_most(experts), size = most < 2 * GROUP ? (most + 1) / 2 : GROUP, at = 0;
    int32_t list[2][GROUP];
    int n = next_experts(chosen, &at, size, list[0]);
    for (int i = 0, n_next; n > 0; i ^= 1, n = n_next) {
        routing group = *chosen;
        group.layer = (int)(l - m->layers);
        group.first = list[i][0];
        group.last = list[i][n - 1] + 1;
        n_next = next_experts(chosen, &at, most - n < size ? most - n : size, list[i ^ 1]);
        if (tid == 0 && !(s->cut = cancelled(s)))
            experts_want(experts, group.layer, list[i], n, list[i ^ 1], n_next, s->n > FEW_TOKENS);
        pool_barrier(m->pool, tid);
        if (s->cut) return;
        gate_and_up_as_they_come(s, l, x, &group, n_next == 0, tid);
        multiply_add(s, &l->down, &s->work->hidden, &group, tid);
        if (n_next) pool_barrier(m->pool, tid);
    }
}

static void forward(void *arg, int tid, int n_threads) {
    (void)n_threads;
    step *s = arg;
    const workspace *ws = s->work;
    const qwen3_model *m = ws->model;
    embed(s, tid);
    look_for_end(s, tid);
    pool_barrier(m->pool, tid);
    for (int i = 0; i < m->n_host_layers && s->status == QWEN3_OK; i++) {
        const layer *l = &m->layers[i];
        bool moe = m->config.n_experts > 0;
        bool every_token = s->n_logits > 1 || ws->importance; /* is wanted, of the last layer too */
        if (i == m->config.n_layers - 1 && s->n > 1 && !every_token) {
            leave_last_token(s, l, i, tid);
            if (s->n_logits == 0) return;
        }
        const routing all = {-1, ALL, 0, 1, (int32_t[]){0, s->n}, NULL, NULL};

        bool act = takes_act(&l->q) || takes_act(&l->k) || takes_act(&l->v);
        vectors x = norm(s, l->attn_norm, act, tid);
        observe(s, i, INTO_QKV, &x, &all, NULL, tid);
        multiply(s, &x, s->n, (product[]){{&l->q, ws->q}, {&l->k, ws->k}, {&l->v, ws->v}}, 3, tid);
        pool_barrier(m->pool, tid);
        attention(s, l, i, tid);
        pool_barrier(m->pool, tid);
        observe(s, i, INTO_O, &ws->attended, &all, NULL, tid);
        multiply_add(s, &l->o, &ws->attended, &all, tid);
        pool_barrier(m->pool, tid);

        act = takes_act(&l->gate) || takes_act(&l->up) || (moe && takes_act(&l->router));
        x = norm(s, l->ffn_norm, act, tid);
        routing chosen = moe ? route(s, l, &x, tid) : all;
        observe(s, i, INTO_GATE_UP, &x, &chosen, chosen.token, tid);
        if (m->offload.experts) feed_forward_from_store(s, l, &x, &chosen, tid);
        else feed_forward(s, l, &x, &chosen, tid);
        look_for_end(s, tid);
        pool_barrier(m->pool, tid);
        if (s->status == QWEN3_OK) observe(s, i, INTO_DOWN, &ws->hidden, &chosen, NULL, tid);
        if (ws->importance) pool_barrier(m->pool, tid); /* attention writes where hidden is */
    }
    if (s->status != QWEN3_OK || s->n_logits == 0) return;
    vectors x = norm(s, m->output_norm, takes_act(&m->output), tid);
    x = vectors_from(x, s->n - s->n_logits);
    if (s->n_sequences > 1) multiply_to_logits(s, &x, &m->output, tid);
    else multiply(s, &x, s->n_logits, &(product){&m->output, s->sequences[0].logits}, 1, tid);
}

qwen3_status graph_forward(workspace *ws, sequence *sequences, int n_sequences, const int32_t *ids,
                           int n, int n_logits, qwen3_error *err) {
    step s = {ws, sequences, n_sequences, ids, n, n_logits, err, QWEN3_OK, false};
    pool_run(ws->model->pool, forward, &s);
    if (s.status == QWEN3_OK && take_cancels(&s)) /* something may be left out */
        s.status = QWEN3_ERR_CANCELLED;
    return s.status;
}
