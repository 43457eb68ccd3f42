"""A terminal emulator behind a pseudo-terminal, on which this process writes."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import termios
import time
from collections.abc import Mapping

import pyte
import pytest

from qwen3cli.terminal import Terminal


class Emulator:
    """What somebody at a terminal sees. stdout and stderr are both it, as in a shell."""

    def __init__(self, columns: int, lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self._master, slave = os.openpty()
        self._file = os.fdopen(slave, "w", encoding="utf-8")
        self.screen = pyte.HistoryScreen(columns, lines, history=10_000)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.resize(columns, lines)
        monkeypatch.setattr(sys, "stdout", self._file)
        monkeypatch.setattr(sys, "stderr", self._file)
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")

    def __enter__(self) -> Emulator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: object,
    ) -> None:
        os.close(self._master)
        self._file.close()

    def terminal(self) -> Terminal:
        return Terminal()

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.read()
        dropped = max(self.screen.lines - lines, 0)  # from the top, and the cursor stays, says pyte
        self.screen.resize(lines, columns)
        self.screen.cursor.y = max(self.screen.cursor.y - dropped, 0)

    def read(self, patience: float = 0.02) -> None:
        """Shows what was written."""
        while select.select([self._master], [], [], patience)[0]:
            data = os.read(self._master, 65536)
            self.raw += data
            self._stream.feed(data)

    def wait_to_see(self, text: str) -> None:
        end = time.monotonic() + 10
        while text not in "\n".join(self.lines):
            assert time.monotonic() < end, f"{text!r} is not on the screen: {self.lines}"

    @property
    def lines(self) -> list[str]:
        """The lines of the screen down to the last that is not empty."""
        self.read()
        shown = [self._text(self.screen.buffer[y]) for y in range(self.screen.lines)]
        return "\n".join(shown).rstrip("\n").split("\n")

    @property
    def everything(self) -> list[str]:
        """The same with the lines that scrolled away."""
        lines = self.lines
        return [*map(self._text, self.screen.history.top), *lines]

    def _text(self, row: Mapping[int, pyte.screens.Char]) -> str:
        return "".join(row[x].data for x in range(self.screen.columns)).rstrip()

    @property
    def is_sane(self) -> bool:
        """Cursor shown, lines wrapping, no style left, the main screen."""
        self.read()
        modes = self.screen.mode
        cursor = self.screen.cursor
        plain = not (cursor.attrs.bold or cursor.attrs.italics or cursor.attrs.underscore)
        return (
            pyte.modes.DECTCEM in modes
            and pyte.modes.DECAWM in modes
            and not modes & {1049 << 5, 47 << 5, 2026 << 5}
            and not cursor.hidden
            and plain
            and cursor.attrs.fg == cursor.attrs.bg == "default"
        )
