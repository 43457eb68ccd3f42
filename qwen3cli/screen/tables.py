"""Tables of Markdown, fitted to the width of a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

from qwen3cli.screen.cells import text_cells
from qwen3cli.screen.flow import Flow, Run, paint
from qwen3cli.screen.inline import Inline

_CELL = re.compile(r"(?:\\.|`[^`]*`|[^|\\]|\\$)*")
_DELIMITER = re.compile(r"\s*\|?(\s*:?-+:?\s*\|)*\s*:?-+:?\s*\|?\s*")
_NARROWEST = 3  # cells of a column
_GAP, _CROSS, _LINE = " │ ", "─┼─", "─"


def is_delimiter(line: str) -> bool:
    """Whether the line is what follows a table's head."""
    return "-" in line and bool(_DELIMITER.fullmatch(line))


class Table:
    """Rows that are held until widths are chosen, and those that come then."""

    def __init__(self, head: str, delimiter: str, *, styled: bool) -> None:
        self._styled = styled
        self._aligned = [(c[:1] == ":", c[-1:] == ":") for c in _cells(delimiter)]
        self._sources = [head, delimiter]
        self._rows = [self._row(head)]
        self._widths: list[int] = []

    def add(self, line: str) -> None:
        self._sources.append(line)
        self._rows.append(self._row(line))

    def __len__(self) -> int:
        """How many rows are held."""
        return len(self._rows)

    def draw(self, width: int) -> list[str]:
        """The lines of the rows that are held, at most width cells wide where that can be. The
        first time widths are chosen."""
        first = not self._widths
        if first:
            self._widths = self._fitted(width)
        rows, sources = self._rows, self._sources
        self._rows, self._sources = [], []
        if not self._widths:
            return sources
        lines: list[str] = []
        for i, row in enumerate(rows):
            lines += self._drawn(row, "1" if first and i == 0 else "")
            if first and i == 0:
                rule = _CROSS.join(_LINE * cells for cells in self._widths)
                lines.append(self._paint("2", rule))
        return lines

    def _row(self, line: str) -> list[list[Run]]:
        """The runs of each cell; as many cells as the table has columns."""
        cells = _cells(line)
        return [self._runs(cells[i] if i < len(cells) else "") for i in range(len(self._aligned))]

    def _runs(self, cell: str) -> list[Run]:
        runs: list[Run] = []
        inline = Inline(lambda style, text: runs.append((style, text)), styled=self._styled)
        inline.begin()
        inline.feed(cell)
        inline.end()
        return runs

    def _fitted(self, width: int) -> list[int]:
        """The widths of the columns; none if they cannot fit."""
        widths = [
            max(text_cells("".join(text for _, text in row[i])) for row in self._rows)
            for i in range(len(self._aligned))
        ]
        room = width - len(_GAP) * (len(widths) - 1)
        if room < _NARROWEST * len(widths):
            return []
        fair = room
        while sum(min(own, fair) for own in widths) > room:
            fair -= 1
        spare = room - sum(min(own, fair) for own in widths)
        fitted = []
        for own in widths:  # what is left over goes to the first that can use it
            more = min(spare, max(own - fair, 0))
            spare -= more
            fitted.append(max(min(own, fair) + more, 1))
        return fitted

    def _drawn(self, row: list[list[Run]], style: str) -> list[str]:
        columns = [self._wrapped(runs, w, style) for runs, w in zip(row, self._widths, strict=True)]
        lines = []
        for n in range(max(len(column) for column in columns)):
            parts = [
                self._padded(column[n] if n < len(column) else ("", 0), i)
                for i, column in enumerate(columns)
            ]
            lines.append(self._paint("2", _GAP).join(parts).rstrip(" "))
        return lines

    def _wrapped(self, runs: Sequence[Run], width: int, style: str) -> list[tuple[str, int]]:
        """The lines of a cell, each with its cells."""
        flow = Flow(lambda: width)
        for own, text in runs:
            flow.put(";".join(s for s in (style, own) if s and self._styled), text)
        flow.end()
        lines = flow.take().removesuffix("\n").split("\n")
        return [(line, text_cells(re.sub(r"\x1b\[[\d;]*m", "", line))) for line in lines]

    def _padded(self, line: tuple[str, int], column: int) -> str:
        text, cells = line
        spare = max(self._widths[column] - cells, 0)
        left, right = self._aligned[column]
        before = spare // 2 if left and right else spare if right else 0
        return " " * before + text + " " * (spare - before)

    def _paint(self, style: str, text: str) -> str:
        return paint(style, text) if self._styled else text


def _cells(line: str) -> list[str]:
    """The cells of a row, without the spaces around them."""
    line = line.strip().removeprefix("|")
    cells, at = [], 0
    while at <= len(line):
        cell = _CELL.match(line, at)
        end = cell.end() if cell else at
        cells.append(line[at:end].strip().replace("\\|", "|"))
        at = end + 1
    return cells[:-1] if len(cells) > 1 and not cells[-1] else cells
