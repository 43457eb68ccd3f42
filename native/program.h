/* program.h - a grammar as program.c checked it and matcher.c runs it. */
#ifndef QWEN3_PROGRAM_H
#define QWEN3_PROGRAM_H

#include "grammar.h"

enum { MAX_DEPTH = 128 }; /* calls within calls: endless nesting has to turn back */

struct qwen3_grammar {
    const qwen3_trie *trie;
    qwen3_instruction *code; /* [n_code] */
    uint8_t (*sets)[32];
    uint16_t *height; /* [n_code] the depth of calls that it takes at least to return from here */
    int32_t start;
    uint8_t class_of[256];  /* bytes that no set tells apart are one class */
    uint8_t byte_of[256];   /* a byte of each class */
    uint32_t n_classes;
    int32_t *end; /* [n_end] tokens */
    size_t n_end;
};

static inline bool set_has(const qwen3_grammar *g, int32_t set, uint8_t byte) {
    return g->sets[set][byte / 8] >> byte % 8 & 1;
}

#endif
