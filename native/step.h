/* step.h - one step of the forward pass: its working memory, and the matrix products whose
 * rows the threads claim stripe by stripe.
 *
 * Between two barriers the threads share one list of tasks, which they claim (pool_claim).
 * Who computes a value never changes how: results do not depend on the number of threads.
 */
#ifndef QWEN3_STEP_H
#define QWEN3_STEP_H

#include <stdatomic.h>

#include "importance.h"
#include "kv.h"
#include "model.h"

/* One set of vectors in the forms that weights ask for. */
typedef struct {
    int n;         /* length of a vector */
    float *f;      /* [count][n] */
    act_unit *q;   /* [count][units], NULL when n is not whole blocks of 32 */
    int units;     /* of an act row */
} vectors;

/* The same from vector i on. */
static inline vectors vectors_from(vectors v, int i) {
    v.f += (size_t)i * (size_t)v.n;
    if (v.q) v.q += (size_t)i * (size_t)v.units;
    return v;
}

/* Working memory of a forward pass over up to batch tokens: allocated once. What a single
 * token needs in every thread's own copy has a row per thread, should they be more. */
typedef struct workspace {
    qwen3_model *model;
    qwen3_importance *importance; /* NULL: nobody counts what enters the matrices */
    const int32_t *routes;        /* NULL: the router chooses; see qwen3_session_force_routes */
    const int32_t *guesses;       /* likewise, of what a layer will choose */
    size_t n_routes;
    bool approximates;            /* the step decodes, with the model's approximation */
    int batch;
    void *arena;
    float *x;                    /* [batch][n_embd] residual stream */
    float *cos, *sin;            /* [batch][head_dim / 2] */
    vectors normed;              /* [batch or n_threads]: input of q k v, gate up router, output */
    vectors ahead;               /* [n_threads]: input of the next layer's router, for a guess */
    float *scratch;              /* [n_threads][SCRATCH] */
    /* attention; the feed-forward uses the same memory after it */
    float *q, *k, *v;            /* [batch][heads * head_dim] */
    vectors attended;            /* [batch]: input of o */
    float *attention;            /* [n_threads][attention_scratch] */
    float *parts;                /* [n_ctx / KV_BLOCK][n_heads][attend_part] */
    /* the feed-forward, slots = experts used per token */
    vectors hidden;              /* [batch * slots]: input of down */
    float *router;               /* [batch][n_experts] */
    int own;                     /* items between the rows of two threads in: */
    int32_t *expert_start;       /* [own], at least n_experts + 1 */
    int32_t *slot_expert;        /* [batch * slots or own] */
    float *slot_weight;
    int32_t *sorted_token;       /* likewise, grouped by expert */
    float *sorted_weight;
} workspace;

enum {
    SCRATCH = 16384,    /* floats a thread has for itself: they stay in the second-level cache */
    TILE_COLUMNS = 252, /* of a product that goes through scratch */
};

/* Floats that a thread needs for attention: queries, parts of two blocks, the kernel's own,
 * and a vector. */
static inline size_t attention_scratch(const qwen3_config *c) {
    size_t hd = (size_t)c->head_dim, part = attend_part(c->head_dim);
    return (hd + 2 * part) * ATTEND_ROWS + attend_scratch(c->head_dim) +
           kv_scratch(c->head_dim);
}

qwen3_status workspace_init(workspace *, qwen3_model *, int n_ctx, int batch, qwen3_error *err);
void workspace_free(workspace *);

/* Where tokens of a step belong. */
typedef struct {
    kv_cache *kv;
    int pos;       /* of its first token in the step: those before it are in the cache */
    float *logits; /* [n_logits][n_vocab] */
    float *parts;  /* of its workspace */
    atomic_bool *cancel;
    struct gpu_sequence *gpu; /* its memory on a device that has a share of the model, or NULL */
} sequence;

enum { MOST_SEQUENCES = 8 }; /* of a step */

/* What all threads know of the step they are in: n tokens that follow each other in the one
 * sequence, or one token of each of n. */
typedef struct {
    workspace *work;
    sequence *sequences;
    int n_sequences;
    const int32_t *ids; /* [n] */
    int n;
    int n_logits;       /* of the last tokens: 0 to n; of several sequences n */
    qwen3_error *err;
    qwen3_status status; /* not QWEN3_OK: stop; written by thread 0 before a barrier */
    bool cut;            /* likewise: no more experts of this layer, the step is cancelled */
} step;

static inline const sequence *sequence_of(const step *s, int token) {
    return &s->sequences[s->n_sequences > 1 ? token : 0];
}

static inline int position_of(const step *s, int token) {
    return s->n_sequences > 1 ? s->sequences[token].pos : s->sequences[0].pos + token;
}

/* Whether a sequence was cancelled, which ends the step for all of them. */
bool cancelled(const step *);

/* Which tokens each of the experts [first, last) works for: those of its entries, in ascending
 * order. A dense matrix is one expert that every token takes. */
typedef struct {
    int layer;            /* of the store that holds the experts; -1: they lie one after the other */
    enum { ALL, THERE, AWAITED } which; /* of a store: only those that needed (no) reading */
    int first, last;
    const int32_t *start; /* expert e has the entries [start[e], start[e + 1]) */
    const int32_t *token; /* of an entry; NULL: entry i is token i */
    const float *weight;  /* of an entry; NULL: 1 */
} routing;

/* A task as pool_claim has it, or -1 as soon as the step is cancelled: then what was computed is of
 * no use. */
int claim(const step *, int tid, int n_tasks);

/* All of these claim tasks: a barrier must stand between two calls of any of them. */

/* y = W x of all tokens of the step, for several matrices as one list of tasks. */
typedef struct {
    const weight *w;
    float *y; /* [n][n_out] */
} product;
void multiply(const step *, const vectors *x, int n, const product *products, int n_products,
              int tid);

/* y = W x of every sequence's token, into its logits. */
void multiply_to_logits(const step *, const vectors *x, const weight *, int tid);

/* hidden = silu(gate x) * (up x) of every entry, in the form that down takes. */
void gate_and_up(const step *, const layer *, const vectors *x, const routing *, int tid);

/* Residual stream += weight * (W h) of every entry h. A token's experts are added in ascending
 * order, whatever the step: in prefill and decode the same sum. */
void multiply_add(const step *, const weight *, const vectors *h, const routing *, int tid);

static inline bool takes_act(const weight *w) { return !type_takes_float(w->type); }

#endif
