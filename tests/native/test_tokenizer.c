/* test_tokenizer.c - the tokenizer on hand-made vocabularies, good and malformed.
 *
 * Ids equal to the reference's are the Python tests' business. Here: no vocabulary and no
 * text takes the tokenizer beyond defined behaviour (meant for the sanitizers), and what
 * it makes of small vocabularies can be checked by hand.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qwen3.h"
#include "unicode.h"

#define CHECK(condition, ...)                               \
    do {                                                    \
        if (!(condition)) {                                 \
            fprintf(stderr, "%s:%d: ", __FILE__, __LINE__); \
            fprintf(stderr, __VA_ARGS__);                   \
            fprintf(stderr, "\n");                          \
            exit(1);                                        \
        }                                                   \
    } while (0)

#define LENGTH(array) (sizeof(array) / sizeof *(array))

static uint64_t state = 0x9e3779b97f4a7c15;

static uint32_t random_below(uint32_t n) { /* xorshift64* */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)(state * 0x2545f4914f6cdd1d >> 32) % n;
}

/* ---- GGUF images ---------------------------------------------------------- */

enum { NORMAL = 1, CONTROL = 3, USER_DEFINED = 4, UNUSED = 5, MAX_TOKENS = 300, MAX_MERGES = 16 };

typedef struct {
    const char *model, *pre; /* NULL: the key is left out */
    int n_tokens, n_types, n_merges; /* -1: the key is left out */
    uint32_t token_item, type_item;  /* GGUF types of the arrays' items */
    const char *tokens[MAX_TOKENS];
    int32_t types[MAX_TOKENS];
    const char *merges[MAX_MERGES];
} vocabulary;

typedef struct {
    uint8_t data[1 << 16];
    size_t len;
} image;

static void put(image *m, const void *data, size_t n) {
    CHECK(m->len + n <= sizeof m->data, "the image is full");
    memcpy(m->data + m->len, data, n);
    m->len += n;
}

static void put_u32(image *m, uint32_t value) { put(m, &value, sizeof value); }
static void put_u64(image *m, uint64_t value) { put(m, &value, sizeof value); }

static void put_string(image *m, const char *text) {
    put_u64(m, strlen(text));
    put(m, text, strlen(text));
}

static void put_array(image *m, const char *key, uint32_t item, int n) {
    put_string(m, key);
    put_u32(m, QWEN3_ARRAY);
    put_u32(m, item);
    put_u64(m, (uint64_t)n);
}

static void put_named(image *m, const char *key, const char *value) {
    put_string(m, key);
    put_u32(m, QWEN3_STRING);
    put_string(m, value);
}

static void build(image *m, const vocabulary *v) {
    m->len = 0;
    put(m, "GGUF", 4);
    put_u32(m, 3);
    put_u64(m, 0);
    put_u64(m, (uint64_t)(!!v->model + !!v->pre + (v->n_tokens >= 0) + (v->n_types >= 0) +
                          (v->n_merges >= 0)));
    if (v->model) put_named(m, "tokenizer.ggml.model", v->model);
    if (v->pre) put_named(m, "tokenizer.ggml.pre", v->pre);
    if (v->n_tokens >= 0) {
        put_array(m, "tokenizer.ggml.tokens", v->token_item, v->n_tokens);
        for (int i = 0; i < v->n_tokens; i++) {
            if (v->token_item == QWEN3_STRING) put_string(m, v->tokens[i]);
            else put_u32(m, 0);
        }
    }
    if (v->n_types >= 0) {
        put_array(m, "tokenizer.ggml.token_type", v->type_item, v->n_types);
        for (int i = 0; i < v->n_types; i++) {
            if (v->type_item == QWEN3_STRING) put_string(m, "");
            else put(m, &v->types[i], 4);
        }
    }
    if (v->n_merges >= 0) {
        put_array(m, "tokenizer.ggml.merges", QWEN3_STRING, v->n_merges);
        for (int i = 0; i < v->n_merges; i++) put_string(m, v->merges[i]);
    }
}

static qwen3_tokenizer *open_vocabulary(const vocabulary *v, qwen3_error *err) {
    static image m;
    build(&m, v);
    qwen3_file *file = qwen3_file_from_memory(m.data, m.len, err);
    CHECK(file, "%s", err->text);
    qwen3_tokenizer *t = qwen3_tokenizer_new(file, err);
    qwen3_file_close(file);
    return t;
}

static void add(vocabulary *v, const char *text, int32_t type) {
    v->tokens[v->n_tokens++] = text;
    v->types[v->n_types++] = type;
}

enum { AB = 256, ABC, BC, AA, SPACE_A, E_ACUTE, SHORT, LONG, END, PAD };

/* Tokens 0 to 255 are the bytes in order, then those of the enum. */
static vocabulary good_vocabulary(void) {
    static char alphabet[256][3];
    vocabulary v = {"gpt2", "qwen2", 0, 0, 0, QWEN3_STRING, QWEN3_I32, {0}, {0}, {0}};
    uint32_t next = 256;
    for (uint32_t byte = 0; byte < 256; byte++) {
        bool printable = (byte > 32 && byte < 127) || (byte > 160 && byte != 173);
        alphabet[byte][utf8_encode(printable ? byte : next++, (uint8_t *)alphabet[byte])] = 0;
        add(&v, alphabet[byte], NORMAL);
    }
    add(&v, "ab", NORMAL);
    add(&v, "abc", NORMAL);
    add(&v, "bc", NORMAL);
    add(&v, "aa", NORMAL);
    add(&v, "\u0120a", NORMAL);
    add(&v, "\u00c3\u00a9", NORMAL);
    add(&v, "<x>", USER_DEFINED);
    add(&v, "<x>y", USER_DEFINED);
    add(&v, "<|end|>", CONTROL);
    add(&v, "[PAD265]", UNUSED);
    static const char *const merges[] = {"a b", "b c", "ab c", "a a", "\u0120 a", "\u00c3 \u00a9"};
    for (size_t i = 0; i < LENGTH(merges); i++) v.merges[v.n_merges++] = merges[i];
    return v;
}

/* ---- what it makes of text ------------------------------------------------ */

static void check_ids(const qwen3_tokenizer *t, const char *text, size_t len, bool added,
                      const int32_t *expected, size_t n_expected) {
    qwen3_error err;
    int32_t *ids;
    int64_t n = qwen3_encode(t, text, len, added, &ids, &err);
    CHECK(n == (int64_t)n_expected, "'%s': %lld ids", text, (long long)n);
    for (size_t i = 0; i < n_expected; i++)
        CHECK(ids[i] == expected[i], "'%s': id %zu is %d", text, i, ids[i]);
    qwen3_free(ids);
}

#define IDS(t, text, added, ...)                                                         \
    check_ids(t, text, sizeof(text) - 1, added, (const int32_t[]){__VA_ARGS__},          \
              sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

static void test_text(const qwen3_tokenizer *t) {
    check_ids(t, "", 0, true, NULL, 0);
    check_ids(t, NULL, 0, false, NULL, 0);
    IDS(t, "abc", false, ABC);
    IDS(t, "bcabbc", false, BC, AB, BC);
    IDS(t, "aaaaa", false, AA, AA, 'a');
    IDS(t, "a ab", false, 'a', ' ', AB); /* "a b" outranks "\u0120 a" */
    IDS(t, "a a", false, 'a', SPACE_A);
    IDS(t, "a1a", false, 'a', '1', 'a'); /* no merge across pieces */
    IDS(t, "\u00e9", false, E_ACUTE);
    IDS(t, "e\u0301", false, E_ACUTE); /* NFC */
    IDS(t, "<x>", false, '<', 'x', '>');
    IDS(t, "<x>", true, SHORT);
    IDS(t, "<x>y<x><x", true, LONG, SHORT, '<', 'x');
    IDS(t, "a<|end|>b", true, 'a', END, 'b'); /* no merge across an added token */
    IDS(t, "e<x>\u0301", true, 'e', SHORT, 0xCC, 0x81);
    IDS(t, "\xff", false, 0xEF, 0xBF, 0xBD);
    IDS(t, "\xe2\x82<x>", true, 0xEF, 0xBF, 0xBD, SHORT);
    IDS(t, "[PAD265]", true, '[', 'P', 'A', 'D', '2', '6', '5', ']');
    IDS(t, "a\0b", false, 'a', 0, 'b');
}

static void test_tokens(const qwen3_tokenizer *t) {
    CHECK(qwen3_tokenizer_n_tokens(t) == PAD + 1, "%zu tokens", qwen3_tokenizer_n_tokens(t));
    for (int32_t id = -2; id <= PAD + 2; id++) {
        qwen3_str s = qwen3_token_bytes(t, id);
        int kind = id == SHORT || id == LONG ? 1 : id == END ? 2 : 0;
        CHECK(qwen3_token_kind(t, id) == kind, "token %d has kind %d", id, kind);
        if (id >= 0 && id < 256)
            CHECK(s.len == 1 && (uint8_t)s.data[0] == id, "byte %d", id);
        else if (id < 0 || id >= PAD)
            CHECK(s.len == 0, "token %d has text", id);
    }
    qwen3_str s = qwen3_token_bytes(t, E_ACUTE);
    CHECK(s.len == 2 && memcmp(s.data, "\u00e9", 2) == 0, "the bytes of a token");
    s = qwen3_token_bytes(t, END);
    CHECK(s.len == 7 && memcmp(s.data, "<|end|>", 7) == 0, "the text of an added token");
}

/* Encodes, and checks that the tokens' bytes are the text in NFC. */
static void round_trip(const qwen3_tokenizer *t, const uint8_t *text, size_t len) {
    qwen3_error err;
    int32_t *ids;
    int64_t n = qwen3_encode(t, (const char *)text, len, false, &ids, &err);
    CHECK(n >= 0, "%s", err.text);
    uint8_t *owned;
    size_t at = 0;
    const uint8_t *expected = utf8_nfc(text, &len, &owned);
    CHECK(expected, "out of memory");
    for (int64_t i = 0; i < n; i++) {
        qwen3_str s = qwen3_token_bytes(t, ids[i]);
        CHECK(s.len <= len - at && memcmp(expected + at, s.data, s.len) == 0, "at byte %zu", at);
        at += s.len;
    }
    CHECK(at == len, "%zu bytes of %zu", at, len);
    free(owned);
    qwen3_free(ids);
}

static void test_random_text(const qwen3_tokenizer *t) {
    static const char *const parts[] = {
        "abc", "a", " ", "\n", "\r\n", "\u0301", "\u0323", "\u0345", "\u1100", "\u1161", "\u11a8",
        "\uac00", "\U0001d15e", "\u0f73", "<x>", "<", "'s", "7", "\u3000", "\xf0\x9f", "\xed\xa0",
        "\xff", "\u0390", "\u1f82", "\ufb2c",
    };
    for (int round = 0; round < 20000; round++) {
        uint8_t text[64];
        size_t len = 0, limit = random_below(sizeof text - 8) + 1;
        while (len < limit) {
            if (random_below(2)) {
                text[len++] = (uint8_t)random_below(256);
            } else {
                const char *part = parts[random_below(LENGTH(parts))];
                memcpy(text + len, part, strlen(part));
                len += strlen(part);
            }
        }
        uint8_t *exact = malloc(len); /* a read behind it is seen */
        CHECK(exact, "out of memory");
        memcpy(exact, text, len);
        round_trip(t, exact, len);
        int32_t *ids;
        CHECK(qwen3_encode(t, (const char *)exact, len, true, &ids, NULL) >= 0, "encode");
        qwen3_free(ids);
        free(exact);
    }
}

static void test_long_text(const qwen3_tokenizer *t) {
    static const char *const units[] = {"a", "abc", " ", "\n", "\u0301", "\u0323\u0301", "\xff",
                                        "7", "<", "<x", "\u1100\u1161\u11a8", "e\u0301"};
    enum { SIZE = 1 << 20 };
    uint8_t *text = malloc(SIZE);
    CHECK(text, "out of memory");
    for (size_t i = 0; i < LENGTH(units); i++) {
        size_t unit = strlen(units[i]);
        for (size_t at = 0; at < SIZE; at++) text[at] = (uint8_t)units[i][at % unit];
        round_trip(t, text, SIZE);
    }
    free(text);
    int32_t *ids;
    qwen3_error err;
    int64_t n = qwen3_encode(t, "a", (size_t)1 << 31, false, &ids, &err); /* refused unread */
    CHECK(n == -1 && err.status == QWEN3_ERR_ARG && !ids, "a text of 2 GiB is refused");
}

static void *encode_often(void *t) {
    for (int i = 0; i < 200; i++) IDS(t, "abc e\u0301 <x>", true, ABC, ' ', E_ACUTE, ' ', SHORT);
    return NULL;
}

static void test_threads(qwen3_tokenizer *t) {
    pthread_t threads[4];
    for (size_t i = 0; i < LENGTH(threads); i++)
        CHECK(pthread_create(&threads[i], NULL, encode_often, t) == 0, "pthread_create");
    for (size_t i = 0; i < LENGTH(threads); i++) pthread_join(threads[i], NULL);
}

/* ---- malformed vocabularies ----------------------------------------------- */

static void refused(const vocabulary *v, qwen3_status status, const char *names) {
    qwen3_error err = {0};
    qwen3_tokenizer *t = open_vocabulary(v, &err);
    CHECK(!t && err.status == status, "not refused: '%s'", names);
    CHECK(strstr(err.text, names), "'%s' does not name '%s'", err.text, names);
}

#define REFUSED(change, status, names)         \
    do {                                       \
        vocabulary v = good_vocabulary();      \
        change;                                \
        refused(&v, QWEN3_ERR_##status, names); \
    } while (0)

static void test_malformed(void) {
    REFUSED(v.model = NULL, FORMAT, "tokenizer.ggml.model");
    REFUSED(v.pre = NULL, FORMAT, "tokenizer.ggml.pre");
    REFUSED(v.model = "llama", UNSUPPORTED, "llama");
    REFUSED(v.pre = "llama-bpe", UNSUPPORTED, "llama-bpe");
    REFUSED(v.n_tokens = -1, FORMAT, "tokenizer.ggml.tokens");
    REFUSED(v.n_types = -1, FORMAT, "tokenizer.ggml.token_type");
    REFUSED(v.n_merges = -1, FORMAT, "tokenizer.ggml.merges");
    REFUSED(v.n_tokens = v.n_types = 0, FORMAT, "0x00");
    REFUSED(v.token_item = QWEN3_U32, FORMAT, "tokenizer.ggml.tokens");
    REFUSED(v.type_item = QWEN3_STRING, FORMAT, "tokenizer.ggml.token_type");
    REFUSED(v.n_types--, FORMAT, "265 items for 266 tokens");
    REFUSED(v.n_types++, FORMAT, "267 items for 266 tokens");
    REFUSED(v.types[7] = 2, FORMAT, "token 7 is 2");
    REFUSED(v.types[7] = -1, FORMAT, "token 7 is -1");
    REFUSED(v.tokens[65] = "BB", FORMAT, "0x41");
    REFUSED(v.tokens[AB] = "", FORMAT, "token 256");
    REFUSED(v.tokens[END] = "", FORMAT, "token 264");
    REFUSED(v.tokens[END] = "<\xff>", FORMAT, "token 264");
    REFUSED(v.tokens[AB] = "a b", FORMAT, "token 256");
    REFUSED(v.tokens[AB] = "\u0400", FORMAT, "token 256");
    REFUSED(v.tokens[AB] = "a\xc4", FORMAT, "token 256");
    REFUSED(v.tokens[AA] = "bc", FORMAT, "258 and 259");
    REFUSED(v.tokens[LONG] = "<x>", FORMAT, "are the same");
    REFUSED(v.merges[0] = "ab", FORMAT, "merge 0");
    REFUSED(v.merges[0] = "", FORMAT, "merge 0");
    REFUSED(v.merges[0] = " b", FORMAT, "merge 0");
    REFUSED(v.merges[0] = "a ", FORMAT, "merge 0");
    REFUSED(v.merges[5] = "a b c", FORMAT, "merge 5");
    REFUSED(v.merges[5] = "\xff \xfe", FORMAT, "merge 5");
    REFUSED(v.merges[5] = "a z", FORMAT, "merge 5");  /* no token az */
    REFUSED(v.merges[5] = "az b", FORMAT, "merge 5");
    REFUSED(v.merges[5] = "< x>", FORMAT, "merge 5"); /* added tokens do not merge */
}

/* Odd vocabularies that the reference reads too. */
static void test_odd(void) {
    qwen3_error err;
    vocabulary v = good_vocabulary();
    v.n_merges = 0;
    qwen3_tokenizer *t = open_vocabulary(&v, &err);
    CHECK(t, "%s", err.text);
    IDS(t, "abc", false, 'a', 'b', 'c');
    qwen3_tokenizer_free(t);

    v = good_vocabulary();
    v.merges[v.n_merges++] = "a b"; /* listed again: now it ranks last */
    t = open_vocabulary(&v, &err);
    CHECK(t, "%s", err.text);
    IDS(t, "abc", false, 'a', BC);
    qwen3_tokenizer_free(t);

    v = good_vocabulary();
    v.merges[v.n_merges++] = "a bc"; /* a token that two merges make */
    t = open_vocabulary(&v, &err);
    CHECK(t, "%s", err.text);
    IDS(t, "abcabc", false, ABC, ABC);
    qwen3_tokenizer_free(t);
}

/* Any damage to the image gives an error or a tokenizer that works. */
static void test_damaged_images(void) {
    static image whole;
    vocabulary v = good_vocabulary();
    build(&whole, &v);
    for (size_t at = 0; at < whole.len; at++) {
        uint8_t *data = malloc(whole.len);
        CHECK(data, "out of memory");
        memcpy(data, whole.data, whole.len);
        data[at] ^= (uint8_t)(1 + random_below(255));
        qwen3_error err;
        qwen3_file *file = qwen3_file_from_memory(data, whole.len, &err);
        qwen3_tokenizer *t = file ? qwen3_tokenizer_new(file, &err) : NULL;
        if (t) round_trip(t, (const uint8_t *)"abcabc a\u00e9<x>y 12", 18);
        qwen3_tokenizer_free(t);
        qwen3_file_close(file);
        free(data);
    }
}

int main(void) {
    qwen3_error err;
    vocabulary v = good_vocabulary();
    qwen3_tokenizer *t = open_vocabulary(&v, &err);
    CHECK(t, "%s", err.text);
    test_text(t);
    test_tokens(t);
    test_random_text(t);
    test_long_text(t);
    test_threads(t);
    qwen3_tokenizer_free(t);
    test_malformed();
    test_odd();
    test_damaged_images();
    return 0;
}
