"""Where the thoughts go, and what they look like there."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, RLock, Thread

from qwen3cli.errors import Qwen3Error, UsageError
from qwen3cli.screen.cells import text_cells, wrapped
from qwen3cli.screen.panel import Panel
from qwen3cli.screen.sanitize import clean
from qwen3cli.screen.streams import OutputClosed, Stream, reason

_DIM, _RESET = "\x1b[2m", "\x1b[0m"
_PERIOD = 0.05  # seconds between two frames of the panel


class Thoughts:
    """The thoughts of one reply after the other: on a terminal, in a file, or nowhere.

    On a terminal they are folded into a panel, which a thread keeps up to date, or streamed."""

    def __init__(self, screen: Stream) -> None:
        self.paused = False  # something else is drawn in the panel's place
        self.fold = False
        self.unfolds = ""  # what does, as the folded line tells it
        self._screen = screen
        self._stream: Stream | None = None
        self._dim = False  # what is streamed
        self._open = False  # inside a passage
        self._text: list[str] = []  # the passage, or the last one
        self._panel: Panel | None = None
        self._lock = RLock()
        self._closed = Event()  # the panel is
        self._error: Exception | None = None  # of the thread

    def route(self, where: str | None, *, default: bool) -> None:
        """As Terminal.route_thoughts."""
        if where is None:
            where = "fold" if default and self._screen.is_terminal else "hide"
        self.fold = self._dim = False
        if where == "hide" or (where == "fold" and not self._screen.is_terminal):
            self._stream = None
        elif where in ("show", "dim", "fold"):
            self._stream = self._screen
            self.fold = where == "fold" and self._screen.moves
            self._dim = where != "show" and self._screen.is_styled
        elif where in ("", "-"):
            raise UsageError("--thoughts takes show, dim, fold, hide or the name of a file")
        elif meant := _misspelt(where):
            raise UsageError(f"--thoughts {where}: did you mean {meant}? ./{where} is a file")
        else:
            self._stream = _file(where)
            self._dim = self._stream.is_styled  # where the file is a terminal

    def empty(self) -> None:
        """Empties the file, if they go to one."""
        if self._stream is not None and self._stream is not self._screen:
            self._stream.truncate()

    def push(self, text: str, tokens: int, limit: int | None, before: str = "") -> None:
        """As Terminal.thought."""
        stream = self._stream
        if stream is None:
            return
        if self._error:
            raise self._error
        with self._lock:
            if not self._open:
                self._open, self._text = True, [clean(before)]
                if self.fold:
                    self._open_panel()
                elif stream.is_terminal:
                    self._mark(True)
            if not stream.is_terminal:
                stream.write(text)
                return
            text = clean(text)
            self._text.append(text)
            if self._panel:
                self._panel.push(text, tokens, limit)
            else:
                self._show(text)

    def end(self, summary: str) -> None:
        """Ends a passage, if one is open."""
        stream = self._stream
        if stream is None or not self._open:
            return
        with self._lock:
            self._open = False
            if not stream.is_terminal:
                stream.write("\n")
            elif not self._panel:
                self._mark(False)
                stream.show("\n")
            else:
                columns = stream.size[0]
                line = f"▸ {clean(summary) or self._panel.summary}"
                hint = f" · {self.unfolds} unfolds" if self.unfolds else ""
                line += hint if text_cells(line + hint) <= columns else ""
                line = wrapped(line, columns, hang=2)
                self.close()
                stream.show(f"{_DIM}{line}{_RESET}\n" if stream.is_styled else f"{line}\n")

    def toggle(self) -> str:
        """Folds or unfolds: what is thought now, or else the last thoughts and the next. Returns
        what is to be told, where the screen does not show it."""
        stream = self._stream
        if stream is None or not stream.moves:
            return "thoughts cannot be folded here"
        with self._lock:
            self.fold = not self.fold
            if self.fold:
                if not self._open:
                    return "the next thoughts are folded"
                self._mark(False)
                self._open_panel()
                return ""
            text = "".join(self._text)
            if not (self._open or text.strip()):
                return "the next thoughts are shown as they come"
            self.close()
            stream.fresh_line()
            self._mark(True)
            self._show(text)
            if not self._open:
                self._mark(False)
            return ""

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Takes the panel off the screen while something else is written."""
        with self._lock:
            if self._panel:
                self._screen.write(self._panel.erase())
            yield

    def close(self) -> None:
        """Takes the panel off the screen for good."""
        with self.aside():
            self._panel = None
            self._closed.set()
            atexit.unregister(self.close)

    def _open_panel(self) -> None:
        self._panel = Panel(styled=self._screen.is_styled)
        self._closed = Event()
        atexit.register(self.close)
        Thread(target=self._paint, args=(self._closed,), daemon=True).start()

    def _paint(self, closed: Event) -> None:
        """Draws the panel until it is closed."""
        while not closed.wait(_PERIOD):
            try:
                with self._lock:
                    if self._panel and not closed.is_set() and not self.paused:
                        self._screen.fresh_line()
                        self._screen.write(self._panel.frame(*self._screen.size))
            except (OutputClosed, Qwen3Error) as error:
                self._error = error  # raised by the next push
                return

    def _mark(self, begin: bool) -> None:
        """Begins or ends what is streamed: with a mark where no style tells it apart."""
        assert self._stream is not None
        if begin:
            self._stream.show("" if self._dim else "<think>\n")
        else:
            self._stream.show("\n" if self._dim else "\n</think>\n")

    def _show(self, text: str) -> None:
        assert self._stream is not None
        self._stream.show(f"{_DIM}{text}{_RESET}" if self._dim and text else text)


def _misspelt(where: str) -> str | None:
    """The mode that was meant by what looks like one, and is no file that is there."""
    from difflib import get_close_matches

    if not where.isalpha() or Path(where).exists():
        return None
    return next(
        iter(get_close_matches(where.lower(), ("show", "dim", "fold", "hide"), 1, 0.7)), None
    )


def _file(name: str) -> Stream:
    """Opened to append, so that whatever fails next leaves an older file as it was."""
    path = Path(name)
    try:
        if path.is_file():
            with path.open("rb") as old:
                if old.read(4) == b"GGUF":
                    raise UsageError(f"{name}: a model; choose another file for the thoughts")
        return Stream(path.open("a", encoding="utf-8"), name)
    except OSError as error:
        raise Qwen3Error(f"cannot write the thoughts to {name}: {reason(error)}") from None
