"""The interactive loop: lines in, replies out, and between them what belongs to a session."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace

from qwen3cli.chat.commands import beginning, choices, execute
from qwen3cli.chat.talk import Talk, model_name
from qwen3cli.chat.transcripts import Transcript
from qwen3cli.errors import INTERRUPTED, ContextOverflow, Qwen3Error, UsageError
from qwen3cli.interrupt import Terminated, orderly_termination, uninterrupted
from qwen3cli.options import Options
from qwen3cli.plan.memory import amount
from qwen3cli.reply import Wishes, computed
from qwen3cli.run.question import open_conversation, settings_of
from qwen3cli.screen.streams import reason
from qwen3cli.terminal import Terminal


@dataclass(frozen=True)
class Storage:
    """Where a chat is stored, and which one goes on."""

    latest: bool = False
    session: str | None = None  # an id, or the beginning of one
    save_kv: bool = False
    private: bool = False  # not at all

    @property
    def resumes(self) -> bool:
        return self.latest or self.session is not None

    def check(self, typed: bool) -> None:
        """Raises UsageError for flags that contradict each other."""
        if self.latest and self.session is not None:
            raise UsageError("--continue and --session are two sessions: give one")
        if self.private and (self.resumes or self.save_kv):
            raise UsageError(
                "a --private chat is not stored: leave out --continue, --session, --save-kv"
            )
        if self.save_kv and not (typed or self.resumes):
            raise UsageError("a chat from a pipe is not stored: --save-kv takes --session ID")


def chat(options: Options, storage: Storage, terminal: Terminal) -> int:
    """Talks until the input ends; returns the exit code. With a terminal, errors and
    Ctrl-C end a turn; from a pipe, they end the chat, and the code is the last answer's, or that
    of the first command that failed."""
    typed = sys.stdin is not None and sys.stdin.isatty() and terminal.visible
    storage.check(typed)
    terminal.route_thoughts(options.thoughts)
    with (
        orderly_termination() if typed else nullcontext(),
        _begun(options, storage, terminal, typed) as talk,
    ):
        if typed:
            _converse(talk, remember=not storage.private)
            if talk.terminated:
                raise Terminated(128 + talk.terminated)
        else:
            for line in _piped_lines():
                _take(talk, line)
                if talk.left or talk.exit_code == INTERRUPTED:
                    break
    return 0 if typed else talk.exit_code


@contextmanager
def _begun(options: Options, storage: Storage, terminal: Terminal, typed: bool) -> Iterator[Talk]:
    """A new chat or the one that goes on; stored at its end."""
    stored: Transcript | None = None
    if storage.resumes:
        stored = (
            Transcript.latest() if storage.session is None else Transcript.open(storage.session)
        )
        if options.model is None:
            options = replace(options, model=stored.model)
    conversation = open_conversation(options, terminal)
    name = model_name(conversation, options.model)
    if stored is None and typed and not storage.private:
        try:
            stored = Transcript.create(name, conversation.system)
        except Qwen3Error as error:
            terminal.note(f"qwen3: {error}")
    talk = Talk(conversation, settings_of(options), options, terminal, stored, typed=typed)
    try:
        if stored and storage.resumes:
            _resume(talk, stored, name)
        yield talk
        if storage.save_kv and talk.transcript and talk.transcript.turns:
            _save_kv(talk, talk.transcript)
        if typed and talk.transcript and talk.transcript.turns and talk.transcript.path.exists():
            terminal.note(
                f"`qwen3 chat --session {talk.transcript.id}` goes on with this", dim=True
            )
    finally:
        talk.conversation.settle()
        talk.store(lambda transcript: transcript.close())


def _converse(talk: Talk, *, remember: bool) -> None:
    """Lines from a terminal."""
    from qwen3cli.chat.editor import Editor  # prompt_toolkit: a pipe does not wait for it

    terminal = talk.terminal
    editor = Editor(
        choices=choices,
        fold=terminal.toggle_fold,
        note=terminal.note,
        aside=terminal.aside,
        remember=remember,
    )
    terminal.announce_fold_key("Ctrl-T")
    terminal.note(
        f"{talk.model}: /help lists the commands, Alt-Enter starts a new line, Ctrl-D leaves"
    )
    talk.away = editor.away
    while not talk.left:
        try:
            with uninterrupted(), suppress(Qwen3Error):  # the next turn meets it, and tells
                talk.conversation.prepare()
            line = editor.read(talk.editing or "")
            if line is None:
                return
            _take(talk, line)
        except (Qwen3Error, OSError) as error:
            _tell(talk, error)
        except KeyboardInterrupt:  # of a command that takes its time, or between two lines
            with uninterrupted():
                terminal.note("interrupted")


def _take(talk: Talk, line: str) -> None:
    """A line of input: nothing, a command, or a message. What a command could not do is told."""
    instead, talk.editing = talk.editing is not None, None
    try:
        if not line.strip() or execute(talk, line):
            return
    except (Qwen3Error, OSError) as error:
        talk.failed = talk.failed or getattr(error, "exit_code", Qwen3Error.exit_code)
        _tell(talk, error)
        return
    if instead:
        talk.say_instead(line)
    else:
        talk.say(line)


def _tell(talk: Talk, error: Exception) -> None:
    text = str(error)
    if isinstance(error, OSError):
        text = f"{error.filename}: {reason(error)}" if error.filename else reason(error)
    hint = ""
    if isinstance(error, ContextOverflow):
        hint = "; /ctx shows what takes room"
        if error.droppable and talk.settings.overflow == "error":
            hint += ", /set overflow drop-oldest makes some"
    talk.terminal.note(f"qwen3: {text}{hint}")


def _piped_lines() -> Iterator[str]:
    if sys.stdin is not None:
        for line in sys.stdin.buffer:
            yield line.decode("utf-8", "replace").rstrip("\r\n")


# ---- sessions ---------------------------------------------------------------


def _resume(talk: Talk, stored: Transcript, name: str) -> None:
    """Goes on where a session ended, with the model called so."""
    conversation, note = talk.conversation, talk.terminal.note
    if name != stored.model:
        note(f"this session was with {stored.model}, and goes on with {name}")
        talk.store(lambda transcript: transcript.set_model(name))
    if talk.options.system is None:
        conversation.system = stored.system
    else:
        talk.store(lambda transcript: transcript.set_system(talk.options.system))
    conversation.messages = stored.messages
    turns = len(stored.turns)
    told = f"session {stored.id}: {turns} turn{'s' * (turns != 1)}"
    if stored.turns and stored.kv_path.exists():
        try:
            conversation.session.load(stored.kv_path)
            told += ", restored from its kv cache"
        except Qwen3Error as error:
            told += f", computed again: {error}"
    if talk.typed:
        note(told)
        for message in stored.messages[-2:]:
            who = "you" if message["role"] == "user" else "qwen3"
            note(f"{who}: {beginning(message.get('content') or '', 300)}", dim=True)


def _save_kv(talk: Talk, transcript: Transcript) -> None:
    """Keeps the kv cache beside the session, for its next time."""
    conversation = talk.conversation
    conversation.settle()
    try:
        # Without the last thoughts: as it is resumed.
        computed(conversation.session.sync, conversation.said(), Wishes())
        conversation.session.save(transcript.kv_path)
        size = amount(transcript.kv_path.stat().st_size)
    except (Qwen3Error, OSError) as error:
        talk.terminal.note(f"qwen3: the kv cache is not saved: {error}")
        return
    if talk.typed:
        talk.terminal.note(f"kv cache saved: {size}", dim=True)
