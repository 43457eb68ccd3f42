/* pool.h - threads that run one function together.
 *
 * All threads of a pool run the same function, each with its own tid, and meet at
 * barriers inside it. Waiting spins for a moment, then sleeps. The threads that the
 * pool adds receive no signals.
 */
#ifndef QWEN3_POOL_H
#define QWEN3_POOL_H

typedef struct pool pool;

/* n_threads >= 1, the caller of pool_run included. NULL when a thread or memory cannot be had. */
pool *pool_new(int n_threads);
/* No pool_run may be under way. NULL is ignored. */
void pool_free(pool *);
int pool_size(const pool *);

/* Runs fn(arg, tid, n_threads) on every thread, the caller as tid 0, and returns when all
 * have returned; what they wrote is then visible. Calls from different threads take turns.
 * fn must not call pool_run. */
void pool_run(pool *, void (*fn)(void *arg, int tid, int n_threads), void *arg);

/* Inside fn: waits until every thread has come to its barrier. */
void pool_barrier(pool *, int tid);

/* Inside fn: claims one of the tasks 0 ... n_tasks - 1, which are counted anew behind every
 * barrier; -1 when none is left. A thread goes through its share of them in order, then through
 * what others have left of theirs: so one that is held up holds the others up least. */
int pool_claim(pool *, int tid, int n_tasks);

/* The share of thread tid: tasks [first, last). */
typedef struct {
    int first, last;
} pool_share;
pool_share pool_share_of(const pool *, int tid, int n_tasks);

#endif
