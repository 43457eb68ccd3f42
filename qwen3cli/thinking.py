"""Thinking: the effective mode, and the token-level machine that enforces it.

The machine moves on token ids only; text that spells </think> never switches anything. The
caller runs it in one loop:

    while not control.done:
        if forced := control.take_forced():
            session.extend(forced)  # the machine closes the thoughts
            continue
        token = session.sample(sampling)
        part = control.accept(token)  # where its text belongs
        if part is not Part.END and not control.done:
            session.extend([token])

The rules:
- A budget of B lets the model sample at most B tokens after <think>. Once B are counted the
  stop text is inserted without looking at what would come next, so thoughts of exactly B
  tokens are closed by it too. Neither </think> nor inserted tokens are counted. The newline
  after <think> is counted when the model generates it, not when the prompt ends with it.
- An end token among the thoughts is replaced by </think>: a model that ends there still
  owes its answer.
- The limit of max_tokens is for the answer alone. To keep room for one, thinking ends early
  ("limit") when only the stop text and a reserve are left of the context: max_tokens or 256
  tokens, at most a quarter of the room there was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, Protocol

from qwen3cli.engine import Sampling
from qwen3cli.errors import FormatError
from qwen3cli.prompt import Generation, Message

# ---- the effective mode ---------------------------------------------------

# A soft switch is a word of its own. Before it: nothing, space, opening or closing
# punctuation, the end of a sentence, or a letter of a script that writes no spaces between
# words (what is not Latin, Greek or Cyrillic). So none in a/think, ./think, </think>,
# https://think or /think/x.
_SWITCH = re.compile(
    r"""(?: ^ | (?<=[\s"'`(\[{)\]},;!?]) | (?<=\w\.) | (?<=[^\u0000-\u052f\u1e00-\u1fff]) )
        / (no_)? think
        (?! [A-Za-z0-9_/\\>-] | [.:?&=\#@][A-Za-z0-9_] )""",
    re.VERBOSE,
)


def effective_thinking(
    messages: Sequence[Message], switch: bool | None, budget: int | None, generation: Generation
) -> bool:
    """Whether the next answer is to be thought about. switch and a budget of 0 are hard;
    otherwise the last /think or /no_think in user or system text decides."""
    if generation is not Generation.HYBRID:
        return generation is Generation.THINKING
    if switch is False or budget == 0:
        return False
    for message in reversed(messages):
        if message["role"] in ("user", "system"):
            switches = list(_SWITCH.finditer(message.get("content") or ""))
            if switches:
                return switches[-1].group(1) is None
    return True


def default_sampling(thinking: bool, *, coder: bool = False) -> Sampling:
    """The values that the model cards recommend for the mode, and for the coder models."""
    if thinking:
        return Sampling(temperature=0.6, top_p=0.95, top_k=20, min_p=0.0)
    penalty = 1.05 if coder else 1.0
    return Sampling(temperature=0.7, top_p=0.8, top_k=20, min_p=0.0, repetition_penalty=penalty)


# ---- the tokens it is about -----------------------------------------------

STOP_TEXT = (
    "Considering the limited time by the user, I have to give the solution based on the "
    "thinking directly now."
)


class Tokenizer(Protocol):
    """What the machine needs of engine.Tokenizer."""

    def encode(self, text: str) -> list[int]: ...
    def token_bytes(self, token: int) -> bytes: ...
    @property
    def added(self) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class ThinkTokens:
    """The ids that open, close and end, and what is inserted to close thoughts early."""

    open: int  # <think>
    close: int  # </think>
    end: frozenset[int]
    stop_text: tuple[int, ...]  # when the budget or the room is spent
    closing: tuple[int, ...]  # when the model ended without </think>
    text: Callable[[int], bytes]  # of a token

    @classmethod
    def of(cls, tokenizer: Tokenizer, metadata: Mapping[str, Any]) -> ThinkTokens:
        """The ids of a model, by its tokenizer and its file's metadata."""
        added = tokenizer.added
        for text in ("<think>", "</think>", "<|im_end|>"):
            if text not in added:
                raise FormatError(f"the vocabulary has no {text} token: no Qwen3 chat model")
        close, tail = added["</think>"], tokenizer.encode("\n\n")
        end = {added[text] for text in ("<|im_end|>", "<|endoftext|>") if text in added}
        eos = metadata.get("tokenizer.ggml.eos_token_id")
        if isinstance(eos, int):
            end.add(eos)
        return cls(
            open=added["<think>"],
            close=close,
            end=frozenset(end),
            stop_text=(*tokenizer.encode(f"\n\n{STOP_TEXT}\n"), close, *tail),
            closing=(*tokenizer.encode("\n"), close, *tail),
            text=tokenizer.token_bytes,
        )


# ---- the machine ----------------------------------------------------------

ThinkingStop = Literal["natural", "budget", "off", "limit", "user", "loop"]
Landing = Literal["soft", "hard"]
AnswerStop = Literal["end", "limit", "stop", "user"]

ANSWER_RESERVE = 256  # tokens kept for an answer without max_tokens
LEADING_BLANKS = 8  # tokens of white space that may precede <think>


class Part(Enum):
    """Where the text of a sampled token belongs."""

    THOUGHT = "thought"
    ANSWER = "answer"
    STRUCTURE = "structure"  # <think>, </think> and the space around them: not shown
    END = "end"  # an end token: not shown and not to be appended


class _Phase(Enum):
    OPENING = "opening"  # <think> is expected
    THOUGHTS = "thoughts"
    GAP = "gap"  # </think> was generated, its newline token may follow
    ANSWER = "answer"
    DONE = "done"


class ThinkingControl:
    """The machine for one answer. Its counts and reasons are final once done."""

    def __init__(
        self,
        tokens: ThinkTokens,
        *,
        thinking: bool,
        budget: int | None = None,
        seconds: float | None = None,
        landing: Landing = "hard",
        max_tokens: int | None = None,
        prefilled: bool = False,
        room: int,
        used: int = 0,
        constrained: bool = False,
    ) -> None:
        """thinking: the effective mode. prefilled: the prompt ends with "<think>\\n".
        room: how many tokens the context holds beyond the prompt."""
        self.budget = budget
        self.thinking_tokens = used
        self.inserted_tokens = 0
        self.thinking_stop: ThinkingStop = "off"
        self.answer_tokens = 0
        self.answer_stop: AnswerStop = "end"
        self._tokens = tokens
        self._max_tokens = max_tokens
        self._room = room
        self._reserve = min(ANSWER_RESERVE if max_tokens is None else max_tokens, room // 4)
        self._blanks = 0
        self._forced: Sequence[int] = ()
        self._phase = _Phase.ANSWER
        if thinking:
            self._phase = _Phase.THOUGHTS if prefilled else _Phase.OPENING
        self._settle()

    @property
    def done(self) -> bool:
        return self._phase is _Phase.DONE

    @property
    def thinking(self) -> bool:
        """Among the thoughts."""
        return self._phase is _Phase.THOUGHTS

    @property
    def answering(self) -> bool:
        return self._phase is _Phase.ANSWER

    @property
    def limit(self) -> int | None:
        return self.budget

    @property
    def asks(self) -> bool:
        return False

    def consider(self, token: int) -> None:
        """The likeliest token."""

    def land(self, reason: Literal["user", "loop"]) -> None:
        """Closes the thoughts early."""
        self._close(reason, self._tokens.stop_text)
        self._settle()

    def take_forced(self) -> Sequence[int]:
        """The ids that the caller has to append now; empty: sample a token."""
        forced, self._forced = self._forced, ()
        self.inserted_tokens += len(forced)
        return forced

    def accept(self, token: int) -> Part:
        """Takes a sampled token; says where its text belongs."""
        part = self._place(token)
        if part is not Part.END:
            self._room -= 1
        self._settle()
        return part

    def interrupt(self) -> None:
        """The user ends it, in whichever phase it is."""
        if self._phase in (_Phase.OPENING, _Phase.THOUGHTS):
            self.thinking_stop = "user"
        if not self.done:
            self._finish("user")

    def stop(self) -> None:
        """A stop string was found in the answer."""
        self._finish("stop")

    def _place(self, token: int) -> Part:
        tokens = self._tokens
        if self._phase is _Phase.OPENING:
            if token == tokens.open:
                self._phase = _Phase.THOUGHTS
                return Part.STRUCTURE
            if tokens.text(token).isspace() and self._blanks < LEADING_BLANKS:
                self._blanks += 1
                return Part.STRUCTURE
            self._phase = _Phase.ANSWER  # it chose not to think
        if self._phase is _Phase.THOUGHTS:
            if token == tokens.close:
                self.thinking_stop = "natural"
                self._phase = _Phase.GAP
                return Part.STRUCTURE
            if token in tokens.end:
                self._close("natural", tokens.closing)
                return Part.END
            self.thinking_tokens += 1
            return Part.THOUGHT
        if self._phase is _Phase.GAP:
            self._phase = _Phase.ANSWER
            if not tokens.text(token).strip(b"\r\n"):
                return Part.STRUCTURE
        if token in tokens.end:
            self._finish("end")
            return Part.END
        self.answer_tokens += 1
        return Part.ANSWER

    def _settle(self) -> None:
        """Ends what has reached its limit."""
        if self._phase is _Phase.THOUGHTS:
            stop_text = self._tokens.stop_text
            if self.budget is not None and self.thinking_tokens >= self.budget:
                self._close("budget", stop_text)
            elif self._room <= len(stop_text) + self._reserve:
                self._close("limit", stop_text)
        spent = self._phase is _Phase.ANSWER and self.answer_tokens == self._max_tokens
        if not self.done and (spent or self._room <= 0):
            self._finish("limit")

    def _close(self, reason: ThinkingStop, ids: Sequence[int]) -> None:
        """Closes the thoughts with ids, or shorter where the context is all but full."""
        self.thinking_stop = reason
        self._phase = _Phase.ANSWER
        fitting = (forced for forced in (ids, self._tokens.closing) if len(forced) < self._room)
        self._forced = next(fitting, ())
        self._room -= len(self._forced)
        if not self._forced:
            self._finish("limit")

    def _finish(self, stop: AnswerStop) -> None:
        self._phase = _Phase.DONE
        self._forced = ()
        self.answer_stop = stop
