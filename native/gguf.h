/* gguf.h - look-ups in an opened GGUF file, for the rest of the engine. */
#ifndef QWEN3_GGUF_H
#define QWEN3_GGUF_H

#include "qwen3.h"

/* NULL when the file has no such key or tensor. */
const qwen3_kv *gguf_find(const qwen3_file *, const char *key);
const qwen3_tensor *gguf_find_tensor(const qwen3_file *, const char *name);

/* False when the value is of another kind or does not fit. */
bool kv_to_u64(const qwen3_kv *, uint64_t *out);
bool kv_to_f64(const qwen3_kv *, double *out);
bool kv_to_bool(const qwen3_kv *, bool *out);
bool kv_to_str(const qwen3_kv *, qwen3_str *out);

bool str_equals(qwen3_str, const char *text);

/* One file as it is, a shard of a model or not. */
qwen3_file *gguf_open(const char *path, qwen3_error *err);
/* Appends the tensors of n more shards. They and their malloc-ed array belong to the file from
 * here on, also on failure; it fails when a name stands twice. */
qwen3_status gguf_append(qwen3_file *, qwen3_file **shards, size_t n, qwen3_error *err);
/* Where a file of the model lies (shard as in qwen3_tensor), NULL for an image in memory. */
const char *gguf_path(const qwen3_file *, uint32_t shard);
uint32_t gguf_n_shards(const qwen3_file *);
/* Gives back the memory of all pages that were read; what is read again comes from the file. */
void gguf_forget(const qwen3_file *);
/* Whether two values are of one type and the same. */
bool kv_equals(const qwen3_kv *, const qwen3_kv *);

/* A name for messages: at most 80 bytes of it. Use as "%.*s", STR_ARG(s). */
#define STR_ARG(s) (int)((s).len < 80 ? (s).len : 80), (s).data

#endif
