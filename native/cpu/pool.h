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

/* Inside fn: 0, 1, 2, ... counted anew behind every barrier, each number to one thread. A
 * thread that claims tasks until the number is past the last holds the others up least. */
int pool_claim(pool *);

#endif
