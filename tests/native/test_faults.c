/* test_faults.c - a model whose experts come from a disk that misbehaves. This program's own pread
 * takes the place of the system's: it reads in pieces, is interrupted, fails at a chosen moment, is
 * slow or does not come back. Each time a right answer or a clear error, and the session goes on. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "larger.h"
#include "probe.h"

static const char *const path = "qwen3cli/models/nano-moe-q8_0.gguf";

enum { LAYERS = 3, EXPERTS = 128, USED = 8, PARTS = 3 }; /* of that model */
enum { PAGE = 4096, PROMPT = 12, N_CTX = 64, THREADS = 2 };
enum { RESIDENT = 1 << 30 };

#if defined(__has_feature)
#define HAS_FEATURE(x) __has_feature(x)
#else
#define HAS_FEATURE(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
    HAS_FEATURE(address_sanitizer) || HAS_FEATURE(thread_sanitizer)
enum { CANCEL_MS = 1000, EVERY = 5 }; /* which take ten times as long */
#else
enum { CANCEL_MS = 100, EVERY = 1 };
#endif

static void expect(bool ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "faults: %s\n", what);
    exit(1);
}

/* ---- the disk ------------------------------------------------------------------------ */

typedef struct {
    bool chopped;   /* reads come in pieces, every third call is interrupted */
    bool no_direct; /* the file system knows no reads past the page cache */
    bool stalled;   /* nothing comes back */
    int delay_us;   /* of every read */
    int fault;      /* which read from now on fails, 1 the next; 0: none */
    int error;      /* its errno; 0: the file ends there */
} behaviour;

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    behaviour now;
    int n_reads, n_stalled; /* since the behaviour changed; who waits */
    struct {
        uint64_t first, end;
    } failed; /* bytes of the read that was made to; 0 0: none */
} disk = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void behave(behaviour b) {
    pthread_mutex_lock(&disk.lock);
    disk.now = b;
    disk.n_reads = 0;
    disk.failed.end = 0;
    pthread_cond_broadcast(&disk.changed);
    pthread_mutex_unlock(&disk.lock);
}

static const behaviour well = {0};

/* Number of reads since the last behave. */
static int reads(void) {
    pthread_mutex_lock(&disk.lock);
    int n = disk.n_reads;
    pthread_mutex_unlock(&disk.lock);
    return n;
}

/* Whether the read that was to fail has come. */
static bool has_failed(void) {
    pthread_mutex_lock(&disk.lock);
    bool failed = disk.failed.end > 0;
    pthread_mutex_unlock(&disk.lock);
    return failed;
}

static bool is_direct(int fd) {
#ifdef O_DIRECT
    return fcntl(fd, F_GETFL) & O_DIRECT;
#else
    (void)fd;
    return false;
#endif
}

static void wait_ms(double ms) {
    struct timespec t = {(time_t)(ms / 1e3), (long)(ms * 1e6) % 1000000000};
    nanosleep(&t, NULL);
}

/* What the engine's readers call. */
ssize_t pread(int fd, void *to, size_t size, off_t offset) {
    pthread_mutex_lock(&disk.lock);
    behaviour b = disk.now;
    int n = ++disk.n_reads;
    bool fails = n == b.fault;
    if (fails) {
        disk.failed.first = (uint64_t)offset;
        disk.failed.end = (uint64_t)offset + size;
    }
    disk.n_stalled++;
    while (disk.now.stalled) pthread_cond_wait(&disk.changed, &disk.lock);
    disk.n_stalled--;
    pthread_mutex_unlock(&disk.lock);
    if (b.delay_us) wait_ms(b.delay_us * 1e-3);
    if (fails) {
        errno = b.error;
        return b.error ? -1 : 0;
    }
    if (b.no_direct && is_direct(fd)) {
        errno = EINVAL;
        return -1;
    }
    if (b.chopped && n % 3 == 0) {
        errno = EINTR;
        return -1;
    }
    /* A direct read comes in whole blocks, any other in any number of bytes. */
    size_t piece = is_direct(fd) ? PAGE * (size_t)(1 + n % 2) : 1 + (size_t)n * 7919 % 5000;
    if (b.chopped && piece < size) size = piece;
    return preadv(fd, &(struct iovec){to, size}, 1, offset);
}

/* ---- a model that reads -------------------------------------------------------------------- */

static int32_t routes[N_CTX][LAYERS][USED], guesses[N_CTX][LAYERS][USED], ids[N_CTX];
static bool guessing = true;

/* No two of 16 tokens in a row share an expert: with the least memory all are read every time. */
static void fill(void) {
    for (int p = 0; p < N_CTX; p++) {
        ids[p] = p * 7919 % 4000;
        for (int l = 0; l < LAYERS; l++)
            for (int i = 0; i < USED; i++) {
                routes[p][l][i] = (p * USED + i + 5 * l) % EXPERTS;
                guesses[p][l][i] = (routes[p][l][i] + (i % 4 ? 0 : 64)) % EXPERTS; /* some wrong */
            }
    }
}

static qwen3_model *open_model(uint64_t expert_bytes) {
    qwen3_error err;
    qwen3_model *m = qwen3_model_open(path, THREADS, expert_bytes, &err);
    if (!m) fprintf(stderr, "%s\n", err.text);
    expect(m != NULL, "the model opens");
    qwen3_model_guess(m, guessing ? QWEN3_GUESS_ON : QWEN3_GUESS_OFF);
    return m;
}

static uint64_t least(void) {
    qwen3_error err;
    qwen3_model *m = NULL;
    uint64_t bytes = PAGE;
    while (!(m = qwen3_model_open(path, 1, bytes, &err))) {
        expect(err.status == QWEN3_ERR_ARG, "a model opens with more memory");
        bytes += PAGE * 8;
    }
    qwen3_model_close(m);
    return bytes;
}

static qwen3_session *new_session(qwen3_model *m) {
    qwen3_error err;
    qwen3_session *s = qwen3_session_new(m, N_CTX, QWEN3_KV_F16, &err);
    expect(s && qwen3_session_force_routes(s, &routes[0][0][0], &guesses[0][0][0], N_CTX,
                                           &err) == QWEN3_OK,
           "a session begins");
    return s;
}

/* Makes ids[0..n) the session's. */
static void compute(qwen3_session *s, size_t n) {
    qwen3_error err;
    bool ok = qwen3_sync(s, ids, n, &err) >= 0;
    if (!ok) fprintf(stderr, "%s\n", err.text);
    expect(ok, "the tokens are computed");
}

/* Logits behind the first n of ids, from the mapping. */
static float *reference[N_CTX + 1];
static size_t logits_bytes;

static void make_references(void) {
    qwen3_model *m = open_model(0);
    qwen3_session *s = new_session(m);
    logits_bytes = (size_t)qwen3_model_config(m)->n_vocab * sizeof(float);
    for (size_t n = PROMPT; n <= N_CTX; n++) {
        reference[n] = malloc(logits_bytes);
        expect(reference[n] != NULL, "memory");
        compute(s, n);
        memcpy(reference[n], qwen3_session_logits(s), logits_bytes);
    }
    qwen3_session_free(s);
    qwen3_model_close(m);
}

static bool right(const qwen3_session *s) {
    return memcmp(qwen3_session_logits(s), reference[qwen3_session_len(s)], logits_bytes) == 0;
}

/* Bytes of an expert in the file; those of all layers are alike. */
static uint64_t expert_bytes(const qwen3_model *m) {
    const qwen3_file *file = qwen3_model_file(m);
    uint64_t bytes = 0;
    for (size_t i = 0; i < qwen3_file_n_tensors(file); i++) {
        const qwen3_tensor *t = qwen3_file_tensor(file, i);
        if (t->n_dims == 3) bytes += t->bytes;
    }
    return bytes / (LAYERS * EXPERTS);
}

/* ---- right answers ---------------------------------------------------------------------------- */

/* The whole text is right, and what was counted adds up. */
static void answers(behaviour b, uint64_t budget) {
    behave(b);
    qwen3_model *m = open_model(budget);
    qwen3_session *s = new_session(m);
    compute(s, PROMPT);
    expect(right(s), "a prompt is right");
    qwen3_expert_stats before = qwen3_model_expert_stats(m);
    for (size_t n = PROMPT + 1; n <= 40; n++) {
        compute(s, n);
        expect(right(s), "each token is right");
    }
    qwen3_expert_stats stats = qwen3_model_expert_stats(m);
    expect(reads() > 0, "the engine reads with this pread");
    expect(!(b.no_direct && stats.direct), "a read that is refused is not asked for again");
    expect(stats.hits + stats.misses - before.hits - before.misses ==
           (40 - PROMPT) * LAYERS * USED, "each expert that is wanted counts");
    uint64_t needed = stats.misses * expert_bytes(m);
    expect(guessing ? stats.bytes_read >= needed : stats.bytes_read == needed,
           "each byte counts once");
    expect(budget == RESIDENT || (stats.right_guesses > 0) == guessing, "guesses are counted");
    expect(budget == RESIDENT ? stats.misses == LAYERS * EXPERTS : stats.misses > 700,
           "who has room keeps, who has none reads again");
    qwen3_session_free(s);
    qwen3_model_close(m);
}

/* ---- errors --------------------------------------------------------------------------------------- */

/* Whether it names the file and a byte of the read that failed. */
static bool is_clear(const qwen3_error *err, int error) {
    const char *byte = strstr(err->text, "byte ");
    if (!byte || !strstr(err->text, path)) return false;
    uint64_t at = strtoull(byte + 5, NULL, 10);
    if (error)
        return err->status == QWEN3_ERR_IO && strstr(err->text, strerror(error)) &&
               disk.failed.first <= at && at < disk.failed.end;
    return err->status == QWEN3_ERR_FORMAT && strstr(err->text, "it was cut while in use") &&
           disk.failed.first < at && at <= disk.failed.end;
}

/* The step from `from` to `to` tokens with each (step-th) of its reads failing in turn. */
static void fails_at_every_read(uint64_t budget, size_t from, size_t to, int step, int error) {
    qwen3_error err;
    qwen3_model *m = open_model(budget);
    qwen3_session *s = new_session(m);
    int told = 0, k = 1;
    for (;; k += step) {
        behave(well);
        compute(s, from);
        behave((behaviour){.fault = k, .error = error});
        bool ok = qwen3_sync(s, ids, to, &err) >= 0;
        if (!has_failed()) break; /* it takes fewer reads */
        /* Nobody may have needed what could not be read. */
        expect(ok ? right(s) : is_clear(&err, error), "a clear error or the right answer");
        expect(ok || !qwen3_session_logits(s), "no logits of what failed");
        told += !ok;
        compute(s, to);
        expect(right(s), "a session goes on after a failed read");
    }
    /* Of many tokens most is read ahead: what failed by then is read once more. */
    expect(to > from + 1 || told * step > USED, "failures are told");
    qwen3_session_free(s);
    qwen3_model_close(m);
}

/* With room for all of them: each expert is read whole once, however often it has failed. */
static void counts_what_was_read(void) {
    qwen3_error err;
    behave(well);
    qwen3_model *m = open_model(RESIDENT);
    qwen3_session *s = new_session(m);
    unsigned failed = 0;
    for (size_t n = PROMPT; n <= 40; n++) {
        do behave((behaviour){.fault = (int)(1 + failed % 10), .error = EIO});
        while (qwen3_sync(s, ids, n, &err) < 0 && ++failed);
        expect(right(s), "each token is right in the end");
    }
    expect(failed > 10, "reads fail");
    qwen3_expert_stats stats = qwen3_model_expert_stats(m);
    expect(stats.bytes_read == LAYERS * EXPERTS * expert_bytes(m), "all is read once");
    expect(stats.misses == LAYERS * EXPERTS + failed, "what is read again is missed again");
    qwen3_session_free(s);
    qwen3_model_close(m);
}

/* ---- a disk that does not come back ------------------------------------------------------------ */

typedef struct {
    qwen3_session *session;
    size_t n;
    qwen3_error err;
    bool ok, ended;
} job;

static void *run(void *arg) {
    job *j = arg;
    j->ok = qwen3_sync(j->session, ids, j->n, &j->err) >= 0;
    pthread_mutex_lock(&disk.lock);
    j->ended = true;
    pthread_mutex_unlock(&disk.lock);
    return NULL;
}

/* Until some reads do not come back. */
static void wait_for_stall(const job *j) {
    for (bool stalled = false, ended = false; !stalled; wait_ms(5)) {
        pthread_mutex_lock(&disk.lock);
        stalled = disk.n_stalled > 0;
        ended = j->ended;
        pthread_mutex_unlock(&disk.lock);
        expect(!ended, "a step waits for its reads");
    }
}

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* Cancels the step to n tokens while it waits: how long it takes until it returns. */
static double cancelled_after_ms(qwen3_session *s, size_t n) {
    pthread_t thread;
    job j = {.session = s, .n = n};
    expect(pthread_create(&thread, NULL, run, &j) == 0, "a thread starts");
    wait_for_stall(&j);
    wait_ms(30);
    double start = now_ms();
    qwen3_session_cancel(s);
    pthread_join(thread, NULL);
    double took = now_ms() - start;
    expect(!j.ok && j.err.status == QWEN3_ERR_CANCELLED, "it says that it was cancelled");
    return took;
}

/* From `from` to `to` tokens, cancelled twice in a row while nothing comes back. */
static void cancel_in_a_stall(uint64_t budget, size_t from, size_t to) {
    behave(well);
    qwen3_model *m = open_model(budget);
    qwen3_session *s = new_session(m);
    double best = 1e9;
    for (int attempt = 0; attempt < 50 && best >= CANCEL_MS; attempt++) { /* others use the machine */
        compute(s, from);
        behave((behaviour){.stalled = true});
        double first = cancelled_after_ms(s, to), second = cancelled_after_ms(s, to);
        double took = first > second ? first : second;
        best = took < best ? took : best;
        behave(well);
        compute(s, to);
        expect(right(s), "a session goes on after it was cancelled");
    }
    expect(best < CANCEL_MS, "a cancelled step returns within 100 ms");
    qwen3_session_free(s);
    qwen3_model_close(m);
}

static void *recover(void *arg) {
    (void)arg;
    wait_ms(50);
    behave(well);
    return NULL;
}

/* Closing waits for the reads that are under way, and for no others. */
static void close_in_a_stall(uint64_t budget) {
    behave(well);
    qwen3_model *m = open_model(budget);
    qwen3_session *s = new_session(m);
    behave((behaviour){.stalled = true});
    cancelled_after_ms(s, PROMPT);
    pthread_t thread;
    expect(pthread_create(&thread, NULL, recover, NULL) == 0, "a thread starts");
    qwen3_session_free(s);
    qwen3_model_close(m);
    pthread_join(thread, NULL);
}

static void refuses_guesses_without_routes(void) {
    qwen3_error err;
    qwen3_model *m = open_model(RESIDENT);
    qwen3_session *s = new_session(m);
    expect(qwen3_session_force_routes(s, NULL, &guesses[0][0][0], 0, &err) == QWEN3_ERR_ARG,
           "guesses go with routes");
    qwen3_session_free(s);
    qwen3_model_close(m);
}

int main(void) {
    fill();
    refuses_guesses_without_routes();
    make_references();
    uint64_t few = least();
    static const behaviour slow = {.delay_us = 300};
    static const behaviour chopped = {.chopped = true};
    static const behaviour cached = {.chopped = true, .no_direct = true};
    for (int i = 0; i < 3; i++) {
        uint64_t budget = i == 2 ? RESIDENT : few;
        guessing = i == 1;
        answers(well, budget);
        answers(slow, budget);
        answers(chopped, budget);
        answers(cached, budget);
    }
    for (int i = 0; i < 2; i++) {
        int error = i ? EIO : 0;
        guessing = i;
        fails_at_every_read(few, PROMPT, PROMPT + 1, EVERY, error);
        fails_at_every_read(few, 0, PROMPT, 17 * EVERY, error);
        fails_at_every_read(2 * few, 0, PROMPT, 29 * EVERY, error);
    }
    counts_what_was_read();
    cancel_in_a_stall(few, PROMPT, PROMPT + 1);
    cancel_in_a_stall(few, 0, PROMPT);
    cancel_in_a_stall(2 * few, 0, PROMPT);
    close_in_a_stall(few);
    for (int n = 0; n <= N_CTX; n++) free(reference[n]);
    puts("faults: ok");
    return 0;
}
