/* test_grammar.c - grammars that may be anything, against single steps.
 *
 * What schemas become is the Python tests' business. Here: no program takes the matcher beyond
 * defined behaviour or without end (meant for the sanitizers), and a mask holds exactly the
 * tokens that can be accepted.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grammar.h"

#define CHECK(condition, ...)                               \
    do {                                                    \
        if (!(condition)) {                                 \
            fprintf(stderr, "%s:%d: ", __FILE__, __LINE__); \
            fprintf(stderr, __VA_ARGS__);                   \
            fprintf(stderr, "\n");                          \
            exit(1);                                        \
        }                                                   \
    } while (0)

enum { MAX_CODE = 40, MAX_TEXT = 60 };

static uint64_t state = 0x9e3779b97f4a7c15;

static uint32_t random_below(uint32_t n) { /* xorshift64* */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)(state * 0x2545f4914f6cdd1d >> 32) % n;
}

static qwen3_tokenizer *tokenizer;
static qwen3_trie *trie;
static uint8_t sets[4][32]; /* nothing; a and b; letters; 128 to 255 */

static void allow_bytes(uint8_t *set, int low, int high) {
    for (int byte = low; byte <= high; byte++) set[byte / 8] |= (uint8_t)(1 << byte % 8);
}

static qwen3_grammar *grammar_of(const qwen3_instruction *code, size_t n, int32_t start,
                                 qwen3_error *err) {
    static const int32_t end[] = {1, 258, -5, 1 << 30}; /* an ordinary token, too */
    qwen3_program program = {code, n, sets, 4, start};
    return qwen3_grammar_new(trie, &program, end, 4, err);
}

static qwen3_matcher *replayed(const qwen3_grammar *g, const int32_t *ids, size_t n) {
    qwen3_error err;
    qwen3_matcher *m = qwen3_matcher_new(g, &err);
    CHECK(m, "%s", err.text);
    for (size_t i = 0; i < n; i++)
        CHECK(qwen3_matcher_accept(m, ids[i], &err) == QWEN3_OK, "%s", err.text);
    return m;
}

/* Draws a text; at each step some tokens are tried one by one. Returns its tokens, -1 where the
 * grammar was too ambiguous. */
static int exercise(const qwen3_grammar *g) {
    qwen3_error err;
    int32_t ids[MAX_TEXT];
    qwen3_matcher *m = qwen3_matcher_new(g, &err);
    if (!m) {
        CHECK(err.status == QWEN3_ERR_UNSUPPORTED, "%s", err.text);
        return -1;
    }
    int n = 0;
    for (; n < MAX_TEXT; n++) {
        size_t n_tokens;
        const uint64_t *mask = qwen3_matcher_mask(m, &n_tokens, &err);
        if (!mask) break;
        int32_t *allowed = malloc(n_tokens * sizeof *allowed);
        uint32_t n_allowed = 0;
        for (size_t id = 0; id < n_tokens; id++)
            if (mask[id / 64] >> id % 64 & 1) allowed[n_allowed++] = (int32_t)id;
        CHECK(n_allowed > 0, "a dead end after %d tokens", n);
        for (int i = 0; i < 5; i++) {
            int32_t id = (int32_t)random_below((uint32_t)n_tokens);
            if (i == 0) id = allowed[random_below(n_allowed)];
            bool said = mask[id / 64] >> id % 64 & 1;
            qwen3_matcher *again = replayed(g, ids, (size_t)n);
            qwen3_status status = qwen3_matcher_accept(again, id, &err);
            CHECK(said == (status == QWEN3_OK) || status == QWEN3_ERR_UNSUPPORTED,
                  "token %d: the mask says %d", id, said);
            qwen3_matcher_free(again);
        }
        ids[n] = allowed[random_below(n_allowed)];
        free(allowed);
        if (qwen3_matcher_accept(m, ids[n], &err) == QWEN3_ERR_UNSUPPORTED) {
            n = -1;
            break;
        }
        if (qwen3_matcher_finished(m)) {
            CHECK(qwen3_matcher_complete(m), "finished and not complete");
            break;
        }
    }
    qwen3_matcher_free(m);
    return n;
}

static void test_random_programs(void) {
    int drawn = 0, refused = 0, ambiguous = 0;
    for (int round = 0; round < 600; round++) {
        qwen3_instruction code[MAX_CODE];
        uint32_t n = 1 + random_below(MAX_CODE);
        for (uint32_t i = 0; i < n; i++) {
            qwen3_instruction *x = &code[i];
            x->op = (int32_t)random_below(5);
            x->next = (int32_t)random_below(n);
            x->a = (int32_t)random_below(x->op == QWEN3_BYTES ? 4 : n);
            x->b = (int32_t)random_below(4);
            x->c = random_below(2) ? -1 : x->b + (int32_t)random_below(30);
            if (random_below(200) == 0) x->next = INT32_MAX - (int32_t)random_below(2);
            if (random_below(200) == 0) x->a = -1;
            if (random_below(200) == 0) x->c = -2;
            if (random_below(200) == 0) x->op = 5;
        }
        qwen3_error err;
        qwen3_grammar *g = grammar_of(code, n, (int32_t)random_below(n), &err);
        if (!g) {
            CHECK(err.status == QWEN3_ERR_ARG, "%s", err.text);
            refused++;
            continue;
        }
        if (exercise(g) < 0) ambiguous++;
        else drawn++;
        qwen3_grammar_free(g);
    }
    printf("%d programs drawn from, %d refused, %d too ambiguous\n", drawn, refused, ambiguous);
    CHECK(drawn > 50 && refused > 50, "the programs are too much alike");
}

static void test_malformed(void) {
    qwen3_error err;
    const qwen3_instruction returns = {QWEN3_RETURN, 0, 0, 0, 0};
    const qwen3_instruction nothing = {QWEN3_BYTES, 0, 0, 0, 0};
    const qwen3_instruction itself[] = {{QWEN3_CALL, 1, 0, 0, 0}, returns};
    CHECK(!grammar_of(&returns, 0, 0, &err), "a program of nothing");
    CHECK(!grammar_of(&returns, 1, 1, &err), "it starts outside");
    CHECK(!grammar_of(&returns, 1, -1, &err), "it starts outside");
    CHECK(!grammar_of(&nothing, 1, 0, &err) && strstr(err.text, "no finite text"), "%s", err.text);
    CHECK(!grammar_of(itself, 2, 0, &err) && strstr(err.text, "no finite text"), "%s", err.text);
    qwen3_instruction deep[300] = {returns};
    for (int32_t i = 1; i < 300; i++) deep[i] = (qwen3_instruction){QWEN3_CALL, 0, i - 1, 0, 0};
    CHECK(!grammar_of(deep, 300, 299, &err) && strstr(err.text, "128 calls"), "%s", err.text);
    qwen3_grammar *g = grammar_of(deep, 300, 128, &err);
    CHECK(g, "%s", err.text);
    qwen3_grammar_free(g);
}

/* The letters of a string of 2 to 20. */
static const qwen3_instruction counted[] = {
    {QWEN3_RETURN, 0, 0, 0, 0},
    {QWEN3_BYTES, 0, 2, 0, 0},
    {QWEN3_REPEAT, 0, 1, 2, 20},
};

static void test_counts(void) {
    qwen3_error err;
    qwen3_grammar *g = grammar_of(counted, 3, 2, &err);
    CHECK(g, "%s", err.text);
    qwen3_matcher *m = qwen3_matcher_new(g, &err);
    int32_t letter = 0;
    while (qwen3_token_bytes(tokenizer, letter).data[0] != 'k') letter++;
    for (int n = 0; n < 20; n++) {
        CHECK(qwen3_matcher_complete(m) == (n >= 2), "%d letters", n);
        size_t n_tokens;
        const uint64_t *mask = qwen3_matcher_mask(m, &n_tokens, &err);
        for (int32_t id = 0; id < (int32_t)n_tokens; id++) {
            qwen3_str text = qwen3_token_bytes(tokenizer, id);
            bool fits = text.len > 0 && (int)text.len + n <= 20 && !qwen3_token_kind(tokenizer, id);
            for (uint64_t i = 0; i < text.len; i++)
                fits = fits && (text.data[i] | 32) >= 'a' && (text.data[i] | 32) <= 'z';
            if (id == 1 || id == 258) fits = n >= 2; /* the end tokens */
            CHECK((mask[id / 64] >> id % 64 & 1) == fits, "%d letters, token %d", n, id);
        }
        CHECK(qwen3_matcher_accept(m, letter, &err) == QWEN3_OK, "%s", err.text);
    }
    CHECK(qwen3_matcher_finished(m), "20 letters are all");
    qwen3_matcher_free(m);
    qwen3_grammar_free(g);
}

static void *draw_some(void *grammar) {
    for (int i = 0; i < 20; i++) {
        qwen3_error err;
        size_t n_tokens;
        qwen3_matcher *m = qwen3_matcher_new(grammar, &err);
        CHECK(m && qwen3_matcher_mask(m, &n_tokens, &err), "%s", err.text);
        qwen3_matcher_free(m);
    }
    return NULL;
}

static void test_threads_share_a_grammar(void) {
    qwen3_error err;
    qwen3_grammar *g = grammar_of(counted, 3, 2, &err);
    pthread_t threads[3];
    for (int i = 0; i < 3; i++) CHECK(!pthread_create(&threads[i], NULL, draw_some, g), "thread");
    for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
    qwen3_grammar_free(g);
}

int main(void) {
    qwen3_error err;
    qwen3_file *file = qwen3_file_open("tests/data/tiny.gguf", &err);
    CHECK(file, "%s", err.text);
    tokenizer = qwen3_tokenizer_new(file, &err);
    qwen3_file_close(file);
    CHECK(tokenizer, "%s", err.text);
    trie = qwen3_trie_new(tokenizer, &err);
    CHECK(trie, "%s", err.text);
    allow_bytes(sets[1], 'a', 'b');
    allow_bytes(sets[2], 'a', 'z');
    allow_bytes(sets[2], 'A', 'Z');
    allow_bytes(sets[3], 128, 255);
    test_malformed();
    test_counts();
    test_threads_share_a_grammar();
    test_random_programs();
    qwen3_trie_free(trie);
    qwen3_tokenizer_free(tokenizer);
    return 0;
}
