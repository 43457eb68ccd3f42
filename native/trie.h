/* trie.h - the ordinary tokens of a vocabulary by their bytes, in one array. */
#ifndef QWEN3_TRIE_H
#define QWEN3_TRIE_H

#include "grammar.h"

typedef struct {
    int32_t token; /* that ends here, -1: none */
    uint32_t skip; /* the first node behind this one and all below it */
    uint16_t depth;   /* bytes before this one */
    uint16_t longest; /* bytes of the longest token through this node */
    uint8_t byte;
} trie_node;

typedef struct {
    const uint8_t *bytes;
    uint32_t len;
    int32_t id;
} trie_token;

struct qwen3_trie {
    const qwen3_tokenizer *tokenizer;
    trie_node *nodes; /* [n] parents before children, children in the order of their bytes */
    uint32_t n;
    trie_token *by_length; /* [n_tokens] the longest first */
    uint32_t n_tokens;
    uint32_t height; /* bytes of the longest token */
};

#endif
