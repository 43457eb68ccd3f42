/* program.c - checks a program once, so that a matcher can run it without checks.
 *
 * Nesting is bounded without dead ends: for every instruction the least depth of calls
 * that leads to a return is computed here, and a matcher never goes where that depth is
 * not left.
 */
#include "program.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"

enum {
    MAX_CODE = 1 << 20,
    MAX_SETS = 1 << 16,
    MAX_END = 64,
    NEVER = UINT16_MAX, /* the height of what does not return */
    MAX_SWEEPS = 4 * MAX_DEPTH,
};

static qwen3_status check(const qwen3_program *p, qwen3_error *err) {
    if (p->n_code == 0 || p->n_code > MAX_CODE || p->n_sets > MAX_SETS)
        return fail(err, QWEN3_ERR_ARG,
                    "a grammar of %zu instructions and %zu sets; 1 to %d and up to %d are possible",
                    p->n_code, p->n_sets, MAX_CODE, MAX_SETS);
    int32_t n = (int32_t)p->n_code;
    bool good = p->start >= 0 && p->start < n;
    for (int32_t i = 0; good && i < n; i++) {
        const qwen3_instruction *x = &p->code[i];
        if (x->op == QWEN3_RETURN) continue;
        int32_t n_a = x->op == QWEN3_BYTES ? (int32_t)p->n_sets : n;
        good = x->op >= QWEN3_BYTES && x->op <= QWEN3_REPEAT && x->next >= 0 && x->next < n &&
               x->a >= 0 && x->a < n_a;
        if (x->op == QWEN3_REPEAT) good = good && x->b >= 0 && (x->c == -1 || x->c >= x->b);
        if (!good) return fail(err, QWEN3_ERR_ARG, "instruction %d of the grammar is malformed", i);
    }
    return good ? QWEN3_OK : fail(err, QWEN3_ERR_ARG, "the grammar begins nowhere");
}

/* Bytes are one class as long as no set has been seen that holds one and not the other. */
static void classify(qwen3_grammar *g, size_t n_sets) {
    g->n_classes = 1;
    for (size_t set = 0; set < n_sets; set++) {
        int moved[256]; /* the new class of those of a class that are in the set */
        bool outside[256] = {false};
        for (uint32_t c = 0; c < g->n_classes; c++) moved[c] = -1;
        for (int byte = 0; byte < 256; byte++)
            if (!set_has(g, (int32_t)set, (uint8_t)byte)) outside[g->class_of[byte]] = true;
        for (int byte = 0; byte < 256; byte++) {
            uint8_t old = g->class_of[byte];
            if (!outside[old] || !set_has(g, (int32_t)set, (uint8_t)byte)) continue;
            if (moved[old] < 0) moved[old] = (int)g->n_classes++;
            g->class_of[byte] = (uint8_t)moved[old];
        }
    }
    for (int byte = 0; byte < 256; byte++) g->byte_of[g->class_of[byte]] = (uint8_t)byte;
}

static uint16_t max_of(uint16_t a, uint16_t b) { return a > b ? a : b; }
static uint16_t min_of(uint16_t a, uint16_t b) { return a < b ? a : b; }
static uint16_t one_more(uint16_t height) { return height >= NEVER - 1 ? NEVER : height + 1; }

static uint16_t height_of(const qwen3_grammar *g, const qwen3_instruction *x) {
    static const uint8_t nothing[32];
    const uint16_t *h = g->height;
    switch (x->op) {
    case QWEN3_RETURN: return 0;
    case QWEN3_SPLIT: return min_of(h[x->next], h[x->a]);
    case QWEN3_BYTES: return memcmp(g->sets[x->a], nothing, sizeof nothing) ? h[x->next] : NEVER;
    case QWEN3_REPEAT:
        if (x->b == 0) return h[x->next];
        /* fall through */
    default: return max_of(one_more(h[x->a]), h[x->next]);
    }
}

/* Heights only fall from sweep to sweep. Programs are written from their end, so that a
 * sweep takes all of a rule at once and there are about as many as calls within calls. */
static qwen3_status measure(qwen3_grammar *g, size_t n, qwen3_error *err) {
    memset(g->height, 0xFF, n * sizeof *g->height);
    bool changed = true;
    for (int sweep = 0; changed && sweep < MAX_SWEEPS; sweep++) {
        changed = false;
        for (size_t i = 0; i < n; i++) {
            uint16_t height = height_of(g, &g->code[i]);
            changed |= height != g->height[i];
            g->height[i] = height;
        }
    }
    if (!changed && g->height[g->start] == NEVER)
        return fail(err, QWEN3_ERR_ARG, "no finite text keeps to the grammar");
    if (changed || g->height[g->start] > MAX_DEPTH)
        return fail(err, QWEN3_ERR_ARG, "the grammar needs more than %d calls within calls",
                    MAX_DEPTH);
    return QWEN3_OK;
}

qwen3_grammar *qwen3_grammar_new(const qwen3_trie *trie, const qwen3_program *p,
                                 const int32_t *end, size_t n_end, qwen3_error *err) {
    if (check(p, err) != QWEN3_OK) return NULL;
    if (n_end > MAX_END) {
        fail(err, QWEN3_ERR_ARG, "%zu end tokens; up to %d are possible", n_end, MAX_END);
        return NULL;
    }
    qwen3_grammar *g = calloc(1, sizeof *g);
    if (g) {
        g->trie = trie;
        g->code = malloc(p->n_code * sizeof *g->code);
        g->sets = malloc((p->n_sets + 1) * sizeof *g->sets);
        g->height = malloc(p->n_code * sizeof *g->height);
        g->end = malloc((n_end + 1) * sizeof *g->end);
    }
    if (!g || !g->code || !g->sets || !g->height || !g->end) {
        fail(err, QWEN3_ERR_MEMORY, "out of memory for a grammar of %zu instructions", p->n_code);
        qwen3_grammar_free(g);
        return NULL;
    }
    memcpy(g->code, p->code, p->n_code * sizeof *g->code);
    if (p->n_sets) memcpy(g->sets, p->sets, p->n_sets * sizeof *g->sets);
    if (n_end) memcpy(g->end, end, n_end * sizeof *g->end);
    g->n_end = n_end;
    g->start = p->start;
    classify(g, p->n_sets);
    if (measure(g, p->n_code, err) == QWEN3_OK) return g;
    qwen3_grammar_free(g);
    return NULL;
}

void qwen3_grammar_free(qwen3_grammar *g) {
    if (!g) return;
    free(g->code);
    free(g->sets);
    free(g->height);
    free(g->end);
    free(g);
}
