/* grammar.h - answers that keep to a grammar: which tokens may come next.
 *
 * A grammar is a program over bytes: sets of bytes, alternatives, calls and counted
 * repetitions (qwen3cli/grammar/program.py writes it). A matcher is one text on its way through
 * the grammar; it works on bytes, so a token may be a part of a character. The trie holds
 * the vocabulary by bytes and is made once per tokenizer.
 *
 * Tries and grammars never change after they were made, so threads share them; a matcher
 * belongs to one thread at a time. A tokenizer outlives its tries, a trie its grammars,
 * a grammar its matchers.
 */
#ifndef QWEN3_GRAMMAR_H
#define QWEN3_GRAMMAR_H

#include "qwen3.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qwen3_trie qwen3_trie;
typedef struct qwen3_grammar qwen3_grammar;
typedef struct qwen3_matcher qwen3_matcher;

qwen3_trie *qwen3_trie_new(const qwen3_tokenizer *, qwen3_error *err);
void qwen3_trie_free(qwen3_trie *);

typedef enum {
    QWEN3_BYTES,  /* one byte of the set a, then next */
    QWEN3_SPLIT,  /* next or a */
    QWEN3_CALL,   /* from a up to a return, then next */
    QWEN3_REPEAT, /* from a up to a return, b to c times (c -1: b or more), then next */
    QWEN3_RETURN, /* outside of all calls: the text is complete */
} qwen3_opcode;

typedef struct {
    int32_t op; /* qwen3_opcode */
    int32_t next, a, b, c;
} qwen3_instruction;

typedef struct {
    const qwen3_instruction *code;
    size_t n_code;
    const uint8_t (*sets)[32]; /* byte x is in a set if bit x % 8 of its byte x / 8 is 1 */
    size_t n_sets;
    int32_t start; /* where a text begins */
} qwen3_program;

/* Copies the program, which may hold anything: QWEN3_ERR_ARG for one that is malformed or
 * that no text of bounded nesting (128 calls) completes. end: tokens, n_end of them, that are
 * allowed where the text is complete, and nowhere else. */
qwen3_grammar *qwen3_grammar_new(const qwen3_trie *, const qwen3_program *, const int32_t *end,
                                 size_t n_end, qwen3_error *err);
void qwen3_grammar_free(qwen3_grammar *);

/* At the beginning of a text. Allocates all that it will ever use. */
qwen3_matcher *qwen3_matcher_new(const qwen3_grammar *, qwen3_error *err);
void qwen3_matcher_free(qwen3_matcher *);
/* Moves on by a token. QWEN3_ERR_ARG for a token that is not allowed here and
 * QWEN3_ERR_UNSUPPORTED where the grammar has too many alternatives; the matcher is where
 * it was then. */
qwen3_status qwen3_matcher_accept(qwen3_matcher *, int32_t token, qwen3_error *err);
/* Whether the text may end here. */
bool qwen3_matcher_complete(const qwen3_matcher *);
/* Whether nothing but an end token can follow, or one was accepted. */
bool qwen3_matcher_finished(const qwen3_matcher *);
/* The tokens allowed here: bit id % 64 of word id / 64 for every id below *n_tokens; valid up
 * to the next call. NULL where the grammar has too many alternatives. */
const uint64_t *qwen3_matcher_mask(qwen3_matcher *, size_t *n_tokens, qwen3_error *err);

/* As qwen3_sample, among the tokens that the matcher allows: the others have no part in top-k,
 * top-p and min-p. Does not move the matcher. QWEN3_ERR_ARG if no token is allowed. */
int32_t qwen3_sample_matching(qwen3_session *, const qwen3_sampling *, size_t generated_from,
                              qwen3_matcher *, qwen3_error *err);

#ifdef __cplusplus
}
#endif
#endif
