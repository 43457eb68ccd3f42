/* vocab.h - the tables of a tokenizer: vocab.c reads them from a file, tokenizer.c
 * encodes with them.
 */
#ifndef QWEN3_VOCAB_H
#define QWEN3_VOCAB_H

#include <string.h>

#include "qwen3.h"

enum { KIND_ORDINARY, KIND_ADDED, KIND_CONTROL };

typedef struct { /* what a pair of tokens merges to */
    uint64_t key; /* 0: an empty slot */
    uint32_t rank;
    int32_t merged;
} merge;

typedef struct {
    const uint8_t *bytes;
    size_t len;
    int32_t id;
} added_token;

struct qwen3_tokenizer {
    int32_t n_tokens;
    uint8_t *bytes;     /* of all tokens, one after the other */
    size_t *start;      /* [n_tokens + 1] in bytes */
    uint8_t *kind;      /* [n_tokens] */
    int32_t byte_token[256];
    merge *merges;      /* hash table, linear probing */
    size_t merge_mask;
    int32_t *merged;    /* [rank] the token that a merge makes */
    added_token *added; /* sorted by bytes */
    size_t n_added;
    bool starts_added[256]; /* by first byte */
};

/* Fills a zeroed tokenizer from tokenizer.ggml.*; on failure it holds what was made so
 * far, for qwen3_tokenizer_free. */
bool vocab_read(qwen3_tokenizer *, const qwen3_file *, qwen3_error *err);

/* The longest added token that starts at p, NULL for none. */
const added_token *vocab_match_added(const qwen3_tokenizer *, const uint8_t *p,
                                     const uint8_t *end);

static inline size_t token_len(const qwen3_tokenizer *t, int32_t id) {
    return t->start[id + 1] - t->start[id];
}

static inline uint64_t hash_mix(uint64_t x) {
    x *= 0x9E3779B97F4A7C15u;
    return x ^ x >> 32;
}

static inline uint64_t pair_key(int32_t left, int32_t right) {
    return (uint64_t)(left + 1) << 32 | (uint32_t)right;
}

static inline size_t pair_slot(const qwen3_tokenizer *t, uint64_t key) {
    return hash_mix(hash_mix(key)) & t->merge_mask;
}

/* The slot of a pair, or the empty one where it belongs. */
static inline merge *find_merge(const qwen3_tokenizer *t, uint64_t key) {
    size_t at = pair_slot(t, key);
    while (t->merges[at].key && t->merges[at].key != key) at = (at + 1) & t->merge_mask;
    return &t->merges[at];
}

#endif
