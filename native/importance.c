/* importance.c - see importance.h. */
#include "importance.h"

#include <stdio.h>
#include <stdlib.h>

#include "error.h"
#include "model.h"

/* Matrices that the same vectors enter share their sums. */
typedef struct {
    int n_in, n_experts;
    double *sums;    /* [n_experts][n_in] */
    int64_t *counts; /* [n_experts] */
} sums;

struct qwen3_importance {
    const qwen3_model *model;
    sums *sites; /* [n_layers][N_SITES] */
};

static const struct {
    const char *name, *of_experts;
    importance_site site;
} matrices[] = {
    {"attn_q", "attn_q", INTO_QKV},
    {"attn_k", "attn_k", INTO_QKV},
    {"attn_v", "attn_v", INTO_QKV},
    {"attn_output", "attn_output", INTO_O},
    {"ffn_gate", "ffn_gate_exps", INTO_GATE_UP},
    {"ffn_up", "ffn_up_exps", INTO_GATE_UP},
    {"ffn_down", "ffn_down_exps", INTO_DOWN},
};

enum { N_MATRICES = sizeof matrices / sizeof *matrices };

static sums *sums_of(const qwen3_importance *im, int layer, importance_site at) {
    return &im->sites[layer * N_SITES + (int)at];
}

/* Zeroed by calloc, whose pages take memory only once an expert was reached. */
static bool sums_init(sums *s, const weight *w, int n_experts) {
    s->n_in = w->n_in;
    s->n_experts = n_experts;
    s->sums = calloc((size_t)n_experts * (size_t)w->n_in, sizeof *s->sums);
    s->counts = calloc((size_t)n_experts, sizeof *s->counts);
    return s->sums && s->counts;
}

qwen3_importance *qwen3_importance_new(const qwen3_model *m, qwen3_error *err) {
    int n_layers = m->config.n_layers, n_experts = m->config.n_experts;
    qwen3_importance *im = calloc(1, sizeof *im);
    bool ok = im && (im->sites = calloc((size_t)n_layers * N_SITES, sizeof *im->sites));
    if (im) im->model = m;
    if (n_experts == 0) n_experts = 1;
    for (int i = 0; i < n_layers && ok; i++) {
        const layer *l = &m->layers[i];
        ok = sums_init(sums_of(im, i, INTO_QKV), &l->q, 1) &&
             sums_init(sums_of(im, i, INTO_O), &l->o, 1) &&
             sums_init(sums_of(im, i, INTO_GATE_UP), &l->gate, n_experts) &&
             sums_init(sums_of(im, i, INTO_DOWN), &l->down, n_experts);
    }
    if (ok) return im;
    qwen3_importance_free(im);
    fail(err, QWEN3_ERR_MEMORY, "out of memory for the importance of %d layers", n_layers);
    return NULL;
}

void qwen3_importance_free(qwen3_importance *im) {
    if (!im) return;
    for (int i = 0; im->sites && i < im->model->config.n_layers * N_SITES; i++) {
        free(im->sites[i].sums);
        free(im->sites[i].counts);
    }
    free(im->sites);
    free(im);
}

bool importance_is_of(const qwen3_importance *im, const qwen3_model *m) { return im->model == m; }

size_t qwen3_importance_n_matrices(const qwen3_importance *im) {
    return (size_t)im->model->config.n_layers * N_MATRICES;
}

qwen3_inputs qwen3_importance_inputs(const qwen3_importance *im, size_t index) {
    int layer = (int)(index / N_MATRICES), i = (int)(index % N_MATRICES);
    const sums *s = sums_of(im, layer, matrices[i].site);
    qwen3_inputs out = {"", s->n_in, s->n_experts, s->sums, s->counts};
    snprintf(out.name, sizeof out.name, "blk.%d.%s.weight", layer,
             im->model->config.n_experts ? matrices[i].of_experts : matrices[i].name);
    return out;
}

static void add_squares(double *sums, const float *x, int n) {
    for (int i = 0; i < n; i++) sums[i] += (double)x[i] * (double)x[i];
}

void importance_add(qwen3_importance *im, int layer, importance_site at, const float *x,
                    int n_experts, const int32_t *start, const int32_t *token, int tid) {
    enum { LINE = 8 }; /* sums in a cache line, which no two threads share */
    sums *s = sums_of(im, layer, at);
    pool_share lines = pool_share_of(im->model->pool, tid, (s->n_in + LINE - 1) / LINE);
    int first = lines.first * LINE, last = lines.last * LINE;
    if (last > s->n_in) last = s->n_in;
    for (int e = 0; e < n_experts; e++) {
        double *to = s->sums + (size_t)e * (size_t)s->n_in;
        for (int i = start[e]; i < start[e + 1]; i++) {
            const float *from = x + (size_t)(token ? token[i] : i) * (size_t)s->n_in;
            add_squares(to + first, from + first, last - first);
        }
        if (tid == 0) s->counts[e] += start[e + 1] - start[e];
    }
}
