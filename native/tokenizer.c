/* tokenizer.c - byte-level BPE as the Qwen2 and Qwen3 families train it.
 *
 * Text is normalized to NFC, split into pieces by the pattern of the family, and the
 * bytes of each piece are joined pair by pair, the lowest-ranked merge first. A
 * tokenizer never changes after it was made, so threads share it without locks.
 */
#include "vocab.h"

#include <stdlib.h>

#include "error.h"
#include "unicode.h"

enum { MAX_TEXT = 1 << 30 }; /* positions in the normalized text fit 32 bits */

/* ---- splitting: the pattern of the family --------------------------------- */

static bool is_newline(uint32_t code) { return code == '\n' || code == '\r'; }

static char_class class_at(const uint8_t *p, const uint8_t *end, uint32_t *code, size_t *len) {
    *len = utf8_decode(p, end, code);
    return unicode_class(*code);
}

static bool next_is(const uint8_t *p, const uint8_t *end, char_class class) {
    uint32_t code;
    size_t len;
    return p < end && class_at(p, end, &code, &len) == class;
}

static const uint8_t *skip(const uint8_t *p, const uint8_t *end, char_class class) {
    uint32_t code;
    size_t len;
    while (p < end && class_at(p, end, &code, &len) == class) p += len;
    return p;
}

/* The length of a contraction at p, an apostrophe, or 0. Case is ignored, by which
 * U+017F is an s as well. */
static size_t contraction(const uint8_t *p, const uint8_t *end) {
    int a = end - p > 1 ? p[1] | 0x20 : 0, b = end - p > 2 ? p[2] | 0x20 : 0;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
    return end - p > 2 && p[1] == 0xC5 && p[2] == 0xBF ? 3 : 0;
}

/* The end of the piece that starts at p < end, in well-formed text:
 *   (?i:'s|'t|'re|'ve|'m|'ll|'d) | [^\r\n\p{L}\p{N}]?\p{L}+ | \p{N} |
 *    ?[^\s\p{L}\p{N}]+[\r\n]* | \s*[\r\n]+ | \s+(?!\S) | \s+                  */
static const uint8_t *piece_end(const uint8_t *p, const uint8_t *end) {
    uint32_t code;
    size_t len;
    char_class class = class_at(p, end, &code, &len);
    const uint8_t *next = p + len;
    if (code == '\'' && (len = contraction(p, end))) return p + len;
    if (class == CLASS_NUMBER) return next;
    if (class == CLASS_LETTER || (!is_newline(code) && next_is(next, end, CLASS_LETTER)))
        return skip(next, end, CLASS_LETTER);
    if (class == CLASS_OTHER || (code == ' ' && next_is(next, end, CLASS_OTHER))) {
        next = skip(next, end, CLASS_OTHER);
        while (next < end && is_newline(*next)) next++;
        return next;
    }
    /* White space: up to the last newline of the run if it has one, else all of it but
     * the last character, which leads the next piece. */
    const uint8_t *last = p, *after_newline = is_newline(code) ? next : NULL;
    while (next < end && class_at(next, end, &code, &len) == CLASS_SPACE) {
        last = next;
        next += len;
        if (is_newline(code)) after_newline = next;
    }
    if (after_newline) return after_newline;
    return next == end || last == p ? next : last;
}

/* ---- encoding ------------------------------------------------------------- */

typedef struct { /* a token of the piece in work, in a doubly linked list */
    int32_t id;
    int32_t merged; /* what it and its successor merge to, -1: nothing */
    uint32_t prev, next; /* none at the ends */
} symbol;

static const uint32_t none = UINT32_MAX;

typedef struct {
    const qwen3_tokenizer *t;
    int32_t *ids;
    size_t n_ids, ids_room;
    symbol *symbols;
    uint64_t *heap; /* pending merges, rank << 32 | index of the left symbol */
    size_t n_heap, piece_room;
} encoder;

/* A heap of four children per node. Entries past its end are UINT64_MAX, so that the
 * children can be compared without branches: the order of pops is hard to predict. */
static void heap_push(encoder *e, uint64_t entry) {
    uint64_t *heap = e->heap;
    size_t at = e->n_heap++;
    for (size_t parent; at > 0 && heap[parent = (at - 1) / 4] > entry; at = parent)
        heap[at] = heap[parent];
    heap[at] = entry;
}

static uint64_t heap_pop(encoder *e) {
    uint64_t *heap = e->heap, top = heap[0], moved = heap[--e->n_heap];
    size_t at = 0;
    heap[e->n_heap] = UINT64_MAX;
    for (size_t child; (child = 4 * at + 1) < e->n_heap;) {
        size_t a = child + (heap[child + 1] < heap[child]);
        size_t b = child + 2 + (heap[child + 3] < heap[child + 2]);
        if (heap[b] < heap[a]) a = b;
        if (heap[a] >= moved) break;
        heap[at] = heap[a];
        at = a;
    }
    heap[at] = moved;
    return top;
}

/* Finds what symbol i and its successor merge to and queues it. */
static void queue_merge(encoder *e, uint32_t i) {
    symbol *s = &e->symbols[i];
    s->merged = -1;
    if (s->next == none) return;
    const merge *m = find_merge(e->t, pair_key(s->id, e->symbols[s->next].id));
    if (!m->key) return;
    s->merged = m->merged;
    heap_push(e, (uint64_t)m->rank << 32 | i);
}

static bool reserve_ids(encoder *e, size_t n) {
    if (n <= e->ids_room) return true;
    size_t room = n + n / 2;
    int32_t *ids = realloc(e->ids, room * sizeof *ids);
    if (!ids) return false;
    e->ids = ids;
    e->ids_room = room;
    return true;
}

static bool reserve_piece(encoder *e, size_t n) {
    if (n <= e->piece_room) return true;
    size_t room = n + n / 2;
    /* n - 1 pairs at first, and each of at most n - 1 merges takes one and adds two. */
    size_t heap_bytes = (2 * room + 4) * sizeof *e->heap;
    free(e->symbols);
    free(e->heap);
    e->piece_room = room;
    e->symbols = malloc(room * sizeof *e->symbols);
    e->heap = malloc(heap_bytes);
    if (!e->symbols || !e->heap) return false;
    memset(e->heap, 0xFF, heap_bytes);
    return true;
}

static bool encode_piece(encoder *e, const uint8_t *p, size_t n) {
    const qwen3_tokenizer *t = e->t;
    if (!reserve_ids(e, e->n_ids + n) || !reserve_piece(e, n)) return false;
    symbol *symbols = e->symbols;
    for (uint32_t i = 0; i < n; i++)
        symbols[i] = (symbol){t->byte_token[p[i]], -1, i - 1, i + 1};
    symbols[n - 1].next = none;
    e->n_heap = 0;
    for (uint32_t i = 0; i + 1 < n; i++) queue_merge(e, i);
    while (e->n_heap > 0) {
        uint64_t entry = heap_pop(e);
        uint32_t i = (uint32_t)entry;
        symbol *s = &symbols[i];
        if (s->merged != t->merged[entry >> 32]) continue; /* the pair has changed since */
        symbol *right = &symbols[s->next];
        s->id = s->merged;
        s->next = right->next;
        right->merged = -1;
        if (s->next != none) symbols[s->next].prev = i;
        queue_merge(e, i);
        if (s->prev != none) queue_merge(e, s->prev);
    }
    for (uint32_t i = 0; i != none; i = symbols[i].next) e->ids[e->n_ids++] = symbols[i].id;
    return true;
}

/* Appends the ids of text that holds no added token. */
static bool encode_plain(encoder *e, const uint8_t *text, size_t len) {
    if (len == 0) return true;
    uint8_t *owned;
    const uint8_t *p = utf8_nfc(text, &len, &owned);
    if (!p) return false;
    bool good = true;
    for (const uint8_t *end = p + len, *next; good && p < end; p = next) {
        next = piece_end(p, end);
        good = encode_piece(e, p, (size_t)(next - p));
    }
    free(owned);
    return good;
}

static bool encode_added(encoder *e, const uint8_t *text, size_t len) {
    const qwen3_tokenizer *t = e->t;
    const uint8_t *end = text + len, *done = text;
    for (const uint8_t *p = text; p < end;) {
        const added_token *found = t->starts_added[*p] ? vocab_match_added(t, p, end) : NULL;
        if (!found) {
            p++;
            continue;
        }
        if (!encode_plain(e, done, (size_t)(p - done)) || !reserve_ids(e, e->n_ids + 1))
            return false;
        e->ids[e->n_ids++] = found->id;
        done = p += found->len;
    }
    return encode_plain(e, done, (size_t)(end - done));
}

/* ---- public --------------------------------------------------------------- */

qwen3_tokenizer *qwen3_tokenizer_new(const qwen3_file *file, qwen3_error *err) {
    qwen3_tokenizer *t = calloc(1, sizeof *t);
    if (!t) {
        fail(err, QWEN3_ERR_MEMORY, "out of memory");
        return NULL;
    }
    if (vocab_read(t, file, err)) return t;
    qwen3_tokenizer_free(t);
    return NULL;
}

void qwen3_tokenizer_free(qwen3_tokenizer *t) {
    if (!t) return;
    free(t->bytes);
    free(t->start);
    free(t->kind);
    free(t->merges);
    free(t->merged);
    free(t->added);
    free(t);
}

size_t qwen3_tokenizer_n_tokens(const qwen3_tokenizer *t) { return (size_t)t->n_tokens; }

int64_t qwen3_encode(const qwen3_tokenizer *t, const char *text, size_t len, bool parse_added,
                     int32_t **ids, qwen3_error *err) {
    *ids = NULL;
    if (len > MAX_TEXT) {
        fail(err, QWEN3_ERR_ARG, "a text of %zu bytes; at most %d can be encoded at once", len,
             MAX_TEXT);
        return -1;
    }
    if (len == 0) return 0;
    encoder e = {.t = t};
    bool good = (parse_added ? encode_added : encode_plain)(&e, (const uint8_t *)text, len);
    free(e.symbols);
    free(e.heap);
    if (good) {
        *ids = e.ids;
        return (int64_t)e.n_ids;
    }
    free(e.ids);
    fail(err, QWEN3_ERR_MEMORY, "out of memory while encoding %zu bytes of text", len);
    return -1;
}

qwen3_str qwen3_token_bytes(const qwen3_tokenizer *t, int32_t id) {
    if (id < 0 || id >= t->n_tokens) return (qwen3_str){"", 0};
    return (qwen3_str){(const char *)t->bytes + t->start[id], token_len(t, id)};
}

int qwen3_token_kind(const qwen3_tokenizer *t, int32_t id) {
    return id < 0 || id >= t->n_tokens ? KIND_ORDINARY : t->kind[id];
}

void qwen3_free(void *p) { free(p); }
