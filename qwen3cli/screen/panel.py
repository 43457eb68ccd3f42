"""The thoughts while they come: a live line and the last rows of the text, drawn in place.

The cursor waits at the panel's first cell, so that whatever happens to the rest, nothing above can
be touched: not when the terminal is resized and reflows the rows, and not when Ctrl-C or a key
is echoed. Between two frames the terminal is in its normal state, cursor shown, styles reset,
lines wrapping: whatever ends the process leaves it sane."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from qwen3cli.screen.cells import TAB, rows

_MOST_ROWS = 8  # of thoughts
_KEPT_ROWS = 16  # of text that a larger screen may show again
_BEGIN, _END = "\x1b[?2026h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?2026l"
_DIM, _RESET = "\x1b[2m", "\x1b[0m"


class Panel:
    """What is thought now. Draws nothing itself: frame() is what brings the screen up to date."""

    def __init__(self, *, styled: bool, clock: Callable[[], float] = perf_counter) -> None:
        self._styled = styled
        self._clock = clock
        self._began = clock()
        self._text = ""  # the end of the thoughts
        self._tokens = self._first_tokens = 0
        self._limit: int | None = None
        self._drawn: list[str] = []
        self._size = (0, 0)

    def push(self, text: str, tokens: int = 0, limit: int | None = None) -> None:
        """More of the thoughts, cleaned; tokens of them so far, and at how many they end."""
        if not self._tokens:
            self._first_tokens = tokens
        self._text += text
        self._tokens, self._limit = tokens, limit

    @property
    def summary(self) -> str:
        """What there was."""
        seconds = f"{self._seconds:.0f} s"
        of = "" if self._limit is None else f" of {self._limit:,}"
        count = f"{self._tokens:,}{of} {self._unit}, " if self._tokens else ""
        return f"thought for {count}{seconds}"

    def frame(self, columns: int, lines: int) -> str:
        """Changes the screen of this size, with the cursor at the panel's first cell, to show the
        panel, and takes the cursor back there."""
        new = self._rows(columns, lines)
        if (columns, lines) == self._size and new == self._drawn:
            return ""
        parts = []
        if (columns, lines) != self._size or len(new) < len(self._drawn):
            parts.append(self.erase())  # the terminal may have moved what was drawn
        parts.append(f"{_BEGIN}\r")
        for i, row in enumerate(new):
            if i:
                parts.append("\r\n")
            if i == 0 or row not in self._drawn[i : i + 1]:  # keys are echoed into the first
                parts.append(f"{_DIM}{row}{_RESET}\x1b[K" if self._styled else f"{row}\x1b[K")
        if len(new) > 1:
            parts.append(f"\x1b[{len(new) - 1}A")
        self._size, self._drawn = (columns, lines), new
        return "".join([*parts, "\r", _END])

    def erase(self) -> str:
        """Takes the panel off the screen; the next frame draws all of it."""
        drawn, self._drawn = self._drawn, []
        if not drawn:
            return ""
        # Ctrl-C may have discarded the end of the last frame.
        return f"\r{_RESET if self._styled else ''}{_END}\x1b[J"

    def _rows(self, columns: int, lines: int) -> list[str]:
        width = max(columns - 1, 1)
        wrapped = rows(self._text, width)
        self._text = "".join(wrapped[-_KEPT_ROWS:])
        most = max(min(_MOST_ROWS, lines // 3, lines - 2), 0)
        shown = [row for row in wrapped if not row.isspace()]
        last = shown[len(shown) - most :] if len(shown) > most else shown
        return [self._live(width), *(row.strip("\n").replace("\t", " " * TAB) for row in last)]

    def _live(self, width: int) -> str:
        """What goes on, as much of it as fits."""
        of = "" if self._limit is None else f"/{self._limit:,}"
        count = f"{self._tokens:,}{of}"
        seconds, tokens = self._seconds, self._tokens - self._first_tokens
        speed = tokens / seconds if seconds >= 0.5 else 0.0
        told = f" · {speed:,.{0 if speed >= 10 else 1}f} tok/s" if speed else ""
        lines = (f"▾ thinking {count} {self._unit}{told}", f"▾ {count}{told}", f"▾ {count}")
        fits = (line for line in lines if self._tokens and len(line) <= width)
        return next(fits, "▾ thinking"[:width])

    @property
    def _unit(self) -> str:
        return "token" if (self._limit or self._tokens) == 1 else "tokens"

    @property
    def _seconds(self) -> float:
        return self._clock() - self._began
