/* trie.c - see trie.h. */
#include "trie.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"

enum { MAX_LEN = 4096 }; /* a longer token is never allowed */

static int by_bytes(const void *a, const void *b) {
    const trie_token *x = a, *y = b;
    int order = memcmp(x->bytes, y->bytes, x->len < y->len ? x->len : y->len);
    return order ? order : (x->len > y->len) - (x->len < y->len);
}

static int by_length(const void *a, const void *b) {
    const trie_token *x = a, *y = b;
    if (x->len != y->len) return x->len > y->len ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

/* The ordinary tokens in order. */
static size_t sort_tokens(const qwen3_tokenizer *t, trie_token *tokens) {
    size_t n = 0;
    int32_t n_tokens = (int32_t)qwen3_tokenizer_n_tokens(t);
    for (int32_t id = 0; id < n_tokens; id++) {
        qwen3_str text = qwen3_token_bytes(t, id);
        if (qwen3_token_kind(t, id) == 0 && text.len > 0 && text.len <= MAX_LEN)
            tokens[n++] = (trie_token){(const uint8_t *)text.data, (uint32_t)text.len, id};
    }
    qsort(tokens, n, sizeof *tokens, by_bytes);
    return n;
}

static uint32_t common_prefix(const trie_token *a, const trie_token *b) {
    uint32_t n = 0;
    while (n < a->len && n < b->len && a->bytes[n] == b->bytes[n]) n++;
    return n;
}

static bool build(qwen3_trie *trie, const trie_token *tokens, size_t n) {
    size_t n_nodes = 0;
    for (size_t i = 0; i < n; i++)
        n_nodes += tokens[i].len - (i ? common_prefix(&tokens[i - 1], &tokens[i]) : 0);
    if (n_nodes >= UINT32_MAX) return false;
    trie->nodes = malloc((n_nodes + 1) * sizeof *trie->nodes);
    uint32_t *open = malloc(MAX_LEN * sizeof *open); /* the nodes on the way to the last one */
    bool good = trie->nodes && open;
    uint32_t depth = 0;
    for (size_t i = 0; good && i < n; i++) {
        const trie_token *t = &tokens[i];
        uint32_t shared = i ? common_prefix(t - 1, t) : 0;
        while (depth > shared) trie->nodes[open[--depth]].skip = trie->n;
        for (; depth < t->len; depth++) {
            open[depth] = trie->n;
            trie->nodes[trie->n++] = (trie_node){-1, 0, (uint16_t)depth, 0, t->bytes[depth]};
        }
        trie->nodes[open[depth - 1]].token = t->id;
        for (uint32_t d = 0; d < depth; d++)
            if (trie->nodes[open[d]].longest < depth) trie->nodes[open[d]].longest = (uint16_t)depth;
        if (depth > trie->height) trie->height = depth;
    }
    while (good && depth > 0) trie->nodes[open[--depth]].skip = trie->n;
    free(open);
    return good;
}

qwen3_trie *qwen3_trie_new(const qwen3_tokenizer *tokenizer, qwen3_error *err) {
    qwen3_trie *trie = calloc(1, sizeof *trie);
    trie_token *tokens = malloc((qwen3_tokenizer_n_tokens(tokenizer) + 1) * sizeof *tokens);
    if (trie && tokens) {
        trie->tokenizer = tokenizer;
        trie->by_length = tokens;
        trie->n_tokens = (uint32_t)sort_tokens(tokenizer, tokens);
        if (build(trie, tokens, trie->n_tokens)) {
            qsort(tokens, trie->n_tokens, sizeof *tokens, by_length);
            return trie;
        }
    } else {
        free(tokens);
    }
    qwen3_trie_free(trie);
    fail(err, QWEN3_ERR_MEMORY, "out of memory for the bytes of the vocabulary");
    return NULL;
}

void qwen3_trie_free(qwen3_trie *trie) {
    if (!trie) return;
    free(trie->nodes);
    free(trie->by_length);
    free(trie);
}
