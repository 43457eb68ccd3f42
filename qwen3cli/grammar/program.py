"""Grammars as the engine runs them (native/grammar.h): instructions, written from the end.

Each method takes the place `then`, where matching goes on afterwards, and returns the place
where it begins, so a grammar is put together like the list of what is still to come. Equal
instructions are one: common endings are shared.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable

from qwen3cli.errors import UsageError

Place = int
Build = Callable[[Place], Place]  # of a part of a grammar, given what follows it
Ranges = tuple[tuple[int, int], ...]  # of code points, both ends included, in order

MAX_INSTRUCTIONS = 200_000
MAX_ASKED = 10 * MAX_INSTRUCTIONS  # bounds the time: some seconds
MAX_CODE = 0x10FFFF
ANY: Ranges = ((0, 0xD7FF), (0xE000, MAX_CODE))  # surrogates are no characters

_BYTES, _SPLIT, _CALL, _REPEAT, _RETURN = range(5)
# The last code point of 1, 2, 3 and 4 bytes, and how many bytes of the form 10xxxxxx follow.
_LENGTHS = ((0x7F, 0), (0x7FF, 1), (0xFFFF, 2), (MAX_CODE, 3))
_UNROLLED = 100  # repetitions of what may be empty


class Program:
    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int, int]] = []
        self._places: dict[tuple[int, int, int, int, int], Place] = {}
        self._sets: dict[int, int] = {}  # the bits of a set of bytes: its index
        self._asked = 0  # for how many instructions, equal ones included
        self.done = self._emit(_RETURN)

    @property
    def code(self) -> bytes:
        """int32[n, 5]"""
        return array("i", [field for x in self._code for field in x]).tobytes()

    @property
    def sets(self) -> bytes:
        """uint8[n, 32]"""
        return b"".join(bits.to_bytes(32, "little") for bits in self._sets)

    def __len__(self) -> int:
        return len(self._code)

    def _emit(self, op: int, then: Place = 0, a: int = 0, b: int = 0, c: int = 0) -> Place:
        self._asked += 1
        if self._asked > MAX_ASKED:
            raise UsageError("the schema is too large: it takes too long to write its grammar")
        instruction = (op, then, a, b, c)
        place = self._places.setdefault(instruction, len(self._code))
        if place == len(self._code):
            self._append(instruction)
        return place

    def _append(self, instruction: tuple[int, int, int, int, int]) -> None:
        if len(self._code) >= MAX_INSTRUCTIONS:
            raise UsageError(
                f"the schema is too large: it takes more than {MAX_INSTRUCTIONS:,} instructions"
            )
        self._code.append(instruction)

    # ---- what any grammar is made of ------------------------------------------

    def reserve(self) -> Place:
        """A place to be filled by `fill`, for what is needed before it can be written."""
        self._append((_SPLIT, 0, 0, 0, 0))
        return len(self._code) - 1

    def fill(self, place: Place, *ways: Place) -> None:
        """One or two ways to go on from a reserved place."""
        self._code[place] = (_SPLIT, ways[0], ways[-1], 0, 0)

    def one_of(self, low: int, high: int, then: Place) -> Place:
        """A byte from low to high."""
        bits = (1 << (high + 1)) - (1 << low)
        return self._byte(bits, then)

    def _byte(self, bits: int, then: Place) -> Place:
        return self._emit(_BYTES, then, self._sets.setdefault(bits, len(self._sets)))

    def literal(self, text: str | bytes, then: Place) -> Place:
        for byte in reversed(text.encode() if isinstance(text, str) else text):
            then = self.one_of(byte, byte, then)
        return then

    def either(self, *places: Place) -> Place:
        """Any of the places; of none: a dead end."""
        if not places:
            return self._byte(0, self.done)
        distinct = list(dict.fromkeys(places))
        first = distinct.pop()
        while distinct:
            first = self._emit(_SPLIT, distinct.pop(), first)
        return first

    def call(self, rule: Place, then: Place) -> Place:
        """A rule, which was built to end at `done`."""
        return self._emit(_CALL, then, rule)

    def loop(self, body: Build, then: Place) -> Place:
        """Any number of times."""
        again = self.reserve()
        self.fill(again, body(again), then)
        return again

    def repeat(
        self, body: Build, low: int, high: int | None, then: Place, *, empty: bool = False
    ) -> Place:
        """low to high times (None: no limit). empty: the body may match nothing."""
        if high == 0:
            return then
        if empty and high is not None:  # then the least number does not matter
            if high > _UNROLLED:
                raise UsageError(f"more than {_UNROLLED} repetitions of what may be empty")
            for _ in range(high):
                before = self.either(body(then), then)
                if before == then:  # it matches nothing but nothing
                    break
                then = before
            return then
        if low == 0 and high == 1:
            return self.either(body(then), then)
        if high is None and (low <= 1 or empty):
            place = self.loop(body, then)
            return body(place) if low and not empty else place
        if low == high == 1:
            return body(then)
        return self._emit(_REPEAT, then, body(self.done), low, -1 if high is None else high)

    # ---- characters ------------------------------------------------------------

    def characters(self, ranges: Iterable[tuple[int, int]], then: Place) -> Place:
        """One character of the ranges, in UTF-8."""
        ascii_bits = 0
        places = []
        for low, high in ranges:
            for last, tail in _LENGTHS:
                if low > high:
                    break
                top = min(high, last)
                if low <= top and tail == 0:
                    ascii_bits |= (1 << (top + 1)) - (1 << low)
                elif low <= top:
                    places += self._encoded(low, top, tail, then)
                low = max(low, last + 1)
        if ascii_bits:
            places.insert(0, self._byte(ascii_bits, then))
        return self.either(*places)

    def _encoded(self, low: int, high: int, tail: int, then: Place) -> list[Place]:
        """The characters low to high, which are of the same length: as few runs as there are in
        which each byte has a range of its own."""
        for i in range(1, tail + 1):
            block = (1 << (6 * i)) - 1  # what i bytes tell apart
            if low & ~block != high & ~block:
                if low & block:
                    middle = low | block
                elif high & block != block:
                    middle = (high & ~block) - 1
                else:
                    continue
                return self._encoded(low, middle, tail, then) + self._encoded(
                    middle + 1, high, tail, then
                )
        first, last = chr(low).encode(), chr(high).encode()
        for a, b in zip(reversed(first), reversed(last), strict=True):
            then = self.one_of(a, b, then)
        return [then]


def complement(ranges: Iterable[tuple[int, int]], within: Ranges = ANY) -> Ranges:
    """The code points of `within` that are in none of the ranges."""
    out: list[tuple[int, int]] = []
    cut = sorted(ranges)
    for low, high in within:
        for a, b in cut:
            if b < low or a > high:
                continue
            if a > low:
                out.append((low, a - 1))
            low = b + 1
        if low <= high:
            out.append((low, high))
    return tuple(out)


def intersection(a: Iterable[tuple[int, int]], b: Ranges) -> Ranges:
    return complement(complement(a), b)
