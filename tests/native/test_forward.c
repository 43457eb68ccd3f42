/* test_forward.c - the threaded forward pass: any number of threads and any chunks give
 * the same bits, while other threads cancel and compute. For ThreadSanitizer above all. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "larger.h"

enum { N = 40, N_CTX = 64, ROUNDS = 20, MANY = 600 };
enum { LONG = 2060, PROMPT = 2040 }; /* from 2048 on threads share a token's positions */

static void expect(bool ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "forward: %s\n", what);
    exit(1);
}

static void fill(int32_t *ids, int n, const qwen3_model *m, unsigned seed) {
    for (int i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        ids[i] = (int32_t)((seed >> 8) % (unsigned)qwen3_model_config(m)->n_vocab);
    }
}

static qwen3_model *open_model(const char *path, int threads) {
    qwen3_error err;
    qwen3_model *m = qwen3_model_open(path, threads, 0, &err);
    if (!m) fprintf(stderr, "%s\n", err.text);
    expect(m != NULL, "the model opens");
    return m;
}

/* The logits after n tokens, computed as a prompt, then chunk by chunk; the caller frees them. */
static float *logits_of(qwen3_model *m, int n, int prompt, int chunk) {
    qwen3_error err;
    int32_t ids[LONG];
    qwen3_session *s = qwen3_session_new(m, n, QWEN3_KV_F16, &err);
    expect(s != NULL, "a session begins");
    fill(ids, n, m, 1);
    for (int i = 0, count = prompt; i < n; i += count, count = chunk) {
        if (count > n - i) count = n - i;
        expect(qwen3_extend(s, ids + i, (size_t)count, &err) == QWEN3_OK,
               "the tokens are computed");
    }
    size_t bytes = (size_t)qwen3_model_config(m)->n_vocab * sizeof(float);
    float *copy = malloc(bytes);
    expect(copy != NULL, "memory");
    memcpy(copy, qwen3_session_logits(s), bytes);
    qwen3_session_free(s);
    return copy;
}

/* Of n tokens in one pass by one thread, and otherwise. */
static void same_bits(const char *path, int n, const int *threads, const int *chunks) {
    qwen3_model *m = open_model(path, 1);
    size_t bytes = (size_t)qwen3_model_config(m)->n_vocab * sizeof(float);
    float *reference = logits_of(m, n, n, n);
    qwen3_model_close(m);
    for (; *threads; threads++) {
        m = open_model(path, *threads);
        for (const int *chunk = chunks; *chunk; chunk++) {
            float *ours = logits_of(m, n, *chunk, *chunk);
            expect(memcmp(reference, ours, bytes) == 0, "threads and chunks give the same bits");
            free(ours);
        }
        qwen3_model_close(m);
    }
    free(reference);
}

static void same_bits_in_a_long_context(const char *path) {
    qwen3_model *one = open_model(path, 1), *three = open_model(path, 3);
    float *reference = logits_of(one, LONG, LONG, LONG), *ours = logits_of(three, LONG, PROMPT, 1);
    expect(memcmp(reference, ours, (size_t)qwen3_model_config(one)->n_vocab * sizeof(float)) == 0,
           "a long context gives the same bits");
    free(reference);
    free(ours);
    qwen3_model_close(one);
    qwen3_model_close(three);
}

/* Of every one of n tokens, chunk by chunk into one array, against token after token. */
static void same_bits_of_every_token(const char *path, int n, int threads, int chunk) {
    qwen3_error err;
    int32_t ids[LONG];
    qwen3_model *m = open_model(path, threads);
    qwen3_session *s = qwen3_session_new(m, n, QWEN3_KV_F16, &err);
    size_t n_vocab = (size_t)qwen3_model_config(m)->n_vocab, bytes = n_vocab * sizeof(float);
    float *all = malloc((size_t)n * bytes);
    expect(s && all, "a session begins");
    fill(ids, n, m, 1);
    for (int i = 0; i < n; i += chunk) {
        size_t count = (size_t)(n - i < chunk ? n - i : chunk);
        expect(qwen3_extend_logits(s, ids + i, count, all + (size_t)i * n_vocab, &err) == QWEN3_OK,
               "the tokens are computed");
    }
    const float *last = all + (size_t)(n - 1) * n_vocab;
    expect(memcmp(qwen3_session_logits(s), last, bytes) == 0, "the last are the session's");
    expect(qwen3_sync(s, ids, 0, &err) == 0, "the session is emptied");
    for (int i = 0; i < n; i++) {
        expect(qwen3_extend(s, ids + i, 1, &err) == QWEN3_OK, "a token is computed");
        expect(memcmp(qwen3_session_logits(s), all + (size_t)i * n_vocab, bytes) == 0,
               "every token has the logits of decoding");
    }
    expect(qwen3_extend_logits(s, ids, 1, all, &err) == QWEN3_ERR_CONTEXT, "a full context");
    free(all);
    qwen3_session_free(s);
    qwen3_model_close(m);
}

typedef struct {
    qwen3_session *cancelled, *other;
    const qwen3_model *model;
    atomic_bool done;
} shared;

static void *cancel(void *arg) {
    shared *x = arg;
    while (!atomic_load(&x->done)) qwen3_session_cancel(x->cancelled);
    return NULL;
}

static void *compute(void *arg) {
    shared *x = arg;
    qwen3_error err;
    int32_t ids[N];
    fill(ids, N, x->model, 2);
    for (int i = 0; i < ROUNDS; i++) {
        ids[i % N] = (int32_t)i;
        expect(qwen3_sync(x->other, ids, N, &err) >= 0, "the other session is not disturbed");
    }
    return NULL;
}

/* One session is cancelled over and over while another of the same model computes. */
static void cancel_while_computing(const char *path) {
    qwen3_error err;
    int32_t ids[N];
    pthread_t canceller, computer;
    qwen3_model *m = open_model(path, 3);
    shared x = {qwen3_session_new(m, N_CTX, QWEN3_KV_F16, &err),
                qwen3_session_new(m, N_CTX, QWEN3_KV_F32, &err), m, false};
    expect(x.cancelled && x.other, "two sessions begin");
    expect(pthread_create(&canceller, NULL, cancel, &x) == 0, "a thread starts");
    expect(pthread_create(&computer, NULL, compute, &x) == 0, "a thread starts");
    fill(ids, N, m, 3);
    for (int i = 0; i < ROUNDS; i++) {
        ids[i % N] = (int32_t)i; /* another sequence each time */
        bool finished = qwen3_sync(x.cancelled, ids, N, &err) >= 0;
        expect(finished || err.status == QWEN3_ERR_CANCELLED, "it ends or says that it was ended");
        expect(finished == (qwen3_session_logits(x.cancelled) != NULL), "logits only at the end");
    }
    atomic_store(&x.done, true);
    pthread_join(canceller, NULL);
    pthread_join(computer, NULL);
    qwen3_sync(x.cancelled, ids, 0, &err); /* takes the last cancel, and empties the session */
    expect(qwen3_sync(x.cancelled, ids, N, &err) == 0, "a cancelled session goes on");
    qwen3_session_free(x.cancelled);
    qwen3_session_free(x.other);
    qwen3_model_close(m);
}

/* With experts in a store of little memory: as many as one token meets, and some more. */
static void same_bits_from_a_store(const char *path, int n) {
    qwen3_model *mapped = open_model(path, 2);
    size_t bytes = (size_t)qwen3_model_config(mapped)->n_vocab * sizeof(float);
    float *reference = logits_of(mapped, n, n, n);
    qwen3_model_close(mapped);
    static const uint64_t budgets[] = {2000000, 4000000, 1u << 30};
    for (int i = 0; i < 3; i++)
        for (int threads = 1; threads <= 3; threads++) {
            qwen3_error err;
            qwen3_model *m = qwen3_model_open(path, threads, budgets[i], &err);
            expect(m != NULL, "a model opens with a store");
            float *logits = logits_of(m, n, n / 2, 5);
            expect(memcmp(logits, reference, bytes) == 0, "experts from a store, the same bits");
            expect(qwen3_model_expert_stats(m).misses > 0, "experts are read");
            free(logits);
            qwen3_model_close(m);
        }
    free(reference);
}

int main(void) {
    static const char *paths[] = {"tests/data/tiny.gguf", "tests/data/tiny-moe.gguf"};
    static const char *nanos[] = {"qwen3cli/models/nano-dense-q8_0.gguf",
                                  "qwen3cli/models/nano-moe-q8_0.gguf"};
    for (int i = 0; i < 2; i++) {
        same_bits(paths[i], N, (int[]){1, 2, 3, 4, 5, 6, 7, 8, 0}, (int[]){1, 14, 27, 40, 0});
        /* More than one pass of a dense model, and more columns than one tile. */
        same_bits(paths[i], MANY, (int[]){1, 3, 0}, (int[]){1, 130, MANY, 0});
        same_bits(nanos[i], 24, (int[]){2, 3, 8, 0}, (int[]){1, 5, 24, 0});
        same_bits_of_every_token(paths[i], MANY, 3, MANY);
        same_bits_of_every_token(paths[i], N, 2, 1);
        same_bits_of_every_token(nanos[i], 48, 3, 20);
        same_bits_in_a_long_context(paths[i]);
        cancel_while_computing(paths[i]);
    }
    same_bits_from_a_store(nanos[1], 60);
    puts("forward: ok");
    return 0;
}
