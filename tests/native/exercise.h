/* exercise.h - does with a GGUF image or path all that the engine does with a file it was handed. */
#ifndef EXERCISE_H
#define EXERCISE_H

#include <stdlib.h>
#include <string.h>

#include "qwen3.h"

/* How far an image came. */
typedef enum { REFUSED, LISTED, OPENED, COMPUTED } progress;

static inline void exercise_tokenizer(const qwen3_file *file) {
    static const char text[] = "in the <|im_start|>\xc3\xa9t\xe2\x82\xac  1234 \xff<think>";
    qwen3_error err;
    qwen3_tokenizer *tokenizer = qwen3_tokenizer_new(file, &err);
    if (!tokenizer) return;
    for (int added = 0; added < 2; added++) {
        int32_t *ids = NULL;
        int64_t n = qwen3_encode(tokenizer, text, sizeof text - 1, added, &ids, &err);
        for (int64_t i = 0; i < n; i++)
            if (qwen3_token_bytes(tokenizer, ids[i]).len > 1 << 20) abort();
        qwen3_free(ids);
    }
    int32_t n = (int32_t)qwen3_tokenizer_n_tokens(tokenizer);
    for (int32_t id = -1; id <= n; id++) {
        qwen3_token_bytes(tokenizer, id);
        qwen3_token_kind(tokenizer, id);
    }
    qwen3_tokenizer_free(tokenizer);
}

/* Four tokens and a draw. Extreme but well-formed values may compute nonsense, never crash. */
static inline bool exercise_session(qwen3_model *model) {
    static const qwen3_sampling sampling = {0.6f, 20, 0.95f, 0.01f, 1.5f, 1.1f, 42};
    int32_t n_vocab = qwen3_model_config(model)->n_vocab;
    int32_t ids[4] = {0, n_vocab - 1, n_vocab / 2, n_vocab / 3};
    qwen3_error err;
    qwen3_session *session = qwen3_session_new(model, 32, QWEN3_KV_F16, &err);
    if (!session) return false;
    bool computed = qwen3_sync(session, ids, 4, &err) >= 0;
    int32_t token = computed ? qwen3_sample(session, &sampling, 2, &err) : 0;
    if (token >= n_vocab) abort();
    qwen3_session_free(session);
    return computed;
}

/* What is left to do with a file, and err, after opening it: closes it. Aborts when a failure
 * leaves no error; a sanitizer ends the process at anything worse. */
static inline progress exercise_opened(qwen3_file *file, qwen3_error err) {
    if (!file) {
        if (err.status == QWEN3_OK || !err.text[0]) abort();
        return REFUSED;
    }
    unsigned sum = 0; /* touch the ends of all that the file claims to hold */
    for (size_t i = 0; i < qwen3_file_n_kv(file); i++) {
        const qwen3_kv *kv = qwen3_file_kv(file, i);
        const uint8_t *at = kv->data;
        if (kv->item_type == QWEN3_STRING)
            for (uint64_t n = 0; n < kv->count; n++) {
                qwen3_str s = qwen3_next_string(&at);
                if (s.len) sum += (unsigned char)s.data[s.len - 1];
            }
    }
    for (size_t i = 0; i < qwen3_file_n_tensors(file); i++) {
        const qwen3_tensor *t = qwen3_file_tensor(file, i);
        if (t->bytes) sum += t->data[0] + t->data[t->bytes - 1];
    }
    static volatile unsigned sink;
    sink = sum;
    (void)sink;
    exercise_tokenizer(file);
    qwen3_model *model = qwen3_model_from_file(file, 1, 0, &err);
    if (!model) {
        if (err.status == QWEN3_OK || !err.text[0]) abort();
        return LISTED;
    }
    bool computed = exercise_session(model);
    qwen3_model_close(model);
    return computed ? COMPUTED : OPENED;
}

static inline progress exercise(const void *image, size_t len) {
    qwen3_error err = {QWEN3_OK, ""};
    qwen3_file *file = qwen3_file_from_memory(image, len, &err);
    return exercise_opened(file, err);
}

static inline progress exercise_path(const char *path) {
    qwen3_error err = {QWEN3_OK, ""};
    qwen3_file *file = qwen3_file_open(path, &err);
    return exercise_opened(file, err);
}

#endif
