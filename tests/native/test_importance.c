/* test_importance.c - an observed session: the same sums for any number of threads and any
 * chunks, the same logits as one that is not observed. For ThreadSanitizer too. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "importance.h"

enum { N = 96 };

static void expect(bool ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "importance: %s\n", what);
    exit(1);
}

static void fill(int32_t *ids, const qwen3_model *m) {
    unsigned seed = 7;
    for (int i = 0; i < N; i++) {
        seed = seed * 1664525u + 1013904223u;
        ids[i] = (int32_t)((seed >> 8) % (unsigned)qwen3_model_config(m)->n_vocab);
    }
}

static qwen3_model *open_model(const char *path, int threads) {
    qwen3_error err;
    qwen3_model *m = qwen3_model_open(path, threads, 0, &err);
    expect(m != NULL, "the model opens");
    return m;
}

static size_t logit_bytes(const qwen3_model *m) {
    return (size_t)qwen3_model_config(m)->n_vocab * sizeof(float);
}

/* Adds N tokens, chunk by chunk; the logits of the last, which the caller frees. */
static float *compute(qwen3_model *m, qwen3_importance *im, int chunk) {
    qwen3_error err;
    int32_t ids[N];
    fill(ids, m);
    qwen3_session *s = qwen3_session_new(m, N, QWEN3_KV_F16, &err);
    expect(s != NULL, "a session begins");
    expect(qwen3_session_observe(s, im, &err) == QWEN3_OK, "it is observed");
    for (int i = 0; i < N; i += chunk) {
        int n = N - i < chunk ? N - i : chunk;
        expect(qwen3_extend(s, ids + i, (size_t)n, &err) == QWEN3_OK, "the tokens are computed");
    }
    float *logits = malloc(logit_bytes(m));
    expect(logits != NULL, "memory");
    memcpy(logits, qwen3_session_logits(s), logit_bytes(m));
    qwen3_session_free(s);
    return logits;
}

static qwen3_importance *start(const qwen3_model *m) {
    qwen3_error err;
    qwen3_importance *im = qwen3_importance_new(m, &err);
    expect(im != NULL, "an importance begins");
    return im;
}

static bool same(const qwen3_importance *a, const qwen3_importance *b) {
    if (qwen3_importance_n_matrices(a) != qwen3_importance_n_matrices(b)) return false;
    for (size_t i = 0; i < qwen3_importance_n_matrices(a); i++) {
        qwen3_inputs x = qwen3_importance_inputs(a, i), y = qwen3_importance_inputs(b, i);
        size_t n = (size_t)x.n_experts * (size_t)x.n_in;
        if (strcmp(x.name, y.name) != 0 || x.n_in != y.n_in || x.n_experts != y.n_experts ||
            memcmp(x.sums, y.sums, n * sizeof *x.sums) != 0 ||
            memcmp(x.counts, y.counts, (size_t)x.n_experts * sizeof *x.counts) != 0)
            return false;
    }
    return true;
}

static void same_bits(const char *path) {
    qwen3_model *one = open_model(path, 1);
    qwen3_importance *reference = start(one);
    float *plain = compute(one, NULL, N), *logits = compute(one, reference, N);
    expect(memcmp(plain, logits, logit_bytes(one)) == 0, "to be observed changes no logit");
    for (int threads = 1; threads <= 8; threads++) {
        qwen3_model *m = open_model(path, threads);
        for (const int *chunk = (int[]){1, 7, N, 0}; *chunk; chunk++) {
            qwen3_importance *im = start(m);
            free(compute(m, im, *chunk));
            expect(same(reference, im), "threads and chunks give the same sums");
            qwen3_importance_free(im);
        }
        qwen3_model_close(m);
    }
    free(plain);
    free(logits);
    qwen3_importance_free(reference);
    qwen3_model_close(one);
}

/* Every token meets every dense matrix, and as many experts as the model uses. */
static void counts(const char *path) {
    qwen3_model *m = open_model(path, 2);
    qwen3_importance *im = start(m);
    const qwen3_config *c = qwen3_model_config(m);
    free(compute(m, im, N));
    for (size_t i = 0; i < qwen3_importance_n_matrices(im); i++) {
        qwen3_inputs in = qwen3_importance_inputs(im, i);
        bool experts = strstr(in.name, "_exps") != NULL;
        int64_t total = 0;
        for (int e = 0; e < in.n_experts; e++) {
            double sum = 0;
            const double *row = in.sums + (size_t)e * (size_t)in.n_in;
            total += in.counts[e];
            for (int j = 0; j < in.n_in; j++) sum += row[j];
            expect((sum > 0) == (in.counts[e] > 0), "sums where there are tokens");
        }
        expect(in.n_experts == (experts ? c->n_experts : 1), "a row for each expert");
        expect(total == (experts ? N * c->n_experts_used : N), "every token is counted");
    }
    qwen3_importance_free(im);
    qwen3_model_close(m);
}

static void of_another_model(const char *path) {
    qwen3_error err;
    qwen3_model *m = open_model(path, 1), *other = open_model(path, 1);
    qwen3_importance *im = start(other);
    qwen3_session *s = qwen3_session_new(m, N, QWEN3_KV_F16, &err);
    expect(s != NULL, "a session begins");
    expect(qwen3_session_observe(s, im, &err) == QWEN3_ERR_ARG, "another model's is refused");
    qwen3_session_free(s);
    qwen3_importance_free(im);
    qwen3_model_close(other);
    qwen3_model_close(m);
}

int main(void) {
    static const char *paths[] = {"tests/data/tiny.gguf", "tests/data/tiny-moe.gguf",
                                  "qwen3cli/models/nano-moe-q8_0.gguf"};
    for (int i = 0; i < 3; i++) {
        same_bits(paths[i]);
        counts(paths[i]);
    }
    of_another_model(paths[0]);
    puts("importance: ok");
    return 0;
}
