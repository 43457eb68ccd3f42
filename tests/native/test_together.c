/* test_together.c - sessions that decode together have the bits of each alone, whatever their
 * number, lengths, caches, threads and the place of experts; all get their token or none. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "importance.h"
#include "larger.h"
#include "probe.h"
#include "together.h"

enum { MOST = QWEN3_TOGETHER, STEPS = 4, N_CTX = 96, LONG = 2060, ROUNDS = 60 };

static void expect(bool ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "together: %s\n", what);
    exit(1);
}

static qwen3_model *open_model(const char *path, int threads, uint64_t expert_bytes) {
    qwen3_error err;
    qwen3_model *m = qwen3_model_open(path, threads, expert_bytes, &err);
    if (!m) fprintf(stderr, "%s\n", err.text);
    expect(m != NULL, "the model opens");
    return m;
}

static int32_t token(const qwen3_model *m, int session, int at) {
    unsigned seed = (unsigned)(session * 7919 + at * 104729) * 1664525u + 1013904223u;
    return (int32_t)((seed >> 8) % (unsigned)qwen3_model_config(m)->n_vocab);
}

static size_t row_bytes(const qwen3_model *m) {
    return (size_t)qwen3_model_config(m)->n_vocab * sizeof(float);
}

/* Kinds of cache that the model can have, by turns. */
static qwen3_kv_type kv_of(const qwen3_model *m, int session) {
    static const qwen3_kv_type kinds[] = {QWEN3_KV_F16, QWEN3_KV_F32, QWEN3_KV_Q8};
    return kinds[session % (qwen3_model_config(m)->head_dim % 32 ? 2 : 3)];
}

static qwen3_session *begin(qwen3_model *m, int session, int n_ctx, int prompt) {
    qwen3_error err;
    int32_t ids[LONG];
    qwen3_session *s = qwen3_session_new(m, n_ctx, kv_of(m, session), &err);
    expect(s != NULL, "a session begins");
    for (int i = 0; i < prompt; i++) ids[i] = token(m, session, i);
    expect(qwen3_sync(s, ids, (size_t)prompt, &err) == 0, "a prompt is computed");
    return s;
}

/* The logits of every step of every session, each alone: [MOST][STEPS][n_vocab]. */
static float *alone(const char *path, const int *prompts) {
    qwen3_error err;
    qwen3_model *m = open_model(path, 1, 0);
    float *all = malloc(MOST * STEPS * row_bytes(m));
    expect(all != NULL, "memory");
    for (int i = 0; i < MOST; i++) {
        qwen3_session *s = begin(m, i, prompts[i] + STEPS, prompts[i]);
        for (int step = 0; step < STEPS; step++) {
            int32_t id = token(m, i, prompts[i] + step);
            expect(qwen3_extend(s, &id, 1, &err) == QWEN3_OK, "a token is computed");
            memcpy((char *)all + (size_t)(i * STEPS + step) * row_bytes(m),
                   qwen3_session_logits(s), row_bytes(m));
        }
        qwen3_session_free(s);
    }
    qwen3_model_close(m);
    return all;
}

/* The last n of the sessions, so that another one is the first each time. */
static void same_steps(const qwen3_model *m, qwen3_session *const *all, const int *prompts,
                       const float *reference, int n) {
    qwen3_error err;
    int first = MOST - n;
    for (int step = 0; step < STEPS; step++) {
        int32_t ids[MOST];
        for (int i = 0; i < n; i++) ids[i] = token(m, first + i, prompts[first + i] + step);
        expect(qwen3_extend_together(all + first, ids, (size_t)n, &err) == QWEN3_OK,
               "sessions decode together");
        for (int i = 0; i < n; i++) {
            const qwen3_session *s = all[first + i];
            size_t at = (size_t)((first + i) * STEPS + step) * row_bytes(m);
            size_t len = (size_t)(prompts[first + i] + step + 1);
            expect(memcmp((const char *)reference + at, qwen3_session_logits(s), row_bytes(m)) == 0,
                   "the bits of a session alone");
            expect(qwen3_session_len(s) == len, "one token more");
            expect(qwen3_session_ids(s)[len - 1] == ids[i], "that token");
        }
    }
}

static void same_bits(const char *path, const int *prompts, const float *reference, int threads,
                      uint64_t expert_bytes, const int *counts) {
    qwen3_error err;
    qwen3_session *all[MOST];
    qwen3_model *m = open_model(path, threads, expert_bytes);
    for (int i = 0; i < MOST; i++) all[i] = begin(m, i, prompts[i] + STEPS, prompts[i]);
    for (; *counts; counts++) {
        same_steps(m, all, prompts, reference, *counts);
        for (int i = MOST - *counts; i < MOST; i++) {
            const int32_t *ids = qwen3_session_ids(all[i]);
            expect(qwen3_sync(all[i], ids, (size_t)prompts[i], &err) >= 0, "a session goes back");
        }
    }
    for (int i = 0; i < MOST; i++) qwen3_session_free(all[i]);
    qwen3_model_close(m);
}

static void same_bits_with(const char *path, const int *threads) {
    static const int prompts[MOST] = {1, 40, 0, 17, 64, 31, 2, 15};
    float *reference = alone(path, prompts);
    for (; *threads; threads++)
        same_bits(path, prompts, reference, *threads, 0, (int[]){1, 2, 3, 5, MOST, 0});
    free(reference);
}

/* Threads share the positions of one, and the others have few; one grows to the length. */
static void same_bits_of_a_long_one(const char *path) {
    static const int prompts[MOST] = {3, 5, 2046, 9, LONG - STEPS - 1, 30, 258, 1};
    float *reference = alone(path, prompts);
    same_bits(path, prompts, reference, 3, 0, (int[]){MOST, 0});
    free(reference);
}

static void same_bits_from_a_store(const char *path) {
    static const int prompts[MOST] = {4, 20, 1, 7, 9, 2, 5, 11};
    static const uint64_t budgets[] = {2000000, 4000000, 1u << 30};
    float *reference = alone(path, prompts);
    for (int i = 0; i < 3; i++)
        same_bits(path, prompts, reference, 1 + i, budgets[i], (int[]){2, 5, MOST, 0});
    free(reference);
}

/* What is refused changes nothing, and says which session it is about. */
static void refused(qwen3_session *const *sessions, const int32_t *ids, size_t n,
                    qwen3_status status, const char *text) {
    qwen3_error err;
    size_t before[MOST];
    for (size_t i = 0; i < n && i < MOST; i++) before[i] = qwen3_session_len(sessions[i]);
    expect(qwen3_extend_together(sessions, ids, n, &err) == status, text);
    if (!strstr(err.text, text)) fprintf(stderr, "%s\n", err.text);
    expect(strstr(err.text, text) != NULL, text);
    for (size_t i = 0; i < n && i < MOST; i++) {
        expect(qwen3_session_len(sessions[i]) == before[i], "the length is as before");
        expect(qwen3_session_logits(sessions[i]) != NULL, "the logits are as before");
    }
}

static void refusals(const char *path, const char *moe) {
    qwen3_error err;
    qwen3_model *m = open_model(path, 2, 0), *other = open_model(moe, 1, 0);
    qwen3_session *full = begin(m, 0, 8, 8), *more = begin(m, 1, 20, 8), *third = begin(m, 2, 20, 3);
    qwen3_session *foreign = begin(other, 0, 8, 4);
    int32_t ids[MOST + 1] = {1, 2, 3}, n_vocab = qwen3_model_config(m)->n_vocab;
    refused((qwen3_session *[]){more, full}, ids, 2, QWEN3_ERR_CONTEXT,
            "session 1: 9 tokens do not fit the context of 8: 1 too many");
    refused((qwen3_session *[]){more, third, more}, ids, 3, QWEN3_ERR_ARG, "session 2 is session 0");
    refused((qwen3_session *[]){more, foreign}, ids, 2, QWEN3_ERR_ARG, "another model");
    refused((qwen3_session *[]){more, third}, (int32_t[]){1, n_vocab}, 2, QWEN3_ERR_ARG,
            "session 1: token");
    refused(NULL, ids, 0, QWEN3_ERR_ARG, "use 1 to 8");
    qwen3_session *nine[MOST + 1] = {more, third, more, third, more, third, more, third, more};
    refused(nine, ids, MOST + 1, QWEN3_ERR_ARG, "use 1 to 8");

    qwen3_importance *im = qwen3_importance_new(m, &err);
    expect(im && qwen3_session_observe(third, im, &err) == QWEN3_OK, "a session is observed");
    refused((qwen3_session *[]){more, third}, ids, 2, QWEN3_ERR_ARG, "session 1 is observed");
    expect(qwen3_session_observe(third, NULL, &err) == QWEN3_OK, "and is not any more");
    expect(qwen3_extend_together((qwen3_session *[]){more, third}, ids, 2, &err) == QWEN3_OK,
           "after all that they decode");
    qwen3_importance_free(im);

    const qwen3_config *c = qwen3_model_config(other);
    int32_t *routes = calloc((size_t)(c->n_layers * c->n_experts_used), sizeof *routes);
    expect(routes != NULL, "memory");
    for (int i = 0; i < c->n_layers * c->n_experts_used; i++) routes[i] = i % c->n_experts_used;
    expect(qwen3_session_force_routes(foreign, routes, NULL, 1, &err) == QWEN3_OK, "forced routes");
    refused((qwen3_session *[]){foreign}, ids, 1, QWEN3_ERR_ARG, "forced routes");
    qwen3_session_free(full);
    qwen3_session_free(more);
    qwen3_session_free(third);
    qwen3_session_free(foreign);
    qwen3_model_close(m);
    qwen3_model_close(other);
    free(routes);
}

typedef struct {
    qwen3_session *session;
    atomic_bool done;
} cancelling;

static void *cancel(void *arg) {
    cancelling *c = arg;
    for (unsigned i = 0; !atomic_load(&c->done); i++) {
        usleep(50 + i * 37 % 500);
        qwen3_session_cancel(c->session);
    }
    return NULL;
}

/* One of them, not the first, is cancelled over and over: all have the token, or none. */
static void cancel_one(const char *path, uint64_t expert_bytes) {
    enum { N = 3 };
    qwen3_error err;
    qwen3_session *sessions[N], *same[N];
    qwen3_model *m = open_model(path, 3, expert_bytes);
    for (int i = 0; i < N; i++) {
        sessions[i] = begin(m, i, N_CTX, 5 + i);
        same[i] = begin(m, i, N_CTX, 5 + i);
    }
    pthread_t thread;
    cancelling c = {sessions[N - 1], false};
    expect(pthread_create(&thread, NULL, cancel, &c) == 0, "a thread starts");
    int done = 0;
    for (int round = 0; round < ROUNDS && done < 20; round++) {
        int32_t ids[N];
        for (int i = 0; i < N; i++) ids[i] = token(m, i, 5 + i + done);
        qwen3_status status = qwen3_extend_together(sessions, ids, N, &err);
        expect(status == QWEN3_OK || status == QWEN3_ERR_CANCELLED, "it ends or was cancelled");
        done += status == QWEN3_OK;
        for (int i = 0; i < N; i++) {
            expect(qwen3_session_len(sessions[i]) == (size_t)(5 + i + done), "all or none");
            expect((status == QWEN3_OK) == (qwen3_session_logits(sessions[i]) != NULL),
                   "logits only at the end");
        }
    }
    atomic_store(&c.done, true);
    pthread_join(thread, NULL);
    qwen3_session_cancel(sessions[1]); /* nothing runs: the next one ends, once */
    for (int last = 0; last < 2; last++) {
        int32_t ids[N];
        for (int i = 0; i < N; i++) ids[i] = token(m, i, 5 + i + done);
        expect((qwen3_extend_together(sessions, ids, N, &err) == QWEN3_OK) == last,
               "what was asked for before ends the next one");
    }
    for (int i = 0; i < N; i++) {
        for (int step = 0; step <= done; step++) {
            int32_t id = token(m, i, 5 + i + step);
            expect(qwen3_extend(same[i], &id, 1, &err) == QWEN3_OK, "a token is computed");
        }
        expect(memcmp(qwen3_session_logits(same[i]), qwen3_session_logits(sessions[i]),
                      row_bytes(m)) == 0, "a cancelled one goes on with the same bits");
        qwen3_session_free(sessions[i]);
        qwen3_session_free(same[i]);
    }
    qwen3_model_close(m);
}

int main(void) {
    static const char *tinies[] = {"tests/data/tiny.gguf", "tests/data/tiny-moe.gguf"};
    static const char *nanos[] = {"qwen3cli/models/nano-dense-q8_0.gguf",
                                  "qwen3cli/models/nano-moe-q8_0.gguf"};
    for (int i = 0; i < 2; i++) {
        same_bits_with(tinies[i], (int[]){1, 2, 3, 4, 0});
        same_bits_with(nanos[i], (int[]){3, 0});
        same_bits_of_a_long_one(tinies[i]);
        cancel_one(tinies[i], 0);
    }
    same_bits_from_a_store(nanos[1]);
    cancel_one(nanos[1], 2000000);
    refusals(tinies[0], tinies[1]);
    puts("together: ok");
    return 0;
}
