/* vocab.c - reads a tokenizer's tables from the metadata of a GGUF file.
 *
 * tokenizer.ggml.tokens holds ordinary tokens in the byte-level alphabet of GPT-2, where
 * one character stands for one byte, and added tokens as plain text; token_type tells them
 * apart; merges holds "left right" in the order of their ranks.
 */
#include <stdlib.h>

#include "error.h"
#include "gguf.h"
#include "vocab.h"
#include "unicode.h"

enum { /* tokenizer.ggml.token_type */
    TOKEN_NORMAL = 1, TOKEN_CONTROL = 3, TOKEN_USER_DEFINED = 4, TOKEN_UNUSED = 5,
};

enum { AHEAD = 16 }; /* how far look-ups are prefetched */

/* ---- hashing -------------------------------------------------------------- */

static uint64_t hash_bytes(const uint8_t *p, size_t n) {
    uint64_t hash = hash_mix(n + 1), word;
    for (; n >= sizeof word; p += sizeof word, n -= sizeof word) {
        memcpy(&word, p, sizeof word);
        hash = hash_mix(hash ^ word);
    }
    word = 0;
    memcpy(&word, p, n);
    return hash_mix(hash_mix(hash ^ word));
}

/* Slots of a table for n entries: a power of two, at most two thirds full. */
static size_t table_size(size_t n) {
    size_t size = 16;
    while (size < n + n / 2) size *= 2;
    return size;
}

static bool token_is(const qwen3_tokenizer *t, int32_t id, const uint8_t *p, size_t n) {
    return token_len(t, id) == n && memcmp(t->bytes + t->start[id], p, n) == 0;
}

/* Ordinary tokens by their bytes; needed only while merges are read. */
typedef struct {
    const qwen3_tokenizer *t;
    uint64_t *slots; /* high half of the hash, then id + 1; 0: empty */
    size_t mask;
} token_map;

static int32_t slot_id(uint64_t slot) { return (int32_t)(uint32_t)slot - 1; }

/* The slot of a token, or the empty one where it belongs. */
static uint64_t *find_token(const token_map *map, const uint8_t *p, size_t n, uint64_t hash) {
    for (size_t at = hash & map->mask;; at = (at + 1) & map->mask) {
        uint64_t slot = map->slots[at];
        if (slot == 0 || (slot >> 32 == hash >> 32 && token_is(map->t, slot_id(slot), p, n)))
            return &map->slots[at];
    }
}

/* The id of a token, -1 if the map lacks it. */
static int32_t token_of(const token_map *map, const uint8_t *p, size_t n, uint64_t hash) {
    return slot_id(*find_token(map, p, n, hash));
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
    else if (kv->type != QWEN3_ARRAY || kv->count > INT32_MAX)
        fail(err, QWEN3_ERR_FORMAT, "%s is not an array of fewer than 2^31 items", key);
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

/* The bytes of all strings of an array. */
static size_t text_bytes(const qwen3_kv *strings) {
    const uint8_t *cursor = strings->data;
    size_t total = 0;
    for (uint64_t i = 0; i < strings->count; i++) total += qwen3_next_string(&cursor).len;
    return total;
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

/* Stores the bytes of token id at *out and moves *out past them. */
static bool read_token(qwen3_tokenizer *t, int32_t id, int32_t type, qwen3_str text, uint8_t **out,
                       qwen3_error *err) {
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
    if (good) return true;
    fail(err, QWEN3_ERR_FORMAT, "token %d, '%.*s', is not the text of a %s token", id,
         STR_ARG(text), type == TOKEN_NORMAL ? "byte-level" : "added");
    return false;
}

static bool read_tokens(qwen3_tokenizer *t, const qwen3_file *file, qwen3_error *err) {
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
    size_t n = tokens->count;
    t->bytes = malloc(text_bytes(tokens) + 1);
    t->start = calloc(n + 1, sizeof *t->start);
    t->kind = calloc(n + 1, sizeof *t->kind);
    if (!t->bytes || !t->start || !t->kind) {
        fail(err, QWEN3_ERR_MEMORY, "out of memory for a vocabulary of %zu tokens", n);
        return false;
    }
    uint8_t *out = t->bytes;
    const uint8_t *cursor = tokens->data;
    for (int32_t id = 0; id < t->n_tokens; id++) {
        int32_t type;
        memcpy(&type, types->data + (size_t)id * sizeof type, sizeof type);
        if (!read_token(t, id, type, qwen3_next_string(&cursor), &out, err)) return false;
    }
    return true;
}

/* Enters the ordinary tokens into the map. */
static bool map_tokens(qwen3_tokenizer *t, token_map *map, qwen3_error *err) {
    size_t n = (size_t)t->n_tokens;
    map->mask = table_size(n) - 1;
    map->slots = calloc(map->mask + 1, sizeof *map->slots);
    uint64_t *hashes = malloc((n + AHEAD) * sizeof *hashes);
    bool good = map->slots && hashes;
    if (!good) fail(err, QWEN3_ERR_MEMORY, "out of memory for a vocabulary of %zu tokens", n);
    for (size_t i = 0; good && i < n + AHEAD; i++) {
        if (i < n) {
            hashes[i] = hash_bytes(t->bytes + t->start[i], token_len(t, (int32_t)i));
            __builtin_prefetch(&map->slots[hashes[i] & map->mask], 1);
        }
        if (i < AHEAD) continue;
        int32_t id = (int32_t)(i - AHEAD);
        if (t->kind[id] != KIND_ORDINARY || token_len(t, id) == 0) continue;
        uint64_t hash = hashes[id];
        uint64_t *slot = find_token(map, t->bytes + t->start[id], token_len(t, id), hash);
        if (*slot) {
            fail(err, QWEN3_ERR_FORMAT, "tokens %d and %d are the same", slot_id(*slot), id);
            good = false;
        }
        *slot = (hash >> 32) << 32 | (uint32_t)(id + 1);
    }
    free(hashes);
    return good;
}

static bool find_bytes(qwen3_tokenizer *t, const token_map *map, qwen3_error *err) {
    for (int i = 0; i < 256; i++) {
        uint8_t byte = (uint8_t)i;
        t->byte_token[i] = token_of(map, &byte, 1, hash_bytes(&byte, 1));
        if (t->byte_token[i] >= 0) continue;
        fail(err, QWEN3_ERR_FORMAT, "tokenizer.ggml.tokens has no token for the byte 0x%02X", i);
        return false;
    }
    return true;
}

/* ---- merges --------------------------------------------------------------- */

typedef struct { /* a merge on its way into the table */
    qwen3_str text;
    const uint8_t *left, *right, *end;
    uint64_t left_hash, right_hash, key;
} pending_merge;

/* Reads "left right" and stores their bytes at *out. */
static bool parse_merge(const token_map *map, pending_merge *m, uint8_t **out) {
    const uint8_t *p = (const uint8_t *)m->text.data, *end = p + m->text.len;
    const uint8_t *space = p < end ? memchr(p, ' ', m->text.len) : NULL;
    m->left = *out;
    if (!space || !read_byte_level(p, space, out)) return false;
    m->right = *out;
    if (!read_byte_level(space + 1, end, out)) return false;
    m->end = *out;
    m->left_hash = hash_bytes(m->left, (size_t)(m->right - m->left));
    m->right_hash = hash_bytes(m->right, (size_t)(m->end - m->right));
    __builtin_prefetch(&map->slots[m->left_hash & map->mask]);
    __builtin_prefetch(&map->slots[m->right_hash & map->mask]);
    return true;
}

static bool resolve_merge(qwen3_tokenizer *t, const token_map *map, pending_merge *m, size_t rank) {
    size_t len = (size_t)(m->end - m->left);
    int32_t left = token_of(map, m->left, (size_t)(m->right - m->left), m->left_hash);
    int32_t right = token_of(map, m->right, (size_t)(m->end - m->right), m->right_hash);
    /* Training makes tokens in the order of their merges: try the next id first. */
    int32_t merged = rank ? t->merged[rank - 1] + 1 : 256;
    if (merged >= t->n_tokens || t->kind[merged] || !token_is(t, merged, m->left, len))
        merged = token_of(map, m->left, len, hash_bytes(m->left, len));
    if (left < 0 || right < 0 || merged < 0) return false;
    t->merged[rank] = merged;
    m->key = pair_key(left, right);
    __builtin_prefetch(&t->merges[pair_slot(t, m->key)], 1);
    return true;
}

static bool read_merges(qwen3_tokenizer *t, const qwen3_file *file, const token_map *map,
                        qwen3_error *err) {
    const qwen3_kv *merges = find_strings(file, "tokenizer.ggml.merges", err);
    if (!merges) return false;
    size_t n = merges->count;
    t->merge_mask = table_size(n) - 1;
    t->merges = calloc(t->merge_mask + 1, sizeof *t->merges);
    t->merged = calloc(n + 1, sizeof *t->merged);
    uint8_t *room = malloc(text_bytes(merges) + 1), *out = room;
    bool good = t->merges && t->merged && room;
    if (!good) fail(err, QWEN3_ERR_MEMORY, "out of memory for %zu merges", n);
    /* Three stages, each AHEAD merges behind the one before, so that what a stage looks up
     * is in the cache by then: this is most of the time that opening a model takes. */
    pending_merge pending[2 * AHEAD];
    const uint8_t *cursor = merges->data;
    for (size_t i = 0; good && i < n + 2 * AHEAD; i++) {
        pending_merge *m = &pending[i % (2 * AHEAD)];
        if (i >= 2 * AHEAD) { /* of a pair listed twice the last rank counts, as in the reference */
            size_t rank = i - 2 * AHEAD;
            *find_merge(t, m->key) = (merge){m->key, (uint32_t)rank, t->merged[rank]};
        }
        if (i < n) {
            m->text = qwen3_next_string(&cursor);
            if (!(good = parse_merge(map, m, &out)))
                fail(err, QWEN3_ERR_FORMAT, "merge %zu, '%.*s', is not two byte-level tokens", i,
                     STR_ARG(m->text));
        }
        m = &pending[(i + AHEAD) % (2 * AHEAD)];
        if (good && i >= AHEAD && i < n + AHEAD && !(good = resolve_merge(t, map, m, i - AHEAD)))
            fail(err, QWEN3_ERR_FORMAT, "merge %zu, '%.*s', names a token that is not there",
                 i - AHEAD, STR_ARG(m->text));
    }
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

const added_token *vocab_match_added(const qwen3_tokenizer *t, const uint8_t *p,
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

bool vocab_read(qwen3_tokenizer *t, const qwen3_file *file, qwen3_error *err) {
    token_map map = {.t = t};
    bool good = check_name(file, "tokenizer.ggml.model", "gpt2", err) &&
                check_name(file, "tokenizer.ggml.pre", "qwen2", err) &&
                read_tokens(t, file, err) && map_tokens(t, &map, err) &&
                find_bytes(t, &map, err) && read_merges(t, file, &map, err) &&
                index_added(t, err);
    free(map.slots);
    return good;
}
