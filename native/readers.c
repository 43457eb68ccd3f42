/* readers.c - see readers.h. */
#include "readers.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "error.h"

enum { POLL_NS = 20000000 }; /* a signal handler sets a flag, but must not wake anybody */
#ifdef __APPLE__
static const clockid_t wait_clock = CLOCK_REALTIME; /* its conditions know no other */
#else
static const clockid_t wait_clock = CLOCK_MONOTONIC;
#endif

typedef struct {
    char *path;
    int fd;
    bool direct;
} source;

enum { CUT = -1 }; /* the file ends before the last byte that was asked for */

typedef struct {
    int file;
    uint64_t offset;
    size_t size;
    int error; /* an errno, or CUT */
} failure;

typedef struct {
    read_request *first, **last;
} queue;

struct readers {
    source *files;
    int n_files, n_threads;
    read_check *check;
    const void *arg;
    pthread_mutex_t lock; /* of what follows, down to failure */
    pthread_cond_t work, done;
    queue wanted, idle;
    bool quit;
    bool failed;
    failure failure; /* the first one since it was asked for */
    pthread_t *threads;
    _Atomic(uint64_t) bytes;
};

/* ---- reading ---------------------------------------------------------------------- */

/* 0, an errno, or CUT. */
static int read_pages(const source *file, const read_request *r) {
    uint64_t at = r->offset & ~(uint64_t)(READ_PAGE - 1), end = r->offset + r->size;
    size_t whole = (size_t)((end - at + READ_PAGE - 1) & ~(uint64_t)(READ_PAGE - 1));
    for (size_t got = 0; at + got < end;) {
        ssize_t n = pread(file->fd, r->to + got, whole - got, (off_t)(at + got));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno;
        if (n == 0) return CUT;
        got += (size_t)n;
    }
#ifdef POSIX_FADV_DONTNEED
    if (!file->direct) (void)posix_fadvise(file->fd, (off_t)at, (off_t)whole, POSIX_FADV_DONTNEED);
#endif
    return 0;
}

/* error: as from read_pages. */
static void finish(readers *p, read_request *r, int error) {
    if (!error) atomic_fetch_add(&p->bytes, r->size);
    pthread_mutex_lock(&p->lock);
    if (error && !p->failed) p->failure = (failure){r->file, r->offset, r->size, error};
    if (error) p->failed = true;
    atomic_store(&r->state, error ? READ_FAILED : READ_DONE);
    pthread_cond_broadcast(&p->done);
    pthread_mutex_unlock(&p->lock);
}

static void put(queue *q, read_request *r) {
    r->next = NULL;
    *q->last = r;
    q->last = &r->next;
}

static read_request *take(queue *q) {
    read_request *r = q->first;
    if (r && !(q->first = r->next)) q->last = &q->first;
    return r;
}

static void *work(void *arg) {
    readers *p = arg;
    for (;;) {
        pthread_mutex_lock(&p->lock);
        while (!p->wanted.first && !p->idle.first && !p->quit)
            pthread_cond_wait(&p->work, &p->lock);
        read_request *r = p->quit ? NULL : take(p->wanted.first ? &p->wanted : &p->idle);
        pthread_mutex_unlock(&p->lock);
        if (!r) return NULL;
        int error = read_pages(&p->files[r->file], r);
        if (!error && p->check && !p->check(p->arg, r)) error = EILSEQ;
        finish(p, r, error);
    }
}

void readers_submit(readers *p, read_request *r, bool idle) {
    atomic_store(&r->state, READ_PENDING);
    pthread_mutex_lock(&p->lock);
    put(idle ? &p->idle : &p->wanted, r);
    pthread_cond_signal(&p->work);
    pthread_mutex_unlock(&p->lock);
}

void readers_recall(readers *p) {
    pthread_mutex_lock(&p->lock);
    for (read_request *r; (r = take(p->wanted.first ? &p->wanted : &p->idle));)
        atomic_store(&r->state, READ_IDLE);
    pthread_mutex_unlock(&p->lock);
}

bool readers_wait(readers *p, const read_request *r, const atomic_bool *cancel) {
    if (atomic_load(&r->state) == READ_PENDING) {
        pthread_mutex_lock(&p->lock);
        while (atomic_load(&r->state) == READ_PENDING && !(cancel && atomic_load(cancel))) {
            struct timespec until;
            clock_gettime(wait_clock, &until);
            until.tv_nsec += POLL_NS;
            until.tv_sec += until.tv_nsec / 1000000000;
            until.tv_nsec %= 1000000000;
            pthread_cond_timedwait(&p->done, &p->lock, &until);
        }
        pthread_mutex_unlock(&p->lock);
    }
    return atomic_load(&r->state) == READ_DONE;
}

static qwen3_status explain(const readers *p, failure f, qwen3_error *err) {
    const char *path = p->files[f.file].path;
    if (f.error == CUT)
        return fail(err, QWEN3_ERR_FORMAT, "%s ends before byte %llu: it was cut while in use, "
                    "fetch it again", path, (unsigned long long)(f.offset + f.size));
    if (f.error == EILSEQ)
        return fail(err, QWEN3_ERR_FORMAT, "%s holds a NaN or an infinity behind byte %llu: it is "
                    "damaged, fetch it again", path, (unsigned long long)f.offset);
    return fail(err, QWEN3_ERR_IO, "%s: reading byte %llu failed: %s", path,
                (unsigned long long)f.offset, strerror(f.error));
}

qwen3_status readers_status(readers *p, qwen3_error *err) {
    pthread_mutex_lock(&p->lock);
    bool failed = p->failed;
    failure first = p->failure;
    p->failed = false;
    pthread_mutex_unlock(&p->lock);
    return failed ? explain(p, first, err) : QWEN3_OK;
}

uint64_t readers_bytes(const readers *p) { return atomic_load(&p->bytes); }

bool readers_direct(const readers *p) { return p->files[0].direct; }

/* ---- life --------------------------------------------------------------------------- */

/* A file system may take the flag and refuse the read: one page is tried. */
static bool open_direct(source *file) {
#ifdef O_DIRECT
    void *page;
    file->fd = open(file->path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (file->fd < 0) return false;
    bool ok = posix_memalign(&page, READ_PAGE, READ_PAGE) == 0;
    if (ok) {
        ok = pread(file->fd, page, READ_PAGE, 0) >= 0;
        free(page);
    }
    if (!ok) close(file->fd);
    return ok;
#else
    (void)file;
    return false;
#endif
}

static bool open_file(source *file, const char *path) {
    file->path = strdup(path);
    if (!file->path) return false;
    file->direct = open_direct(file);
    if (!file->direct) file->fd = open(path, O_RDONLY | O_CLOEXEC);
#ifdef F_NOCACHE
    if (file->fd >= 0) (void)fcntl(file->fd, F_NOCACHE, 1); /* macOS */
#endif
    return file->fd >= 0;
}

static int start_threads(readers *p, int n) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* threads inherit it */
    for (; p->n_threads < n; p->n_threads++)
        if (pthread_create(&p->threads[p->n_threads], NULL, work, p)) break;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return p->n_threads;
}

static void init_conditions(readers *p) {
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
#ifndef __APPLE__
    pthread_condattr_setclock(&attr, wait_clock);
#endif
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->done, &attr);
    pthread_condattr_destroy(&attr);
}

readers *readers_new(const char *const *paths, int n_paths, int n_threads, read_check *check,
                     const void *arg, qwen3_error *err) {
    readers *p = calloc(1, sizeof *p);
    if (!p) {
        fail(err, QWEN3_ERR_MEMORY, "out of memory");
        return NULL;
    }
    init_conditions(p);
    p->check = check;
    p->arg = arg;
    p->wanted.last = &p->wanted.first;
    p->idle.last = &p->idle.first;
    p->files = calloc((size_t)n_paths, sizeof *p->files);
    p->threads = calloc((size_t)n_threads, sizeof *p->threads);
    bool ok = p->files && p->threads;
    if (!ok) fail(err, QWEN3_ERR_MEMORY, "out of memory");
    for (; ok && p->n_files < n_paths; p->n_files += ok)
        if (!(ok = open_file(&p->files[p->n_files], paths[p->n_files]))) {
            free(p->files[p->n_files].path);
            fail(err, QWEN3_ERR_IO, "%s: cannot be opened: %s", paths[p->n_files], strerror(errno));
        }
    if (ok && start_threads(p, n_threads) < n_threads)
        ok = fail(err, QWEN3_ERR_MEMORY, "the system refused %d threads for reading", n_threads) ==
             QWEN3_OK;
    if (ok) return p;
    readers_free(p);
    return NULL;
}

void readers_free(readers *p) {
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    p->quit = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->n_threads; i++) pthread_join(p->threads[i], NULL);
    for (int i = 0; i < p->n_files; i++) {
        close(p->files[i].fd);
        free(p->files[i].path);
    }
    pthread_cond_destroy(&p->work);
    pthread_cond_destroy(&p->done);
    pthread_mutex_destroy(&p->lock);
    free(p->files);
    free(p->threads);
    free(p);
}
