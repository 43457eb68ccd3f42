"""One reply: its settings, its events, and its generation token by token.

Run knows what comes next, but computes nothing itself: it asks for it, so that one driver can
compute a single reply and another many of them together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from time import perf_counter
from typing import Literal

from qwen3cli.engine import Cancelled, Grammar, Matcher, Sampling, Session
from qwen3cli.errors import ContextOverflow
from qwen3cli.passage import Passage
from qwen3cli.prompt import Message
from qwen3cli.thinking.control import (
    AnswerStop,
    Landing,
    Part,
    ThinkingControl,
    ThinkingStop,
    ThinkTokens,
    default_sampling,
)

Overflow = Literal["error", "drop-oldest"]


@dataclass(frozen=True)
class Settings:
    """How a reply is generated. None: as the model and its mode have it."""

    think: bool | None = None  # the hard switch; True leaves it to /think and /no_think
    budget: int | None = None  # most tokens of thinking
    seconds: float | None = None  # the most that thinking takes; with a budget: what ends first
    landing: Landing = "soft"  # how a budget ends the thoughts
    max_tokens: int | None = None  # most tokens of the answer
    stop: Sequence[str] = ()  # the answer ends before any of these texts
    overflow: Overflow = "error"  # or the oldest turns are not sent
    grammar: Grammar | None = None  # what the answer has to keep to
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
    """More text of the thoughts, possibly none yet."""

    text: str
    tokens: int = 0  # of the thoughts so far
    limit: int | None = None  # how many there will be at most, as of now
    before: str = ""  # the first of a reply that goes on: what was thought already


@dataclass(frozen=True)
class Closed:
    """The thoughts are over."""

    tokens: int
    limit: int | None  # in tokens, of a budget in tokens
    seconds: float
    stop: ThinkingStop


@dataclass(frozen=True)
class Answer:
    """More text of the answer."""

    text: str


Event = Thought | Closed | Answer


@dataclass(frozen=True)
class Reply:
    """A finished reply, the last of its events."""

    thoughts: str
    answer: str
    budget: int | None
    seconds: float | None
    thinking_tokens: int  # counted in the budget
    thinking_stop: ThinkingStop
    inserted_tokens: int  # of the stop text, sampled by nobody
    answer_tokens: int
    answer_stop: AnswerStop
    prompt_tokens: int
    reused_tokens: int  # of the prompt, not computed again
    dropped: int  # messages that were not sent: the context does not hold them
    seed: int
    sampling: Sampling
    prefill_s: float
    thinking_s: float
    prefill_tok_s: float  # 0 when nothing was computed
    decode_tok_s: float
    prompt: tuple[int, ...] = field(repr=False)
    output: tuple[int, ...] = field(repr=False)  # all ids behind the prompt


@dataclass(frozen=True)
class Compute:
    """What a driver has to compute before the next step. prompt: ids are the whole sequence, and
    it sends back how many of them it had; else they are appended."""

    ids: Sequence[int]
    prompt: bool


@dataclass
class Wishes:
    """What the user wants of a running reply. Set from any thread or signal handler."""

    end: bool = False
    answer: bool = False  # now: no more thinking


@dataclass(frozen=True)
class Request:
    """What a reply answers, and in which mode."""

    prompt: Sequence[int]
    thinking: bool
    prefilled: bool  # the prompt ends with "<think>\n"
    coder: bool
    dropped: int = 0
    droppable: bool = False  # there are older turns, which are sent


class Run:
    """The generation of one reply."""

    def __init__(
        self,
        session: Session,
        tokens: ThinkTokens,
        request: Request,
        settings: Settings,
        *,
        wishes: Wishes,
        goes_on: Run | None = None,
    ) -> None:
        """goes_on: a reply of the same session whose thoughts were closed early; they go on from
        there. Raises ContextOverflow."""
        self.prompt = list(request.prompt)
        self.output: list[int] = []
        self.wishes = wishes
        self._dropped = request.dropped
        self.session = session
        self._tokens = tokens
        self._settings = settings
        self._sampling = settings.sampling(request.thinking, coder=request.coder)
        tokenizer = session.model.tokenizer
        self._thoughts = Passage(tokenizer, trim_end=True)
        self._answer = Passage(tokenizer, stop=[s for s in settings.stop if s])
        self._matcher = settings.grammar.matcher() if settings.grammar else None
        self._thought_ids: list[int] = []
        self._closed_at: int | None = None  # where in the output thoughts were closed early
        if goes_on:
            self.output = goes_on.output[: goes_on._closed_at]
            self._thought_ids = list(goes_on._thought_ids)
            for token in self._thought_ids:
                self._thoughts.push(token)
        room = session.n_ctx - len(self.prompt) - len(self.output)
        if room < 1:
            advice = "shorten it or take a larger context (--ctx N)"
            if request.droppable:
                advice += ", or leave out what was said first (--overflow drop-oldest)"
            raise ContextOverflow(
                f"the prompt is {session.n_ctx - room} tokens, {1 - room} too many for a context "
                f"of {session.n_ctx}: {advice}",
                droppable=request.droppable,
            )
        self.control = ThinkingControl(
            tokens,
            thinking=request.thinking,
            budget=settings.budget,
            seconds=settings.seconds,
            landing=settings.landing,
            max_tokens=settings.max_tokens,
            prefilled=request.prefilled or goes_on is not None,
            room=room,
            constrained=settings.grammar is not None,
            used=len(self._thought_ids),
        )
        self._reused = self._computed = self._sampled = 0
        self._prefill_s = self._decode_s = self._thinking_s = 0.0

    def steps(self) -> Generator[Event | Compute, int | None, None]:
        """Events, and what has to be computed before the next. A driver that was cancelled throws
        Cancelled in: the reply then ends with what there is of it."""
        control = self.control
        try:
            start = perf_counter()
            ids = [*self.prompt, *self.output]
            self._reused = (yield Compute(ids, prompt=True)) or 0
            self._computed = len(ids) - self._reused
            self._prefill_s = perf_counter() - start
            if control.thinking:
                so_far = self._thoughts.text
                yield Thought("", control.thinking_tokens, control.limit, so_far)
            while not control.done:
                start, thinking = perf_counter(), control.thinking
                yield from self._step()
                if thinking:
                    self._thinking_s += perf_counter() - start
                    if not control.thinking:
                        yield self._closed()
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
    def can_go_on(self) -> bool:
        """Whether the thoughts were closed early."""
        return self._closed_at is not None

    @property
    def seed(self) -> int:
        return self._sampling.seed

    @property
    def reply(self) -> Reply:
        control = self.control
        return Reply(
            thoughts=self._thoughts.text,
            answer=self._answer.text,
            budget=control.budget,
            seconds=self._settings.seconds,
            thinking_tokens=control.thinking_tokens,
            thinking_stop=control.thinking_stop,
            inserted_tokens=control.inserted_tokens,
            answer_tokens=control.answer_tokens,
            answer_stop=control.answer_stop,
            prompt_tokens=len(self.prompt),
            reused_tokens=self._reused,
            dropped=self._dropped,
            seed=self._sampling.seed,
            sampling=self._sampling,
            prefill_s=self._prefill_s,
            thinking_s=self._thinking_s,
            prefill_tok_s=_rate(self._computed, self._prefill_s),
            decode_tok_s=_rate(self._sampled, self._decode_s),
            prompt=tuple(self.prompt),
            output=tuple(self.output),
        )

    def _step(self) -> Generator[Event | Compute, int | None, None]:
        """What is wished, what is forced, or else a token."""
        control = self.control
        if self.wishes.end:
            control.interrupt()
            return
        if self.wishes.answer and control.thinking:
            control.land("user")
        elif control.asks:
            control.consider(self.session.sample())
        if forced := control.take_forced():
            if control.answering and control.thinking_stop != "natural":
                self._closed_at = len(self.output)
            self.output += forced
            yield Compute(forced, prompt=False)
        elif not control.done:
            yield from self._sample()

    def _sample(self) -> Generator[Event | Compute, int | None, None]:
        """Samples a token, yields the text it completes, computes it."""
        control = self.control
        start = perf_counter()
        token = self._drawn(self._matcher if control.answering else None)
        self._decode_s += perf_counter() - start
        self._sampled += 1
        part = control.accept(token)
        if part is not Part.END:
            self.output.append(token)
        if part is Part.THOUGHT:
            self._thought_ids.append(token)
            yield Thought(self._thoughts.push(token), control.thinking_tokens, control.limit)
        elif control.thinking:  # it begins
            yield Thought("", control.thinking_tokens, control.limit)
        if part is Part.ANSWER:
            if text := self._answer.push(token):
                yield Answer(text)
            if self._answer.stopped:
                control.stop()
        if part is not Part.END and not control.done:
            start = perf_counter()
            yield Compute([token], prompt=False)
            self._decode_s += perf_counter() - start

    def _drawn(self, matcher: Matcher | None) -> int:
        """The next token; in an answer that has to keep to a grammar, one that it allows."""
        generated_from = len(self.prompt)
        if matcher is None:
            return self.session.sample(self._sampling, generated_from=generated_from)
        token = self.session.sample(self._sampling, generated_from=generated_from, matcher=matcher)
        matcher.accept(token)
        return token

    def _closed(self) -> Closed:
        control, budget = self.control, self.control.budget
        return Closed(control.thinking_tokens, budget, self._thinking_s, control.thinking_stop)


def drive(run: Run) -> Iterator[Event]:
    """Computes a reply alone; yields its text."""
    session, steps = run.session, run.steps()
    reused: int | None = None
    try:
        event = next(steps)
        while True:
            if isinstance(event, Compute):
                try:
                    step: Step = session.sync if event.prompt else session.extend
                    reused = computed(step, event.ids, run.wishes)
                except Cancelled as cancelled:
                    event = steps.throw(cancelled)
                else:
                    event = steps.send(reused)
            else:
                yield event
                event = next(steps)
    except StopIteration:
        return


Step = Callable[[Sequence[int]], int | None]


def computed(step: Step, ids: Sequence[int], wishes: Wishes) -> int | None:
    """What step returns. A cancel that nobody wished came too late for an earlier computation."""
    try:
        return step(ids)
    except Cancelled:
        if wishes.end:
            raise
        return step(ids)


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 else 0.0
