"""A model that says what its script says, under the control of thoughts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from byte_tokenizer import ByteTokenizer

from qwen3cli.thinking.control import (
    Part,
    ThinkingControl,
    ThinkTokens,
)

TOKENIZER = ByteTokenizer()
THINK, CLOSE = TOKENIZER.added["<think>"], TOKENIZER.added["</think>"]
END = TOKENIZER.added["<|im_end|>"]
GAP = TOKENIZER.piece("\n\n")
TOKENS = ThinkTokens.of(TOKENIZER, {"tokenizer.ggml.eos_token_id": END})
ROOM = 100_000


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def tick(self) -> None:
        self.now += 1


@dataclass
class Ran:
    """What a scripted model did under the control."""

    control: ThinkingControl
    sequence: list[int] = field(default_factory=list)  # what the session holds after the prompt
    inserted: list[int] = field(default_factory=list)
    sampled: int = 0
    thoughts: list[int] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)

    @property
    def stops(self) -> tuple[str, str]:
        return self.control.thinking_stop, self.control.answer_stop

    @property
    def counts(self) -> tuple[int, int, int]:
        c = self.control
        return c.thinking_tokens, c.inserted_tokens, c.answer_tokens


def run(
    control: ThinkingControl,
    thinking: Iterable[int],
    answer: Iterable[int],
    each: Callable[[], None] = lambda: None,
) -> Ran:
    """Samples from thinking, and from answer once </think> is in the sequence. The next token
    of a script is the likeliest one, too. each: is called before each step."""
    ran = Ran(control)
    scripts = {False: _Script(thinking), True: _Script(answer)}
    while not control.done:
        each()
        if control.asks:
            control.consider(scripts[CLOSE in ran.sequence].peek())
        if forced := control.take_forced():
            ran.inserted += forced
            ran.sequence += forced
            continue
        token = next(scripts[CLOSE in ran.sequence])
        ran.sampled += 1
        part = control.accept(token)
        if part is not Part.END:
            ran.sequence.append(token)
        if part is Part.THOUGHT:
            ran.thoughts.append(token)
        if part is Part.ANSWER:
            ran.answer.append(token)
    return ran


class _Script:
    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens = iter(tokens)
        self._next: list[int] = []

    def peek(self) -> int:
        if not self._next:
            self._next.append(next(self._tokens))
        return self._next[0]

    def __next__(self) -> int:
        return self._next.pop() if self._next else next(self._tokens)


def control(
    thinking: bool = True,
    budget: int | None = None,
    max_tokens: int | None = None,
    prefilled: bool = False,
    room: int = ROOM,
    **more: Any,
) -> ThinkingControl:
    return ThinkingControl(
        TOKENS,
        thinking=thinking,
        budget=budget,
        max_tokens=max_tokens,
        prefilled=prefilled,
        room=room,
        **more,
    )


def script(thoughts: int, prefilled: bool) -> list[int]:
    """A model's own opening, so many thought tokens, its </think>."""
    return ([] if prefilled else [THINK]) + [ord("t")] * thoughts + [CLOSE]


def varied(n: int) -> list[int]:
    """Thoughts of n tokens that do not go in circles and end no line."""
    r = random.Random(n)
    return [r.choice(range(ord("a"), ord("z") + 1)) for _ in range(n)]


ANSWER = [*TOKENIZER.encode("60"), END]
