"""The interactive loop: lines in, replies out, and between them what belongs to a session."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

from qwen3cli.commands import choices, execute
from qwen3cli.errors import INTERRUPTED, ContextOverflow, Qwen3Error, UsageError
from qwen3cli.interrupt import orderly_termination
from qwen3cli.memory import amount
from qwen3cli.options import Options
from qwen3cli.run import open_conversation, settings_of
from qwen3cli.talk import Talk, model_name
from qwen3cli.terminal import Terminal, reason
from qwen3cli.transcripts import Transcript


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
            raise UsageError("a --private chat is not stored: leave out --continue, --session, --save-kv")
        if self.save_kv and not (typed or self.resumes):
            raise UsageError("a chat from a pipe is not stored: --save-kv takes --session ID")


def chat(options: Options, storage: Storage, terminal: Terminal) -> int:
    """Talks until the input ends; returns the exit code. With a terminal, errors and
    Ctrl-C end a turn; from a pipe, they end the chat, and the code is the last answer's."""
    typed = sys.stdin is not None and sys.stdin.isatty() and terminal.visible
    storage.check(typed)
    terminal.route_thoughts(options.thoughts)
    with orderly_termination() if typed else nullcontext(), _begun(options, storage, terminal, typed) as talk:
        if typed:
            _converse(talk, remember=not storage.private)
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
        stored = Transcript.latest() if storage.session is None else Transcript.open(storage.session)
        if options.model is None:
            options = replace(options, model=stored.model)
    conversation = open_conversation(options, terminal)
    name = model_name(conversation, options.model)
    if stored is None and typed and not storage.private:
        try:
            stored = Transcript.create(name, conversation.system)
        except Qwen3Error as error:
            terminal.note(f"qwen3: {error}")
    talk = Talk(conversation, settings_of(options), options, terminal, stored)
    try:
        if stored and storage.resumes:
            _resume(talk, stored, name)
        yield talk
        if storage.save_kv and talk.transcript and talk.transcript.turns:
            _save_kv(talk, talk.transcript)
        if typed and talk.transcript and talk.transcript.turns:
            terminal.note(f"`qwen3 chat --session {talk.transcript.id}` goes on with this", dim=True)
    finally:
        talk.conversation.settle()
        talk.store(lambda transcript: transcript.close())


def _converse(talk: Talk, *, remember: bool) -> None:
    """Lines from a terminal."""
    from qwen3cli.editor import Editor  # prompt_toolkit: a pipe does not wait for it

    terminal = talk.terminal
    editor = Editor(choices=choices, fold=terminal.toggle_fold, note=terminal.note, remember=remember)
    terminal.note(f"{talk.model}: /help lists the commands, Alt-Enter starts a new line, Ctrl-D leaves")
    while not talk.left:
        line = editor.read(talk.editing or "")
        if line is None:
            return
        try:
            _take(talk, line, editor)
        except (Qwen3Error, OSError) as error:
            hint = "; /ctx shows what takes room" if isinstance(error, ContextOverflow) else ""
            text = f"{error.filename}: {reason(error)}" if isinstance(error, OSError) else str(error)
            terminal.note(f"qwen3: {text}{hint}")
        except KeyboardInterrupt:  # of a command that takes its time
            terminal.note("interrupted")
        talk.conversation.prepare()
