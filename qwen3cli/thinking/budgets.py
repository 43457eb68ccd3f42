"""Budgets of thinking, as users write them, and how many tokens a time still allows."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from time import perf_counter

from qwen3cli.errors import UsageError

MOST_TOKENS = 2**31 - 1
_PACE = 16  # tokens that tell the speed


def parse_budget(text: str) -> tuple[int | None, float | None]:
    """Tokens and seconds of "2048", "30s", "1.5m" or "none"; None: no limit. No time is no
    tokens. Raises UsageError."""
    if text.lower() == "none":
        return None, None
    if re.fullmatch(r"-?[0-9]{1,99}", text):
        if not 0 <= int(text) <= MOST_TOKENS:
            raise UsageError(f"{text} is not in the range from 0 to {MOST_TOKENS}")
        return int(text), None
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([sm])", text)
    if not found:
        raise UsageError(f"{text!r} is no number of tokens, no time such as 30s or 1.5m, nor none")
    seconds = float(found[1]) * (60 if found[2] == "m" else 1)
    return (None, seconds) if seconds else (0, None)


class TimeBudget:
    """A time for tokens that come one by one. It runs from the first step on."""

    def __init__(self, seconds: float, clock: Callable[[], float] = perf_counter) -> None:
        self.left = self.seconds = seconds  # left: at the last step
        self._clock = clock
        self._now: float | None = None
        self._steps: deque[float] = deque(maxlen=_PACE)

    def step(self) -> None:
        """A token is about to be computed."""
        now = self._clock()
        if self._now is not None:
            self._steps.append(now - self._now)
            self.left -= now - self._now
        self._now = now

    @property
    def tokens(self) -> int | None:
        """How many more fit, at the mean speed of the last ones without the slowest; None: that
        cannot be told yet."""
        if self.left <= 0:
            return 0
        steps = sorted(self._steps)
        steps = steps[:-1] or steps
        total = sum(steps)
        return int(self.left * len(steps) / total) if total > 0 else None
