"""The line editor of chat: prompt_toolkit, its keys, its history, and what completes a word."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import termios
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from shutil import which

from prompt_toolkit import PromptSession
from prompt_toolkit.application import create_app_session, get_app, run_in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input.typeahead import store_typeahead
from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.key_binding import KeyBindings, KeyPress, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import Output, create_output
from prompt_toolkit.output.plain_text import PlainTextOutput
from prompt_toolkit.utils import is_dumb_terminal

from qwen3cli.chat.completion import Choice
from qwen3cli.chat.keys import quiet
from qwen3cli.errors import Qwen3Error, UsageError
from qwen3cli.folders import xdg
from qwen3cli.interrupt import TERMINATING, Terminated, uninterrupted

_EDITORS = ("editor", "nano", "vi")  # where neither $VISUAL nor $EDITOR is set


class _Dropped(Exception):
    """Ctrl-C dropped the line. No KeyboardInterrupt: asyncio prints what of those it meets."""


class Editor:
    """Lines, typed on a terminal."""

    def __init__(
        self,
        *,
        choices: Callable[[str], Iterable[Choice]],
        fold: Callable[[], None],
        note: Callable[[str], None],
        aside: Callable[[], AbstractContextManager[None]] = nullcontext,
        remember: bool = True,
    ) -> None:
        """choices: how the text before the cursor may go on. fold: Ctrl-T. note: tells of what
        went wrong. aside: clears the screen while the program is stopped. remember: lines are kept
        in a file, for the next time."""
        self._fold = fold
        self._note = note
        self._aside = aside
        self._output = _output()
        # Not as an argument: given one, a prompt would draw on a dumb terminal as on any other.
        with create_app_session(output=self._output):
            self._session: PromptSession[str] = PromptSession(
                "> ",
                multiline=True,  # a paste may hold several lines
                prompt_continuation="  ",
                key_bindings=self._keys(),
                history=_history() if remember else InMemoryHistory(),
                completer=_Choices(choices),
                # Of a command alone: the menu reserves lines below the prompt.
                complete_while_typing=Condition(_types_a_command),
                interrupt_exception=_Dropped,
            )

    def read(self, prefill: str = "") -> str | None:
        """The next line, or lines; prefill: what is there to be changed. Nothing where Ctrl-C
        dropped it, None at the end of the input."""
        late = False  # Ctrl-C, behind the line

        def interrupt(_number: int, _frame: object) -> None:
            nonlocal late
            late = True

        def begin() -> None:
            nonlocal late
            late = False
            if ending():
                self._drop_soon()

        # Around the prompt, which has a handler of its own: asyncio is not to be torn open.
        handler = signal.signal(signal.SIGINT, interrupt)
        try:
            with self._terminable() as ending, self._stoppable():
                line = self._session.prompt(default=prefill, pre_run=begin)
        except _Dropped:
            return ""
        except (EOFError, OSError):  # OSError: the terminal is gone
            return None
        finally:
            signal.signal(signal.SIGINT, handler)
        return "" if late else line

    def _drop_soon(self) -> None:
        if loop := self._session.app.loop:
            loop.call_soon_threadsafe(self._drop)

    def _drop(self) -> None:
        future = self._session.app.future
        if future is not None and not future.done():
            self._session.app.exit(exception=_Dropped(), style="class:aborting")

    @contextmanager
    def _terminable(self) -> Iterator[Callable[[], int]]:
        """SIGTERM and SIGHUP end the prompt, and what they end comes behind it: an exception out of
        a handler would end whichever task of the event loop it hits. Yields what tells whether one
        has come: which, or 0."""
        came = 0

        def handle(number: int, _frame: object) -> None:
            nonlocal came
            came = number
            self._drop_soon()

        handled = [number for number in TERMINATING if callable(signal.getsignal(number))]
        handlers = {number: signal.signal(number, handle) for number in handled}
        try:
            yield lambda: came
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if came:
                raise Terminated(128 + came)

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Whatever stops the program at its prompt: meanwhile the terminal is the shell's, and the
        prompt is there again when it goes on."""
        if signal.getsignal(signal.SIGTSTP) == signal.SIG_IGN:
            yield
            return
        app, due = self._session.app, False

        def stop() -> None:
            nonlocal due
            due = False
            with _as_ever(signal.SIGTSTP):
                os.kill(os.getpid(), signal.SIGTSTP)

        def go_on() -> None:
            with suppress(termios.error):
                raw = not termios.tcgetattr(app.input.fileno())[3] & termios.ICANON
                if not raw and not app.is_done:  # after SIGSTOP, which told nobody
                    app.input.raw_mode().__enter__()  # the prompt's own puts all of it back
                    app.renderer.reset()
                    app.invalidate()

        def handle(number: int, _frame: object) -> None:
            nonlocal due
            due = due or number == signal.SIGTSTP
            if app.loop:
                app.loop.call_soon_threadsafe(
                    lambda: run_in_terminal(stop) if number == signal.SIGTSTP else go_on()
                )

        handlers = {n: signal.signal(n, handle) for n in (signal.SIGTSTP, signal.SIGCONT)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if due:  # it came when the prompt was over
                stop()

    @contextmanager
    def away(self) -> Iterator[None]:
        """While nobody reads lines: what is typed is not echoed and waits for the next line, but
        Ctrl-T is obeyed."""
        ahead: list[KeyPress] = []

        def press(key: KeyPress) -> None:
            if key.key == Keys.ControlT:
                self._fold()
            else:
                ahead.append(key)

        def brackets(on: bool) -> None:
            """A paste is one key, whatever lines it has."""
            if not isinstance(self._output, PlainTextOutput):
                change = (
                    self._output.enable_bracketed_paste
                    if on
                    else self._output.disable_bracketed_paste
                )
                change()
                self._output.flush()

        parser = Vt100Parser(press)
        decoder = getincrementaldecoder("utf-8")("surrogateescape")
        input = self._session.input
        try:
            with quiet(
                input.fileno(),
                lambda data: parser.feed(decoder.decode(data)),
                brackets,
                self._aside,
            ):
                yield
        finally:
            parser.flush()
            store_typeahead(input, ahead)

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        typing = has_focus(DEFAULT_BUFFER)  # and not searching

        @keys.add("enter", filter=typing)
        def _(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            chosen = buffer.complete_state and buffer.complete_state.current_completion
            if chosen and chosen.text.endswith((" ", "/")):  # it goes on
                buffer.complete_state = None
            elif (
                buffer.document.char_before_cursor == "\\" and buffer.document.is_cursor_at_the_end
            ):
                buffer.delete_before_cursor()
                buffer.insert_text("\n")
            else:
                buffer.validate_and_handle()

        @keys.add("escape", "enter", filter=typing)
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add("c-g", filter=typing)
        def _(event: KeyPressEvent) -> None:
            buffer = event.current_buffer

            def edit() -> None:
                try:
                    buffer.document = Document(_edited(buffer.text))
                except (Qwen3Error, OSError, ValueError) as error:
                    self._note(f"qwen3: {error}")

            run_in_terminal(edit)

        @keys.add("<sigint>")
        def _(_event: KeyPressEvent) -> None:
            self._drop()  # a second one finds nothing to drop

        @keys.add("c-t")
        def _(_event: KeyPressEvent) -> None:
            run_in_terminal(self._fold)

        @keys.add("c-z")
        def _(_event: KeyPressEvent) -> None:
            os.kill(0, signal.SIGTSTP)

        return keys


@contextmanager
def _as_ever(number: int) -> Iterator[None]:
    """A signal does what it does to any program."""
    handler = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, handler)


def _types_a_command() -> bool:
    return get_app().current_buffer.text.startswith("/")


class _Choices(Completer):
    """What a function offers, as prompt_toolkit takes it."""

    def __init__(self, choices: Callable[[str], Iterable[Choice]]) -> None:
        self._choices = choices

    def get_completions(self, document: Document, _event: CompleteEvent) -> Iterator[Completion]:
        for choice in self._choices(document.text_before_cursor):
            yield Completion(
                choice.text,
                -choice.replaces,
                display=choice.text.strip(),
                display_meta=choice.about,
            )


def _edited(text: str) -> str:
    """The text as the user's editor leaves it, without the newline that editors end a file with.
    Raises UsageError, OSError."""
    wanted = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    command = shlex.split(wanted) if wanted else [*filter(which, _EDITORS)][:1]
    if not command:
        raise UsageError("there is no editor: set VISUAL or EDITOR")
    with tempfile.TemporaryDirectory(prefix="qwen3-") as folder:  # nobody else may look into it
        path = Path(folder) / "message.md"
        path.write_text(text, "utf-8", "replace")
        try:
            with uninterrupted(), _as_ever(signal.SIGTSTP):  # Ctrl-C and Ctrl-Z are the editor's
                code = subprocess.call([*command, str(path)])
        except OSError as error:
            raise UsageError(f"cannot start the editor {command[0]}: {error.strerror}") from None
        if code:
            raise UsageError(f"the editor {command[0]} failed: the text is as it was")
        return path.read_text("utf-8", "replace").removesuffix("\n")


def _output() -> Output:
    if is_dumb_terminal():
        watched = sys.stdout if sys.stdout is not None and sys.stdout.isatty() else sys.stderr
        return PlainTextOutput(watched)
    return create_output(always_prefer_tty=True)


class _FileHistory(FileHistory):
    """The lines typed so far, but those that begin with a space, as shells have it."""

    def append_string(self, string: str) -> None:
        if not string.startswith(" "):
            super().append_string(string)

    def store_string(self, string: str) -> None:
        with suppress(OSError):  # a full disk is no reason not to talk
            super().store_string(string)


def _history() -> History:
    """The history in its file, for its owner's eyes only."""
    try:
        folder = xdg("XDG_STATE_HOME", ".local/state")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / "history"
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        path.chmod(0o600)
    except OSError:  # nor is a home that cannot be written to
        return InMemoryHistory()
    return _FileHistory(str(path))
