"""A conversation: its messages, what is sent as the next prefix, and the replies to it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from time import perf_counter
from typing import Any

from qwen3cli.engine import Cancelled, Sampling, Session, TextStream, Tokenizer
from qwen3cli.errors import ContextOverflow
from qwen3cli.prompt import (
    Generation,
    Message,
    Tool,
    detect_generation,
    is_coder,
    render_prompt,
)
from qwen3cli.thinking import (
    AnswerStop,
    Landing,
    Part,
    ThinkingControl,
    ThinkingStop,
    ThinkTokens,
    default_sampling,
    effective_thinking,
)


@dataclass(frozen=True)
class Settings:
    """How a reply is generated. None: as the model and its mode have it."""

    think: bool | None = None  # the hard switch; True leaves it to /think and /no_think
    budget: int | None = None  # most tokens of thinking
    seconds: float | None = None  # the most that thinking takes; with a budget: what ends first
    landing: Landing = "soft"  # how a budget ends the thoughts
    max_tokens: int | None = None  # most tokens of the answer
    stop: Sequence[str] = ()  # the answer ends before any of these texts
    seed: int | None = None  # None: a random one
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None

    def sampling(self, thinking: bool, *, coder: bool = False) -> Sampling:
        chosen = {field.name: getattr(self, field.name) for field in fields(Sampling)}
        if self.seed is None:
            chosen["seed"] = int.from_bytes(os.urandom(4), "little")
        given = {name: value for name, value in chosen.items() if value is not None}
        return replace(default_sampling(thinking, coder=coder), **given)


@dataclass(frozen=True)
class Thought:
    """More text of the thoughts."""

    text: str


@dataclass(frozen=True)
class Answer:
    """More text of the answer."""

    text: str


@dataclass(frozen=True)
class Reply:
    """A finished reply, the last of its events."""

    thoughts: str
    answer: str
    budget: int | None
    thinking_tokens: int  # counted in the budget
    thinking_stop: ThinkingStop
    inserted_tokens: int  # of the stop text, sampled by nobody
    answer_tokens: int
    answer_stop: AnswerStop
    prompt_tokens: int
    reused_tokens: int  # of the prompt, not computed again
    seed: int
    prefill_tok_s: float  # 0 when nothing was computed
    decode_tok_s: float


class Conversation:
    """Messages and the engine session that answers them.

    The engine is handed the whole prefix at every turn and finds what it can reuse."""

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
        self.generation: Generation = detect_generation(metadata)
        self.coder: bool = is_coder(metadata)
        self._tokens = ThinkTokens.of(session.model.tokenizer, metadata)
        self._interrupted = False

    def reply(
        self, text: str | None = None, settings: Settings = Settings()
    ) -> Iterator[Thought | Answer | Reply]:
        """Answers text, or else the messages as they are. Yields the reply as it comes and a
        Reply at the end; then the turn is in the messages.

        An interrupted turn is kept if it has some answer. Without one, and after an error, the
        user's message is taken back, so the conversation goes on from where it was. Raises
        ContextOverflow."""
        self._interrupted = False  # now: an interrupt before the first event counts
        return self._reply(text, settings)

    def _reply(self, text: str | None, settings: Settings) -> Iterator[Thought | Answer | Reply]:
        before = len(self.messages)
        if text is not None:
            self.messages.append({"role": "user", "content": text})
        run: _Run | None = None
        try:
            run = _Run(self, settings)
            yield from run.events()
        except (KeyboardInterrupt, GeneratorExit):  # the caller stopped listening
            if run:
                run.control.interrupt()
            raise
        finally:
            if run and run.complete:
                self.messages.append(run.message)
            else:
                del self.messages[before:]
        yield run.reply

    def interrupt(self) -> None:
        """Ends the running reply, one that was asked for, with what there is of it ("user"). May
        be called from any thread and from a signal handler; otherwise it does nothing."""
        self._interrupted = True
        self.session.cancel()

    @property
    def interrupted(self) -> bool:
        """Whether the running reply, or the last one, was told to end."""
        return self._interrupted

    def clear(self) -> None:
        """Forgets the messages, not the system prompt."""
        self.messages.clear()

    def thinks(self, settings: Settings = Settings()) -> bool:
        """Whether the next answer is to be thought about, as things are."""
        switch, budget = settings.think, settings.budget
        return effective_thinking(self._sent(), switch, budget, self.generation)

    def prompt(
        self, settings: Settings = Settings(), *, add_generation_prompt: bool = True
    ) -> list[int]:
        """The ids of the next prefix; without the generation prompt, of what was said."""
        return render_prompt(
            self.session.model.tokenizer,
            self._sent(),
            generation=self.generation,
            thinking=self.thinks(settings),
            tools=self.tools,
            add_generation_prompt=add_generation_prompt,
        )

    def _sent(self) -> list[Message]:
        """The messages with the system prompt."""
        system: list[Message] = []
        if self.system is not None:
            system.append({"role": "system", "content": self.system})
        return system + self.messages


class _Run:
    """The generation of one reply."""

    def __init__(self, conversation: Conversation, settings: Settings) -> None:
        session = conversation.session
        self.ids = conversation.prompt(settings)
        room = session.n_ctx - len(self.ids)
        if room < 1:
            raise ContextOverflow(
                f"the prompt is {len(self.ids)} tokens, {1 - room} too many for a context of "
                f"{session.n_ctx}: shorten it or take a larger context (--ctx N)"
            )
        thinking = conversation.thinks(settings)
        self.control = ThinkingControl(
            conversation._tokens,
            thinking=thinking,
            budget=settings.budget,
            seconds=settings.seconds,
            landing=settings.landing,
            max_tokens=settings.max_tokens,
            prefilled=conversation.generation is Generation.THINKING,
            room=room,
        )
        self._conversation = conversation
        self._session = session
        self._sampling = settings.sampling(thinking, coder=conversation.coder)
        self._thoughts = _Passage(session.model.tokenizer, trim_end=True)
        self._answer = _Passage(session.model.tokenizer, stop=[s for s in settings.stop if s])
        self._reused = self._sampled = 0
        self._prefill_s = self._decode_s = 0.0

    def events(self) -> Iterator[Thought | Answer]:
        control = self.control
        try:
            self._prefill()
            while not control.done:
                if control.asks:
                    control.consider(self._session.sample())
                if self._conversation.interrupted:
                    control.interrupt()
                elif forced := control.take_forced():
                    self._compute(self._session.extend, forced)
                else:
                    yield from self._step()
        except Cancelled:
            control.interrupt()
        if text := self._answer.finish(cut=control.answer_stop in ("limit", "user")):
            yield Answer(text)

    @property
    def complete(self) -> bool:
        """Whether the turn belongs into the conversation."""
        stop = self.control.answer_stop
        return self.control.done and (stop != "user" or bool(self._answer.text))

    @property
    def message(self) -> Message:
        return {
            "role": "assistant",
            "content": self._answer.text,
            "reasoning_content": self._thoughts.text,
        }

    @property
    def reply(self) -> Reply:
        control = self.control
        return Reply(
            thoughts=self._thoughts.text,
            answer=self._answer.text,
            budget=control.budget,
            thinking_tokens=control.thinking_tokens,
            thinking_stop=control.thinking_stop,
            inserted_tokens=control.inserted_tokens,
            answer_tokens=control.answer_tokens,
            answer_stop=control.answer_stop,
            prompt_tokens=len(self.ids),
            reused_tokens=self._reused,
            seed=self._sampling.seed,
            prefill_tok_s=_rate(len(self.ids) - self._reused, self._prefill_s),
            decode_tok_s=_rate(self._sampled, self._decode_s),
        )

    def _prefill(self) -> None:
        start = perf_counter()
        self._reused = self._compute(self._session.sync, self.ids)
        self._prefill_s = perf_counter() - start

    def _step(self) -> Iterator[Thought | Answer]:
        """Samples a token, yields the text it completes, computes it."""
        start = perf_counter()
        token = self._session.sample(self._sampling, generated_from=len(self.ids))
        self._decode_s += perf_counter() - start
        self._sampled += 1
        part = self.control.accept(token)
        if part is Part.THOUGHT and (text := self._thoughts.push(token)):
            yield Thought(text)
        if part is Part.ANSWER:
            if text := self._answer.push(token):
                yield Answer(text)
            if self._answer.stopped:
                self.control.stop()
        if part is not Part.END and not self.control.done:
            start = perf_counter()
            self._compute(self._session.extend, [token])
            self._decode_s += perf_counter() - start

    def _compute(self, step: Callable[[Sequence[int]], Any], ids: Sequence[int]) -> Any:
        try:
            return step(ids)
        except Cancelled:
            if self._conversation.interrupted:
                raise
            return step(ids)  # the cancel came too late for an earlier reply


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 else 0.0


_BLANK_LINES = re.compile(r"\A(?:[^\S\n]*\n)+")


class _Passage:
    """The text of thoughts or of an answer as it is shown: without the blank lines before it,
    up to a stop text, and for thoughts without the newlines at the end."""

    def __init__(
        self, tokenizer: Tokenizer, *, stop: Sequence[str] = (), trim_end: bool = False
    ) -> None:
        self.text = ""  # shown so far
        self.stopped = False
        self._stream = TextStream(tokenizer)
        self._stop = stop
        self._trim_end = trim_end
        self._held = ""  # not shown yet: what follows decides

    def push(self, token: int) -> str:
        """The text to show next."""
        return self._show(self._stream.push(token), last=False)

    def finish(self, *, cut: bool) -> str:
        """The text that was held back, when the passage is over. cut: not by the model, so
        the beginning of a character is no text."""
        if self.stopped:
            return ""
        return self._show("" if cut else self._stream.finish(), last=True)

    def _show(self, new: str, *, last: bool) -> str:
        held = self._held + new
        if not self.text:
            held = _BLANK_LINES.sub("", held)
            if not held or held.isspace():
                self._held = held
                return ""
        found = [at for at in (held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            held = held[: min(found)]
        shown = held if last or self.stopped else held[: len(held) - self._undecided(held)]
        self._held = held[len(shown) :]
        self.text += shown
        return shown

    def _undecided(self, held: str) -> int:
        """How long an end of held may be the beginning of a stop text, or of the end."""
        if self._trim_end:
            return len(held) - len(held.rstrip("\n"))
        starts = (stop[:n] for stop in self._stop for n in range(1, len(stop)))
        return max((len(start) for start in starts if held.endswith(start)), default=0)
