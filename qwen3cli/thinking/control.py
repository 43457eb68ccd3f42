"""Thinking: the token-level machine that enforces budgets and limits.

The machine moves on token ids only; text that spells </think> never switches anything. The
caller runs it in one loop:

    while not control.done:
        if control.asks:
            control.consider(session.sample())  # the likeliest token
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
- A budget of seconds runs from the first token after <think>. Before each token it is looked
  whether another one fits, at the speed of the last ones.
- A soft landing closes the thoughts within the last tenth of the budget where a line or a
  sentence ends, and without the stop text where </think> is the likeliest token ("natural").
  Budgets under 10 tokens have no tenth: they land hard.
- Thoughts that go in circles are closed ("loop").
- An end token among the thoughts is replaced by </think>: a model that ends there still
  owes its answer.
- The limit of max_tokens is for the answer alone. To keep room for one, thinking ends early
  ("limit") when only the stop text and a reserve are left of the context: max_tokens or 256
  tokens, at most a quarter of the room there was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from time import perf_counter
from typing import Any, Literal, Protocol

from qwen3cli.errors import FormatError
from qwen3cli.thinking import landing as landings
from qwen3cli.thinking.budgets import TimeBudget, parse_budget
from qwen3cli.thinking.loops import LoopDetector
from qwen3cli.thinking.modes import default_sampling, effective_thinking

__all__ = [
    "ANSWER_RESERVE",
    "LEADING_BLANKS",
    "STOP_TEXT",
    "AnswerStop",
    "Landing",
    "Part",
    "ThinkTokens",
    "ThinkingControl",
    "ThinkingStop",
    "default_sampling",
    "effective_thinking",
    "parse_budget",
]

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
    gap: tuple[int, ...]  # between </think> and the answer
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
            gap=tuple(tail),
            text=tokenizer.token_bytes,
        )


# ---- the machine ----------------------------------------------------------

ThinkingStop = Literal["natural", "budget", "off", "limit", "user", "loop"]
AnswerStop = Literal["end", "limit", "stop", "user"]
Landing = Literal["soft", "hard"]

ANSWER_RESERVE = 256  # tokens kept for an answer without max_tokens
LEADING_BLANKS = 8  # tokens of white space that may precede <think>
_LINE = 200  # bytes of text that tell whether a sentence ends


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
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """thinking: the effective mode. budget and seconds: what ends first counts. prefilled:
        the prompt ends with "<think>\\n", or among the thoughts; used: how many tokens of them
        it holds, which count in the budget. room: how many tokens the context holds beyond the
        prompt. constrained: the answer has to match a grammar; <think> and the gap behind
        </think> are forced then, so that its first sampled token is the grammar's."""
        self.budget = budget
        self.thinking_tokens = used
        self.inserted_tokens = 0
        self.thinking_stop: ThinkingStop = "off"
        self.answer_tokens = 0
        self.answer_stop: AnswerStop = "end"
        self._tokens = tokens
        self._used = used
        self._time = None if seconds is None else TimeBudget(seconds, clock)
        self._soft = landing == "soft"
        self._constrained = constrained
        self._max_tokens = max_tokens
        self._room = room
        self._reserve = min(ANSWER_RESERVE if max_tokens is None else max_tokens, room // 4)
        self._most = 0  # tokens of thinking that the room allows
        self._loops = LoopDetector()
        self._text = b""  # the end of the thoughts
        self._counted = used  # when the time was looked at
        self._landed: Literal["user", "loop"] | None = None
        self._blanks = 0
        self._forced: tuple[int, ...] = ()
        self._inserted = 0  # of them, to close the thoughts early
        self._phase = _Phase.ANSWER
        if thinking:
            self._phase = _Phase.THOUGHTS if prefilled else _Phase.OPENING
        if self._phase is _Phase.OPENING and constrained:
            self._phase = _Phase.THOUGHTS
            self._force((tokens.open,))
        self._settle()

    @property
    def done(self) -> bool:
        return self._phase is _Phase.DONE

    @property
    def thinking(self) -> bool:
        """Whether the next token is a thought or ends them."""
        return self._phase is _Phase.THOUGHTS

    @property
    def answering(self) -> bool:
        """Whether the next token that is sampled belongs to the answer."""
        return self._phase is _Phase.ANSWER

    @property
    def limit(self) -> int | None:
        """How many tokens of thinking there will be at most, as of now; None: no budget, or one
        of seconds and the speed is not known yet."""
        fit = self._time.tokens if self._time else None
        ends = [] if self.budget is None else [self.budget]
        if fit is not None:
            ends.append(self._counted + fit)
        return min(*ends, self._most) if ends else None

    @property
    def asks(self) -> bool:
        """Whether consider() should be told the likeliest token now."""
        if not self._soft or not self.thinking or self._forced:
            return False
        if self._time and self._time.left <= self._time.seconds / 10:
            return True
        return self.budget is not None and (
            self.thinking_tokens >= self.budget - (self.budget - self._used) // 10
        )

    def consider(self, token: int) -> None:
        """Lands softly if this is a good place for it, now that token is the likeliest one."""
        if not self.asks:
            return
        if token == self._tokens.close:
            self.thinking_stop = "natural"
            self._phase = _Phase.GAP
            self._force((token,))
            self._settle()
        elif landings.ends(self._text, self._tokens.text(token)):
            self._close("budget", self._tokens.stop_text)

    def land(self, reason: Literal["user", "loop"]) -> bool:
        """Closes the thoughts with the stop text, at once or where they begin, and goes on to the
        answer. False: there are none to come."""
        if self._phase not in (_Phase.OPENING, _Phase.THOUGHTS):
            return False
        self._landed = reason
        self._settle()
        return True

    def take_forced(self) -> Sequence[int]:
        """The ids that the caller has to append now; empty: sample a token."""
        if self._time and self.thinking and not self._forced:
            self._time.step()
            self._counted = self.thinking_tokens
            if self._time.tokens == 0:
                self._close("budget", self._tokens.stop_text)
        forced, self._forced = self._forced, ()
        self.inserted_tokens += self._inserted
        self._inserted = 0
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
            self._think(token)
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

    def _think(self, token: int) -> None:
        self.thinking_tokens += 1
        if self._soft:
            self._text = (self._text + self._tokens.text(token))[-_LINE:]
        if self._loops.push(token):
            self._landed = "loop"

    def _settle(self) -> None:
        """Ends what has reached its limit."""
        if self._phase in (_Phase.OPENING, _Phase.THOUGHTS):
            left = self._room - len(self._tokens.stop_text) - self._reserve
            self._most = self.thinking_tokens + max(left, 0)
        if self._phase is _Phase.THOUGHTS:
            if self.budget is not None and self.thinking_tokens >= self.budget:
                self._close("budget", self._tokens.stop_text)
            elif self._landed:
                self._close(self._landed, self._tokens.stop_text)
            elif self.thinking_tokens >= self._most:
                self._close("limit", self._tokens.stop_text)
        if self._phase is _Phase.GAP and self._constrained:
            self._phase = _Phase.ANSWER
            self._force(self._tokens.gap)
        spent = self._phase is _Phase.ANSWER and self.answer_tokens == self._max_tokens
        if not self.done and (spent or self._room <= 0):
            self._finish("limit")

    def _close(self, reason: ThinkingStop, ids: Sequence[int]) -> None:
        """Closes the thoughts with ids, or shorter where the context is all but full."""
        self.thinking_stop = reason
        self._phase = _Phase.ANSWER
        fitting = (forced for forced in (ids, self._tokens.closing) if len(forced) < self._room)
        forced = next(fitting, ())
        self._force(forced)
        self._inserted = len(forced)
        if not forced:
            self._finish("limit")

    def _force(self, ids: Sequence[int]) -> None:
        self._forced += tuple(ids)
        self._room -= len(ids)

    def _finish(self, stop: AnswerStop) -> None:
        self._phase = _Phase.DONE
        self._forced, self._inserted = (), 0
        self.answer_stop = stop
