"""The interactive loop: lines in, replies out, and the slash commands between."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace

from qwen3cli import registry
from qwen3cli.errors import INTERRUPTED, ContextOverflow, Qwen3Error
from qwen3cli.options import Options
from qwen3cli.run import (
    exit_code,
    objection,
    open_conversation,
    settings_of,
    stream,
)
from qwen3cli.session import Conversation, Reply, Settings
from qwen3cli.statistics import experts, statistics
from qwen3cli.terminal import Terminal

COMMANDS = {
    "/think": "think before the answers; /think or /no_think inside a message does it for one",
    "/no_think": "answer at once",
    "/budget": "N: at most N tokens of thinking; none: as many as it takes; alone: shows it",
    "/system": "TEXT: the system message from now on; none: without one; alone: shows it",
    "/clear": "forget the conversation",
    "/stats": "the context in use, the settings, the last reply, the experts",
    "/help": "this list",
    "/exit": "leave, as Ctrl-D and /quit do",
}


def chat(options: Options, terminal: Terminal) -> int:
    """Talks until the input ends; returns the exit code. With a terminal, errors and
    Ctrl-C end a turn; from a pipe, they end the chat, and the code is the last answer's."""
    terminal.route_thoughts(options.thoughts)
    typed = sys.stdin is not None and sys.stdin.isatty() and terminal.visible
    talk = _Chat(open_conversation(options, terminal), settings_of(options), terminal)
    if typed:
        terminal.note(
            f"{talk.model}: /help lists the commands, Alt-Enter starts a new line, Ctrl-D leaves"
        )
    for line in _typed_lines() if typed else _piped_lines():
        try:
            talk.take(line)
        except Qwen3Error as error:
            if not typed:
                raise
            hint = "; /clear forgets what was said" if isinstance(error, ContextOverflow) else ""
            terminal.note(f"qwen3: {error}{hint}")
        if talk.left or (talk.exit_code == INTERRUPTED and not typed):
            break
    return 0 if typed else talk.exit_code


class _Chat:
    """A conversation and what the slash commands change about it."""

    def __init__(self, conversation: Conversation, settings: Settings, terminal: Terminal) -> None:
        self.left = False
        self._conversation = conversation
        self._settings = settings
        self._terminal = terminal
        self._last: Reply | None = None

    @property
    def model(self) -> str:
        return self._conversation.session.model.path.stem

    @property
    def exit_code(self) -> int:
        """What the last reply would be as a command."""
        return 0 if self._last is None else exit_code(self._last)

    def take(self, line: str) -> None:
        """A line of input: nothing, a command, or a message."""
        if not line.strip():
            return
        word, _, argument = line.partition(" ")
        soft_switch = word in ("/think", "/no_think") and argument.strip()
        if re.fullmatch(r"/\w+", word) and not soft_switch:
            self._command(word, argument.strip())
            return
        events = self._conversation.reply(line, self._settings)
        self._last = stream(self._conversation, events, self._settings, self._terminal)
        if self._terminal.interactive:
            self._terminal.note(statistics(self._last, self._conversation.session), dim=True)
            if self._last.answer_stop == "user" and not self._last.answer:
                self._terminal.note("interrupted before the answer: the message was taken back")

    def _command(self, word: str, argument: str) -> None:
        note = self._terminal.note
        if word in ("/think", "/no_think"):
            self._settings = replace(self._settings, think=word == "/think")
            self._mode()
        elif word == "/budget":
            self._budget(argument)
        elif word == "/system":
            if argument:
                self._conversation.system = None if argument == "none" else argument
            system = self._conversation.system
            note("no system message" if system is None else f"system message: {system}")
        elif word == "/clear":
            self._conversation.clear()
            note("conversation forgotten")
        elif word == "/stats":
            self._stats()
        elif word == "/help":
            for name, text in COMMANDS.items():
                note(f"{name:<10} {text}")
        elif word in ("/exit", "/quit"):
            self.left = True
        else:
            note(f"unknown command {word}{_suggestion(word)}; a space before it makes it a message")

    def _budget(self, argument: str) -> None:
        if argument == "none":
            self._settings = replace(self._settings, budget=None)
        elif re.fullmatch(r"\d{1,9}", argument):
            self._settings = replace(self._settings, budget=int(argument))
        elif argument:
            self._terminal.note(f"{argument}: a budget is a number of tokens, or none")
            return
        self._mode()

    def _mode(self) -> None:
        """Notes how the next message will be answered, if it has no switch of its own."""
        thinking = "on" if self._conversation.thinks(self._settings) else "off"
        budget = "none" if self._settings.budget is None else self._settings.budget
        why = objection(self._conversation, self._settings)
        self._terminal.note(f"thinking {thinking}, budget {budget}" + (f": {why}" if why else ""))

    def _stats(self) -> None:
        talk, note = self._conversation, self._terminal.note
        turns = sum(message["role"] == "user" for message in talk.messages)
        used = len(talk.prompt(add_generation_prompt=False))
        plural = "" if turns == 1 else "s"
        note(f"{turns} turn{plural}, {used} of {talk.session.n_ctx} tokens of context")
        self._mode()
        if self._last is not None:
            note(f"last reply: {statistics(self._last, talk.session)}")
        if line := experts(talk.session.model):
            note(line)


def _suggestion(word: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(word, COMMANDS, 1)
    return f"; did you mean {close[0]}?" if close else "; /help lists them"


def _piped_lines() -> Iterator[str]:
    if sys.stdin is not None:
        for line in sys.stdin.buffer:
            yield line.decode("utf-8", "replace").rstrip("\r\n")


def _typed_lines() -> Iterator[str]:
    """Lines edited with prompt_toolkit. Ctrl-C drops the line, Ctrl-D ends the input."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import Output, create_output
    from prompt_toolkit.output.plain_text import PlainTextOutput
    from prompt_toolkit.utils import is_dumb_terminal

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    history: History
    try:
        history = FileHistory(_history_file())
    except OSError:  # a read-only home is no reason not to talk
        history = InMemoryHistory()
    output: Output
    if is_dumb_terminal():
        watched = sys.stdout if sys.stdout is not None and sys.stdout.isatty() else sys.stderr
        output = PlainTextOutput(watched)
    else:
        output = create_output(always_prefer_tty=True)
    # Not as an argument: given one, a prompt would draw on a dumb terminal as on any other.
    with create_app_session(output=output):
        session: PromptSession[str] = PromptSession(
            "> ",
            multiline=True,  # a paste may hold several lines
            prompt_continuation="  ",
            key_bindings=keys,
            history=history,
        )
    while True:
        try:
            yield session.prompt()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def _history_file() -> str:
    """The file of the lines typed so far, for its owner's eyes only."""
    folder = registry.xdg("XDG_STATE_HOME", ".local/state")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "history"
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    path.chmod(0o600)
    return str(path)
