"""The sole writer to stdout and stderr.

stdout carries the answer, stderr everything else. What a terminal shows is cleaned
of everything that could drive it; a pipe gets the answer's text as it is.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from qwen3cli.errors import Qwen3Error, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

# C0 but tab and newline, DEL, C1, and the characters that reorder the text around them.
_RANGES = [(0, 8), (0x0B, 0x1F), (0x7F, 0x9F), (0x202A, 0x202E), (0x2066, 0x2069)]
_DRIVING = {code: None for first, last in _RANGES for code in range(first, last + 1)}
_ESCAPED = {code: f"\\u{code:04x}" for code in _DRIVING}  # the same, as JSON writes them
_DIM, _RESET = "\x1b[2m", "\x1b[0m"
_NUMBER = re.compile(r"[-+]?(\d[\d,]*(\.\d+)?(e[-+]?\d+)?( ?%)?|-?)")  # in a table; - and "": none
CLOSED_OUTPUT = 141  # exit code: what a shell reports for a program ended by SIGPIPE


def clean(text: str) -> str:
    """The text without the characters that drive a terminal; newlines and tabs stay.

    Looks at one character at a time, so the pieces of a stream may be cleaned apart."""
    return text.translate(_DRIVING)


def one_line(text: str) -> str:
    """The text cleaned, and on one line, with spaces for newlines and tabs."""
    return clean(text).replace("\n", " ").replace("\t", " ")


def json_line(value: object) -> str:
    """A JSON value on a line; what could drive a terminal is escaped, and so are surrogates, which
    stand for bytes that were no UTF-8. Raises ValueError for NaN."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False).translate(_ESCAPED)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"


class OutputClosed(Exception):
    """Nobody reads the output any more, as in `qwen3 run ... | head`."""


class Terminal:
    """stdout and stderr of one command, and where its thoughts go."""

    def __init__(self) -> None:
        self._out = _Stream(sys.stdout)
        # Nobody could be told that stderr is closed: what is for it goes nowhere.
        self._err = _Stream(sys.stderr or Path(os.devnull).open("w"))  # noqa: SIM115
        self._thoughts: _Stream | None = None
        self._thinking = False  # inside a passage of thoughts
        self._ended = False  # the answer so far ends with a newline
        self._midline = False  # the screen's last line is unfinished
        self._bar: Console | None = None  # what draws a bar on stderr now

    @property
    def interactive(self) -> bool:
        """Somebody watches stderr."""
        return self._err.is_terminal

    @property
    def visible(self) -> bool:
        """Somebody watches at least one of the two."""
        return self._err.is_terminal or self._out.is_terminal

    def route_thoughts(self, where: str | None, *, default: bool = True) -> None:
        """where: "show", "hide", the name of a file, or None: shown on a terminal, if
        default says so. A file is created at once, but keeps what is in it until
        empty_thoughts. Raises UsageError, for a GGUF file too."""
        if where is None:
            where = "show" if default and self._err.is_terminal else "hide"
        if where == "hide":
            self._thoughts = None
        elif where == "show":
            self._thoughts = self._err
        elif where in ("", "-"):
            raise UsageError("--thoughts takes show, hide or the name of a file")
        else:
            self._thoughts = _thoughts_file(where)

    def empty_thoughts(self) -> None:
        """Empties the file of the thoughts, if they go to one."""
        if self._thoughts is not None and self._thoughts is not self._err:
            self._thoughts.truncate()

    def thought(self, text: str) -> None:
        """The next piece of the thoughts."""
        stream = self._thoughts
        if stream is None:
            return
        if not stream.is_terminal:
            stream.write(text)
            self._thinking = True
            return
        if not self._thinking and not stream.is_styled:  # what else would tell them apart
            stream.write("<think>\n")
        self._thinking = True
        text = clean(text)
        self._screen(stream, f"{_DIM}{text}{_RESET}" if stream.is_styled else text)

    def end_thoughts(self) -> None:
        """Ends a passage of thoughts, if one is open."""
        stream = self._thoughts
        if stream is None or not self._thinking:
            return
        self._thinking = False
        if stream.is_terminal:
            self._screen(stream, "\n\n" if stream.is_styled else "\n</think>\n\n")
        else:
            stream.write("\n")

    def answer(self, text: str) -> None:
        """The next piece of the answer."""
        self.end_thoughts()
        if self._out.is_terminal:
            self._screen(self._out, clean(text))
        else:
            self._out.write(text)
        self._ended = text.endswith("\n") if text else self._ended

    def end_answer(self) -> None:
        """Ends the answer's last line."""
        if not self._ended:
            self.answer("\n")
        self._ended = False

    def plain(self, text: str) -> None:
        """Text of an answer that is no Markdown: as it is, but cleaned on a terminal."""
        self.end_thoughts()
        self._screen(self._out, clean(text) if self._out.is_terminal else text)

    def interrupted(self) -> None:
        """Ctrl-C was pressed: the terminal has written ^C where the cursor was."""
        self._midline = True

    def note(self, text: str, *, dim: bool = False) -> None:
        """One line on stderr, for people."""
        text = one_line(text)
        if self._bar:  # above it
            self._bar.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
            return
        if dim and self._err.is_styled:
            text = f"{_DIM}{text}{_RESET}"
        if self._midline and self._err.is_terminal:
            text = "\n" + text
        self._midline = False
        self._err.write(text + "\n")

    @property
    def can_ask(self) -> bool:
        """Somebody watches stderr and types."""
        return self._err.is_terminal and sys.stdin is not None and sys.stdin.isatty()

    def ask(self, question: str, *, default: bool) -> bool:
        """Yes or no, of somebody who can be asked. Whatever is neither is asked again; the end of
        the input is Ctrl-C."""
        while True:
            self._err.write(f"{one_line(question)} [{'Y/n' if default else 'y/N'}] ")
            line = sys.stdin.readline()
            if not line:
                raise KeyboardInterrupt
            answer = line.strip().lower()
            if answer in ("", "y", "yes", "n", "no"):
                return answer[0] == "y" if answer else default

    def print(self, text: str) -> None:
        """Text on stdout, cleaned wherever it goes."""
        self._out.write(clean(text))

    def json(self, value: object) -> None:
        """One JSON value on a line of stdout; what could drive a terminal is escaped."""
        self._out.write(json_line(value))

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]], *, whole: int = 0) -> None:
        """A table on a terminal, columns of numbers to the right, and the first ones (whole) never
        folded; lines of tab-separated fields elsewhere."""
        if not self._out.is_terminal:
            self._out.write("".join("\t".join(map(one_line, row)) + "\n" for row in rows))
            return
        from rich.box import SIMPLE
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        lines = [[one_line(cell) for cell in row] for row in rows]
        table = Table(box=SIMPLE, pad_edge=False)
        for i, title in enumerate(head):
            numbers = [_NUMBER.fullmatch(line[i]) for line in lines]
            justify: Literal["left", "right"] = "right" if all(numbers) else "left"
            table.add_column(Text(title), justify=justify, overflow="fold", no_wrap=i < whole)
        for line in lines:
            table.add_row(*map(Text, line))
        # Not by its own pen: the console draws, this class writes.
        console = Console(force_terminal=self._out.is_styled)
        with console.capture() as drawn:
            console.print(table)
        self._out.write(drawn.get())

    @contextmanager
    def progress(
        self, title: str, unit: str = "", of: int = 1
    ) -> Iterator[Callable[[int, int], None]]:
        """A bar on stderr, if that is a terminal, moved by calls with (done, total). With a unit
        it shows how many of it, which are `of` of what is counted, are done a second."""
        if not self._err.is_terminal:
            yield lambda _done, _total: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        face, speed = (
            TextColumn(text, markup=False)
            for text in ("{task.description}", "{task.fields[speed]}")
        )
        columns = (face, BarColumn(), speed, TimeRemainingColumn())
        console = Console(stderr=True, force_terminal=self._err.is_styled)
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(one_line(title), total=None, speed="")
            self._bar = console

            def move(done: int, total: int) -> None:
                rate = (bar.tasks[task].speed or 0) / of
                speed = f"{rate:,.{1 if rate < 10 else 0}f} {unit}/s" if unit else ""
                bar.update(task, completed=done, total=total, speed=speed)

            try:
                yield move
            finally:
                self._bar = None

    def _screen(self, stream: _Stream, text: str) -> None:
        stream.write(text)
        if text:
            self._midline = not text.endswith("\n")


class _Stream:
    """Text to a file descriptor, flushed at once."""

    def __init__(self, file: TextIO | None, name: str = "the output") -> None:
        """file None: the descriptor was closed when the program began."""
        self._file = file
        self._name = name
        self.is_terminal = file is not None and file.isatty()
        self.is_styled = (
            self.is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        )

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


def _thoughts_file(name: str) -> _Stream:
    """Opened to append, so that whatever fails next leaves an older file as it was."""
    path = Path(name)
    try:
        if path.is_file():
            with path.open("rb") as old:
                if old.read(4) == b"GGUF":
                    raise UsageError(f"{name}: a model; choose another file for the thoughts")
        return _Stream(path.open("a", encoding="utf-8"), name)
    except OSError as error:
        raise Qwen3Error(f"cannot write the thoughts to {name}: {reason(error)}") from None


def reason(error: Exception) -> str:
    """Why the operating system refused, without the file's name."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
