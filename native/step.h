/* step.h - one step of the forward pass: its working memory and the operations that
 * dense and MoE layers share. Every thread of the pool calls them for its share.
 */
#ifndef QWEN3_STEP_H
#define QWEN3_STEP_H

#include <stdatomic.h>

#include "kv.h"
#include "model.h"

/* One set of vectors in the forms that weights ask for. */
typedef struct {
    int n;         /* length of a vector */
    float *f;      /* [batch][n] */
    uint8_t *q;    /* [batch] act rows, NULL when n is not whole blocks of 32 */
    size_t stride; /* bytes of an act row */
} vectors;

/* Working memory of a forward pass over up to batch tokens: allocated once. */
typedef struct {
    qwen3_model *model;
    int batch;
    void *arena;
    float *x;                    /* [batch][n_embd] residual stream */
    float *q, *k, *v;            /* [batch][heads * head_dim] */
    float *cos, *sin;            /* [batch][head_dim / 2] */
    float *attention;            /* [n_threads][attention_scratch] */
    float *parts;                /* [n_ctx / KV_BLOCK][n_heads][attend_part] */
    float *up;                   /* [batch * slots][ff] */
    vectors normed, attended, hidden; /* inputs of: q k v gate up router; o; down */
    /* MoE, slots = experts used per token */
    float *router;               /* [batch][n_experts] */
    float *expert_out;           /* [batch * slots][n_embd] */
    float *slot_weight;          /* [batch][slots] */
    int32_t *slot_expert;        /* [batch][slots] */
    int32_t *expert_start;       /* [n_experts + 1], into the two below */
    int32_t *sorted_token, *sorted_slot; /* [batch * slots], grouped by expert */
} workspace;

/* Floats that a thread needs for attention: queries, parts of two blocks, the kernel's own,
 * and a vector. */
static inline size_t attention_scratch(const qwen3_config *c) {
    size_t hd = (size_t)c->head_dim, part = attend_part(c->head_dim);
    return (hd + 2 * part) * ATTEND_ROWS + attend_scratch(c->head_dim) +
           (size_t)kv_width(c->head_dim);
}

qwen3_status workspace_init(workspace *, qwen3_model *, int n_ctx, int batch, qwen3_error *err);
void workspace_free(workspace *);

/* What all threads know of the step they are in. */
typedef struct {
    workspace *work;
    kv_cache *kv;
    const int32_t *ids; /* [n], at positions pos ... */
    int n, pos;
    float *logits;      /* NULL: not wanted */
    atomic_bool *cancel;
    bool cancelled;     /* written by thread 0 before a barrier */
    int n_threads;
} step;

typedef struct {
    int first, last;
} range;

/* The share of thread tid of n items, in whole chunks. */
range share(int n, int chunk, int tid, int n_threads);

/* Rows of y = W x that fall to this thread. rows: which vectors of x (NULL: all in
 * order); y_stride in floats. */
void multiply(const step *, const weight *, const vectors *x, const int32_t *rows, float *y,
              size_t y_stride, const int32_t *y_rows, int n, int tid);
/* Brings vector i of x into the quantized form, if weight takes that. */
void prepare(const step *, vectors *x, int i, const weight *);

#endif
