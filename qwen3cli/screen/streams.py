"""Text to file descriptors, flushed at once, and what is known of the screen behind them."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TextIO

from qwen3cli.errors import Qwen3Error

_SIZE = (80, 24)  # of a terminal that does not tell


class OutputClosed(Exception):
    """Nobody reads the output any more, as in `qwen3 run ... | head`."""


@dataclass
class Cursor:
    """Of the screen that stdout and stderr share."""

    midline: bool = False  # the last line is unfinished


class Stream:
    """Text to a file descriptor, flushed at once."""

    def __init__(
        self, file: TextIO | None, name: str = "the output", cursor: Cursor | None = None
    ) -> None:
        """file None: the descriptor was closed when the program began."""
        self._file = file
        self._name = name
        self._cursor = cursor or Cursor()
        self.is_terminal = file is not None and file.isatty()
        self.moves = self.is_terminal and os.environ.get("TERM") != "dumb"  # its cursor, if told to
        self.is_styled = self.moves and not os.environ.get("NO_COLOR")

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines of the terminal, now."""
        try:
            columns, lines = os.get_terminal_size(self._file.fileno() if self._file else -1)
        except (OSError, ValueError):
            return _SIZE
        return columns or _SIZE[0], lines or _SIZE[1]

    def show(self, text: str) -> None:
        """Writes what moves the cursor of a terminal on."""
        self.write(text)
        if text and self.is_terminal:
            self._cursor.midline = not text.endswith("\n")

    def fresh_line(self) -> None:
        """Ends the line of the terminal that is unfinished, if one is."""
        if self.is_terminal and self._cursor.midline:
            self.show("\n")

    def write(self, text: str) -> None:
        if not text:
            return
        if self._file is None:
            raise Qwen3Error(f"cannot write {self._name}: it is closed")
        try:
            self._file.buffer.write(text.encode("utf-8", "replace"))
            self._file.buffer.flush()
        except OSError as error:
            self._discard()
            if isinstance(error, BrokenPipeError):
                raise OutputClosed from None
            raise Qwen3Error(f"cannot write {self._name}: {reason(error)}") from None

    def truncate(self) -> None:
        """Empties a regular file."""
        if self._file is not None and stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            self._file.truncate(0)

    def _discard(self) -> None:
        """Sends what is still buffered, and what may follow, nowhere: the interpreter
        would try to write it once more at its end, and complain."""
        assert self._file is not None
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._file.fileno())
        os.close(nowhere)


def reason(error: Exception) -> str:
    """Why the operating system refused, without the file's name."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
