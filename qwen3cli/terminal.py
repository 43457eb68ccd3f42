"""The sole writer to stdout and stderr.

stdout carries the answer, stderr everything else. What a terminal shows is cleaned
of everything that could drive it; a pipe gets the answer's text as it is.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qwen3cli.screen.cells import text_cells, wrapped
from qwen3cli.screen.sanitize import clean, json_line, one_line
from qwen3cli.screen.streams import Cursor, Stream
from qwen3cli.screen.thoughts import Thoughts

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from qwen3cli.screen.markdown import Markdown

_DIM, _RESET = "\x1b[2m", "\x1b[0m"
_NUMBER = re.compile(r"[-+]?(\d[\d,]*(\.\d+)?(e[-+]?\d+)?( ?%)?|-?)")  # in a table; - and "": none
_WORD = 12  # cells: a longer one in a table may be broken
CLOSED_OUTPUT = 141  # exit code: what a shell reports for a program ended by SIGPIPE


class Terminal:
    """stdout and stderr of one command, and where its thoughts go."""

    def __init__(self) -> None:
        self._cursor = Cursor()
        self._out = Stream(sys.stdout, cursor=self._cursor)
        # Nobody could be told that stderr is closed: what is for it goes nowhere.
        nowhere = None if sys.stderr else Path(os.devnull).open("w")  # noqa: SIM115
        self._err = Stream(sys.stderr or nowhere, cursor=self._cursor)
        self._thoughts = Thoughts(self._err)
        self._page: Markdown | None = None  # of the answer
        self._ended = False  # the answer so far ends with a newline
        self._bar: Console | None = None  # what draws a bar on stderr now

    @property
    def interactive(self) -> bool:
        """Somebody watches stderr."""
        return self._err.is_terminal

    @property
    def visible(self) -> bool:
        """Somebody watches at least one of the two."""
        return self._err.is_terminal or self._out.is_terminal

    @property
    def draws(self) -> bool:
        """Somebody watches a terminal that can do more than print."""
        return self._err.moves or self._out.moves

    def route_thoughts(self, where: str | None, *, default: bool = True) -> None:
        """where: "show" or "dim", as they come; "fold", in a panel that leaves one line; "hide";
        the name of a file; or None: folded on a terminal, if default says so. A terminal that
        cannot fold or dim shows them. A file is created at once, but keeps what is in it until
        empty_thoughts. Raises UsageError, for a GGUF file too."""
        self._thoughts.route(where, default=default)

    def empty_thoughts(self) -> None:
        """Empties the file of the thoughts, if they go to one."""
        self._thoughts.empty()

    def thought(
        self, text: str, tokens: int = 0, limit: int | None = None, *, before: str = ""
    ) -> None:
        """The next piece of the thoughts; tokens of them so far, and at how many they end.
        before: of a passage that begins, what it goes on with, which was shown."""
        self._thoughts.push(text, tokens, limit, before)

    def end_thoughts(self, summary: str = "") -> None:
        """Ends a passage of thoughts, if one is open. summary: what folded ones leave, such as
        "thought for 812 of 2,048 tokens, 12 s (budget)"."""
        self._thoughts.end(summary)

    def aside(self) -> AbstractContextManager[None]:
        """Takes the panel of the thoughts off the screen meanwhile."""
        return self._thoughts.aside()

    @property
    def fold(self) -> bool:
        """Whether thoughts are folded."""
        return self._thoughts.fold

    def toggle_fold(self) -> None:
        """While it thinks: unfolds the thoughts, or folds those that follow. Else: shows the last
        thoughts, and the next ones as they come; or folds the next. From any thread."""
        if told := self._thoughts.toggle():
            self.note(told)

    def announce_fold_key(self, key: str) -> None:
        """Folded lines tell the key that unfolds them."""
        self._thoughts.unfolds = one_line(key)

    def answer(self, text: str) -> None:
        """The next piece of the answer: Markdown, drawn as it comes if the terminal can."""
        self.end_thoughts()
        if self._out.moves:
            page = self._page = self._page or self._new_page()
            if page.in_line and not self._cursor.midline:
                page.interrupted()
            text = page.feed(clean(text))
        elif self._out.is_terminal:
            text = clean(text)
        self._show_answer(text)

    def end_answer(self) -> None:
        """Ends the answer's last line."""
        self.end_thoughts()
        if self._page:
            self._show_answer(self._page.finish())
            self._page = None
        if not self._ended:
            self._out.show("\n")
        self._ended = False

    def plain(self, text: str) -> None:
        """Text of an answer that is no Markdown: as it is, but cleaned on a terminal."""
        self.end_thoughts()
        self._out.show(clean(text) if self._out.is_terminal else text)

    def _show_answer(self, text: str) -> None:
        self._out.show(text)
        self._ended = text.endswith("\n") if text else self._ended

    def _new_page(self) -> Markdown:
        from qwen3cli.screen.markdown import Markdown

        return Markdown(lambda: self._out.size[0], styled=self._out.is_styled)

    def interrupted(self) -> None:
        """Ctrl-C was pressed: the terminal has written ^C where the cursor was."""
        self._cursor.midline = True

    def note(self, text: str, *, dim: bool = False, hang: int = 0) -> None:
        """One line on stderr, for people. On a terminal it wraps at words, hang: with that many
        spaces before what does not fit into the first row."""
        text = one_line(text)
        if self._bar:  # above it
            self._bar.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
            return
        if self._err.moves:
            text = wrapped(text, self._err.size[0], hang)
        if dim and self._err.is_styled:
            text = f"{_DIM}{text}{_RESET}"
        with self._thoughts.aside():
            self._err.fresh_line()
            self._err.show(text + "\n")

    @property
    def can_ask(self) -> bool:
        """Somebody watches stderr and types."""
        return self._err.is_terminal and sys.stdin is not None and sys.stdin.isatty()

    def ask(self, question: str, *, default: bool) -> bool:
        """Yes or no, of somebody who can be asked. Whatever is neither is asked again; the end of
        the input is Ctrl-C."""
        while True:
            self._err.write(f"{one_line(question)} [{'Y/n' if default else 'y/N'}] ")
            line = ""
            try:
                line = sys.stdin.readline()
            finally:
                if not line:  # Ctrl-C or Ctrl-D: nobody has ended the question's row
                    self._err.write("\n")
            if not line:
                raise KeyboardInterrupt
            answer = line.strip().lower()
            if answer in ("", "y", "yes", "n", "no"):
                return answer[0] == "y" if answer else default

    def print(self, text: str) -> None:
        """Text on stdout, cleaned wherever it goes."""
        with self._thoughts.aside():
            self._out.show(clean(text))

    def json(self, value: object) -> None:
        """One JSON value on a line of stdout; what could drive a terminal is escaped."""
        with self._thoughts.aside():
            self._out.show(json_line(value))

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]], *, whole: int = 0) -> None:
        """A table on a terminal, columns of numbers to the right, and the first ones (whole) never
        folded; where it is too narrow for words, a block of lines for each row. Lines of
        tab-separated fields elsewhere."""
        if not self._out.is_terminal:
            self._out.write("".join("\t".join(map(one_line, row)) + "\n" for row in rows))
            return
        from rich.box import SIMPLE
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        lines = [[one_line(cell) for cell in row] for row in rows]
        # Not by its own pen: the console draws, this class writes.
        console = Console(force_terminal=self._out.is_styled)
        widths = _widths([*zip(*(head, *lines), strict=True)], whole, console.width)
        if widths is None:
            with self._thoughts.aside():
                self._out.show(_blocks(head, lines, console.width))
            return
        table = Table(box=SIMPLE, pad_edge=False)
        for i, title in enumerate(head):
            numbers = [_NUMBER.fullmatch(line[i]) for line in lines]
            justify: Literal["left", "right"] = "right" if all(numbers) else "left"
            table.add_column(Text(title), justify=justify, overflow="fold", width=widths[i])
        for line in lines:
            table.add_row(*map(Text, line))
        with console.capture() as drawn:
            console.print(table)
        with self._thoughts.aside():
            self._out.show(drawn.get())

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
        with self._thoughts.aside():
            self._thoughts.paused = True
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
                self._thoughts.paused = False


def _widths(columns: list[tuple[str, ...]], whole: int, width: int) -> list[int] | None:
    """Of the columns of a table that is at most so wide. The first ones (whole) have all they
    want, the others at least what breaks no word; None where that does not fit."""
    wanted = [max(map(text_cells, column)) for column in columns]
    widths = [
        max((min(text_cells(word), _WORD) for cell in column for word in cell.split()), default=0)
        for column in columns
    ]
    widths[:whole] = wanted[:whole]
    left = width - sum(widths) - 3 * len(columns) + 1  # what stands between them
    if left < 0:
        return None
    for i in sorted(range(len(columns)), key=lambda i: wanted[i] - widths[i]):
        more = min(wanted[i] - widths[i], left)
        widths[i] += more
        left -= more
    return widths


def _blocks(head: Sequence[str], lines: list[list[str]], width: int) -> str:
    """The rows of a table one below the other, each cell behind the title of its column."""
    hang = max(map(text_cells, head)) + 2
    named = [
        [
            f"{title}{' ' * (hang - text_cells(title))}{cell}"
            for title, cell in zip(head, line, strict=True)
            if cell
        ]
        for line in lines
    ]
    return "".join(
        "\n" + "".join(wrapped(row, width, hang) + "\n" for row in rows) for rows in named
    )
