"""Loops in a model's thoughts: the same text again and again, exactly or nearly.

Each token is compared with the one that comes if the text repeats itself. Which one that is a
pointer into the text before tells; it moves on with every token, and where it was wrong it is
set to where the last four tokens stood last. In a loop it stays a period behind and is right.
A word replaced is one miss, and so is one more or one less; half a miss if it was there before.

- Exact: right for a period and 192 tokens in a row, which are 2.2 periods of 1,000 tokens and 4
  of 100. Short periods need 512 tokens: rules, zeros and rows of tables repeat as well.
- Near: wrong at no more than a word here and there, 5 % of the last two periods, at least of 768
  tokens. Not with periods under 16 tokens or with few different tokens, for rows of tables and
  lists of moves differ as little; and a digit that counts up or down weighs more than another
  change, for who counts gets on.
"""

from __future__ import annotations

from collections import deque

LONGEST = 1024  # period, in tokens
_SHORT = 16  # periods below are short
_EXACT = 192  # tokens beyond a period
_EXACT_SHORT = 512
_NEAR = 768
_NEAR_MISSES = 0.05
_MISS = 2  # half misses
_COUNTING = 5 * _MISS  # of a digit one higher or lower
_VARIED = 24  # different tokens among the latest
_LATEST = 256
_CONTEXT = 4  # tokens that set the pointer
_TOKEN_BITS = 20
_CONTEXT_MASK = (1 << _CONTEXT * _TOKEN_BITS) - 1
_KEPT = 2 * LONGEST + _CONTEXT  # positions remembered


class LoopDetector:
    """Follows the tokens of one thought, in constant time and memory for each."""

    def __init__(self) -> None:
        self._count = 0
        self._tokens = [-1] * _KEPT  # rings, by position
        self._contexts = [-1] * _KEPT
        self._misses = [0] * _KEPT  # half ones, all up to here
        self._latest: deque[int] = deque(maxlen=_LATEST)
        self._last: dict[int, int] = {}  # where each context ended last
        self._context = 0
        self._source = -LONGEST  # the position whose token comes in a loop
        self._right = self._wrong = 0  # tokens in a row

    def push(self, token: int) -> bool:
        """Takes the next token; whether the text is in a loop."""
        at, slot = self._count, self._count % _KEPT
        self._context = (self._context << _TOKEN_BITS | token) & _CONTEXT_MASK
        misses = self._misses[slot - 1]
        known = at - self._source <= LONGEST
        expected = self._tokens[self._source % _KEPT] if known else -1
        if token == expected:
            self._right += 1
            self._wrong = 0
        else:
            misses += _COUNTING if known and abs(token - expected) == 1 else _MISS
            self._right = 0
            self._wrong += 1
            found = self._last.get(self._context, -LONGEST)
            if at - found <= LONGEST:
                misses -= _MISS * min(self._wrong, _CONTEXT) - 1  # all of the context is known
                self._source = found
                self._wrong = 0
        self._source += 1
        self._remember(slot, token, misses)
        period = self._count - self._source
        return period <= LONGEST and (self._exact(period) or self._near(period, slot))

    def _remember(self, slot: int, token: int, misses: int) -> None:
        gone = self._contexts[slot]
        if self._last.get(gone) == self._count - _KEPT:
            del self._last[gone]
        self._last[self._context] = self._count
        self._contexts[slot] = self._context
        self._tokens[slot] = token
        self._misses[slot] = misses
        self._latest.append(token)
        self._count += 1

    def _exact(self, period: int) -> bool:
        return self._right >= (_EXACT_SHORT if period < _SHORT else period + _EXACT)

    def _near(self, period: int, slot: int) -> bool:
        length = max(_NEAR, 2 * period)
        if period < _SHORT or self._count <= length:
            return False
        missed = self._misses[slot] - self._misses[slot - length]
        return missed <= _MISS * _NEAR_MISSES * length and len(set(self._latest)) >= _VARIED
