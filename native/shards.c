/* shards.c - opens a model, whole or split into several files.
 *
 * The ecosystem splits between tensors: each shard is a GGUF file with tensors of its own, and
 * the first one, NAME-00001-of-00003.gguf, holds the metadata. In all of them split.no counts
 * from 0, split.count is the number of files and split.tensors.count that of all tensors. No
 * shard is trusted more than a whole file: each is checked as one, then they are held together.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "gguf.h"

enum { MAX_SHARDS = 65535 }; /* split.count is a u16 */

static bool read_number(const qwen3_file *f, const char *key, uint64_t *out) {
    const qwen3_kv *kv = gguf_find(f, key);
    return kv && kv_to_u64(kv, out);
}

static const char *file_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Where in the path of shard no of count its "-00001-of-00003.gguf" begins; NULL when it is
 * called otherwise. */
static char *number_in(char *path, uint64_t no, uint64_t count) {
    char end[32];
    size_t len = strlen(path), n = (size_t)snprintf(end, sizeof end, "-%05u-of-%05u.gguf",
                                                    (unsigned)no + 1, (unsigned)count);
    return len > n && strcmp(path + len - n, end) == 0 ? path + len - n : NULL;
}

static void set_number(char *number, unsigned no) {
    char digits[6];
    snprintf(digits, sizeof digits, "%05u", no + 1);
    memcpy(number + 1, digits, 5);
}

/* Whether this is shard no of the same model: no key may say otherwise. */
static qwen3_status check_shard(const qwen3_file *first, const qwen3_file *shard, uint64_t no,
                                const char *name, qwen3_error *err) {
    uint64_t found;
    if (!gguf_find(shard, "split.count") || !read_number(shard, "split.no", &found))
        return fail(err, QWEN3_ERR_FORMAT, "%s is not a part of a split model", name);
    if (found != no)
        return fail(err, QWEN3_ERR_FORMAT, "%s is part %llu of its model, not part %llu", name,
                    (unsigned long long)found + 1, (unsigned long long)no + 1);
    for (size_t i = 0; i < qwen3_file_n_kv(shard); i++) {
        const qwen3_kv *kv = qwen3_file_kv(shard, i);
        char key[128];
        if (str_equals(kv->key, "split.no") || kv->key.len >= sizeof key) continue;
        snprintf(key, sizeof key, "%.*s", (int)kv->key.len, kv->key.data);
        const qwen3_kv *same = gguf_find(first, key);
        if (same && !kv_equals(kv, same))
            return fail(err, QWEN3_ERR_FORMAT,
                        "%s is a part of another model: its '%s' is not that of the first file",
                        name, key);
    }
    return QWEN3_OK;
}

/* The path becomes that of each shard in turn. */
static qwen3_status open_others(qwen3_file *first, char *path, char *number, uint64_t count,
                                qwen3_error *err) {
    qwen3_file **shards = calloc(count - 1, sizeof *shards);
    if (!shards) return fail(err, QWEN3_ERR_MEMORY, "out of memory");
    const char *name = file_name(path);
    size_t n = 0;
    qwen3_status status = QWEN3_OK;
    while (status == QWEN3_OK && n + 1 < count) {
        qwen3_error why;
        set_number(number, (unsigned)n + 1);
        qwen3_file *shard = gguf_open(path, &why);
        if (!shard) {
            status = why.status == QWEN3_ERR_IO
                         ? fail(err, why.status, "%s; the model needs all its %llu files, in "
                                "one folder", why.text, (unsigned long long)count)
                         : fail(err, why.status, "%s: %s", name, why.text);
            break;
        }
        shards[n++] = shard;
        status = check_shard(first, shard, n, name, err);
    }
    qwen3_status appended = gguf_append(first, shards, n, status == QWEN3_OK ? err : NULL);
    return status == QWEN3_OK ? appended : status;
}

static qwen3_status open_split(qwen3_file *first, char *path, qwen3_error *err) {
    uint64_t no, count, n_tensors;
    if (!read_number(first, "split.count", &count) || count > MAX_SHARDS)
        return fail(err, QWEN3_ERR_FORMAT, "metadata 'split.count' is not a number of files");
    if (count < 2) return QWEN3_OK;
    if (!read_number(first, "split.no", &no) || no >= count)
        return fail(err, QWEN3_ERR_FORMAT, "metadata 'split.no' is not the number of one of %llu "
                    "files", (unsigned long long)count);
    if (!read_number(first, "split.tensors.count", &n_tensors))
        return fail(err, QWEN3_ERR_FORMAT, "metadata 'split.tensors.count' is missing or no count");
    char *number = number_in(path, no, count);
    if (!number)
        return fail(err, QWEN3_ERR_FORMAT,
                    "part %llu of %llu of a split model: the other parts are found by its name, "
                    "which must end in -%05llu-of-%05llu.gguf",
                    (unsigned long long)no + 1, (unsigned long long)count,
                    (unsigned long long)no + 1, (unsigned long long)count);
    if (no > 0) {
        set_number(number, 0);
        return fail(err, QWEN3_ERR_ARG, "part %llu of %llu of a split model: open the first part, "
                    "%s", (unsigned long long)no + 1, (unsigned long long)count, file_name(path));
    }
    qwen3_status status = open_others(first, path, number, count, err);
    if (status == QWEN3_OK && n_tensors != qwen3_file_n_tensors(first))
        status = fail(err, QWEN3_ERR_FORMAT,
                      "the %llu files hold %zu tensors together, not %llu as they announce",
                      (unsigned long long)count, qwen3_file_n_tensors(first),
                      (unsigned long long)n_tensors);
    return status;
}

qwen3_file *qwen3_file_open(const char *path, qwen3_error *err) {
    qwen3_file *file = gguf_open(path, err);
    if (!file || !gguf_find(file, "split.count")) return file;
    char *copy = strdup(path);
    qwen3_status status = copy ? open_split(file, copy, err)
                               : fail(err, QWEN3_ERR_MEMORY, "out of memory");
    free(copy);
    if (status == QWEN3_OK) return file;
    qwen3_file_close(file);
    return NULL;
}
