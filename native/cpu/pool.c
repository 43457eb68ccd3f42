/* pool.c - see pool.h. A run and each barrier end with tickets: see member. */
#include "pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "machine.h"

enum {
    CACHE_LINE = 128, /* two lines: neighbours are prefetched in pairs */
    MIN_SPIN_NS = 2000,
    MAX_SPIN_NS = 50000,
};

/* A thread waits for tickets: one starts a run, one leaves each barrier. Two threads may give
 * tickets to the same one in either order, so they are counted, not set. */
typedef struct {
    alignas(CACHE_LINE) atomic_uint given;
    alignas(CACHE_LINE) atomic_int claimed; /* of its share, since the last barrier */
    /* touched by the owner alone */
    unsigned taken;
    int64_t spin_ns; /* at most, before it sleeps */
    pool *pool;
    pthread_t thread;
} member;

struct pool {
    alignas(CACHE_LINE) atomic_int arrived; /* at the current barrier */
    alignas(CACHE_LINE) atomic_int asleep;
    void (*fn)(void *arg, int tid, int n_threads); /* NULL: quit */
    void *arg;
    int n_threads;
    bool may_spin;        /* no more threads than CPUs: the awaited one is running */
    pthread_mutex_t run;  /* held during pool_run */
    pthread_mutex_t lock; /* of wake */
    pthread_cond_t wake;
    member members[];
};

/* ---- waiting ---------------------------------------------------------------- */

static void pause_cpu(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static bool has_ticket(member *m, unsigned ticket) {
    return (int)(atomic_load(&m->given) - ticket) >= 0;
}

/* Spinning in vain means that the awaited thread has no CPU, and this one may be sitting on it:
 * then it spins less the next time. */
static bool spin(member *m, unsigned ticket) {
    int64_t deadline = 0;
    for (int i = 1; !has_ticket(m, ticket); i++) {
        pause_cpu();
        if (i % 16) continue; /* reading the clock costs as much as these */
        int64_t now = now_ns();
        if (deadline == 0) deadline = now + m->spin_ns;
        if (now <= deadline) continue;
        m->spin_ns = m->spin_ns / 2 > MIN_SPIN_NS ? m->spin_ns / 2 : MIN_SPIN_NS;
        return false;
    }
    m->spin_ns += m->spin_ns / 8;
    if (m->spin_ns > MAX_SPIN_NS) m->spin_ns = MAX_SPIN_NS;
    return true;
}

static void take_ticket(member *m) {
    pool *p = m->pool;
    unsigned ticket = ++m->taken;
    if (p->may_spin ? spin(m, ticket) : has_ticket(m, ticket)) return;
    pthread_mutex_lock(&p->lock);
    /* The giver stores, then looks for sleepers; the sleeper says so, then looks for its
     * ticket. In the one order of all these operations no wake-up is lost. */
    atomic_fetch_add(&p->asleep, 1);
    while (!has_ticket(m, ticket)) pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->asleep, 1);
    pthread_mutex_unlock(&p->lock);
}

/* To the first n members, but not to tid. */
static void give_tickets(pool *p, int n, int tid) {
    for (int i = 0; i < n; i++)
        if (i != tid) atomic_fetch_add(&p->members[i].given, 1);
    if (atomic_load(&p->asleep) == 0) return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

/* ---- running ------------------------------------------------------------------ */

void pool_barrier(pool *p, int tid) {
    if (atomic_fetch_add(&p->arrived, 1) + 1 < p->n_threads) {
        take_ticket(&p->members[tid]);
    } else { /* the last one: nobody claims before it gives the tickets */
        atomic_store(&p->arrived, 0);
        for (int i = 0; i < p->n_threads; i++)
            atomic_store_explicit(&p->members[i].claimed, 0, memory_order_relaxed);
        give_tickets(p, p->n_threads, tid);
    }
}

pool_share pool_share_of(const pool *p, int tid, int n_tasks) {
    int64_t n = p->n_threads, up = n - 1; /* rounded up: few tasks go to the first threads */
    return (pool_share){(int)(((int64_t)n_tasks * tid + up) / n),
                        (int)(((int64_t)n_tasks * (tid + 1) + up) / n)};
}

int pool_claim(pool *p, int tid, int n_tasks) {
    for (int i = 0; i < p->n_threads; i++) {
        int owner = (tid + i) % p->n_threads;
        pool_share share = pool_share_of(p, owner, n_tasks);
        atomic_int *claimed = &p->members[owner].claimed;
        int n = share.last - share.first;
        if (atomic_load_explicit(claimed, memory_order_relaxed) >= n) continue;
        int task = atomic_fetch_add_explicit(claimed, 1, memory_order_relaxed);
        if (task < n) return share.first + task;
    }
    return -1;
}

void pool_run(pool *p, void (*fn)(void *arg, int tid, int n_threads), void *arg) {
    pthread_mutex_lock(&p->run);
    p->fn = fn;
    p->arg = arg;
    give_tickets(p, p->n_threads, 0);
    fn(arg, 0, p->n_threads);
    pool_barrier(p, 0);
    pthread_mutex_unlock(&p->run);
}

static void *work(void *self) {
    member *m = self;
    pool *p = m->pool;
    int tid = (int)(m - p->members);
    for (;;) {
        take_ticket(m);
        if (!p->fn) return NULL;
        p->fn(p->arg, tid, p->n_threads);
        pool_barrier(p, tid);
    }
}

/* ---- life ----------------------------------------------------------------------- */

/* Ends and joins the first n members but 0, and frees the pool. */
static void quit(pool *p, int n) {
    p->fn = NULL;
    give_tickets(p, n, 0);
    for (int i = 1; i < n; i++) pthread_join(p->members[i].thread, NULL);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    pthread_mutex_destroy(&p->run);
    free(p);
}

pool *pool_new(int n_threads) {
    if (n_threads < 1 || n_threads > 4096) return NULL;
    size_t size = sizeof(pool) + (size_t)n_threads * sizeof(member);
    void *memory;
    if (posix_memalign(&memory, CACHE_LINE, size) != 0) return NULL;
    pool *p = memset(memory, 0, size);
    p->n_threads = n_threads;
    p->may_spin = n_threads <= machine_cpus();
    pthread_mutex_init(&p->run, NULL);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* threads inherit it */
    int n = 1;
    for (int i = 0; i < n_threads; i++) {
        p->members[i].pool = p;
        p->members[i].spin_ns = MAX_SPIN_NS;
    }
    for (; n < n_threads; n++)
        if (pthread_create(&p->members[n].thread, NULL, work, &p->members[n])) break;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (n == n_threads) return p;
    quit(p, n);
    return NULL;
}

void pool_free(pool *p) {
    if (p) quit(p, p->n_threads);
}

int pool_size(const pool *p) {
    return p->n_threads;
}
