"""Words that wrap at the width of a terminal, written one by one and never again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import groupby

from qwen3cli.screen.cells import TAB, breaks_between, char_cells, clusters, joins, text_cells

_PIECE = re.compile(r"[!-~]+|[^!-~]")
Run = tuple[str, str]  # parameters of SGR ("": plain), text


def paint(style: str, text: str) -> str:
    """The text in a style, which ends with it."""
    return f"\x1b[{style}m{text}\x1b[0m" if style and text else text


class Flow:
    """Lines that are filled with words. A word is written when it is complete, or fills a line:
    what is written does not depend on the pieces in which the text came."""

    def __init__(self, width: Callable[[], int]) -> None:
        self.column = 0  # cells of the line that are written
        self._width = width
        self._written: list[str] = []
        self._hang: list[Run] = []  # what begins the lines that a line wraps into
        self._fresh = True  # nothing but what begins it is in the line
        self._spaces: list[Run] = []  # before the word
        self._word: list[Run] = []  # a run holds one cluster, or characters of ASCII
        self._cells = 0  # of the word

    def take(self) -> str:
        """What was written since the last time."""
        written, self._written = "".join(self._written), []
        return written

    @property
    def in_line(self) -> bool:
        """Whether something is written in the line."""
        return self.column > 0 or not self._fresh

    def begin(self, first: Iterable[Run], hang: Iterable[Run]) -> None:
        """Begins a line with first, and those that it wraps into with hang."""
        self._prefix(first)
        self._hang = list(hang)

    def put(self, style: str, text: str) -> None:
        """More of the line."""
        for piece in _PIECE.findall(text):
            if piece in " \t":
                self._flush()
                self._spaces.append((style, " " * (TAB if piece == "\t" else 1)))
            elif piece.isascii():
                if self._word and not self._word[-1][1][-1].isascii() and self._breaks(piece):
                    self._flush()
                self._add(style, piece, len(piece))
            else:
                self._put_char(style, piece)
            if self._cells > self._width():
                self._chop()

    def _put_char(self, style: str, char: str) -> None:
        if self._word:
            last, cluster = self._word[-1]
            if cluster.isascii():
                cluster = cluster[-1]
            cells = text_cells(cluster)
            if (grown := joins(cluster, cells, char)) is not None:
                self._word[-1] = (last, f"{self._word[-1][1]}{char}")
                self._cells += grown - cells
                return
            if self._breaks(char):
                self._flush()
        self._add(style, char, char_cells(char))

    def _breaks(self, text: str) -> bool:
        return breaks_between(self._word[-1][1], text[0])

    def _add(self, style: str, text: str, cells: int) -> None:
        self._word.append((style, text))
        self._cells += cells

    def end(self) -> None:
        """Ends the line."""
        self.flush()
        self._newline()
        self._hang = []

    def flush(self) -> None:
        """Writes a word that nothing completes."""
        self._flush()
        self._spaces = []

    def write(self, line: str) -> None:
        """A line as it is, with its newline, instead of one with words."""
        self._written.append(f"{line}\n")

    def _flush(self) -> None:
        if not self._word:
            return
        self._chop()
        spaces = [] if self._fresh else self._spaces
        gap = sum(len(text) for _, text in spaces)
        if not self._fresh and self.column + gap + self._cells > self._width():
            self._wrap()
            spaces, gap = [], 0
        self._write([*spaces, *self._word])
        self.column += gap + self._cells
        self._spaces, self._word, self._cells = [], [], 0

    def _chop(self) -> None:
        """Writes the beginning of a word that is longer than a line."""
        hang = sum(text_cells(text) for _, text in self._hang)
        while self._cells > max(self._width() - (self.column if self._fresh else hang), 1):
            if not self._fresh:
                self._wrap()
            room = max(self._width() - self.column, 1)
            parts = [(style, *part) for style, text in self._word for part in clusters(text)]
            used = count = 0
            while count < len(parts) and used + parts[count][2] <= room:
                used += parts[count][2]
                count += 1
            if not count:  # wider than the line
                used, count = parts[0][2], 1
            self._write((style, text) for style, text, _ in parts[:count])
            self._word = [(style, text) for style, text, _ in parts[count:]]
            self._cells -= used
            self._wrap()

    def _wrap(self) -> None:
        self._newline()
        self._prefix(self._hang)
        self._spaces = []

    def restart(self) -> None:
        """The line that was written has ended without an end of it from here."""
        self.column, self._fresh = 0, True

    def _newline(self) -> None:
        self._written.append("\n")
        self.restart()

    def _prefix(self, runs: Iterable[Run]) -> None:
        for style, text in runs:
            self._written.append(paint(style, text))
            self.column += text_cells(text)

    def _write(self, runs: Iterable[Run]) -> None:
        for style, group in groupby(runs, key=lambda run: run[0]):
            self._written.append(paint(style, "".join(text for _, text in group)))
        self._fresh = False
