"""A terminal emulator, and one behind a pseudo-terminal on which this process writes."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import sys
import termios
import time
from collections.abc import Mapping

import pyte
import pytest

from qwen3cli.terminal import Terminal

MARK = b"\0"  # which nothing else writes
WIDTHLESS = re.compile("[\u200b-\u200d\ufe0e\ufe0f]")  # what joins emoji and chooses their style


class Screen(pyte.HistoryScreen):
    """pyte's, which drops what follows a character without width."""

    def draw(self, data: str) -> None:
        super().draw(WIDTHLESS.sub("", data))


class Emulator:
    """What somebody at a terminal sees. stdout and stderr are both it, as in a shell."""

    def __init__(self, columns: int, lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self._master, slave = os.openpty()
        self._file = os.fdopen(slave, "w", encoding="utf-8")
        self._marks = os.open(os.ttyname(slave), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        self.screen = Screen(columns, lines, history=10_000)
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
        os.close(self._marks)
        self._file.close()

    def terminal(self) -> Terminal:
        return Terminal()

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        time.sleep(0.02)  # for the frame that is being drawn
        self.read()
        resize(self.screen, columns, lines)

    def read(self) -> None:
        """Shows what was written, all that comes before a mark."""
        while True:
            try:
                os.write(self._marks, MARK)
                break
            except BlockingIOError:  # there is so much to take
                self._take()
        while not self._take():
            pass

    def _take(self) -> bool:
        """Shows a piece of what was written; whether the mark was in it."""
        data = os.read(self._master, 65536)
        text = data.replace(MARK, b"")
        self.raw += text
        self._stream.feed(text)
        return text != data

    def wait_to_see(self, text: str) -> None:
        end = time.monotonic() + 60  # only what hangs takes longer
        while text not in "\n".join(self.lines):
            assert time.monotonic() < end, f"{text!r} is not on the screen: {self.lines}"
            time.sleep(0.005)

    @property
    def lines(self) -> list[str]:
        """The lines of the screen down to the last that is not empty."""
        self.read()
        return lines_of(self.screen)

    @property
    def everything(self) -> list[str]:
        """The same with the lines that scrolled away."""
        lines = self.lines
        return [*scrolled(self.screen), *lines]

    @property
    def is_sane(self) -> bool:
        """Cursor shown, lines wrapping, no style left, the main screen."""
        self.read()
        return is_sane(self.screen)


def resize(screen: pyte.Screen, columns: int, lines: int) -> None:
    """As xterm does: rows are cut at the right, and lines dropped from the top."""
    dropped = max(screen.lines - lines, 0)  # and the cursor stays, says pyte
    screen.resize(lines, columns)
    screen.cursor.y = max(screen.cursor.y - dropped, 0)


def lines_of(screen: pyte.Screen) -> list[str]:
    """The lines of the screen down to the last that is not empty."""
    shown = [_text(screen.buffer[y]) for y in range(screen.lines)]
    return "\n".join(shown).rstrip("\n").split("\n")


def scrolled(screen: pyte.HistoryScreen) -> list[str]:
    """The lines that scrolled away."""
    return [_text(row) for row in screen.history.top]


def is_sane(screen: pyte.Screen) -> bool:
    """Cursor shown, lines wrapping, no style left, the main screen."""
    cursor = screen.cursor
    plain = not (cursor.attrs.bold or cursor.attrs.italics or cursor.attrs.underscore)
    return (
        pyte.modes.DECTCEM in screen.mode
        and pyte.modes.DECAWM in screen.mode
        and not screen.mode & {1049 << 5, 47 << 5, 2026 << 5}
        and not cursor.hidden
        and plain
        and cursor.attrs.fg == cursor.attrs.bg == "default"
    )


def _text(row: Mapping[int, pyte.screens.Char]) -> str:
    return "".join(row[x].data for x in range(max(row, default=-1) + 1)).rstrip()
