/* unicode.c - UTF-8, the classes of the pre-tokenizer, and NFC in linear time. */
#include "unicode.h"

#include <stdlib.h>
#include <string.h>

#include "unicode_tables.h"

/* A property is class | mark << 2, the mark
 *   0       stable: a starter that NFC leaves alone and never joins to what precedes
 *   1       a starter that NFC may change or join
 *   n > 1   a combining character; n orders the combining classes */
enum { STABLE = 0, FIRST_COMBINING = 2, MARKS = 64 };

enum {
    HANGUL_L = 0x1100, HANGUL_V = 0x1161, HANGUL_T = 0x11A7, HANGUL_S = 0xAC00,
    HANGUL_L_COUNT = 19, HANGUL_V_COUNT = 21, HANGUL_T_COUNT = 28,
    HANGUL_S_COUNT = HANGUL_L_COUNT * HANGUL_V_COUNT * HANGUL_T_COUNT,
};

#define LENGTH(array) (sizeof(array) / sizeof *(array))

size_t utf8_decode(const uint8_t *p, const uint8_t *end, uint32_t *code) {
    uint8_t lead = *p;
    if (lead < 0x80) {
        *code = lead;
        return 1;
    }
    *code = ILL_FORMED;
    if (lead < 0xC2 || lead > 0xF4) return 1;
    size_t len = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    /* The second byte's range excludes overlong forms, surrogates and > 0x10FFFF. */
    uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    uint32_t value = lead & (0x7Fu >> len);
    for (size_t i = 1; i < len; i++) {
        if (p + i == end || p[i] < low || p[i] > high) return i;
        value = value << 6 | (p[i] & 0x3F);
        low = 0x80, high = 0xBF;
    }
    *code = value;
    return len;
}

size_t utf8_encode(uint32_t code, uint8_t *out) {
    if (code < 0x80) {
        out[0] = (uint8_t)code;
        return 1;
    }
    size_t len = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = len - 1; i > 0; i--, code >>= 6) out[i] = 0x80 | (code & 0x3F);
    out[0] = (uint8_t)(0xF00u >> len | code);
    return len;
}

static unsigned property(uint32_t code) {
    return property_of[property_block[code / PROPERTY_BLOCK] * PROPERTY_BLOCK +
                       code % PROPERTY_BLOCK];
}

char_class unicode_class(uint32_t code) { return (char_class)(property(code) & 3); }

static unsigned mark_of(uint32_t code) { return property(code) >> 2; }

/* Reads the character at p as NFC sees it; U+FFFD counts as unstable where it
 * replaces ill-formed bytes. */
static size_t next_char(const uint8_t *p, const uint8_t *end, uint32_t *code, bool *stable) {
    size_t n = utf8_decode(p, end, code);
    *stable = *code != ILL_FORMED && mark_of(*code) == STABLE;
    if (*code == ILL_FORMED) *code = 0xFFFD;
    return n;
}

/* Writes the full canonical decomposition of code and returns its length. */
static size_t decompose(uint32_t code, uint32_t *out) {
    if (code - HANGUL_S < HANGUL_S_COUNT) {
        uint32_t index = code - HANGUL_S, tail = index % HANGUL_T_COUNT;
        out[0] = HANGUL_L + index / (HANGUL_V_COUNT * HANGUL_T_COUNT);
        out[1] = HANGUL_V + index / HANGUL_T_COUNT % HANGUL_V_COUNT;
        out[2] = HANGUL_T + tail;
        return tail ? 3 : 2;
    }
    size_t at = 0, end = LENGTH(decompositions);
    while (at < end) {
        size_t middle = (at + end) / 2;
        if (decompositions[middle].code < code) at = middle + 1;
        else end = middle;
    }
    if (at == LENGTH(decompositions) || decompositions[at].code != code) {
        out[0] = code;
        return 1;
    }
    const decomposition *found = &decompositions[at];
    memcpy(out, decomposed + found->start, found->len * sizeof *out);
    return found->len;
}

/* The canonical composite of two characters, 0 if there is none. */
static uint32_t compose(uint32_t first, uint32_t second) {
    if (first - HANGUL_L < HANGUL_L_COUNT && second - HANGUL_V < HANGUL_V_COUNT) {
        uint32_t index = (first - HANGUL_L) * HANGUL_V_COUNT + second - HANGUL_V;
        return HANGUL_S + index * HANGUL_T_COUNT;
    }
    if (first - HANGUL_S < HANGUL_S_COUNT && (first - HANGUL_S) % HANGUL_T_COUNT == 0 &&
        second - (HANGUL_T + 1) < HANGUL_T_COUNT - 1)
        return first + second - HANGUL_T;
    uint64_t wanted = (uint64_t)first << 32 | second;
    size_t at = 0, end = LENGTH(compositions);
    while (at < end) {
        size_t middle = (at + end) / 2;
        const composition *pair = &compositions[middle];
        uint64_t key = (uint64_t)pair->first << 32 | pair->second;
        if (key == wanted) return pair->composite;
        if (key < wanted) at = middle + 1;
        else end = middle;
    }
    return 0;
}

/* Sorts each run of combining characters by class, stably, by counting. */
static void order_marks(uint32_t *codes, uint32_t *spare, size_t n) {
    for (size_t start = 0, end; start < n; start = end + 1) {
        for (end = start; end < n && mark_of(codes[end]) >= FIRST_COMBINING;) end++;
        if (end - start < 2) continue;
        size_t at[MARKS + 1] = {0};
        for (size_t i = start; i < end; i++) at[mark_of(codes[i]) + 1]++;
        for (unsigned mark = 1; mark < MARKS; mark++) at[mark] += at[mark - 1];
        for (size_t i = start; i < end; i++) spare[at[mark_of(codes[i])]++] = codes[i];
        memcpy(codes + start, spare, (end - start) * sizeof *codes);
    }
}

/* Composes in place and returns the new length. */
static size_t compose_all(uint32_t *codes, size_t n) {
    size_t kept = 0, starter = SIZE_MAX;
    unsigned last = 0; /* mark of the last character kept */
    for (size_t i = 0; i < n; i++) {
        uint32_t code = codes[i];
        unsigned mark = mark_of(code);
        /* Blocked: something between it and the starter has no lower class. */
        bool open = starter != SIZE_MAX &&
                    (starter + 1 == kept || (last >= FIRST_COMBINING && last < mark));
        uint32_t composite = open ? compose(codes[starter], code) : 0;
        if (composite) {
            codes[starter] = composite;
            continue;
        }
        if (mark < FIRST_COMBINING) starter = kept;
        last = mark;
        codes[kept++] = code;
    }
    return kept;
}

/* Normalizes [p, end), which starts at a starter or at the start of the text.
 * codes and spare hold 2 * (end - p) items each. Returns the bytes written. */
static size_t normalize(const uint8_t *p, const uint8_t *end, uint32_t *codes, uint32_t *spare,
                        uint8_t *out) {
    size_t n = 0, written = 0;
    while (p < end) {
        uint32_t code;
        bool stable;
        p += next_char(p, end, &code, &stable);
        n += decompose(code, codes + n);
    }
    order_marks(codes, spare, n);
    n = compose_all(codes, n);
    for (size_t i = 0; i < n; i++) written += utf8_encode(codes[i], out + written);
    return written;
}

const uint8_t *utf8_nfc(const uint8_t *text, size_t *len, uint8_t **owned) {
    const uint8_t *p = text, *end = text + *len;
    const uint8_t *copied = text; /* what is before is in out */
    const uint8_t *start = text;  /* of the character before p, or p where none precedes */
    uint8_t *out = NULL;
    uint32_t *codes = NULL;
    size_t written = 0, room = 0;
    *owned = NULL;
    while (p < end) {
        uint32_t code;
        bool stable;
        size_t n = next_char(p, end, &code, &stable);
        if (stable) {
            start = p;
            p += n;
            continue;
        }
        do p += n;
        while (p < end && (n = next_char(p, end, &code, &stable), !stable));
        size_t need = (size_t)(p - start) * 2;
        if (need > room) {
            free(codes);
            room = need > 2 * room ? need : 2 * room;
            codes = malloc(2 * room * sizeof *codes);
        }
        /* The generator of the tables checks that NFC grows text at most threefold. */
        if (!out) out = malloc(*len * 3);
        if (!codes || !out) {
            free(codes);
            free(out);
            return NULL;
        }
        memcpy(out + written, copied, (size_t)(start - copied));
        written += (size_t)(start - copied);
        written += normalize(start, p, codes, codes + room, out + written);
        copied = start = p;
    }
    free(codes);
    if (!out) return text;
    memcpy(out + written, copied, (size_t)(end - copied));
    *len = written + (size_t)(end - copied);
    *owned = out;
    return out;
}
