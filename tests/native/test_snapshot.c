/* test_snapshot.c - sessions put aside and taken up again: the same bits, and of a damaged, hostile
 * or foreign file an error. This program's own write and fsync take the place of the system's, to
 * fail and to end the process at a chosen moment. */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fingerprint.h"
#include "probe.h"
#include "snapshot.h"

enum { N_CTX = 64, N = 39, AT = 21, LATER = 7 };
static const char tiny[] = "tests/data/tiny.gguf", moe[] = "tests/data/tiny-moe.gguf";
static const char shards[] = "tests/data/tiny-00001-of-00002.gguf";
static char folder[] = P_tmpdir "/qwen3-snapshot-XXXXXX", path[64], part[64];
static qwen3_error err;

static void expect(bool ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "snapshot: %s (%s)\n", what, err.text);
    exit(1);
}

/* ---- the disk ------------------------------------------------------------------------ */

static struct {
    int fault; /* which write or fsync from now on fails, 1 the next; 0: none */
    int error; /* its errno; 0: the process ends there, as if it had been killed */
} disk;

static bool fails(void) {
    if (disk.fault == 0 || --disk.fault > 0) return false;
    if (!disk.error) _exit(0);
    errno = disk.error;
    return true;
}

/* In pieces, and every third call is interrupted. */
ssize_t write(int fd, const void *from, size_t size) {
    static unsigned n;
    if (fails()) return -1;
    if (++n % 3 == 0) {
        errno = EINTR;
        return -1;
    }
    size_t piece = 1 + n * 7919 % 5000;
    struct iovec all = {(void *)(uintptr_t)from, piece < size ? piece : size};
    return writev(fd, &all, 1);
}

int fsync(int fd) {
    (void)fd;
    return fails() ? -1 : 0;
}

/* ---- sessions ------------------------------------------------------------------------ */

static qwen3_model *open_model(const char *file) {
    qwen3_model *m = qwen3_model_open(file, 2, 0, &err);
    expect(m != NULL, "the model opens");
    return m;
}

static qwen3_session *new_session(qwen3_model *m, int n_ctx, qwen3_kv_type kv) {
    qwen3_session *s = qwen3_session_new(m, n_ctx, kv, &err);
    expect(s != NULL, "a session begins");
    return s;
}

/* Token i of a text; different texts share their first AT tokens. */
static int32_t token(int text, int i) { return (i < AT ? i * 31 : i * 37 + 11 * text) % 269; }

static void sync_to(qwen3_session *s, int text, int n) {
    int32_t ids[N_CTX];
    for (int i = 0; i < n; i++) ids[i] = token(text, i);
    expect(qwen3_sync(s, ids, (size_t)n, &err) >= 0, "the tokens are computed");
}

/* The session holds n tokens of a text and goes on as one that computed them all, now and LATER. */
static void same_bits(qwen3_session *s, qwen3_kv_type kv, int text, int n) {
    qwen3_model *m = open_model(tiny);
    qwen3_session *fresh = new_session(m, N_CTX, kv);
    size_t bytes = (size_t)qwen3_model_config(m)->n_vocab * sizeof(float);
    for (int i = 0; i <= LATER; i++) {
        sync_to(fresh, text, n + i);
        if (i) {
            int32_t next = token(text, n + i - 1);
            expect(qwen3_extend(s, &next, 1, &err) == QWEN3_OK, "a token is computed");
        }
        expect(qwen3_session_len(s) == (size_t)(n + i), "as many tokens");
        expect(!memcmp(qwen3_session_ids(s), qwen3_session_ids(fresh), (size_t)(n + i) * 4) &&
               !memcmp(qwen3_session_logits(s), qwen3_session_logits(fresh), bytes),
               "a session that was put aside goes on with the same bits");
    }
    qwen3_session_free(fresh);
    qwen3_model_close(m);
}

/* ---- in memory ----------------------------------------------------------------------- */

static void restores(qwen3_kv_type kv) {
    qwen3_model *m = open_model(tiny);
    qwen3_session *s = new_session(m, N_CTX, kv), *small = new_session(m, 48, kv);
    for (int start = 0; start <= AT; start++) {
        sync_to(s, 1, N);
        qwen3_snapshot *x = qwen3_session_snapshot(s, (size_t)start, &err);
        expect(x && qwen3_snapshot_start(x) == (size_t)start && qwen3_snapshot_len(x) == N,
               "a snapshot is taken");
        sync_to(s, 2, start);
        sync_to(s, 2, N + 5);
        expect(qwen3_session_restore(s, x, &err) == QWEN3_OK, "it is restored");
        same_bits(s, kv, 1, N);
        sync_to(small, 1, start); /* where the streams lie elsewhere */
        expect(qwen3_session_restore(small, x, &err) == QWEN3_OK, "in another session, too");
        same_bits(small, kv, 1, N);
        qwen3_snapshot_free(x);
    }
    sync_to(s, 1, N);
    qwen3_snapshot *x = qwen3_session_snapshot(s, N, &err);
    sync_to(s, 1, N + 2);
    expect(x && qwen3_session_restore(s, x, &err) == QWEN3_OK, "of nothing but the logits");
    same_bits(s, kv, 1, N);
    qwen3_snapshot_free(x);
    qwen3_session_free(small);
    qwen3_session_free(s);
    qwen3_model_close(m);
}

static void refuses_snapshots(void) {
    qwen3_model *m = open_model(tiny), *other = open_model(tiny);
    qwen3_session *s = new_session(m, N_CTX, QWEN3_KV_F32);
    sync_to(s, 1, N);
    expect(!qwen3_session_snapshot(s, N + 1, &err) && err.status == QWEN3_ERR_ARG, "beyond its end");
    qwen3_snapshot *x = qwen3_session_snapshot(s, AT, &err);
    sync_to(s, 1, AT - 1);
    expect(qwen3_session_restore(s, x, &err) == QWEN3_ERR_ARG && strstr(err.text, "only 20"),
           "too few tokens before it");
    expect(qwen3_session_len(s) == AT - 1 && qwen3_session_logits(s), "which changes nothing");
    qwen3_session *wrong[] = {new_session(m, 38, QWEN3_KV_F32), new_session(m, N_CTX, QWEN3_KV_F16),
                              new_session(other, N_CTX, QWEN3_KV_F32)};
    for (int i = 0; i < 3; i++) {
        sync_to(wrong[i], 1, AT);
        expect(qwen3_session_restore(wrong[i], x, &err) ==
               (i ? QWEN3_ERR_ARG : QWEN3_ERR_CONTEXT), "a session that it is not of");
        qwen3_session_free(wrong[i]);
    }
    expect(qwen3_session_fill(s, N, &err) == QWEN3_OK, "tokens without logits");
    qwen3_snapshot *without = qwen3_session_snapshot(s, 0, &err);
    expect(without && qwen3_snapshot_bytes(without) < 64 << 10, "only what is filled is copied");
    sync_to(s, 1, N);
    expect(qwen3_session_restore(s, without, &err) == QWEN3_OK && !qwen3_session_logits(s),
           "as there were none, there are none");
    qwen3_snapshot_free(without);
    qwen3_snapshot_free(x);
    qwen3_session_free(s);
    qwen3_model_close(other);
    qwen3_model_close(m);
}

/* ---- in a file ----------------------------------------------------------------------- */

static void loads(qwen3_kv_type kv) {
    static const int n_ctx[] = {46, N_CTX, 200};
    qwen3_model *m = open_model(tiny), *split = open_model(shards);
    qwen3_session *s = new_session(m, N_CTX, kv);
    sync_to(s, 1, N);
    expect(qwen3_session_save(s, path, &err) == QWEN3_OK, "it is saved");
    struct stat st;
    expect(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600, "for the user alone");
    expect(access(part, F_OK) != 0, "nothing else is left");
    for (int i = 0; i < 3; i++) {
        qwen3_session *to = new_session(i ? m : split, n_ctx[i], kv);
        sync_to(to, 2, 30);
        expect(qwen3_session_load(to, path, &err) == QWEN3_OK, "it is loaded");
        same_bits(to, kv, 1, N);
        qwen3_session_free(to);
    }
    expect(qwen3_session_fill(s, 33, &err) == QWEN3_OK && qwen3_session_save(s, path, &err) ==
           QWEN3_OK, "a session without logits is saved over it");
    sync_to(s, 1, N);
    expect(qwen3_session_load(s, path, &err) == QWEN3_OK && qwen3_session_len(s) == 33 &&
           !qwen3_session_logits(s), "and loaded");
    sync_to(s, 1, 0);
    expect(qwen3_session_save(s, path, &err) == QWEN3_OK && qwen3_session_load(s, path, &err) ==
           QWEN3_OK && qwen3_session_len(s) == 0, "an empty one, too");
    qwen3_session_free(s);
    qwen3_model_close(split);
    qwen3_model_close(m);
}

static void refuses_others(void) {
    qwen3_model *m = open_model(tiny), *other = open_model(moe);
    qwen3_session *s = new_session(m, N_CTX, QWEN3_KV_F32);
    sync_to(s, 1, N);
    expect(qwen3_session_save(s, path, &err) == QWEN3_OK, "it is saved");
    qwen3_session *to[] = {new_session(other, N_CTX, QWEN3_KV_F32),
                           new_session(m, N_CTX, QWEN3_KV_F16), new_session(m, 38, QWEN3_KV_F32)};
    static const char *const say[] = {"another model", "type f32, this one has f16", "1 too many"};
    for (int i = 0; i < 3; i++) {
        sync_to(to[i], 2, 20);
        expect(qwen3_session_load(to[i], path, &err) == (i < 2 ? QWEN3_ERR_ARG : QWEN3_ERR_CONTEXT) &&
               strstr(err.text, say[i]), "a session that it does not fit");
        expect(qwen3_session_len(to[i]) == 20 && qwen3_session_logits(to[i]), "is as it was");
        qwen3_session_free(to[i]);
    }
    expect(qwen3_session_load(s, folder, &err) == QWEN3_ERR_FORMAT, "a folder is no file");
    expect(qwen3_session_load(s, part, &err) == QWEN3_ERR_IO && strstr(err.text, part), "not there");
    qwen3_session_free(s);
    qwen3_model_close(other);
    qwen3_model_close(m);
}

/* ---- files that are damaged ---------------------------------------------------------- */

static size_t read_file(uint8_t *to, size_t most) {
    FILE *f = fopen(path, "rb");
    size_t n = f ? fread(to, 1, most, f) : 0;
    expect(f && fclose(f) == 0 && n < most, "the file is read");
    return n;
}

static void put_file(const uint8_t *bytes, size_t n) {
    int fd = open(path, O_WRONLY | O_CREAT, 0600); /* O_TRUNC would wait for the disk at each close */
    expect(fd >= 0 && pwrite(fd, bytes, n, 0) == (ssize_t)n && ftruncate(fd, (off_t)n) == 0 &&
           close(fd) == 0, "the file is written");
}

/* The session as it was, or empty: never with tokens that were not checked. */
static void damaged(qwen3_session *s, bool to_the_head) {
    err = (qwen3_error){QWEN3_OK, ""};
    qwen3_status status = qwen3_session_load(s, path, &err);
    expect(status != QWEN3_OK && status == err.status && err.text[0], "damage is told");
    size_t n = qwen3_session_len(s);
    expect(to_the_head ? n == 3 : n == 3 || n == 0, "nothing of it is taken");
    expect(n == 3 || !qwen3_session_logits(s), "no logits of nothing");
    if (n != 3) sync_to(s, 2, 3);
}

enum { HEAD = 56, FIGURES = 8, LONGEST = 1 << 16 };
static uint8_t good[LONGEST], bad[LONGEST];

static void any_bit_and_any_end(void) {
    qwen3_model *m = open_model(tiny);
    qwen3_session *s = new_session(m, N_CTX, QWEN3_KV_F16);
    sync_to(s, 1, N);
    expect(qwen3_session_save(s, path, &err) == QWEN3_OK, "it is saved");
    size_t n = read_file(good, LONGEST);
    sync_to(s, 2, 3);
    for (size_t i = 0; i < n; i++) { /* each byte of the head, then one bit of each */
        memcpy(bad, good, n);
        for (int bit = i < HEAD ? 0 : (int)(i % 8); bit < (i < HEAD ? 8 : (int)(i % 8) + 1); bit++) {
            bad[i] = (uint8_t)(good[i] ^ 1 << bit);
            put_file(bad, n);
            damaged(s, i < HEAD);
        }
    }
    for (size_t end = 0; end < n; end += end < 2 * HEAD ? 1 : 97) {
        put_file(good, end);
        damaged(s, true);
    }
    memcpy(bad, good, n);
    put_file(bad, n + 1);
    damaged(s, true);
    put_file(good, n);
    expect(qwen3_session_load(s, path, &err) == QWEN3_OK, "whole it is loaded");
    qwen3_session_free(s);
    qwen3_model_close(m);
}

/* Any figure behind a right checksum. */
static void hostile_figures(void) {
    static const uint32_t values[] = {0, 1, 3, 16, 17, 1 << 20, INT32_MAX, 0x80000000u, UINT32_MAX};
    qwen3_model *m = open_model(tiny);
    qwen3_session *s = new_session(m, N_CTX, QWEN3_KV_F16);
    size_t n = read_file(good, LONGEST);
    sync_to(s, 2, 3);
    for (size_t field = 0; field < FIGURES; field++)
        for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
            memcpy(bad, good, n);
            memcpy(bad + 8 + 4 * field, &values[i], 4);
            if (!memcmp(bad, good, n)) continue;
            uint64_t sum = hash_bytes(bad, HEAD - 8, 0);
            memcpy(bad + HEAD - 8, &sum, 8);
            put_file(bad, n);
            damaged(s, true);
        }
    int32_t tokens[] = {-1, 269, INT32_MIN, INT32_MAX};
    for (int i = 0; i < 4; i++) { /* ids[5] */
        memcpy(bad, good, n);
        memcpy(bad + HEAD + 20, &tokens[i], 4);
        size_t ids = N * 4, logits = 269 * 4, stream = (n - HEAD - ids - logits - 8) / 4;
        uint64_t sum;
        memcpy(&sum, bad + HEAD - 8, 8);
        const uint8_t *at = bad + HEAD;
        for (int k = 0; k < 6; k++) { /* the arrays of the file: two heads of one layer */
            size_t size = k == 0 ? ids : k == 1 ? logits : stream;
            sum = hash_bytes(at, size, sum);
            at += size;
        }
        memcpy(bad + n - 8, &sum, 8);
        put_file(bad, n);
        damaged(s, false);
        memcpy(bad + HEAD + 20, good + HEAD + 20, 4);
    }
    qwen3_session_free(s);
    qwen3_model_close(m);
}

/* ---- disks that fail ------------------------------------------------------------------- */

/* What was there stays, whichever write fails or is the last of the process. */
static void keeps_what_was_there(void) {
    static const int errors[] = {ENOSPC, EIO, 0};
    qwen3_model *m = open_model(tiny);
    qwen3_session *s = new_session(m, N_CTX, QWEN3_KV_F16), *to = new_session(m, N_CTX, QWEN3_KV_F16);
    sync_to(s, 1, N);
    expect(qwen3_session_save(s, path, &err) == QWEN3_OK, "the first is saved");
    sync_to(s, 2, N + 3);
    for (int e = 0; e < 3; e++) {
        bool ended = false;
        for (int k = 1; !ended; k++) {
            pid_t child = errors[e] ? 0 : fork();
            if (child == 0) {
                disk.fault = k;
                disk.error = errors[e];
                ended = qwen3_session_save(s, path, &err) == QWEN3_OK;
                if (!errors[e]) _exit(1);
            } else {
                int status = 0;
                expect(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status), "forks");
                ended = WEXITSTATUS(status) == 1;
            }
            expect(ended || !errors[e] ||
                   (err.status == QWEN3_ERR_IO && strstr(err.text, path) &&
                    !strstr(err.text, "free some") == (errors[e] != ENOSPC)), "a clear error");
            expect(!errors[e] || access(part, F_OK) != 0, "which leaves nothing");
            expect(qwen3_session_load(to, path, &err) == QWEN3_OK, "a file is there, whole");
            size_t n = qwen3_session_len(to);
            expect(n == (ended ? N + 3 : N) || (!errors[e] && n == N + 3), "the old or the new");
            if (ended) expect(k > 10, "there are many writes");
        }
        disk.fault = 0;
        sync_to(to, 1, N);
        expect(qwen3_session_save(to, path, &err) == QWEN3_OK, "over what a kill has left");
    }
    qwen3_session_free(to);
    qwen3_session_free(s);
    qwen3_model_close(m);
}

static void cannot_save(void) {
    qwen3_model *m = open_model(tiny);
    qwen3_session *s = new_session(m, N_CTX, QWEN3_KV_F16);
    expect(qwen3_session_save(s, "/nowhere/at/all", &err) == QWEN3_ERR_IO &&
           strstr(err.text, "/nowhere/at/"), "no such folder");
    expect(qwen3_session_save(s, folder, &err) == QWEN3_ERR_IO && strstr(err.text, folder),
           "a folder has the name");
    int fd = open(part, O_WRONLY | O_CREAT, 0600);
    expect(fd >= 0 && flock(fd, LOCK_EX) == 0, "somebody else writes");
    expect(qwen3_session_save(s, path, &err) == QWEN3_ERR_IO && strstr(err.text, "somebody else"),
           "who is not disturbed");
    close(fd);
    expect(qwen3_session_save(s, path, &err) == QWEN3_OK, "when it is over, one can");
    qwen3_session_free(s);
    qwen3_model_close(m);
}

int main(void) {
    expect(mkdtemp(folder) != NULL, "a folder for the test");
    snprintf(path, sizeof path, "%s/kv", folder);
    snprintf(part, sizeof part, "%s/.kv.part", folder);
    static const qwen3_kv_type types[] = {QWEN3_KV_F16, QWEN3_KV_F32};
    for (int i = 0; i < 2; i++) {
        restores(types[i]);
        loads(types[i]);
    }
    refuses_snapshots();
    refuses_others();
    any_bit_and_any_end();
    hostile_figures();
    keeps_what_was_there();
    cannot_save();
    unlink(path);
    rmdir(folder);
    puts("snapshot: ok");
    return 0;
}
