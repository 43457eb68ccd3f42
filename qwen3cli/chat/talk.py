"""What a chat is between two lines: the conversation, its settings, and where it is stored."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, fields, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from qwen3cli.chat.transcripts import Stored, Transcript, Turn
from qwen3cli.engine import Model
from qwen3cli.errors import ContextOverflow, Qwen3Error
from qwen3cli.hub import registry
from qwen3cli.interrupt import TERMINATING, watching
from qwen3cli.options import Options
from qwen3cli.plan.memory import amount
from qwen3cli.plan.sizes import sizes_of
from qwen3cli.prompt import Message
from qwen3cli.run.pieces import delimited
from qwen3cli.run.question import exit_code, open_session, stream
from qwen3cli.run.statistics import statistics
from qwen3cli.session import Conversation, Events, Reply, Settings
from qwen3cli.terminal import Terminal


class Talk:
    """A conversation and what the commands change about it."""

    def __init__(
        self,
        conversation: Conversation,
        settings: Settings,
        options: Options,
        terminal: Terminal,
        transcript: Transcript | None = None,
        *,
        typed: bool = False,
    ) -> None:
        """typed: on a terminal, by somebody who sees what comes."""
        self.conversation = conversation
        self.settings = settings
        self.options = options
        self.terminal = terminal
        self.transcript = transcript
        self.typed = typed
        self.away: Callable[[], AbstractContextManager[None]] = nullcontext  # while it answers
        self.last: Reply | None = None
        self.last_statistics = ""  # a line, told by the model that replied
        self.files: dict[str, str] = {}  # what goes with the next message, by name
        self.editing: str | None = None  # the message that the next one takes the place of
        self.failed = 0  # exit code of the first command that failed
        self.left = False
        self.terminated = 0  # by this signal, while it answered

    @property
    def model(self) -> str:
        return self.conversation.session.model.path.stem

    @property
    def exit_code(self) -> int:
        """What the last reply would be as a command; or that of a command that failed."""
        return (exit_code(self.last) if self.last else 0) or self.failed

    # ---- replies --------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """A message, behind the files that go with it."""
        sent = "\n\n".join([*(delimited(*file) for file in self.files.items()), text])
        if self._answer(self.conversation.reply(sent, self.settings), self._keep_turn):
            self.files.clear()
        elif self.terminal.interactive:
            self.terminal.note("interrupted before the answer: the message was taken back")

    def say_instead(self, text: str) -> None:
        """A message in place of the last one. Without an answer all is as it was."""
        events = self.conversation.revise(text, self.settings)
        self._answer_instead(events, _take_back, self._keep_turn)

    def regenerate(self) -> None:
        """Answers the last message anew."""
        events = self.conversation.regenerate(self.settings)
        self._answer_instead(events, self._keep_other_answer)

    def more(self, tokens: int) -> None:
        """Goes on with the thoughts of the last reply."""
        events = self.conversation.more(tokens, self.settings)
        self._answer_instead(events, self._keep_other_answer)

    def _answer_instead(self, events: Events, *keep: Callable[[Transcript], None]) -> None:
        if not self._answer(events, *keep) and self.terminal.interactive:
            self.terminal.note("interrupted before the answer: the last one stays")

    def _answer(self, events: Events, *keep: Callable[[Transcript], None]) -> bool:
        """Shows a reply and stores its turn, if it became one, which it tells."""
        talk, before = self.conversation, self.conversation.messages
        there = False

        def interrupt() -> None:
            """A Ctrl-C before the reply is shown is for it. When it is there, but not all is
            stored, it is too late."""
            if not there:
                talk.interrupt()

        actions: dict[int, Callable[[], None]] = {signal.SIGINT: interrupt}
        for number in TERMINATING:
            actions[number] = partial(self._terminate, number)
        with watching(actions), self.away():
            try:
                with closing(events):
                    reply = self.last = stream(talk, events, self.settings, self.terminal)
            except BaseException:  # half of it was shown: it is not said, as it is not stored
                talk.messages = before
                raise
            there = True
            self.last_statistics = statistics(reply, talk.session)
            kept = reply.answer_stop != "user" or bool(reply.answer)
            if kept:
                self.store(*keep)
            if self.terminal.interactive:
                self.terminal.note(self.last_statistics, dim=True)
        return kept

    def _terminate(self, number: int) -> None:
        self.terminated, self.left = number, True
        self.conversation.interrupt()

    # ---- what is stored -------------------------------------------------------------------

    def store(self, *keep: Callable[[Transcript], None]) -> None:
        """Does things to the transcript, if there is one. A full disk is no reason not to talk: it
        is told, the transcript is told all the same what follows, and stores it later."""
        if not self.transcript:
            return
        failed: Qwen3Error | None = None
        for each in keep:
            try:
                each(self.transcript)
            except Qwen3Error as error:
                failed = error
            else:
                failed = None  # it is all there now
        if failed:
            self.terminal.note(f"qwen3: {failed}")

    def as_stored(self) -> Stored:
        """The chat as a session, whether it is stored or not."""
        if self.transcript:
            return self.transcript
        now, talk = datetime.now(timezone.utc), self.conversation
        stored = Stored(Path("chat.jsonl"), now, self.model, talk.system)
        stored.turns = [Turn(now, *turn, {}) for turn in _turns(talk.messages)]
        return stored

    def _keep_turn(self, transcript: Transcript) -> None:
        user, assistant = self.conversation.messages[-2:]
        transcript.turn(user, assistant, self._statistics())

    def _keep_other_answer(self, transcript: Transcript) -> None:
        transcript.replace(self.conversation.messages[-1], self._statistics())

    def _statistics(self) -> dict[str, Any]:
        """Of the last reply, without its texts."""
        assert self.last
        texts = ("thoughts", "answer", "prompt", "output", "sampling")
        names = [field.name for field in fields(self.last) if field.name not in texts]
        return {name: getattr(self.last, name) for name in names} | asdict(self.last.sampling)

    # ---- what is talked about, and with whom ----------------------------------------------

    def replace(self, messages: list[Message], system: str | None) -> None:
        """Another conversation, in a session of its own. Raises ContextOverflow when it does not
        fit, and then nothing has changed."""
        self._check_room(self.conversation, messages, system)
        self.conversation.clear()
        self.conversation.messages, self.conversation.system = messages, system
        self.editing = None
        if self.transcript:
            self.store(lambda transcript: transcript.close())
            self.transcript = Transcript.create(self.transcript.model, system)
            self.store(*(partial(_keep, turn=turn) for turn in _turns(messages)))

    def switch(self, model: str) -> None:
        """Talks to another model about the same. Raises Qwen3Error, and then nothing has
        changed."""
        options = replace(self.options, model=model)
        old, session = self.conversation, open_session(options, self.terminal)
        new = Conversation(session, system=old.system)
        self._check_room(new, old.messages, old.system)
        new.messages = old.messages
        old.settle()
        self.conversation, self.options = new, options
        self.store(lambda stored: stored.set_model(model_name(new, model)))

    def _check_room(
        self, conversation: Conversation, messages: list[Message], system: str | None
    ) -> None:
        """Raises ContextOverflow when that conversation could not hold these messages, and may
        not drop the oldest."""
        if self.settings.overflow == "drop-oldest":
            return
        trial = Conversation(conversation.session, system=system)
        trial.messages = messages
        used, n_ctx = trial.used(), conversation.session.n_ctx
        if used >= n_ctx:
            raise ContextOverflow(
                f"the conversation is {used:,} tokens, {used - n_ctx + 1:,} too many for a context "
                f"of {n_ctx:,}",
                droppable=True,
            )

    def plan(self) -> str:
        """A line: which model, how large, in which context."""
        session = self.conversation.session
        model, sizes = session.model, sizes_of(session.model.path)
        weights = f", {amount(sizes.dense + sizes.experts)} of weights" if sizes else ""
        return (
            f"{model.path.stem}: {self.conversation.generation.value}{weights}, a context of "
            f"{session.n_ctx:,} tokens (kv cache: up to {amount(session.kv_bytes)}), "
            f"{model.threads} thread{'s' * (model.threads != 1)}{_on_gpu(model)}"
        )


def _on_gpu(model: Model) -> str:
    if model.device is None:
        return ""
    layers, every = model.gpu_stats.n_layers, model.config["n_layers"]
    return f", {layers} of {every} layers on {model.device.name}"


def _take_back(transcript: Transcript) -> None:
    transcript.undo()


def _keep(transcript: Transcript, turn: tuple[Message, Message]) -> None:
    transcript.turn(*turn, {})


def _turns(messages: list[Message]) -> Iterator[tuple[Message, Message]]:
    return zip(messages[::2], messages[1::2], strict=True)


def model_name(conversation: Conversation, wanted: str | None) -> str:
    """What a stored chat finds its model by, from any folder: its name, or the path."""
    path = conversation.session.model.path
    names = {file: name for name, file in registry.EMBEDDED.items()}
    if path.name in names and path.parent == registry.resolve("nano").parent:
        return names[path.name]
    if path in registry.installed():
        return registry.installed_name(path)
    if wanted and registry.release_of(wanted):
        return wanted
    return str(path.resolve())
