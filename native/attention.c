/* attention.c - see attention.h.
 *
 * A head's positions are cut into blocks of KV_BLOCK. Attention over a block alone gives a
 * part (out, top, sum) per query, and parts are added in the order of the blocks: by the
 * one thread that computes them all, or at the end by one that finds them computed. So the
 * bits depend neither on threads nor on how a prompt is cut.
 */
#include "attention.h"

#include <math.h>

/* Contexts from which on a token's blocks are shared out, and positions of a share: below,
 * the heads alone are tasks enough, and that takes no barrier. */
enum { SHARE = 4 * KV_BLOCK, SHARED_FROM = 2 * SHARE };

/* What the tasks of one thread know. The queries that share K/V head h are its rows: row r
 * is head h * group + r % group of token r / group. */
typedef struct {
    const step *s;
    const layer *l;
    int index, hd, group;
    float *q, *sum, *part, *kernel, *row; /* scratch of the thread */
} job;

/* Where a row lies in [n][n_heads]. */
static size_t head_of(const job *j, int h, int r) {
    const qwen3_config *c = &j->s->work->model->config;
    return (size_t)(r / j->group) * (size_t)c->n_heads + (size_t)(h * j->group + r % j->group);
}

static void norm_and_rotate(const job *j, float *y, const float *x, const float *weight, int t) {
    const workspace *ws = j->s->work;
    const backend *cpu = ws->model->cpu;
    int half = j->hd / 2;
    cpu->rmsnorm(y, x, weight, j->hd, ws->model->config.rms_eps);
    cpu->rope(y, ws->cos + t * half, ws->sin + t * half, j->hd);
}

/* Appends tokens [first, last) to their caches of head h. */
static void store(const job *j, int h, int first, int last) {
    const workspace *ws = j->s->work;
    for (int t = first; t < last; t++) {
        size_t at = ((size_t)t * (size_t)ws->model->config.n_kv_heads + (size_t)h) * (size_t)j->hd;
        norm_and_rotate(j, ws->k + at, ws->k + at, j->l->k_norm, t);
        kv_store(sequence_of(j->s, t)->kv, ws->model->cpu, j->index, h, position_of(j->s, t),
                 ws->k + at, ws->v + at, j->row);
    }
}

/* Prepares the queries of rows [first, first + n), of one sequence. */
static attend_args ready(const job *j, int h, int first, int n, int32_t n_kv[ATTEND_ROWS]) {
    const workspace *ws = j->s->work;
    const kv_cache *kv = sequence_of(j->s, first / j->group)->kv;
    float scale = 1 / sqrtf((float)j->hd);
    for (int r = 0; r < n; r++) {
        int t = (first + r) / j->group;
        const float *q = ws->q + head_of(j, h, first + r) * (size_t)j->hd;
        norm_and_rotate(j, j->row, q, j->l->q_norm, t);
        for (int i = 0; i < j->hd; i++) j->q[i * ATTEND_ROWS + r] = j->row[i] * scale;
        n_kv[r] = position_of(j->s, t) + 1;
    }
    return (attend_args){.type = kv->type, .head_dim = j->hd, .n_rows = n, .q = j->q,
                         .n_kv = n_kv, .k = kv_keys(kv, j->index, h),
                         .v = kv_values(kv, j->index, h), .scratch = j->kernel};
}

static bool whole_heads(const job *j) { return j->hd % 32 == 0; }

/* The sum of all parts becomes the attended vector of a head, as head_of numbers it. */
static void finish(const job *j, size_t head, const float *sum) {
    workspace *ws = j->s->work;
    int n = ws->attended.n, heads = ws->model->config.n_heads;
    size_t t = head / (size_t)heads;
    int first = (int)(head % (size_t)heads) * j->hd;
    float *out = ws->attended.f + t * (size_t)n, scale = 1 / sum[kv_width(j->hd) + 1];
    for (int i = 0; i < j->hd; i++) out[first + i] = sum[i] * scale;
    if (whole_heads(j) && takes_act(&j->l->o))
        ws->model->cpu->quantize(ws->attended.f + t * (size_t)n,
                                 ws->attended.q + t * (size_t)ws->attended.units, n, first,
                                 first + j->hd);
}

/* Rows [first, first + n) over all their positions. */
static void attend_rows(const job *j, int h, int first, int n) {
    const backend *cpu = j->s->work->model->cpu;
    size_t part = attend_part(j->hd);
    int32_t n_kv[ATTEND_ROWS];
    attend_args a = ready(j, h, first, n, n_kv);
    cpu->attend(&a, 0, j->sum);
    for (int b = 1; b * KV_BLOCK < n_kv[n - 1]; b++) {
        cpu->attend(&a, b, j->part);
        for (int r = 0; r < n; r++)
            if (n_kv[r] > b * KV_BLOCK)
                cpu->merge(j->sum + (size_t)r * part, j->part + (size_t)r * part, j->hd);
    }
    for (int r = 0; r < n; r++)
        finish(j, head_of(j, h, first + r), j->sum + (size_t)r * part);
}

/* ---- sequences with one token each, whose positions the threads share ---- */

/* The part of a head, as head_of numbers it, in block b. */
static float *shared_part(const job *j, size_t head, int b) {
    size_t heads = (size_t)j->s->work->model->config.n_heads;
    float *parts = sequence_of(j->s, (int)(head / heads))->parts;
    return parts + ((size_t)b * heads + head % heads) * attend_part(j->hd);
}

static int n_shares(const step *s, int token) { return position_of(s, token) / SHARE + 1; }

/* A token's parts in a share of its positions. The last share stores the token's key and value,
 * as nobody else reads them. */
static void attend_share(const job *j, int h, int t, int share) {
    const backend *cpu = j->s->work->model->cpu;
    int pos = position_of(j->s, t);
    int32_t n_kv[ATTEND_ROWS];
    if (share == pos / SHARE) store(j, h, t, t + 1);
    attend_args a = ready(j, h, t * j->group, j->group, n_kv);
    for (int b = share * (SHARE / KV_BLOCK); b < (share + 1) * (SHARE / KV_BLOCK); b++)
        if (b * KV_BLOCK <= pos)
            cpu->attend(&a, b, shared_part(j, head_of(j, h, t * j->group), b));
}

static void merge_shares(const job *j, size_t head) {
    int pos = position_of(j->s, (int)(head / (size_t)j->s->work->model->config.n_heads));
    float *sum = shared_part(j, head, 0);
    for (int b = 1; b * KV_BLOCK <= pos; b++)
        j->s->work->model->cpu->merge(sum, shared_part(j, head, b), j->hd);
    finish(j, head, sum);
}

static void attend_by_shares(const job *j, int tid) {
    const step *s = j->s;
    const qwen3_config *c = &s->work->model->config;
    int count = 0;
    for (int t = 0; t < s->n; t++) count += n_shares(s, t);
    for (int i; (i = claim(s, tid, c->n_kv_heads * count)) >= 0;) {
        int share = i / c->n_kv_heads, t = 0; /* the shares of a token behind another's */
        while (share >= n_shares(s, t)) share -= n_shares(s, t++);
        attend_share(j, i % c->n_kv_heads, t, share);
    }
    pool_barrier(s->work->model->pool, tid);
    for (int i; (i = claim(s, tid, s->n * c->n_heads)) >= 0;) merge_shares(j, (size_t)i);
}

static bool one_is_long(const step *s) {
    for (int t = 0; t < s->n; t++)
        if (position_of(s, t) >= SHARED_FROM) return true;
    return false;
}

/* ---- otherwise ---- */

static job job_of(const step *s, const layer *l, int index, int tid) {
    const workspace *ws = s->work;
    const qwen3_config *c = &ws->model->config;
    job j = {.s = s, .l = l, .index = index, .hd = c->head_dim};
    j.group = c->n_heads / c->n_kv_heads;
    j.q = ws->attention + (size_t)tid * attention_scratch(c);
    j.sum = j.q + (size_t)j.hd * ATTEND_ROWS;
    j.part = j.sum + attend_part(j.hd) * ATTEND_ROWS;
    j.kernel = j.part + attend_part(j.hd) * ATTEND_ROWS;
    j.row = j.kernel + attend_scratch(j.hd);
    return j;
}

/* Of one sequence. Tasks are whole tiles of the cache: two threads may not write in one. */
static void store_tiles(const job *j, int tid) {
    const step *s = j->s;
    int pos = position_of(s, 0), kv_heads = s->work->model->config.n_kv_heads;
    int tile0 = pos / KV_TILE, n_tiles = (pos + s->n - 1) / KV_TILE - tile0 + 1;
    for (int i; (i = claim(s, tid, kv_heads * n_tiles)) >= 0;) {
        int first = (tile0 + i / kv_heads) * KV_TILE - pos, last = first + KV_TILE;
        store(j, i % kv_heads, first > 0 ? first : 0, last < s->n ? last : s->n);
    }
}

/* Of one sequence with more rows than one call of attend takes. */
static void attend_by_tiles(const job *j, int tid) {
    const step *s = j->s;
    int rows = s->n * j->group, kv_heads = s->work->model->config.n_kv_heads;
    int per_head = (rows + ATTEND_ROWS - 1) / ATTEND_ROWS;
    store_tiles(j, tid);
    pool_barrier(s->work->model->pool, tid);
    for (int i; (i = claim(s, tid, kv_heads * per_head)) >= 0;) {
        int first = (per_head - 1 - i / kv_heads) * ATTEND_ROWS; /* the longest first */
        int n = rows - first < ATTEND_ROWS ? rows - first : ATTEND_ROWS;
        attend_rows(j, i % kv_heads, first, n);
    }
}

/* A task stores each token of a sequence in a head and lets it attend. */
static void attend_by_heads(const job *j, int each, int tid) {
    int kv_heads = j->s->work->model->config.n_kv_heads;
    for (int i; (i = claim(j->s, tid, kv_heads * j->s->n_sequences)) >= 0;) {
        int h = i % kv_heads, t = i / kv_heads * each, last = (t + each) * j->group;
        store(j, h, t, t + each);
        for (int row = t * j->group; row < last; row += ATTEND_ROWS)
            attend_rows(j, h, row, last - row < ATTEND_ROWS ? last - row : ATTEND_ROWS);
    }
}

void store_tokens(const step *s, const layer *l, int index, int tid) {
    job j = job_of(s, l, index, tid);
    store_tiles(&j, tid);
}

void attention(const step *s, const layer *l, int index, int tid) {
    workspace *ws = s->work;
    pool *p = ws->model->pool;
    job j = job_of(s, l, index, tid);
    int each = s->n / s->n_sequences; /* tokens of a sequence */
    bool one_call = each * j.group <= ATTEND_ROWS;
    if (each > 1 && !one_call) attend_by_tiles(&j, tid);
    else if (each == 1 && one_call && pool_size(p) > 1 && one_is_long(s)) attend_by_shares(&j, tid);
    else attend_by_heads(&j, each, tid);
    if (whole_heads(&j) || !takes_act(&l->o)) return;
    pool_barrier(p, tid);
    for (int t; (t = claim(s, tid, s->n)) >= 0;) {
        vectors x = vectors_from(ws->attended, t);
        ws->model->cpu->quantize(x.f, x.q, x.n, 0, x.n);
    }
}
