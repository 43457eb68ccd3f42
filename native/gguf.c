/* gguf.c - reads GGUF v2 and v3 over a memory mapping.
 *
 * Nothing in the file is trusted: a bounded cursor walks it once, every count is
 * checked against the bytes that are left before it is used, and every extent is
 * inside the mapping when open returns. Format: the GGUF specification of the ggml
 * project; all integers are little-endian.
 */
#include "gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "codec.h"
#include "error.h"

struct qwen3_file {
    const uint8_t *base;
    size_t size;
    bool mapped;
    uint32_t version;
    size_t n_kv, n_tensors;
    qwen3_kv *kv;
    qwen3_tensor *tensors;
    const qwen3_kv **kv_by_name; /* sorted, for look-ups and duplicates */
    const qwen3_tensor **tensor_by_name;
    char *path;          /* NULL for an image in memory */
    qwen3_file **shards; /* the other files of a split model: their mappings hold the tensors */
    size_t n_shards;
};

enum { MIN_KV_BYTES = 8 + 4 + 1, MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8, MAX_NAME = 65535 };

/* ---- bounded cursor ------------------------------------------------------- */

typedef struct {
    const uint8_t *p, *end;
} cursor;

static size_t left(const cursor *c) { return (size_t)(c->end - c->p); }

static bool take(cursor *c, void *out, size_t n) {
    if (left(c) < n) return false;
    memcpy(out, c->p, n);
    c->p += n;
    return true;
}

static bool take_string(cursor *c, qwen3_str *out) {
    if (!take(c, &out->len, 8) || out->len > left(c)) return false;
    out->data = (const char *)c->p;
    c->p += out->len;
    return true;
}

static size_t scalar_size(uint32_t type) {
    static const uint8_t size[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < sizeof size ? size[type] : 0;
}

/* Moves past count values of one type; false when they do not fit. */
static bool skip_values(cursor *c, uint32_t type, uint64_t count) {
    if (type == QWEN3_STRING) {
        if (count > left(c) / 8) return false;
        qwen3_str s;
        while (count--)
            if (!take_string(c, &s)) return false;
        return true;
    }
    size_t size = scalar_size(type);
    if (size == 0 || count > left(c) / size) return false;
    c->p += count * size;
    return true;
}

/* ---- names ---------------------------------------------------------------- */

bool str_equals(qwen3_str s, const char *text) {
    size_t n = strlen(text);
    return s.len == n && memcmp(s.data, text, n) == 0;
}

static int str_order(qwen3_str a, qwen3_str b) {
    size_t n = a.len < b.len ? a.len : b.len;
    int order = n ? memcmp(a.data, b.data, n) : 0;
    return order ? order : (a.len > b.len) - (a.len < b.len);
}

static int kv_order(const void *a, const void *b) {
    return str_order((*(const qwen3_kv *const *)a)->key, (*(const qwen3_kv *const *)b)->key);
}

static int tensor_order(const void *a, const void *b) {
    return str_order((*(const qwen3_tensor *const *)a)->name,
                     (*(const qwen3_tensor *const *)b)->name);
}

static int extent_order(const void *a, const void *b) {
    const qwen3_tensor *x = *(const qwen3_tensor *const *)a, *y = *(const qwen3_tensor *const *)b;
    return (x->data > y->data) - (x->data < y->data);
}

const qwen3_kv *gguf_find(const qwen3_file *f, const char *key) {
    qwen3_kv wanted = {.key = {key, strlen(key)}};
    const qwen3_kv *p = &wanted;
    const qwen3_kv **hit =
        f->n_kv ? bsearch(&p, f->kv_by_name, f->n_kv, sizeof *f->kv_by_name, kv_order) : NULL;
    return hit ? *hit : NULL;
}

const qwen3_tensor *gguf_find_tensor(const qwen3_file *f, const char *name) {
    qwen3_tensor wanted = {.name = {name, strlen(name)}};
    const qwen3_tensor *p = &wanted;
    const qwen3_tensor **hit = f->n_tensors ? bsearch(&p, f->tensor_by_name, f->n_tensors,
                                                      sizeof *f->tensor_by_name, tensor_order)
                                            : NULL;
    return hit ? *hit : NULL;
}

/* ---- values --------------------------------------------------------------- */

bool kv_to_u64(const qwen3_kv *kv, uint64_t *out) {
    union { uint8_t u8; int8_t i8; uint16_t u16; int16_t i16; uint32_t u32; int32_t i32;
            uint64_t u64; int64_t i64; } v;
    int64_t i;
    if (kv->type == QWEN3_BOOL || kv->type == QWEN3_F32 || kv->type == QWEN3_F64) return false;
    if (scalar_size(kv->type) == 0) return false;
    memcpy(&v, kv->data, scalar_size(kv->type));
    switch (kv->type) {
    case QWEN3_U8: *out = v.u8; return true;
    case QWEN3_U16: *out = v.u16; return true;
    case QWEN3_U32: *out = v.u32; return true;
    case QWEN3_U64: *out = v.u64; return true;
    case QWEN3_I8: i = v.i8; break;
    case QWEN3_I16: i = v.i16; break;
    case QWEN3_I32: i = v.i32; break;
    default: i = v.i64; break;
    }
    *out = (uint64_t)i;
    return i >= 0;
}

bool kv_to_f64(const qwen3_kv *kv, double *out) {
    uint64_t u;
    float f;
    if (kv->type == QWEN3_F32) {
        memcpy(&f, kv->data, sizeof f);
        *out = (double)f;
    } else if (kv->type == QWEN3_F64) {
        memcpy(out, kv->data, sizeof *out);
    } else {
        if (!kv_to_u64(kv, &u)) return false;
        *out = (double)u;
    }
    return true;
}

bool kv_to_bool(const qwen3_kv *kv, bool *out) {
    if (kv->type != QWEN3_BOOL) return false;
    *out = *kv->data != 0;
    return true;
}

bool kv_to_str(const qwen3_kv *kv, qwen3_str *out) {
    if (kv->type != QWEN3_STRING) return false;
    const uint8_t *at = kv->data;
    *out = qwen3_next_string(&at);
    return true;
}

bool kv_equals(const qwen3_kv *a, const qwen3_kv *b) {
    if (a->type != b->type || a->item_type != b->item_type || a->count != b->count) return false;
    if (a->item_type != QWEN3_STRING)
        return memcmp(a->data, b->data, a->count * scalar_size(a->item_type)) == 0;
    const uint8_t *x = a->data, *y = b->data;
    for (uint64_t i = 0; i < a->count; i++)
        if (str_order(qwen3_next_string(&x), qwen3_next_string(&y)) != 0) return false;
    return true;
}

qwen3_str qwen3_next_string(const uint8_t **at) {
    qwen3_str s;
    memcpy(&s.len, *at, 8);
    s.data = (const char *)*at + 8;
    *at += 8 + s.len;
    return s;
}

/* ---- parsing -------------------------------------------------------------- */

static qwen3_status read_kv(cursor *c, qwen3_kv *kv, size_t index, qwen3_error *err) {
    if (!take_string(c, &kv->key))
        return fail(err, QWEN3_ERR_FORMAT, "the file ends inside metadata key %zu", index);
    if (kv->key.len == 0 || kv->key.len > MAX_NAME)
        return fail(err, QWEN3_ERR_FORMAT, "metadata key %zu has a length of %llu bytes", index,
                    (unsigned long long)kv->key.len);
    if (!take(c, &kv->type, 4))
        return fail(err, QWEN3_ERR_FORMAT, "the file ends inside metadata '%.*s'",
                    STR_ARG(kv->key));
    kv->item_type = kv->type;
    kv->count = 1;
    if (kv->type == QWEN3_ARRAY) {
        if (!take(c, &kv->item_type, 4) || !take(c, &kv->count, 8))
            return fail(err, QWEN3_ERR_FORMAT, "the file ends inside metadata '%.*s'",
                        STR_ARG(kv->key));
        if (kv->item_type == QWEN3_ARRAY)
            return fail(err, QWEN3_ERR_UNSUPPORTED, "metadata '%.*s' is an array of arrays",
                        STR_ARG(kv->key));
    }
    if (kv->item_type > QWEN3_F64)
        return fail(err, QWEN3_ERR_FORMAT, "metadata '%.*s' has the unknown value type %u",
                    STR_ARG(kv->key), kv->item_type);
    kv->data = c->p;
    if (!skip_values(c, kv->item_type, kv->count))
        return fail(err, QWEN3_ERR_FORMAT, "metadata '%.*s' runs past the end of the file",
                    STR_ARG(kv->key));
    return QWEN3_OK;
}

/* Leaves the tensor's offset in the data section in *offset. */
static qwen3_status read_tensor(cursor *c, qwen3_tensor *t, uint64_t *offset, size_t index,
                                qwen3_error *err) {
    if (!take_string(c, &t->name))
        return fail(err, QWEN3_ERR_FORMAT, "the file ends inside the name of tensor %zu", index);
    if (t->name.len == 0 || t->name.len > MAX_NAME)
        return fail(err, QWEN3_ERR_FORMAT, "the name of tensor %zu has %llu bytes", index,
                    (unsigned long long)t->name.len);
    if (!take(c, &t->n_dims, 4))
        return fail(err, QWEN3_ERR_FORMAT, "the file ends inside tensor '%.*s'", STR_ARG(t->name));
    if (t->n_dims < 1 || t->n_dims > 4)
        return fail(err, QWEN3_ERR_FORMAT, "tensor '%.*s' has %u dimensions", STR_ARG(t->name),
                    t->n_dims);
    uint64_t rows = 1;
    for (uint32_t d = 0; d < 4; d++) {
        t->shape[d] = 1;
        if (d < t->n_dims && !take(c, &t->shape[d], 8))
            return fail(err, QWEN3_ERR_FORMAT, "the file ends inside tensor '%.*s'",
                        STR_ARG(t->name));
        if (t->shape[d] == 0 || t->shape[d] > INT32_MAX)
            return fail(err, QWEN3_ERR_FORMAT, "tensor '%.*s' has a dimension of %llu",
                        STR_ARG(t->name), (unsigned long long)t->shape[d]);
        if (d > 0 && __builtin_mul_overflow(rows, t->shape[d], &rows))
            return fail(err, QWEN3_ERR_FORMAT, "the shape of tensor '%.*s' overflows",
                        STR_ARG(t->name));
    }
    if (!take(c, &t->type, 4) || !take(c, offset, 8))
        return fail(err, QWEN3_ERR_FORMAT, "the file ends inside tensor '%.*s'", STR_ARG(t->name));
    t->bytes = 0; /* stays 0 for a type we do not know: such a file can be listed, not run */
    const weight_type *type = weight_type_of(t->type);
    if (!type) return QWEN3_OK;
    if (t->shape[0] % (uint64_t)type->block)
        return fail(err, QWEN3_ERR_FORMAT,
                    "rows of tensor '%.*s' have %llu values, not whole %s blocks of %d",
                    STR_ARG(t->name), (unsigned long long)t->shape[0], type->name, type->block);
    uint64_t row_bytes = t->shape[0] / (uint64_t)type->block * (uint64_t)type->bytes;
    if (__builtin_mul_overflow(rows, row_bytes, &t->bytes))
        return fail(err, QWEN3_ERR_FORMAT, "the size of tensor '%.*s' overflows",
                    STR_ARG(t->name));
    return QWEN3_OK;
}

/* Both sort the names and refuse one that stands twice. */
static qwen3_status index_kv(qwen3_file *f, qwen3_error *err) {
    f->kv_by_name = calloc(f->n_kv + 1, sizeof *f->kv_by_name);
    if (!f->kv_by_name) return fail(err, QWEN3_ERR_MEMORY, "out of memory for the file's index");
    for (size_t i = 0; i < f->n_kv; i++) f->kv_by_name[i] = &f->kv[i];
    qsort(f->kv_by_name, f->n_kv, sizeof *f->kv_by_name, kv_order);
    for (size_t i = 1; i < f->n_kv; i++)
        if (kv_order(&f->kv_by_name[i - 1], &f->kv_by_name[i]) == 0)
            return fail(err, QWEN3_ERR_FORMAT, "metadata '%.*s' stands twice",
                        STR_ARG(f->kv_by_name[i]->key));
    return QWEN3_OK;
}

static qwen3_status index_tensors(qwen3_file *f, qwen3_error *err) {
    free(f->tensor_by_name);
    f->tensor_by_name = calloc(f->n_tensors + 1, sizeof *f->tensor_by_name);
    if (!f->tensor_by_name)
        return fail(err, QWEN3_ERR_MEMORY, "out of memory for the file's index");
    for (size_t i = 0; i < f->n_tensors; i++) f->tensor_by_name[i] = &f->tensors[i];
    qsort(f->tensor_by_name, f->n_tensors, sizeof *f->tensor_by_name, tensor_order);
    for (size_t i = 1; i < f->n_tensors; i++)
        if (tensor_order(&f->tensor_by_name[i - 1], &f->tensor_by_name[i]) == 0)
            return fail(err, QWEN3_ERR_FORMAT, "tensor '%.*s' stands twice",
                        STR_ARG(f->tensor_by_name[i]->name));
    return QWEN3_OK;
}

/* Checks that every tensor lies inside the data section and none overlaps another;
 * offsets[i] becomes tensors[i].data. */
static qwen3_status place_tensors(qwen3_file *f, const cursor *c, const uint64_t *offsets,
                                  qwen3_error *err) {
    uint64_t alignment = 32;
    const qwen3_kv *kv = gguf_find(f, "general.alignment");
    if (kv && (!kv_to_u64(kv, &alignment) || alignment == 0 || alignment % 8 ||
               alignment > 1u << 20))
        return fail(err, QWEN3_ERR_FORMAT,
                    "general.alignment must be a multiple of 8 up to 1048576");
    size_t used = (size_t)(c->p - f->base);
    size_t start = (size_t)((used + alignment - 1) / alignment * alignment);
    if (start > f->size) start = f->size; /* only tensors need the padding */
    for (size_t i = 0; i < f->n_tensors; i++) {
        qwen3_tensor *t = &f->tensors[i];
        if (offsets[i] % alignment)
            return fail(err, QWEN3_ERR_FORMAT, "tensor '%.*s' starts at an unaligned offset",
                        STR_ARG(t->name));
        if (offsets[i] > f->size - start || t->bytes > f->size - start - offsets[i])
            return fail(err, QWEN3_ERR_FORMAT,
                        "tensor '%.*s' lies outside the file: it is truncated or damaged, "
                        "fetch it again",
                        STR_ARG(t->name));
        t->offset = start + offsets[i];
        t->data = f->base + t->offset;
    }
    const qwen3_tensor **by_extent = malloc((f->n_tensors + 1) * sizeof *by_extent);
    if (!by_extent) return fail(err, QWEN3_ERR_MEMORY, "out of memory for the file's index");
    for (size_t i = 0; i < f->n_tensors; i++) by_extent[i] = &f->tensors[i];
    qsort(by_extent, f->n_tensors, sizeof *by_extent, extent_order);
    qwen3_status status = QWEN3_OK;
    for (size_t i = 1; i < f->n_tensors && status == QWEN3_OK; i++)
        if (by_extent[i]->data < by_extent[i - 1]->data + by_extent[i - 1]->bytes)
            status = fail(err, QWEN3_ERR_FORMAT, "tensors '%.*s' and '%.*s' overlap",
                          STR_ARG(by_extent[i - 1]->name), STR_ARG(by_extent[i]->name));
    free(by_extent);
    return status;
}

static qwen3_status parse(qwen3_file *f, qwen3_error *err) {
    cursor c = {f->base, f->base + f->size};
    char magic[4];
    uint64_t n_tensors, n_kv;
    if (!take(&c, magic, 4) || memcmp(magic, "GGUF", 4) != 0)
        return fail(err, QWEN3_ERR_FORMAT, "not a GGUF file: it does not start with 'GGUF'");
    if (!take(&c, &f->version, 4))
        return fail(err, QWEN3_ERR_FORMAT, "the file ends inside its header");
    if (f->version != 2 && f->version != 3)
        return fail(err, QWEN3_ERR_UNSUPPORTED,
                    "GGUF version %u: this program reads versions 2 and 3, little-endian",
                    f->version);
    if (!take(&c, &n_tensors, 8) || !take(&c, &n_kv, 8))
        return fail(err, QWEN3_ERR_FORMAT, "the file ends inside its header");
    if (n_kv > left(&c) / MIN_KV_BYTES || n_tensors > left(&c) / MIN_TENSOR_BYTES)
        return fail(err, QWEN3_ERR_FORMAT,
                    "the header announces %llu metadata values and %llu tensors, more than the "
                    "file's %zu bytes can hold: it is truncated or damaged",
                    (unsigned long long)n_kv, (unsigned long long)n_tensors, f->size);
    f->kv = calloc(n_kv + 1, sizeof *f->kv);
    f->tensors = calloc(n_tensors + 1, sizeof *f->tensors);
    uint64_t *offsets = calloc(n_tensors + 1, sizeof *offsets);
    qwen3_status status = QWEN3_OK;
    if (!f->kv || !f->tensors || !offsets)
        status = fail(err, QWEN3_ERR_MEMORY, "out of memory for the file's index");
    for (; status == QWEN3_OK && f->n_kv < n_kv; f->n_kv++)
        status = read_kv(&c, &f->kv[f->n_kv], f->n_kv, err);
    for (; status == QWEN3_OK && f->n_tensors < n_tensors; f->n_tensors++)
        status = read_tensor(&c, &f->tensors[f->n_tensors], &offsets[f->n_tensors], f->n_tensors,
                             err);
    if (status == QWEN3_OK) status = index_kv(f, err);
    if (status == QWEN3_OK) status = index_tensors(f, err);
    if (status == QWEN3_OK) status = place_tensors(f, &c, offsets, err);
    free(offsets);
    return status;
}

/* ---- files ---------------------------------------------------------------- */

static qwen3_file *open_image(const uint8_t *base, size_t size, bool mapped, qwen3_error *err) {
    qwen3_file *f = calloc(1, sizeof *f);
    if (!f) {
        fail(err, QWEN3_ERR_MEMORY, "out of memory");
        if (mapped) munmap((void *)base, size);
        return NULL;
    }
    f->base = base;
    f->size = size;
    f->mapped = mapped;
    if (parse(f, err) != QWEN3_OK) {
        qwen3_file_close(f);
        return NULL;
    }
    return f;
}

qwen3_file *gguf_open(const char *path, qwen3_error *err) {
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) != 0) {
        fail(err, QWEN3_ERR_IO, "cannot open %s: %s", path, strerror(errno));
        if (fd >= 0) close(fd);
        return NULL;
    }
    if (!S_ISREG(st.st_mode) || st.st_size == 0) {
        fail(err, QWEN3_ERR_FORMAT, "not a GGUF file: %s",
             S_ISREG(st.st_mode) ? "it is empty" : "it is not a regular file");
        close(fd);
        return NULL;
    }
    void *base = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    int mmap_errno = errno;
    close(fd);
    if (base == MAP_FAILED) {
        fail(err, QWEN3_ERR_IO, "cannot map %s: %s", path, strerror(mmap_errno));
        return NULL;
    }
    qwen3_file *f = open_image(base, (size_t)st.st_size, true, err);
    if (f && !(f->path = strdup(path))) {
        fail(err, QWEN3_ERR_MEMORY, "out of memory");
        qwen3_file_close(f);
        return NULL;
    }
    return f;
}

const char *gguf_path(const qwen3_file *f, uint32_t shard) {
    return shard ? f->shards[shard - 1]->path : f->path;
}

uint32_t gguf_n_shards(const qwen3_file *f) { return 1 + (uint32_t)f->n_shards; }

void gguf_forget(const qwen3_file *f) {
    if (f->mapped) madvise((void *)f->base, f->size, MADV_DONTNEED);
    for (size_t i = 0; i < f->n_shards; i++) gguf_forget(f->shards[i]);
}

qwen3_status gguf_append(qwen3_file *f, qwen3_file **shards, size_t n, qwen3_error *err) {
    f->shards = shards;
    f->n_shards = n;
    size_t total = f->n_tensors;
    for (size_t i = 0; i < n; i++) total += shards[i]->n_tensors;
    qwen3_tensor *all = realloc(f->tensors, (total + 1) * sizeof *all);
    if (!all) return fail(err, QWEN3_ERR_MEMORY, "out of memory for the table of tensors");
    f->tensors = all;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < shards[i]->n_tensors; j++) {
            all[f->n_tensors] = shards[i]->tensors[j];
            all[f->n_tensors++].shard = (uint32_t)i + 1;
        }
    return index_tensors(f, err);
}

/* ---- public --------------------------------------------------------------- */

qwen3_file *qwen3_file_from_memory(const void *data, size_t len, qwen3_error *err) {
    return open_image(data, len, false, err);
}

void qwen3_file_close(qwen3_file *f) {
    if (!f) return;
    for (size_t i = 0; i < f->n_shards; i++) qwen3_file_close(f->shards[i]);
    free(f->shards);
    if (f->mapped) munmap((void *)f->base, f->size);
    free(f->path);
    free(f->kv);
    free(f->tensors);
    free(f->kv_by_name);
    free(f->tensor_by_name);
    free(f);
}

uint32_t qwen3_file_version(const qwen3_file *f) { return f->version; }
size_t qwen3_file_n_kv(const qwen3_file *f) { return f->n_kv; }
const qwen3_kv *qwen3_file_kv(const qwen3_file *f, size_t i) {
    return i < f->n_kv ? &f->kv[i] : NULL;
}
size_t qwen3_file_n_tensors(const qwen3_file *f) { return f->n_tensors; }
const qwen3_tensor *qwen3_file_tensor(const qwen3_file *f, size_t i) {
    return i < f->n_tensors ? &f->tensors[i] : NULL;
}
