"""Writes native/unicode_tables.h from the behaviour of the `tokenizers` library.

    python tests/vectors/make_unicode.py native/unicode_tables.h

Ids can only equal the reference's when both read the same Unicode version, and the
reference reads two: one in its regex engine (classes), an older one in its normalizer.
So every entry is asked of the library itself, code point by code point.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import Regex, normalizers
from tokenizers.pre_tokenizers import Split

CODES = [code for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
HANGUL_SYLLABLES = range(0xAC00, 0xD7A4)
HANGUL_VOWELS_AND_TAILS = [*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)]
BLOCK = 128  # code points per block of the two-stage table

nfc = normalizers.NFC().normalize_str
nfd = normalizers.NFD().normalize_str


def matching(pattern: str) -> set[int]:
    """The code points that a regular expression of the library matches."""
    text = "".join(map(chr, CODES))
    pieces = Split(Regex(pattern), "removed", invert=True).pre_tokenize_str(text)
    return {ord(char) for piece, _ in pieces for char in piece}


def decompositions() -> dict[int, str]:
    """Full canonical decompositions, without the Hangul syllables (arithmetic)."""
    full = ((code, nfd(chr(code))) for code in CODES if code not in HANGUL_SYLLABLES)
    return {code: text for code, text in full if text != chr(code)}


def compositions(decomposed: dict[int, str]) -> dict[tuple[int, int], int]:
    """(first, second) -> composite, for those that NFC does compose."""
    pairs = {}
    for code, text in decomposed.items():
        if nfc(text) == chr(code):
            first, second = nfc(text[:-1]), text[-1]
            assert nfc(first + second) == chr(code)
            pairs[ord(first), ord(second)] = code
    return pairs


def combining_ranks(decomposed: dict[int, str]) -> dict[int, int]:
    """Combining classes as ranks from 1: only their order shows, and only it matters."""

    def swaps(first: str, second: str) -> bool:
        return nfd(first + second) == second + first

    low, high = "\u0334", "\u0345"  # of the lowest and the highest class
    classes: list[list[str]] = []
    for char in (chr(code) for code in CODES if code not in decomposed):
        if not (swaps(high, char) or swaps(char, low)) and char not in (low, high):
            continue
        at, end = 0, len(classes)
        while at < end:  # binary search for the class that is not below char's
            middle = (at + end) // 2
            if swaps(char, classes[middle][0]):
                at = middle + 1
            else:
                end = middle
        if at < len(classes) and not swaps(classes[at][0], char):
            classes[at].append(char)
        else:
            classes.insert(at, [char])
    # swaps(x, y) means class(x) > class(y): the list is in ascending order.
    return {ord(char): rank for rank, chars in enumerate(classes, 1) for char in chars}


def properties(decomposed: dict[int, str], composed: dict[tuple[int, int], int]) -> bytearray:
    """One byte per code point: class | mark << 2, as unicode.h explains."""
    ranks = combining_ranks(decomposed)
    assert max(ranks.values()) + 1 < 64
    table = bytearray(0x110000)
    for value, pattern in enumerate((r"\p{L}+", r"\p{N}+", r"\s+"), 1):
        for code in matching(pattern):
            assert table[code] == 0
            table[code] = value
    unstable = {code for code, text in decomposed.items() if nfc(text) != chr(code)}
    unstable.update(second for _, second in composed)
    unstable.update(HANGUL_VOWELS_AND_TAILS)
    for code in unstable | ranks.keys():
        table[code] |= (ranks.get(code, 0) + 1) << 2
    return table


def check_growth(decomposed: dict[int, str], composed: dict[tuple[int, int], int]) -> None:
    """The bounds that unicode.c sizes its buffers by."""

    def size(text: str) -> int:
        return len(text.encode())

    for code, text in decomposed.items():
        assert size(text) <= 3 * size(chr(code)) and len(text) <= 2 * size(chr(code))
    for (first, second), code in composed.items():
        assert size(chr(code)) <= size(chr(first)) + size(chr(second))


def array(kind: str, name: str, items: Iterable[str]) -> str:
    lines, line = [], "    "
    for item in items:
        if len(line) + len(item) + 1 > 100:
            lines.append(line)
            line = "    "
        line += f"{item},"
    return f"static const {kind} {name}[] = {{\n" + "\n".join([*lines, line]) + "\n};\n"


def main(out: Path) -> None:
    decomposed = decompositions()
    composed = compositions(decomposed)
    check_growth(decomposed, composed)
    table = bytes(properties(decomposed, composed))

    blocks: dict[bytes, int] = {}
    stage1 = [
        blocks.setdefault(table[at : at + BLOCK], len(blocks)) for at in range(0, 0x110000, BLOCK)
    ]
    assert len(blocks) <= 0x10000
    pool: list[int] = []
    index = []
    for code, text in sorted(decomposed.items()):
        index.append(f"{{0x{code:X},{len(pool)},{len(text)}}}")
        pool += map(ord, text)
    assert len(pool) <= 0x10000

    parts = [
        "/* unicode_tables.h - generated by tests/vectors/make_unicode.py from tokenizers\n"
        f" * {tokenizers.__version__}. Do not edit. unicode.h says what the properties mean. */\n",
        f"enum {{ PROPERTY_BLOCK = {BLOCK} }};\n",
        array("uint16_t", "property_block", map(str, stage1)),
        array("uint8_t", "property_of", (str(byte) for block in blocks for byte in block)),
        "/* Full canonical decompositions by code point: a slice of decomposed. */",
        "typedef struct {\n    uint32_t code;\n    uint16_t start, len;\n} decomposition;\n",
        array("decomposition", "decompositions", index),
        array("uint32_t", "decomposed", (f"0x{code:X}" for code in pool)),
        "/* Canonical composites by (first, second). */",
        "typedef struct {\n    uint32_t first, second, composite;\n} composition;\n",
        array(
            "composition",
            "compositions",
            (f"{{0x{a:X},0x{b:X},0x{c:X}}}" for (a, b), c in sorted(composed.items())),
        ),
    ]
    out.write_text("\n".join(parts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
