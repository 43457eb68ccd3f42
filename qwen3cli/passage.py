"""The text of thoughts or of an answer, as far as it may be shown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from qwen3cli.engine import TextStream, Tokenizer

_BLANK_LINES = re.compile(r"\A(?:[^\S\n]*\n)+")


class Passage:
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
        # the one that ends first, as if the text came character by character
        starts = ((held.find(stop), len(stop)) for stop in self._stop)
        found = [(at + length, at) for at, length in starts if at >= 0]
        if found:
            self.stopped = True
            held = held[: min(found)[1]]
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
