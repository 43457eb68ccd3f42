/* trie.h - the ordinary tokens of a vocabulary by their bytes, in one array. */
#ifndef QWEN3_TRIE_H
#define QWEN3_TRIE_H

#include "grammar.h"

typedef struct {
    int32_t token; /* that ends here, -1: none */
    uint32_t skip; /* the first node behind this one and all below it */
    uint16_t depth; /* bytes before this one */
    uint8_t byte;
} trie_node;

struct qwen3_trie {
    const qwen3_tokenizer *tokenizer;
    trie_node *nodes; /* [n] parents before children, children in the order of their bytes */
    uint32_t n;
    uint32_t height; /* bytes of the longest token */
};

#endif
