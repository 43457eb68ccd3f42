/* saved.c - sessions in files; see snapshot.h.
 *
 * A file, little-endian: head; int32 ids[n]; float logits[n_vocab] if there are any; of every
 * stream of the cache the tiles that hold the n positions; a checksum of all that. Where a stream
 * lies in memory depends on the size of the context, what is in it does not.
 */
#include "snapshot.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"
#include "fingerprint.h"
#include "session.h"

enum { VERSION = 1 };

typedef struct {
    char magic[8];
    uint32_t version, kv_type; /* a ggml type number */
    uint32_t n_layers, n_kv_heads, head_dim, n_vocab;
    uint32_t n, has_logits;
    uint64_t model;    /* its fingerprint */
    uint64_t checksum; /* of the head up to here */
} head;
static_assert(sizeof(head) == 56, "no padding");

static const char magic[8] = {'q', 'w', 'e', 'n', '3', ' ', 'k', 'v'};

static uint64_t checksum_of(const head *h) { return hash_bytes(h, offsetof(head, checksum), 0); }

static head head_of(const qwen3_session *s) {
    const kv_cache *kv = &s->kv;
    head h = {.version = VERSION, .kv_type = kv->type,
              .n_layers = (uint32_t)s->model->config.n_layers,
              .n_kv_heads = (uint32_t)kv->n_kv_heads, .head_dim = (uint32_t)kv->head_dim,
              .n_vocab = (uint32_t)s->model->config.n_vocab, .n = (uint32_t)s->n,
              .has_logits = s->has_logits, .model = model_fingerprint(s->model)};
    memcpy(h.magic, magic, sizeof magic);
    h.checksum = checksum_of(&h);
    return h;
}

/* ---- what a file holds -------------------------------------------------------------- */

/* PIECE bytes are moved and hashed at a time: they are in the cache when they are hashed. */
enum { PIECE = 1 << 18 };

typedef struct {
    int fd;
    const char *path;
    uint64_t checksum; /* of what was moved */
    bool reads;        /* else it is written */
} file;

typedef qwen3_status mover(file *, void *bytes, size_t n, qwen3_error *err);

static size_t stream_bytes(const kv_cache *kv, size_t n) {
    return (n + KV_TILE - 1) / KV_TILE * kv_tile_bytes(kv->type, kv->head_dim);
}

static uint64_t file_bytes(const qwen3_session *s, const head *h) {
    return sizeof *h + h->n * sizeof *s->ids + (h->has_logits ? h->n_vocab * sizeof *s->logits : 0) +
           session_n_streams(s) * stream_bytes(&s->kv, h->n) + sizeof(uint64_t);
}

/* A stream that a device has, by way of the host's memory. */
static qwen3_status move_from_device(const qwen3_session *s, size_t stream, size_t n, file *f,
                                     mover *move, qwen3_error *err) {
    qwen3_status status = QWEN3_OK;
    uint8_t *bytes = malloc(PIECE);
    if (!bytes) return fail(err, QWEN3_ERR_MEMORY, "out of memory");
    for (size_t done = 0; status == QWEN3_OK && done < n; done += PIECE) {
        size_t piece = n - done < PIECE ? n - done : PIECE;
        if (!f->reads) status = session_read_stream(s, stream, done, bytes, piece, err);
        if (status == QWEN3_OK) status = move(f, bytes, piece, err);
        if (status == QWEN3_OK && f->reads)
            status = session_write_stream(s, stream, done, bytes, piece, err);
    }
    free(bytes);
    return status;
}

/* Everything between the head and the last checksum, one way or the other. */
static qwen3_status move_session(const qwen3_session *s, const head *h, file *f, mover *move,
                                 qwen3_error *err) {
    size_t n = stream_bytes(&s->kv, h->n);
    qwen3_status status = move(f, s->ids, h->n * sizeof *s->ids, err);
    if (status == QWEN3_OK && h->has_logits)
        status = move(f, s->logits, h->n_vocab * sizeof *s->logits, err);
    for (size_t i = 0; status == QWEN3_OK && i < session_n_streams(s); i++) {
        uint8_t *here = session_stream(s, i);
        status = here ? move(f, here, n, err) : move_from_device(s, i, n, f, move, err);
    }
    return status;
}

/* ---- writing --------------------------------------------------------------------------- */

static qwen3_status cannot_write(const char *path, qwen3_error *err) {
    bool full = errno == ENOSPC || errno == EDQUOT;
    return fail(err, QWEN3_ERR_IO, "cannot write %s: %s%s", path, strerror(errno),
                full ? "; free some space" : "");
}

static qwen3_status put(file *f, const void *bytes, size_t n, qwen3_error *err) {
    for (size_t done = 0; done < n;) {
        ssize_t written = write(f->fd, (const uint8_t *)bytes + done, n - done);
        if (written < 0 && errno != EINTR) return cannot_write(f->path, err);
        if (written > 0) done += (size_t)written;
    }
    return QWEN3_OK;
}

static qwen3_status write_bytes(file *f, void *bytes, size_t n, qwen3_error *err) {
    qwen3_status status = QWEN3_OK;
    for (size_t done = 0; status == QWEN3_OK && done < n; done += PIECE) {
        size_t piece = n - done < PIECE ? n - done : PIECE;
        f->checksum = hash_bytes((uint8_t *)bytes + done, piece, f->checksum);
        status = put(f, (uint8_t *)bytes + done, piece, err);
    }
    return status;
}

/* Opens the empty file `part`, which no other process may write at the same time: it is locked.
 * Who waited for it while it got its name would hold a saved session, and tries again. */
static qwen3_status create(file *f, const char *part, qwen3_error *err) {
    struct stat ours, named;
    for (;;) {
        f->fd = open(part, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
        if (f->fd < 0) return cannot_write(part, err);
        if (flock(f->fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
            close(f->fd);
            return fail(err, QWEN3_ERR_IO, "cannot write %s: somebody else does", part);
        }
        if (fstat(f->fd, &ours) == 0 && stat(part, &named) == 0 && ours.st_ino == named.st_ino &&
            ours.st_dev == named.st_dev)
            break;
        close(f->fd);
    }
    if (ftruncate(f->fd, 0) == 0 && fchmod(f->fd, 0600) == 0) return QWEN3_OK;
    qwen3_status status = cannot_write(part, err);
    close(f->fd);
    return status;
}

/* A name is on the disk when its folder is. Systems that do not sync folders do it anyway. */
static void sync_folder(char *path) {
    char *slash = strrchr(path, '/');
    if (slash) slash[slash == path] = '\0';
    int fd = open(slash ? path : ".", O_RDONLY | O_CLOEXEC | O_DIRECTORY);
    if (fd < 0) return;
    (void)fsync(fd);
    close(fd);
}

static qwen3_status write_session(const qwen3_session *s, file *f, qwen3_error *err) {
    head h = head_of(s);
    f->checksum = h.checksum;
    qwen3_status status = session_fetch_logits(s, err);
    if (status == QWEN3_OK) status = put(f, &h, sizeof h, err);
    if (status == QWEN3_OK) status = move_session(s, &h, f, write_bytes, err);
    if (status == QWEN3_OK) status = put(f, &f->checksum, sizeof f->checksum, err);
    if (status == QWEN3_OK && fsync(f->fd) != 0) status = cannot_write(f->path, err);
    return status;
}

qwen3_status qwen3_session_save(const qwen3_session *s, const char *path, qwen3_error *err) {
    const char *slash = strrchr(path, '/');
    int folder = slash ? (int)(slash - path) + 1 : 0;
    size_t size = strlen(path) + sizeof "..part";
    char *part = malloc(size);
    if (!part) return fail(err, QWEN3_ERR_MEMORY, "out of memory");
    snprintf(part, size, "%.*s.%s.part", folder, path, path + folder);
    file f = {.path = path};
    qwen3_status status = create(&f, part, err);
    if (status == QWEN3_OK) {
        status = write_session(s, &f, err);
        if (status == QWEN3_OK && rename(part, path) != 0) status = cannot_write(path, err);
        if (status == QWEN3_OK)
            sync_folder(part);
        else
            unlink(part);
        close(f.fd); /* and unlocks */
    }
    free(part);
    return status;
}

/* ---- reading ----------------------------------------------------------------------------- */

static qwen3_status damaged(qwen3_error *err) {
    return fail(err, QWEN3_ERR_FORMAT, "the saved session is cut or damaged: remove it");
}

static qwen3_status take(file *f, void *bytes, size_t n, qwen3_error *err) {
    for (size_t done = 0; done < n;) {
        ssize_t got = read(f->fd, (uint8_t *)bytes + done, n - done);
        if (got < 0 && errno != EINTR)
            return fail(err, QWEN3_ERR_IO, "cannot read %s: %s", f->path, strerror(errno));
        if (got == 0) return damaged(err);
        if (got > 0) done += (size_t)got;
    }
    return QWEN3_OK;
}

/* Memory that was never touched comes a piece at a time instead of a page: a fifth of the time of a
 * load. Where the system does not know that, it comes as ever. */
static void touch(uint8_t *to, size_t n) {
#ifdef MADV_POPULATE_WRITE
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = (uintptr_t)to & ~(page - 1);
    (void)madvise((void *)first, (uintptr_t)to + n - first, MADV_POPULATE_WRITE);
#else
    (void)to, (void)n;
#endif
}

static qwen3_status read_bytes(file *f, void *bytes, size_t n, qwen3_error *err) {
    qwen3_status status = QWEN3_OK;
    for (size_t done = 0; status == QWEN3_OK && done < n; done += PIECE) {
        size_t piece = n - done < PIECE ? n - done : PIECE;
        touch((uint8_t *)bytes + done, piece);
        status = take(f, (uint8_t *)bytes + done, piece, err);
        if (status == QWEN3_OK)
            f->checksum = hash_bytes((uint8_t *)bytes + done, piece, f->checksum);
    }
    return status;
}

static const char *kv_name(uint32_t type) {
    return type == TYPE_F16 ? "f16" : type == TYPE_F32 ? "f32" : type == TYPE_Q8_0 ? "q8" : "?";
}

/* Whether the session can hold what the head announces and the file can be that: behind it every
 * size is the session's own. */
static qwen3_status check_head(const qwen3_session *s, const head *h, uint64_t size,
                               qwen3_error *err) {
    head want = head_of(s);
    if (memcmp(h->magic, magic, sizeof magic) != 0)
        return fail(err, QWEN3_ERR_FORMAT, "this is no saved session");
    if (h->version != VERSION)
        return fail(err, QWEN3_ERR_UNSUPPORTED,
                    "the session was saved in version %u of the format, this program reads "
                    "version %d: remove it", h->version, VERSION);
    if (h->checksum != checksum_of(h)) return damaged(err);
    if (h->n_layers != want.n_layers || h->n_kv_heads != want.n_kv_heads ||
        h->head_dim != want.head_dim || h->n_vocab != want.n_vocab)
        return fail(err, QWEN3_ERR_ARG,
                    "the session was saved with another model, of %u layers, %u heads of %u and "
                    "%u tokens; this one has %u, %u of %u and %u", h->n_layers, h->n_kv_heads,
                    h->head_dim, h->n_vocab, want.n_layers, want.n_kv_heads, want.head_dim,
                    want.n_vocab);
    if (h->model != want.model)
        return fail(err, QWEN3_ERR_ARG,
                    "the session was saved with another model, which has the same shape but "
                    "other weights or another quantization");
    if (h->kv_type != want.kv_type)
        return fail(err, QWEN3_ERR_ARG,
                    "the session was saved with a kv cache of type %s, this one has %s: use the "
                    "same", kv_name(h->kv_type), kv_name(want.kv_type));
    if (h->n > s->n_ctx)
        return fail(err, QWEN3_ERR_CONTEXT,
                    "the %u tokens of the saved session do not fit the context of %zu: %zu too "
                    "many", h->n, s->n_ctx, h->n - s->n_ctx);
    if (h->has_logits > 1 || h->has_logits > h->n || size != file_bytes(s, h)) return damaged(err);
    return QWEN3_OK;
}

static qwen3_status read_session(qwen3_session *s, const head *h, file *f, qwen3_error *err) {
    uint64_t checksum;
    f->checksum = h->checksum;
    f->reads = true;
    s->n = 0; /* until all of it has come */
    s->has_logits = false;
    qwen3_status status = move_session(s, h, f, read_bytes, err);
    if (status == QWEN3_OK) status = take(f, &checksum, sizeof checksum, err);
    if (status != QWEN3_OK) return status;
    if (checksum != f->checksum) return damaged(err);
    for (size_t i = 0; i < h->n; i++)
        if (s->ids[i] < 0 || (uint32_t)s->ids[i] >= h->n_vocab) return damaged(err);
    s->n = h->n;
    session_has_logits(s, h->has_logits);
    return QWEN3_OK;
}

qwen3_status qwen3_session_load(qwen3_session *s, const char *path, qwen3_error *err) {
    struct stat st;
    head h;
    file f = {.fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), .path = path};
    if (f.fd < 0 || fstat(f.fd, &st) != 0) {
        fail(err, QWEN3_ERR_IO, "cannot read %s: %s", path, strerror(errno));
        if (f.fd >= 0) close(f.fd);
        return QWEN3_ERR_IO;
    }
    qwen3_status status = QWEN3_OK;
    if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size < sizeof h)
        status = fail(err, QWEN3_ERR_FORMAT, "this is no saved session");
    if (status == QWEN3_OK) status = take(&f, &h, sizeof h, err);
    if (status == QWEN3_OK) status = check_head(s, &h, (uint64_t)st.st_size, err);
    if (status == QWEN3_OK) status = read_session(s, &h, &f, err);
    close(f.fd);
    return status;
}
