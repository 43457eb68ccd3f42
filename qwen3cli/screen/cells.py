"""How many cells of a terminal a text takes, and where its lines break.

Terminals disagree about a few sequences; what must hold everywhere (the panel of thoughts) turns
the wrapping of lines off while it draws, instead of relying on these widths."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

TAB = 4  # cells of a tab where the text around it is wrapped
_LEAST = 16  # cells of a row behind what it is indented by
_JOINER, _EMOJI_STYLE = "\u200d", "\ufe0f"
_SKINS = range(0x1F3FB, 0x1F400)
_NO_START = frozenset("、。，．：；？！）］｝〉》」』】〕”’…,.:;?!)]}%")  # after a wide character
_LINE = re.compile(r"[^\n]*\n|[^\n]+")


@lru_cache(4096)
def char_cells(char: str) -> int:
    """Cells of one character by itself: 0, 1 or 2."""
    code = ord(char)
    if unicodedata.category(char) in ("Mn", "Me", "Cf", "Zl", "Zp") and code != 0xAD:
        return 0
    if 0x1160 <= code < 0x1200:  # vowels and finals, drawn into the syllable before them
        return 0
    if char == "\t":
        return TAB
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def joins(cluster: str, cells: int, char: str) -> int | None:
    """The cells of a cluster with one more character, if that belongs to it: a mark, a joined
    emoji, a skin tone, or emoji style."""
    own = char_cells(char)
    if own == 0:
        return 2 if char == _EMOJI_STYLE and cells == 1 and not cluster.isalnum() else cells
    joined = own == 2 and cells == 2 and (cluster[-1] == _JOINER or ord(char) in _SKINS)
    return cells if joined else None


def clusters(text: str) -> Iterator[tuple[str, int]]:
    """The characters as a reader sees them, with their cells."""
    start = cells = 0
    for i, char in enumerate(text):
        grown = joins(text[start:i], cells, char) if i > start else None
        if grown is None:
            if i > start:
                yield text[start:i], cells
            start, grown = i, char_cells(char)
        cells = grown
    if text:
        yield text[start:], cells


def text_cells(text: str) -> int:
    """Cells of a text without newlines."""
    if text.isascii():
        return len(text) + (TAB - 1) * text.count("\t")
    return sum(cells for _, cells in clusters(text))


def rows(text: str, width: int) -> list[str]:
    """The text in rows of at most width cells, which break at spaces where they can, between wide
    characters and inside of words that are longer. Together they are the text: a newline ends
    its row, spaces at a break hang over the edge."""
    return [row for line in _LINE.findall(text) for row in _rows(line, width)]


def wrapped(text: str, width: int, hang: int = 0) -> str:
    """One line broken at spaces, and between wide characters, as rows() has it; what follows the
    first row is indented by hang. A longer word is left to the terminal, in which it can be copied
    whole."""
    hang = min(hang, max(width - _LEAST, 0))
    first = next(iter(rows(text, width)), "")
    parts = [first]
    for row in rows(text[len(first) :], width - hang):
        if parts[-1].endswith(" ") or breaks_between(parts[-1][-1], row[0]):
            parts += "\n", " " * hang
        parts.append(row)
    return re.sub(r" +\n", "\n", "".join(parts))


def _rows(line: str, width: int) -> Iterator[str]:
    if line.isascii() and "\t" not in line:
        yield from _ascii_rows(line, width)
        return
    start = used = at = 0  # the row's first character, its cells, the next cluster
    breaks = 0  # the last place at which the row may end
    before = " "
    for cluster, cells in clusters(line):
        if cluster not in " \n":
            if before == " " or breaks_between(before, cluster):
                breaks = at
            while used + cells > width and at > start:
                start, row = (breaks if breaks > start else at), start
                yield line[row:start]
                used = text_cells(line[start:at])
        used += cells
        at += len(cluster)
        before = cluster
    if start < at:
        yield line[start:]


def _ascii_rows(line: str, width: int) -> Iterator[str]:
    """The same where every character takes one cell."""
    start, stop = 0, len(line.rstrip("\n "))
    while stop - start > width:
        space = line.rfind(" ", start, start + width + 1)
        end = space + 1 if space >= 0 else start + width
        while line[end] == " ":
            end += 1
        yield line[start:end]
        start = end
    if start < len(line):
        yield line[start:]


def breaks_between(before: str, cluster: str) -> bool:
    """Whether a line may break between two clusters without a space: beside wide ones, but not
    before what closes."""
    wide = char_cells(before[0]) == 2 or char_cells(cluster[0]) == 2
    return wide and cluster not in _NO_START
