"""A conversation: its messages, what is sent as the next prefix, and the replies to it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from threading import Thread
from typing import TYPE_CHECKING

from qwen3cli.engine import Grammar, Session, Snapshot
from qwen3cli.errors import Qwen3Error, UsageError
from qwen3cli.prompt import (
    Generation,
    Message,
    Tool,
    detect_generation,
    is_coder,
    render_prompt,
)
from qwen3cli.reply import (
    Answer,
    Closed,
    Event,
    Reply,
    Request,
    Run,
    Settings,
    Thought,
    Wishes,
    computed,
    drive,
)
from qwen3cli.thinking.control import ThinkTokens, effective_thinking

if TYPE_CHECKING:
    from qwen3cli.grammar.schema import Schema

__all__ = ["Answer", "Closed", "Conversation", "Event", "Events", "Reply", "Settings", "Thought"]

Events = Generator[Event | Reply, None, None]


class Conversation:
    """Messages and the engine session that answers them.

    The engine is handed the whole prefix at every turn and finds what it can reuse. A reply that
    fails, or ends before its answer, leaves the messages as they were."""

    def __init__(
        self,
        session: Session,
        *,
        system: str | None = None,
        tools: Sequence[Tool] | None = None,
    ) -> None:
        """Raises FormatError when the vocabulary is not that of a Qwen3 chat model."""
        metadata = session.model.metadata()
        self.session = session
        self.system = system
        self.tools = tools
        self.messages: list[Message] = []  # without the system prompt
        self.dropped = 0  # how many of them, the oldest, are not sent any more
        self.generation: Generation = detect_generation(metadata)
        self.coder: bool = is_coder(metadata)
        self._tokens = ThinkTokens.of(session.model.tokenizer, metadata)
        self._wishes = Wishes()
        self._last: tuple[Message, Run] | None = None  # the last turn's message
        self._kept: Snapshot | None = None  # of the last turn's thoughts, for more
        self._preparing: Thread | None = None

    # ---- replies -------------------------------------------------------------------------

    def reply(self, text: str | None = None, settings: Settings = Settings()) -> Events:
        """Answers text, or else the messages as they are. Yields the reply as it comes and a
        Reply at the end; then the turn is in the messages. An interrupted turn is kept if it has
        some answer. Raises ContextOverflow."""
        kept = list(self.messages)
        if text is not None:
            kept.append({"role": "user", "content": text})
        return self._turn(kept, settings)

    def regenerate(self, settings: Settings = Settings()) -> Events:
        """Answers the last message of the user anew, in place of what followed it. Raises
        UsageError without one."""
        return self._turn(self.messages[: self._last_question() + 1], settings)

    def revise(self, text: str, settings: Settings = Settings()) -> Events:
        """Answers text in place of the last message of the user and of what followed it. Raises
        UsageError without one."""
        kept = self.messages[: self._last_question()]
        return self._turn([*kept, {"role": "user", "content": text}], settings)

    def more(self, tokens: int, settings: Settings = Settings()) -> Events:
        """Goes on with the thoughts of the last reply, from before they were closed, for at most
        so many tokens, and answers anew. Raises UsageError when they were not closed early."""
        if not self._last or not self.messages or self.messages[-1] is not self._last[0]:
            why = "there is no reply yet"
            if self.messages:
                why = "no reply was given since the conversation was taken up or changed"
            raise UsageError(f"there are no thoughts to go on with: {why}")
        _, run = self._last
        if not run.can_go_on:
            why = "they came to their end" if run.control.thinking_tokens else "there are none"
            raise UsageError(f"the thoughts cannot go on: {why}")
        budget = run.control.thinking_tokens + tokens
        settings = replace(settings, budget=budget, seconds=None, seed=run.seed)
        return self._turn(self.messages[:-1], settings, goes_on=run)

    def undo(self) -> str | None:
        """Takes back the last message of the user and what followed; returns its text. Where the
        others now fit, all of them are sent again. None: there is no message."""
        self.settle()
        try:
            last = self._last_question()
        except UsageError:
            return None
        text = self.messages[last].get("content") or ""
        del self.messages[last:]
        dropped, self.dropped = min(self.dropped, len(self.messages)), 0
        if self._is_tight(self.said()):
            self.dropped = dropped
        self._last = self._kept = None
        return text

    def clear(self) -> None:
        """Forgets the messages, not the system prompt."""
        self.settle()
        self.messages.clear()
        self.dropped = 0
        self._last = self._kept = None

    def _last_question(self) -> int:
        for index in reversed(range(len(self.messages))):
            if self.messages[index]["role"] == "user":
                return index
        raise UsageError("there is no message to answer yet")

    def _turn(self, kept: list[Message], settings: Settings, goes_on: Run | None = None) -> Events:
        self._wishes = Wishes()  # now: an interrupt before the first event counts
        return self._generate(kept, settings, self._wishes, goes_on)

    def _generate(
        self, kept: list[Message], settings: Settings, wishes: Wishes, goes_on: Run | None
    ) -> Events:
        follows = len(kept) > len(self.messages)
        self.settle(finish=follows)
        before, self.messages = (self.messages, self.dropped), kept
        run: Run | None = None
        try:
            if goes_on:
                self._recall_thoughts(goes_on)
            run = self.run(settings, wishes=wishes, goes_on=goes_on)
            yield from drive(run)
        except (KeyboardInterrupt, GeneratorExit):  # the caller stopped listening
            if run:
                run.control.interrupt()
            raise
        finally:
            if run and run.complete:
                message = run.message
                self._last = message, run
                self._kept = None
                self.messages = [*kept, message]
            else:
                self.messages, self.dropped = before
        yield run.reply

    def grammar(self, schema: Schema) -> Grammar:
        """For settings: answers keep to a JSON schema. Raises UsageError for what of it is not
        supported."""
        return Grammar(self.session.model.tokenizer, schema, self._tokens.end)

    def run(
        self, settings: Settings, *, wishes: Wishes | None = None, goes_on: Run | None = None
    ) -> Run:
        """The generation of an answer to the messages, for a driver of the caller's. Raises
        ContextOverflow."""
        if goes_on:
            prompt: Sequence[int] = goes_on.prompt
        else:
            prompt = self._fitting(settings)
        request = Request(
            prompt=prompt,
            thinking=goes_on is not None or self.thinks(settings),
            prefilled=self.generation is Generation.THINKING,
            coder=self.coder,
            dropped=self.dropped,
            droppable=any(message["role"] == "user" for message in self._sent()[:-1]),
        )
        wishes = Wishes() if wishes is None else wishes
        return Run(self.session, self._tokens, request, settings, wishes=wishes, goes_on=goes_on)

    # ---- what the user wants of a running reply ----------------------------------------------

    def interrupt(self) -> None:
        """Ends the running reply, one that was asked for, with what there is of it ("user"). May
        be called from any thread and from a signal handler; otherwise it does nothing."""
        self._wishes.end = True
        self.session.cancel()

    def answer_now(self) -> None:
        """Lets the running reply close its thoughts and answer, if it thinks. As interrupt, from
        anywhere."""
        self._wishes.answer = True

    @property
    def interrupted(self) -> bool:
        """Whether the running reply, or the last one, was told to end."""
        return self._wishes.end

    # ---- what is sent ------------------------------------------------------------------------

    def thinks(self, settings: Settings = Settings()) -> bool:
        """Whether the next answer is to be thought about, as things are."""
        switch, budget = settings.think, settings.budget
        return effective_thinking(self._sent(), switch, budget, self.generation)

    def prompt(
        self, settings: Settings = Settings(), *, add_generation_prompt: bool = True
    ) -> list[int]:
        """The ids of the next prefix; without the generation prompt, of what was said."""
        return self._render(self._sent(), self.thinks(settings), add_generation_prompt)

    def said(self) -> list[int]:
        """The ids with which the next prefix begins, whatever the user says: the thoughts of the
        last turn are not among them."""
        if not self.messages and self.system is None:
            return []
        following: Message = {"role": "user", "content": ""}
        ids = self._render([*self._sent(), following], True, False)
        start = self.session.model.tokenizer.added["<|im_start|>"]
        return ids[: len(ids) - ids[::-1].index(start)]

    def used(self) -> int:
        """How many tokens of the context what was said takes."""
        return len(self.said())

    def held(self) -> int:
        """How many of these tokens are computed already."""
        self.settle()
        return _common(self.session.ids, self.said())

    def _render(
        self, messages: list[Message], thinking: bool, generation_prompt: bool
    ) -> list[int]:
        return render_prompt(
            self.session.model.tokenizer,
            messages,
            generation=self.generation,
            thinking=thinking,
            tools=self.tools,
            add_generation_prompt=generation_prompt,
        )

    def _sent(self) -> list[Message]:
        """The messages with the system prompt, without those that were dropped."""
        system: list[Message] = []
        if self.system is not None:
            system.append({"role": "system", "content": self.system})
        return system + self.messages[self.dropped :]

    def _fitting(self, settings: Settings) -> list[int]:
        """The next prefix. When it is tight, and the settings allow it, the oldest turns are
        dropped until half of the context is left: so that it does not happen, and all is computed
        anew, at every turn."""
        ids, n_ctx = self.prompt(settings), self.session.n_ctx
        if settings.overflow == "error" or not self._is_tight(ids):
            return ids
        questions = [
            index
            for index, message in enumerate(self.messages)
            if message["role"] == "user" and index > self.dropped
        ]
        for index in questions:
            if n_ctx - len(ids) >= n_ctx // 2:
                break
            self.dropped = index
            ids = self.prompt(settings)
        return ids

    def _is_tight(self, ids: Sequence[int]) -> bool:
        """Whether less than a quarter of the context is left behind these."""
        n_ctx = self.session.n_ctx
        return n_ctx - len(ids) < n_ctx // 4

    # ---- while the user types ----------------------------------------------------------------

    def prepare(self) -> None:
        """Begins to compute, in the background, what the next turn will reuse: the answer without
        its thoughts. Thoughts that can go on are kept aside."""
        self.settle()
        ids = self.said()
        if self._last and self._last[1].can_go_on and self._kept is None:
            self._kept = self.session.snapshot(_common(self.session.ids, ids))
        self._preparing = Thread(target=self._prefill, args=(ids,), daemon=True)
        self._preparing.start()

    def settle(self, *, finish: bool = False) -> None:
        """Ends what prepare began, with what there is of it, or when it is done. Every turn
        does."""
        if self._preparing:
            if not finish and self._preparing.is_alive():
                self.session.cancel()
            self._preparing.join()
            self._preparing = None

    def _prefill(self, ids: Sequence[int]) -> None:
        with suppress(Qwen3Error):  # cancelled; or an error that the next turn meets, and tells
            self.session.sync(ids)

    def _recall_thoughts(self, run: Run) -> None:
        """Puts the thoughts that prepare kept aside back into the session."""
        if self._kept:
            before = [*run.prompt, *run.output][: self._kept.start]
            computed(self.session.sync, before, self._wishes)
            self.session.restore(self._kept)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids both begin with."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
