/* tokenizer.c - byte-level BPE as the Qwen2 and Qwen3 families train it.
 *
 * Text is normalized to NFC, split into pieces by the pattern of the family, and the
 * bytes of each piece are joined pair by pair, the lowest-ranked merge first. A
 * tokenizer never changes after it was made, so threads share it without locks.
 */
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "gguf.h"
#include "unicode.h"

enum { MAX_TEXT = 1 << 30 }; /* positions in the normalized text fit 32 bits */

enum { KIND_ORDINARY, KIND_ADDED, KIND_CONTROL };

enum { /* tokenizer.ggml.token_type */
    TOKEN_NORMAL = 1, TOKEN_CONTROL = 3, TOKEN_USER_DEFINED = 4, TOKEN_UNUSED = 5,
};

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
    uint8_t *bytes;  /* of all tokens, one after the other */
    size_t *start;   /* [n_tokens + 1] in bytes */
    uint8_t *kind;   /* [n_tokens] */
    int32_t byte_token[256];
    merge *merges;   /* hash table, linear probing */
    size_t merge_mask;
    int32_t *merged; /* [rank] the token a merge makes */
    added_token *added; /* sorted by bytes */
    size_t n_added;
    bool starts_added[256]; /* by first byte */
};

static size_t token_len(const qwen3_tokenizer *t, int32_t id) {
    return t->start[id + 1] - t->start[id];
}

static bool token_is(const qwen3_tokenizer *t, int32_t id, const uint8_t *p, size_t n) {
    return token_len(t, id) == n && memcmp(t->bytes + t->start[id], p, n) == 0;
}

/* ---- hashing -------------------------------------------------------------- */

static uint64_t mix(uint64_t x) {
    x *= 0x9E3779B97F4A7C15u;
    return x ^ x >> 32;
}

static uint64_t hash_bytes(const uint8_t *p, size_t n) {
    uint64_t hash = mix(n + 1), word;
    for (; n >= sizeof word; p += sizeof word, n -= sizeof word) {
        memcpy(&word, p, sizeof word);
        hash = mix(hash ^ word);
    }
    word = 0;
    memcpy(&word, p, n);
    return mix(mix(hash ^ word));
}

/* Slots of a table for n entries: a power of two, at most two thirds full. */
static size_t table_size(size_t n) {
    size_t size = 16;
    while (size < n + n / 2) size *= 2;
    return size;
}

static uint64_t pair_key(int32_t left, int32_t right) {
    return (uint64_t)(left + 1) << 32 | (uint32_t)right;
}

/* The slot of a pair, or the empty one where it belongs. */
static merge *find_merge(const qwen3_tokenizer *t, int32_t left, int32_t right) {
    uint64_t key = pair_key(left, right);
    size_t at = mix(mix(key)) & t->merge_mask;
    while (t->merges[at].key && t->merges[at].key != key) at = (at + 1) & t->merge_mask;
    return &t->merges[at];
}

/* Ordinary tokens by their bytes; needed only while merges are read. */
typedef struct {
    const qwen3_tokenizer *t;
    uint64_t *slots; /* high half of the hash, then id + 1; 0: empty */
    size_t mask;
} token_map;

static int32_t slot_id(uint64_t slot) { return (int32_t)(uint32_t)slot - 1; }

static uint64_t *find_token(const token_map *map, const uint8_t *p, size_t n, uint64_t hash) {
    const qwen3_tokenizer *t = map->t;
    for (size_t at = hash & map->mask;; at = (at + 1) & map->mask) {
        uint64_t slot = map->slots[at];
        if (slot == 0) return &map->slots[at];
        if (slot >> 32 != hash >> 32) continue;
        int32_t id = slot_id(slot);
        if (token_is(t, id, p, n)) return &map->slots[at];
    }
}

static int32_t token_of(const token_map *map, const uint8_t *p, size_t n) {
    return slot_id(*find_token(map, p, n, hash_bytes(p, n)));
}

/* ---- the vocabulary ------------------------------------------------------- */

/* The byte that a character of the byte-level alphabet stands for, -1 for any other
 * character: printable Latin-1 stands for itself, U+0100... for the rest in order. */
static int alphabet_byte(uint32_t code) {
    if ((code > 32 && code < 127) || (code > 160 && code < 256 && code != 173)) return (int)code;
    if (code < 256 || code > 256 + 67) return -1;
    int index = (int)code - 256;
    return index <= 32 ? index : index < 67 ? index - 33 + 127 : 173;
}

/* Appends the bytes that a byte-level text stands for; false if it is not one. */
static bool read_byte_level(const uint8_t *p, const uint8_t *end, uint8_t **out) {
    while (p < end) {
        uint32_t code;
        p += utf8_decode(p, end, &code);
        int byte = alphabet_byte(code);
        if (byte < 0) return false;
        *(*out)++ = (uint8_t)byte;
    }
    return true;
}

static bool is_utf8(const uint8_t *p, const uint8_t *end) {
    uint32_t code = 0;
    while (p < end && code != ILL_FORMED) p += utf8_decode(p, end, &code);
    return code != ILL_FORMED;
}

static const qwen3_kv *find_array(const qwen3_file *file, const char *key, qwen3_error *err) {
    const qwen3_kv *kv = gguf_find(file, key);
    if (!kv)
        fail(err, QWEN3_ERR_FORMAT, "%s is missing: this file holds no usable tokenizer", key);
    else if (kv->type != QWEN3_ARRAY || kv->count > INT32_MAX - 1)
        fail(err, QWEN3_ERR_FORMAT, "%s is not an array of at most 2^31 items", key);
    else
        return kv;
    return NULL;
}

static const qwen3_kv *find_strings(const qwen3_file *file, const char *key, qwen3_error *err) {
    const qwen3_kv *kv = find_array(file, key, err);
    if (kv && kv->item_type != QWEN3_STRING) {
        fail(err, QWEN3_ERR_FORMAT, "%s is not an array of strings", key);
        return NULL;
    }
    return kv;
}

static bool check_name(const qwen3_file *file, const char *key, const char *known,
                       qwen3_error *err) {
    qwen3_str name;
    const qwen3_kv *kv = gguf_find(file, key);
    if (!kv || !kv_to_str(kv, &name))
        fail(err, QWEN3_ERR_FORMAT, "%s is missing: this file holds no usable tokenizer", key);
    else if (!str_equals(name, known))
        fail(err, QWEN3_ERR_UNSUPPORTED, "%s is '%.*s'; this engine runs '%s'", key, STR_ARG(name),
             known);
    else
        return true;
    return false;
}

/* Enters token id, whose bytes are stored, into the map. */
static bool map_token(const qwen3_tokenizer *t, token_map *map, int32_t id, qwen3_error *err) {
    const uint8_t *bytes = t->bytes + t->start[id];
    uint64_t hash = hash_bytes(bytes, token_len(t, id));
    uint64_t *slot = find_token(map, bytes, token_len(t, id), hash);
    if (*slot) {
        fail(err, QWEN3_ERR_FORMAT, "tokens %d and %d are the same", slot_id(*slot), id);
        return false;
    }
    *slot = (hash >> 32) << 32 | (uint32_t)(id + 1);
    return true;
}

/* Stores the bytes of token id at *out and moves *out past them. */
static bool read_token(qwen3_tokenizer *t, token_map *map, int32_t id, int32_t type,
                       qwen3_str text, uint8_t **out, qwen3_error *err) {
    const uint8_t *p = (const uint8_t *)text.data, *end = p + text.len;
    bool good = true;
    if (type == TOKEN_NORMAL) {
        good = p < end && read_byte_level(p, end, out);
    } else if (type == TOKEN_CONTROL || type == TOKEN_USER_DEFINED) {
        good = p < end && is_utf8(p, end);
        memcpy(*out, p, text.len);
        *out += text.len;
        t->kind[id] = type == TOKEN_CONTROL ? KIND_CONTROL : KIND_ADDED;
        t->n_added++;
    } else if (type != TOKEN_UNUSED) {
        fail(err, QWEN3_ERR_FORMAT, "tokenizer.ggml.token_type of token %d is %d", id, type);
        return false;
    }
    t->start[id + 1] = (size_t)(*out - t->bytes);
    if (good) return type != TOKEN_NORMAL || map_token(t, map, id, err);
    fail(err, QWEN3_ERR_FORMAT, "token %d, '%.*s', is not the text of a %s token", id,
         STR_ARG(text), type == TOKEN_NORMAL ? "byte-level" : "added");
    return false;
}

static bool read_tokens(qwen3_tokenizer *t, const qwen3_file *file, token_map *map,
                        qwen3_error *err) {
    const qwen3_kv *tokens = find_strings(file, "tokenizer.ggml.tokens", err);
    const qwen3_kv *types = tokens ? find_array(file, "tokenizer.ggml.token_type", err) : NULL;
    if (!types) return false;
    if (types->item_type != QWEN3_I32 && types->item_type != QWEN3_U32) {
        fail(err, QWEN3_ERR_FORMAT, "tokenizer.ggml.token_type is not an array of 32-bit integers");
        return false;
    }
    if (types->count != tokens->count) {
        fail(err, QWEN3_ERR_FORMAT, "tokenizer.ggml.token_type has %llu items for %llu tokens",
             (unsigned long long)types->count, (unsigned long long)tokens->count);
        return false;
    }
    t->n_tokens = (int32_t)tokens->count;
    size_t total = 0, n = tokens->count;
    const uint8_t *cursor = tokens->data;
    for (size_t i = 0; i < n; i++) total += qwen3_next_string(&cursor).len;
    t->bytes = malloc(total + 1);
    t->start = calloc(n + 1, sizeof *t->start);
    t->kind = calloc(n + 1, sizeof *t->kind);
    map->mask = table_size(n) - 1;
    map->slots = calloc(map->mask + 1, sizeof *map->slots);
    if (!t->bytes || !t->start || !t->kind || !map->slots) {
        fail(err, QWEN3_ERR_MEMORY, "out of memory for a vocabulary of %zu tokens", n);
        return false;
    }
    uint8_t *out = t->bytes;
    cursor = tokens->data;
    for (int32_t id = 0; id < t->n_tokens; id++) {
        int32_t type;
        memcpy(&type, types->data + (size_t)id * sizeof type, sizeof type);
        if (!read_token(t, map, id, type, qwen3_next_string(&cursor), &out, err)) return false;
    }
    for (int i = 0; i < 256; i++) {
        uint8_t byte = (uint8_t)i;
        t->byte_token[i] = token_of(map, &byte, 1);
        if (t->byte_token[i] < 0) {
            fail(err, QWEN3_ERR_FORMAT, "tokenizer.ggml.tokens has no token for the byte 0x%02X", i);
            return false;
        }
    }
    return true;
}

/* ---- merges --------------------------------------------------------------- */

/* Reads merge number rank, "left right"; room holds as many bytes as its text. */
static bool read_merge(qwen3_tokenizer *t, const token_map *map, uint32_t rank, qwen3_str text,
                       uint8_t *room, qwen3_error *err) {
    const uint8_t *p = (const uint8_t *)text.data, *end = p + text.len;
    const uint8_t *space = text.len ? memchr(p, ' ', text.len) : NULL;
    uint8_t *left_end = room;
    bool parsed = space && read_byte_level(p, space, &left_end);
    uint8_t *right_end = left_end;
    if (!parsed || !read_byte_level(space + 1, end, &right_end)) {
        fail(err, QWEN3_ERR_FORMAT, "merge %u, '%.*s', is not two byte-level tokens", rank,
             STR_ARG(text));
        return false;
    }
    int32_t left = token_of(map, room, (size_t)(left_end - room));
    int32_t right = token_of(map, left_end, (size_t)(right_end - left_end));
    size_t len = (size_t)(right_end - room);
    /* Training makes tokens in the order of their merges: the next id is a good guess. */
    int32_t merged = rank ? t->merged[rank - 1] + 1 : 256;
    if (merged >= t->n_tokens || t->kind[merged] || !token_is(t, merged, room, len))
        merged = token_of(map, room, len);
    if (left < 0 || right < 0 || merged < 0) {
        fail(err, QWEN3_ERR_FORMAT, "merge %u, '%.*s', names a token that the vocabulary lacks",
             rank, STR_ARG(text));
        return false;
    }
    t->merged[rank] = merged;
    /* Of a pair listed twice the last rank counts, as in the reference. */
    *find_merge(t, left, right) = (merge){pair_key(left, right), rank, merged};
    return true;
}

static bool read_merges(qwen3_tokenizer *t, const qwen3_file *file, const token_map *map,
                        qwen3_error *err) {
    const qwen3_kv *merges = find_strings(file, "tokenizer.ggml.merges", err);
    if (!merges) return false;
    size_t longest = 0, n = merges->count;
    const uint8_t *cursor = merges->data;
    for (size_t i = 0; i < n; i++) {
        size_t len = qwen3_next_string(&cursor).len;
        if (len > longest) longest = len;
    }
    t->merge_mask = table_size(n) - 1;
    t->merges = calloc(t->merge_mask + 1, sizeof *t->merges);
    t->merged = calloc(n + 1, sizeof *t->merged);
    uint8_t *room = malloc(longest + 1);
    bool good = t->merges && t->merged && room;
    if (!good) fail(err, QWEN3_ERR_MEMORY, "out of memory for %zu merges", n);
    cursor = merges->data;
    for (size_t rank = 0; good && rank < n; rank++)
        good = read_merge(t, map, (uint32_t)rank, qwen3_next_string(&cursor), room, err);
    free(room);
    return good;
}

/* ---- added tokens --------------------------------------------------------- */

static int added_order(const void *a, const void *b) {
    const added_token *x = a, *y = b;
    int order = memcmp(x->bytes, y->bytes, x->len < y->len ? x->len : y->len);
    return order ? order : (x->len > y->len) - (x->len < y->len);
}

static bool index_added(qwen3_tokenizer *t, qwen3_error *err) {
    t->added = malloc((t->n_added + 1) * sizeof *t->added);
    if (!t->added) {
        fail(err, QWEN3_ERR_MEMORY, "out of memory for %zu added tokens", t->n_added);
        return false;
    }
    added_token *next = t->added;
    for (int32_t id = 0; id < t->n_tokens; id++) {
        if (t->kind[id] == KIND_ORDINARY) continue;
        *next = (added_token){t->bytes + t->start[id], token_len(t, id), id};
        t->starts_added[*next++->bytes] = true;
    }
    qsort(t->added, t->n_added, sizeof *t->added, added_order);
    for (size_t i = 1; i < t->n_added; i++) {
        const added_token *pair = &t->added[i - 1];
        if (added_order(&pair[0], &pair[1]) != 0) continue;
        fail(err, QWEN3_ERR_FORMAT, "the added tokens %d and %d are the same", pair[0].id,
             pair[1].id);
        return false;
    }
    return true;
}

/* The first of added[low..high), which agree up to depth, whose next byte is >= byte. */
static size_t added_bound(const qwen3_tokenizer *t, size_t low, size_t high, size_t depth,
                          int byte) {
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (t->added[middle].bytes[depth] < byte) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* The longest added token that starts at p, NULL for none. */
static const added_token *match_added(const qwen3_tokenizer *t, const uint8_t *p,
                                      const uint8_t *end) {
    const added_token *found = NULL;
    size_t low = 0, high = t->n_added;
    for (size_t depth = 0; low < high; depth++) {
        /* Of tokens that agree up to depth, one that ends there sorts first. */
        if (t->added[low].len == depth) found = &t->added[low++];
        if (p + depth == end) break;
        low = added_bound(t, low, high, depth, p[depth]);
        high = added_bound(t, low, high, depth, p[depth] + 1);
    }
    return found;
}

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

/* A heap of four children per node: half the depth of two, and one cache line. */
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
    for (size_t child; (child = 4 * at + 1) < e->n_heap; at = child) {
        size_t end = child + 4 < e->n_heap ? child + 4 : e->n_heap;
        for (size_t i = child + 1; i < end; i++)
            if (heap[i] < heap[child]) child = i;
        if (heap[child] >= moved) break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
    return top;
}

/* Finds what symbol i and its successor merge to and queues it. */
static void queue_merge(encoder *e, uint32_t i) {
    symbol *s = &e->symbols[i];
    s->merged = -1;
    if (s->next == none) return;
    const merge *m = find_merge(e->t, s->id, e->symbols[s->next].id);
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
    free(e->symbols);
    free(e->heap);
    e->symbols = malloc(room * sizeof *e->symbols);
    /* n - 1 pairs at first, and each of at most n - 1 merges takes one and adds two. */
    e->heap = malloc(2 * room * sizeof *e->heap);
    e->piece_room = room;
    return e->symbols && e->heap;
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
    bool good = p != NULL;
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
        const added_token *found = t->starts_added[*p] ? match_added(t, p, end) : NULL;
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
    if (!check_name(file, "tokenizer.ggml.model", "gpt2", err) ||
        !check_name(file, "tokenizer.ggml.pre", "qwen2", err))
        return NULL;
    qwen3_tokenizer *t = calloc(1, sizeof *t);
    if (!t) {
        fail(err, QWEN3_ERR_MEMORY, "out of memory");
        return NULL;
    }
    token_map map = {.t = t};
    bool good = read_tokens(t, file, &map, err) && read_merges(t, file, &map, err) &&
                index_added(t, err);
    free(map.slots);
    if (good) return t;
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
