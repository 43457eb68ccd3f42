/* unicode.h - UTF-8, the character properties that split text, and NFC.
 *
 * The tables hold what the reference tokenizer's own Unicode data say, so that
 * ids agree with it; see tests/vectors/make_unicode.py.
 */
#ifndef QWEN3_UNICODE_H
#define QWEN3_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    CLASS_OTHER,
    CLASS_LETTER, /* \p{L} */
    CLASS_NUMBER, /* \p{N} */
    CLASS_SPACE,  /* \s */
} char_class;

#define ILL_FORMED UINT32_MAX

/* Decodes the character at p < end into *code and returns its length in bytes.
 * Ill-formed bytes give ILL_FORMED and the length of their maximal subpart, the
 * unit that one U+FFFD replaces. */
size_t utf8_decode(const uint8_t *p, const uint8_t *end, uint32_t *code);
/* Writes 1 to 4 bytes and returns how many. */
size_t utf8_encode(uint32_t code, uint8_t *out);

/* code <= 0x10FFFF */
char_class unicode_class(uint32_t code);

/* text in NFC, ill-formed bytes as U+FFFD: text itself where nothing changes, else
 * a buffer that is also handed to *owned for the caller to free. *len is updated.
 * Returns NULL when an allocation failed. Linear time; 0 < len <= 2^30. */
const uint8_t *utf8_nfc(const uint8_t *text, size_t *len, uint8_t **owned);

#endif
