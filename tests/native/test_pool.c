/* The thread pool: every thread runs, barriers separate, callers take turns. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cpu/pool.h"

static int failures;

#define CHECK(condition)                                                     \
    do {                                                                     \
        if (!(condition)) {                                                  \
            failures++;                                                      \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);  \
        }                                                                    \
    } while (0)

enum { MAX_THREADS = 8, ROUNDS = 20 };

/* ---- barriers: each thread writes its cell, then reads all the others' ---------- */

typedef struct {
    pool *p;
    int cells[2][MAX_THREADS]; /* plain memory: the barrier alone orders it */
    int wrong[MAX_THREADS];
    int runs[MAX_THREADS];
} exchange;

static void exchange_cells(void *arg, int tid, int n_threads) {
    exchange *e = arg;
    e->runs[tid]++;
    for (int round = 0; round < ROUNDS; round++) {
        int *cells = e->cells[round % 2];
        cells[tid] = round * 100 + tid;
        pool_barrier(e->p, tid);
        for (int i = 0; i < n_threads; i++) e->wrong[tid] += cells[i] != round * 100 + i;
    }
}

static void test_barriers(int n_threads, int n_runs) {
    exchange e = {.p = pool_new(n_threads)};
    CHECK(e.p);
    if (!e.p) return;
    CHECK(pool_size(e.p) == n_threads);
    for (int i = 0; i < n_runs; i++) pool_run(e.p, exchange_cells, &e);
    for (int i = 0; i < n_threads; i++) {
        CHECK(e.runs[i] == n_runs); /* the results are visible after pool_run */
        CHECK(e.wrong[i] == 0);
    }
    pool_free(e.p);
}

/* ---- claims: each task to one thread, in every phase anew ------------------------ */

enum { TASKS = 50 };

typedef struct {
    pool *p;
    int claimed[TASKS]; /* plain memory: the claim alone makes it the claimer's */
    int out_of_order[MAX_THREADS];
} tasks;

static void claim_all(void *arg, int tid, int n_threads) {
    tasks *t = arg;
    (void)n_threads;
    for (int round = 0; round < ROUNDS; round++) {
        pool_share own = pool_share_of(t->p, tid, TASKS);
        int task, before = own.first - 1;
        for (; (task = pool_claim(t->p, tid, TASKS)) >= 0; before = task) {
            t->claimed[task]++;
            if (task >= own.first && task < own.last) t->out_of_order[tid] += task <= before;
        }
        pool_barrier(t->p, tid);
    }
    pool_claim(t->p, tid, TASKS); /* left over: the next run begins anew all the same */
}

static void test_claims(int n_threads) {
    tasks t = {.p = pool_new(n_threads)};
    CHECK(t.p);
    if (!t.p) return;
    for (int i = 0; i < 10; i++) pool_run(t.p, claim_all, &t);
    for (int i = 0; i < TASKS; i++) CHECK(t.claimed[i] == 10 * ROUNDS);
    for (int i = 0; i < n_threads; i++) CHECK(t.out_of_order[i] == 0);
    for (int n = 0; n < 20; n++) { /* shares follow each other, and differ by a task at most */
        int end = 0;
        for (int i = 0; i < n_threads; i++) {
            pool_share share = pool_share_of(t.p, i, n);
            CHECK(share.first == end);
            CHECK(share.last - share.first - n / n_threads <= 1);
            CHECK(share.last - share.first >= n / n_threads);
            end = share.last;
        }
        CHECK(end == n);
    }
    pool_free(t.p);
}

/* ---- sleeping threads wake ------------------------------------------------------ */

static void late_comer(void *arg, int tid, int n_threads) {
    exchange *e = arg;
    if (tid == n_threads - 1) nanosleep(&(struct timespec){0, 2000000}, NULL);
    exchange_cells(arg, tid, n_threads);
    pool_barrier(e->p, tid);
}

static void test_sleep(void) {
    exchange e = {.p = pool_new(3)};
    CHECK(e.p);
    if (!e.p) return;
    for (int i = 0; i < 5; i++) {
        nanosleep(&(struct timespec){0, 2000000}, NULL);
        pool_run(e.p, late_comer, &e);
    }
    for (int i = 0; i < 3; i++) CHECK(e.runs[i] == 5 && e.wrong[i] == 0);
    pool_free(e.p);
}

/* ---- concurrent callers --------------------------------------------------------- */

typedef struct {
    pool *p;
    atomic_int inside; /* threads of the run under way */
    atomic_int mixed;
} turns;

typedef struct {
    turns *shared;
    int id;
    int total; /* plain memory: added to by tid 0 of its own runs */
} caller;

static void take_turn(void *arg, int tid, int n_threads) {
    caller *c = arg;
    turns *t = c->shared;
    if (atomic_fetch_add(&t->inside, 1) >= n_threads) atomic_fetch_add(&t->mixed, 1);
    pool_barrier(t->p, tid);
    if (tid == 0) c->total++;
    atomic_fetch_sub(&t->inside, 1);
}

static void *call_often(void *arg) {
    caller *c = arg;
    for (int i = 0; i < 200; i++) pool_run(c->shared->p, take_turn, c);
    return NULL;
}

static void test_concurrent_callers(void) {
    turns t = {.p = pool_new(3)};
    caller callers[4];
    pthread_t threads[4];
    CHECK(t.p);
    if (!t.p) return;
    for (int i = 0; i < 4; i++) {
        callers[i] = (caller){&t, i, 0};
        pthread_create(&threads[i], NULL, call_often, &callers[i]);
    }
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 4; i++) CHECK(callers[i].total == 200);
    CHECK(atomic_load(&t.mixed) == 0);
    pool_free(t.p);
}

/* ---- signals go to the caller's threads ------------------------------------------- */

static void signals_blocked(void *arg, int tid, int n_threads) {
    int *blocked = arg;
    sigset_t set;
    (void)n_threads;
    pthread_sigmask(SIG_SETMASK, NULL, &set);
    blocked[tid] = sigismember(&set, SIGINT);
}

static void test_signals(void) {
    pool *p = pool_new(3);
    int blocked[3] = {-1, -1, -1};
    CHECK(p);
    if (!p) return;
    pool_run(p, signals_blocked, blocked);
    CHECK(blocked[0] == 0 && blocked[1] == 1 && blocked[2] == 1);
    pool_free(p);
}

int main(void) {
    for (int n = 1; n <= MAX_THREADS; n++) test_barriers(n, 100);
    for (int n = 1; n <= MAX_THREADS; n++) test_claims(n);
    test_sleep();
    test_concurrent_callers();
    test_signals();
    CHECK(pool_new(0) == NULL);
    CHECK(pool_new(1 << 30) == NULL);
    for (int i = 0; i < 100; i++) pool_free(pool_new(4)); /* never run */
    pool_free(NULL);
    if (!failures) puts("pool: ok");
    return failures != 0;
}
