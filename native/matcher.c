/* matcher.c - a text on its way through a grammar, and the tokens that may come next.
 *
 * A thread is one way that the text can have gone: an instruction and a chain of open calls
 * (frames). Chains are shared, and equal ones are the same, so that a set of threads is a state
 * that can be recognized. What a byte makes of a state is computed when it is first asked for,
 * and remembered: the walk over the trie is then a look-up per node, and a state met again, as
 * that inside of a string, has its mask at hand.
 *
 * Everything lives in pools of a fixed size. When one is full, all but the present state is
 * forgotten.
 */
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "program.h"
#include "trie.h"

enum {
    MAX_STATES = 1 << 13,
    MAX_THREADS = 1 << 18, /* of all states */
    MAX_FRAMES = 1 << 16,
    MAX_CLOSURE = 1 << 13, /* instructions that one byte leads to */
    N_MASKS = 16,
    FEW_BYTES = 8,         /* most tokens are not longer */
    DEAD = 0,              /* the state without threads */
    COMPLETE = -1,         /* the instruction of a thread that is through */
};
static const uint32_t unknown = UINT32_MAX;

typedef struct {
    int32_t at;     /* an instruction, or COMPLETE */
    uint32_t frame; /* the innermost open call, 0: none */
} thread;

typedef struct {
    int32_t at;      /* the call or repetition that is open */
    int32_t count;   /* its repetitions, the one that is open included; what is above the least
                        of an endless one does not count */
    uint32_t parent; /* made before this one */
    int32_t depth;
} frame;

typedef struct {
    uint32_t first, n; /* of the threads, in order */
} state;

typedef enum { DONE, FULL, AMBIGUOUS } outcome;

struct qwen3_matcher {
    const qwen3_grammar *grammar;
    frame *frames;
    uint32_t n_frames;
    thread *threads;
    uint32_t n_threads;
    state *states;
    uint32_t n_states;
    uint32_t *next;        /* [MAX_STATES][n_classes] */
    uint32_t *frame_slots; /* hash tables with linear probing; 0: empty */
    uint32_t *state_slots;

    thread *visited; /* hash table of the closure in work; a slot is empty unless its stamp is */
    uint32_t *stamps, stamp;
    thread *todo, *found;
    uint32_t n_todo, n_found, n_visited;

    uint32_t current;
    bool ended;
    outcome outcome; /* of what was last tried */
    uint32_t *path;  /* [trie height + 1] states on the way down the trie */
    uint64_t *masks; /* [N_MASKS + 1][words], the last one for a mask that is not kept */
    uint32_t mask_of[N_MASKS], next_mask;
    size_t n_tokens, words;
};

static uint32_t hash(uint32_t seed, uint32_t value) {
    uint32_t x = (seed ^ value) * 0x9E3779B1u;
    return x ^ x >> 15;
}

/* ---- frames and states, each kept once ------------------------------------- */

static uint32_t open_frame(qwen3_matcher *m, int32_t at, int32_t count, uint32_t parent) {
    uint32_t slot = hash(hash(hash(1, (uint32_t)at), (uint32_t)count), parent);
    for (;; slot++) {
        uint32_t *kept = &m->frame_slots[slot %= 2 * MAX_FRAMES];
        const frame *f = &m->frames[*kept];
        if (*kept && f->at == at && f->count == count && f->parent == parent) return *kept;
        if (*kept) continue;
        if (m->n_frames == MAX_FRAMES) {
            m->outcome = FULL;
            return 0;
        }
        m->frames[m->n_frames] = (frame){at, count, parent, m->frames[parent].depth + 1};
        return *kept = m->n_frames++;
    }
}

static int by_place(const void *a, const void *b) {
    const thread *x = a, *y = b;
    if (x->at != y->at) return x->at < y->at ? -1 : 1;
    return (x->frame > y->frame) - (x->frame < y->frame);
}

/* The state of the threads found. */
static uint32_t keep_state(qwen3_matcher *m) {
    if (m->n_found == 0) return DEAD;
    qsort(m->found, m->n_found, sizeof *m->found, by_place);
    uint32_t n = 1;
    for (uint32_t i = 1; i < m->n_found; i++)
        if (by_place(&m->found[i], &m->found[n - 1])) m->found[n++] = m->found[i];
    m->n_found = n;
    uint32_t slot = 2;
    for (uint32_t i = 0; i < m->n_found; i++)
        slot = hash(hash(slot, (uint32_t)m->found[i].at), m->found[i].frame);
    for (;; slot++) {
        uint32_t *kept = &m->state_slots[slot %= 2 * MAX_STATES];
        const state *s = &m->states[*kept];
        size_t bytes = m->n_found * sizeof *m->found;
        if (*kept && s->n == m->n_found && !memcmp(&m->threads[s->first], m->found, bytes))
            return *kept;
        if (*kept) continue;
        if (m->n_states == MAX_STATES || m->n_found > MAX_THREADS - m->n_threads) {
            m->outcome = FULL;
            return DEAD;
        }
        memcpy(&m->threads[m->n_threads], m->found, bytes);
        m->states[m->n_states] = (state){m->n_threads, m->n_found};
        m->n_threads += m->n_found;
        uint32_t n_classes = m->grammar->n_classes;
        memset(m->next + (size_t)m->n_states * n_classes, 0xFF, n_classes * sizeof *m->next);
        return *kept = m->n_states++;
    }
}

/* Forgets everything but the present state. Frames only point back, so what is needed of them
 * can be moved to the front in one pass. */
static void forget(qwen3_matcher *m) {
    state s = m->states[m->current];
    memmove(m->threads, &m->threads[s.first], s.n * sizeof *m->threads);
    uint32_t *moved = m->frame_slots; /* filled anew below */
    memset(moved, 0, 2 * MAX_FRAMES * sizeof *moved);
    for (uint32_t i = 0; i < s.n; i++)
        for (uint32_t f = m->threads[i].frame; f && !moved[f]; f = m->frames[f].parent)
            moved[f] = 1;
    uint32_t n = 1;
    for (uint32_t f = 1; f < m->n_frames; f++) {
        if (!moved[f]) continue;
        m->frames[n] = m->frames[f];
        m->frames[n].parent = moved[m->frames[n].parent];
        moved[f] = n++;
    }
    m->n_found = s.n;
    for (uint32_t i = 0; i < s.n; i++)
        m->found[i] = (thread){m->threads[i].at, moved[m->threads[i].frame]};
    memset(m->frame_slots, 0, 2 * MAX_FRAMES * sizeof *m->frame_slots);
    memset(m->state_slots, 0, 2 * MAX_STATES * sizeof *m->state_slots);
    memset(m->mask_of, 0, sizeof m->mask_of);
    m->n_frames = m->n_states = 1;
    m->n_threads = 0;
    for (uint32_t f = 1; f < n; f++) {
        frame old = m->frames[f];
        open_frame(m, old.at, old.count, old.parent); /* the same place again */
    }
    m->current = keep_state(m);
}

/* ---- what a byte makes of a state ------------------------------------------ */

/* Queues an instruction, once, if it can still return within the depth. */
static void visit(qwen3_matcher *m, int32_t at, uint32_t in) {
    if (m->frames[in].depth + m->grammar->height[at] > MAX_DEPTH) return;
    uint32_t slot = hash(hash(3, (uint32_t)at), in);
    for (;; slot++) {
        slot %= 2 * MAX_CLOSURE;
        if (m->stamps[slot] != m->stamp) break;
        if (m->visited[slot].at == at && m->visited[slot].frame == in) return;
    }
    if (m->n_visited == MAX_CLOSURE) {
        m->outcome = AMBIGUOUS;
        return;
    }
    m->n_visited++;
    m->stamps[slot] = m->stamp;
    m->todo[m->n_todo++] = m->visited[slot] = (thread){at, in};
}

/* Opens a call of what lies at an instruction. */
static void enter(qwen3_matcher *m, int32_t at, int32_t count, uint32_t in) {
    const qwen3_instruction *x = &m->grammar->code[at];
    if (m->frames[in].depth + 1 + m->grammar->height[x->a] > MAX_DEPTH) return;
    uint32_t opened = open_frame(m, at, count, in);
    if (opened) visit(m, x->a, opened);
}

/* After count repetitions: one more, or on. */
static void repeat(qwen3_matcher *m, int32_t at, int32_t count, uint32_t in) {
    const qwen3_instruction *x = &m->grammar->code[at];
    if (x->c < 0) enter(m, at, count < x->b ? count + 1 : count, in);
    else if (count < x->c) enter(m, at, count + 1, in);
    if (count >= x->b) visit(m, x->next, in);
}

/* Follows what was queued up to the instructions that take a byte. */
static void close_over(qwen3_matcher *m) {
    const qwen3_instruction *code = m->grammar->code;
    while (m->n_todo > 0 && m->outcome == DONE) {
        thread t = m->todo[--m->n_todo];
        const qwen3_instruction *x = &code[t.at];
        const frame *f = &m->frames[t.frame];
        switch (x->op) {
        case QWEN3_BYTES:
            m->found[m->n_found++] = t;
            break;
        case QWEN3_SPLIT:
            visit(m, x->next, t.frame);
            visit(m, x->a, t.frame);
            break;
        case QWEN3_CALL:
            enter(m, t.at, 0, t.frame);
            break;
        case QWEN3_REPEAT:
            repeat(m, t.at, 0, t.frame);
            break;
        default: /* QWEN3_RETURN */
            if (t.frame == 0) m->found[m->n_found++] = (thread){COMPLETE, 0};
            else if (code[f->at].op == QWEN3_CALL) visit(m, code[f->at].next, f->parent);
            else repeat(m, f->at, f->count, f->parent);
        }
    }
}

static void begin_closure(qwen3_matcher *m) {
    if (++m->stamp == 0) { /* once in 2^32 */
        memset(m->stamps, 0, 2 * MAX_CLOSURE * sizeof *m->stamps);
        m->stamp = 1;
    }
    m->n_todo = m->n_found = m->n_visited = 0;
    m->outcome = DONE;
}

/* The state that a byte of a class leads to; DEAD with an outcome when that failed. */
static uint32_t compute(qwen3_matcher *m, uint32_t from, uint8_t class) {
    const qwen3_grammar *g = m->grammar;
    state s = m->states[from];
    begin_closure(m);
    for (uint32_t i = s.first; i < s.first + s.n && m->outcome == DONE; i++) {
        thread t = m->threads[i];
        if (t.at != COMPLETE && set_has(g, g->code[t.at].a, g->byte_of[class]))
            visit(m, g->code[t.at].next, t.frame);
    }
    close_over(m);
    uint32_t to = m->outcome == DONE ? keep_state(m) : DEAD;
    if (m->outcome == DONE) m->next[(size_t)from * g->n_classes + class] = to;
    return to;
}

static inline uint32_t step(qwen3_matcher *m, uint32_t from, uint8_t byte) {
    uint8_t class = m->grammar->class_of[byte];
    uint32_t to = m->next[(size_t)from * m->grammar->n_classes + class];
    return to != unknown ? to : compute(m, from, class);
}

/* ---- masks ------------------------------------------------------------------ */

static bool is_complete(const qwen3_matcher *m, uint32_t at) {
    state s = m->states[at];
    return s.n > 0 && m->threads[s.first].at == COMPLETE; /* which is first in order */
}

static void allow(uint64_t *mask, int32_t token) {
    mask[token / 64] |= (uint64_t)1 << token % 64;
}

/* Allows the tokens of more than `agreed` bytes that lead from a state to one that is not dead. */
static void walk(qwen3_matcher *m, uint32_t from, uint32_t agreed, uint64_t *mask) {
    const qwen3_trie *trie = m->grammar->trie;
    m->path[0] = from;
    for (uint32_t i = 0; i < trie->n && m->outcome == DONE;) {
        const trie_node *node = &trie->nodes[i];
        uint32_t to = node->longest > agreed ? step(m, m->path[node->depth], node->byte) : DEAD;
        m->path[node->depth + 1] = to;
        if (to != DEAD && node->token >= 0 && node->depth >= agreed) allow(mask, node->token);
        i = to == DEAD ? node->skip : i + 1;
    }
}

static bool is_end(const qwen3_matcher *m, int32_t token) {
    const qwen3_grammar *g = m->grammar;
    for (size_t i = 0; i < g->n_end; i++)
        if (g->end[i] == token) return true;
    return false;
}

static qwen3_status too_many(qwen3_error *err) {
    return fail(err, QWEN3_ERR_UNSUPPORTED,
                "the grammar has too many alternatives at one place: make it simpler");
}

static void allow_end(const qwen3_matcher *m, uint32_t at, uint64_t *mask) {
    const qwen3_grammar *g = m->grammar;
    for (size_t i = 0; is_complete(m, at) && i < g->n_end; i++)
        if (g->end[i] >= 0 && (size_t)g->end[i] < m->n_tokens) allow(mask, g->end[i]);
}

/* The mask of a state, kept for the next time. */
static const uint64_t *mask_of(qwen3_matcher *m, uint32_t at) {
    for (uint32_t i = 0; i < N_MASKS; i++)
        if (m->mask_of[i] == at) return m->masks + i * m->words;
    uint32_t which = m->next_mask++ % N_MASKS;
    uint64_t *mask = m->masks + which * m->words;
    memset(mask, 0, m->words * sizeof *mask);
    walk(m, at, 0, mask);
    allow_end(m, at, mask);
    m->mask_of[which] = m->outcome == DONE ? at : DEAD;
    return mask;
}

/* A chain of frames whose counts are as far from their bounds as they can be for the same to
 * happen in the next bytes; how many lowers *agreed. A repetition takes at least one byte. */
static uint32_t recount(qwen3_matcher *m, uint32_t chain, uint32_t *agreed) {
    if (chain == 0) return 0;
    frame f = m->frames[chain];
    const qwen3_instruction *x = &m->grammar->code[f.at];
    int32_t count = f.count, left = INT32_MAX;
    if (x->op == QWEN3_REPEAT && count < x->b) {
        count = 1;
        left = x->b - f.count;
    } else if (x->op == QWEN3_REPEAT) {
        count = x->b > 1 ? x->b : 1;
        left = x->c - f.count;
    }
    if (count != f.count && (uint32_t)left < *agreed) *agreed = (uint32_t)left;
    uint32_t parent = recount(m, f.parent, agreed);
    return m->outcome == DONE ? open_frame(m, f.at, count, parent) : 0;
}

/* The mask of the present state. Inside of a string of bounded length every character leads to
 * another state, and all of them differ in long tokens only: those are looked up again. */
static const uint64_t *present_mask(qwen3_matcher *m) {
    state s = m->states[m->current];
    uint32_t agreed = UINT32_MAX;
    m->outcome = DONE;
    m->n_found = s.n;
    for (uint32_t i = 0; i < s.n && m->outcome == DONE; i++) {
        thread t = m->threads[s.first + i];
        m->found[i] = (thread){t.at, recount(m, t.frame, &agreed)};
    }
    if (m->outcome != DONE) return NULL;
    if (agreed == UINT32_MAX || agreed < FEW_BYTES) return mask_of(m, m->current);
    uint32_t alike = keep_state(m);
    if (m->outcome != DONE) return NULL;
    uint64_t *mask = m->masks + N_MASKS * m->words;
    memcpy(mask, mask_of(m, alike), m->words * sizeof *mask);
    const qwen3_trie *trie = m->grammar->trie;
    for (uint32_t i = 0; i < trie->n_tokens && trie->by_length[i].len > agreed; i++)
        mask[trie->by_length[i].id / 64] &= ~((uint64_t)1 << trie->by_length[i].id % 64);
    walk(m, m->current, agreed, mask);
    return mask;
}

const uint64_t *qwen3_matcher_mask(qwen3_matcher *m, size_t *n_tokens, qwen3_error *err) {
    *n_tokens = m->n_tokens;
    if (m->ended) return memset(m->masks + N_MASKS * m->words, 0, m->words * sizeof *m->masks);
    const uint64_t *mask = present_mask(m);
    if (m->outcome == FULL) {
        forget(m);
        mask = present_mask(m);
    }
    if (m->outcome == DONE) return mask;
    too_many(err);
    return NULL;
}

/* ---- public ----------------------------------------------------------------- */

qwen3_matcher *qwen3_matcher_new(const qwen3_grammar *g, qwen3_error *err) {
    qwen3_matcher *m = calloc(1, sizeof *m);
    if (m) {
        m->grammar = g;
        m->n_tokens = qwen3_tokenizer_n_tokens(g->trie->tokenizer);
        m->words = (m->n_tokens + 63) / 64;
        m->frames = malloc(MAX_FRAMES * sizeof *m->frames);
        m->threads = malloc(MAX_THREADS * sizeof *m->threads);
        m->states = malloc(MAX_STATES * sizeof *m->states);
        m->next = malloc((size_t)MAX_STATES * g->n_classes * sizeof *m->next);
        m->frame_slots = calloc(2 * MAX_FRAMES, sizeof *m->frame_slots);
        m->state_slots = calloc(2 * MAX_STATES, sizeof *m->state_slots);
        m->visited = malloc(2 * MAX_CLOSURE * sizeof *m->visited);
        m->stamps = calloc(2 * MAX_CLOSURE, sizeof *m->stamps);
        m->todo = malloc(MAX_CLOSURE * sizeof *m->todo);
        m->found = malloc(MAX_CLOSURE * sizeof *m->found);
        m->path = malloc((g->trie->height + 1) * sizeof *m->path);
        m->masks = malloc((N_MASKS + 1) * m->words * sizeof *m->masks + 1);
    }
    if (!m || !m->frames || !m->threads || !m->states || !m->next || !m->frame_slots ||
        !m->state_slots || !m->visited || !m->stamps || !m->todo || !m->found || !m->path ||
        !m->masks) {
        qwen3_matcher_free(m);
        fail(err, QWEN3_ERR_MEMORY, "out of memory for the states of a grammar");
        return NULL;
    }
    m->frames[0] = (frame){COMPLETE, 0, 0, 0};
    m->states[DEAD] = (state){0, 0};
    m->n_frames = m->n_states = 1;
    memset(m->next, 0, g->n_classes * sizeof *m->next);
    begin_closure(m);
    visit(m, g->start, 0);
    close_over(m);
    if (m->outcome == DONE) m->current = keep_state(m);
    if (m->outcome == DONE) return m;
    qwen3_matcher_free(m);
    too_many(err);
    return NULL;
}

void qwen3_matcher_free(qwen3_matcher *m) {
    if (!m) return;
    free(m->frames);
    free(m->threads);
    free(m->states);
    free(m->next);
    free(m->frame_slots);
    free(m->state_slots);
    free(m->visited);
    free(m->stamps);
    free(m->todo);
    free(m->found);
    free(m->path);
    free(m->masks);
    free(m);
}

static uint32_t run(qwen3_matcher *m, qwen3_str text) {
    uint32_t at = m->current;
    m->outcome = DONE;
    for (uint64_t i = 0; i < text.len && at != DEAD; i++) at = step(m, at, (uint8_t)text.data[i]);
    return at;
}

qwen3_status qwen3_matcher_accept(qwen3_matcher *m, int32_t token, qwen3_error *err) {
    const qwen3_tokenizer *tokenizer = m->grammar->trie->tokenizer;
    qwen3_str text = qwen3_token_bytes(tokenizer, token);
    if (!m->ended && is_end(m, token) && is_complete(m, m->current)) {
        m->ended = true;
        return QWEN3_OK;
    }
    uint32_t to = DEAD;
    if (!m->ended && text.len > 0 && qwen3_token_kind(tokenizer, token) == 0) {
        to = run(m, text);
        if (m->outcome == FULL) {
            forget(m);
            to = run(m, text);
        }
        if (m->outcome != DONE) return too_many(err);
    }
    if (to == DEAD)
        return fail(err, QWEN3_ERR_ARG, "the grammar does not allow the token %d here", token);
    m->current = to;
    return QWEN3_OK;
}

bool qwen3_matcher_complete(const qwen3_matcher *m) {
    return m->ended || is_complete(m, m->current);
}

bool qwen3_matcher_finished(const qwen3_matcher *m) {
    return m->ended || (is_complete(m, m->current) && m->states[m->current].n == 1);
}
