"""Regular expressions of JSON schemas (`pattern`) as parts of a grammar.

Of the language of ECMA-262: characters, classes, groups, alternatives, repetitions, and the
anchors ^ and $ at the ends. \\d, \\w and \\s mean ASCII, so that what is written matches whatever
a validator takes them for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from qwen3cli.errors import UsageError
from qwen3cli.grammar.jsontext import character
from qwen3cli.grammar.program import ANY, MAX_CODE, Place, Program, Ranges, complement, intersection

_ASCII: Ranges = ((0, 0x7F),)
_CLASSES: dict[str, Ranges] = {
    "d": ((0x30, 0x39),),
    "w": ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)),
    "s": ((0x09, 0x0D), (0x20, 0x20)),
}
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
_LINE_ENDS = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_SYNTAX = "^$\\.*+?()[]{}|/-"
_MAX_COUNT = 100_000


@dataclass(frozen=True)
class _Set:
    ranges: Ranges

    empty = False

    def build(self, program: Program, then: Place) -> Place:
        return character(program, self.ranges, then)


@dataclass(frozen=True)
class _Sequence:
    parts: tuple[_Node, ...]

    @property
    def empty(self) -> bool:
        return all(part.empty for part in self.parts)

    def build(self, program: Program, then: Place) -> Place:
        for part in reversed(self.parts):
            then = part.build(program, then)
        return then


@dataclass(frozen=True)
class _Choice:
    options: tuple[_Node, ...]

    @property
    def empty(self) -> bool:
        return any(option.empty for option in self.options)

    def build(self, program: Program, then: Place) -> Place:
        return program.either(*(option.build(program, then) for option in self.options))


@dataclass(frozen=True)
class _Repeat:
    body: _Node
    low: int
    high: int | None

    @property
    def empty(self) -> bool:
        return self.low == 0 or self.body.empty

    def build(self, program: Program, then: Place) -> Place:
        def body(after: Place) -> Place:
            return self.body.build(program, after)

        return program.repeat(body, self.low, self.high, then, empty=self.body.empty)


_Node = _Set | _Sequence | _Choice | _Repeat
_ANYTHING = _Repeat(_Set(ANY), 0, None)


def pattern(program: Program, text: str, then: Place) -> Place:
    """The characters of a string in which there is a match. Raises UsageError."""
    return _Parser(text).parse().build(program, then)


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def parse(self) -> _Node:
        """Alternatives, each of which may begin with ^ and end with $."""
        options = [self._anchored()]
        while self._take("|"):
            options.append(self._anchored())
        if self._at < len(self._text):
            self._refuse("a ')' without its '('")
        return _Choice(tuple(options))

    def _anchored(self) -> _Node:
        before = () if self._take("^") else (_ANYTHING,)
        inner = self._sequence()
        behind = () if self._take("$") else (_ANYTHING,)
        if self._at < len(self._text) and self._text[self._at] not in "|)":
            self._refuse("an anchor within")
        return _Sequence((*before, inner, *behind))

    def _choice(self) -> _Node:
        options = [self._sequence()]
        while self._take("|"):
            options.append(self._sequence())
        return options[0] if len(options) == 1 else _Choice(tuple(options))

    def _sequence(self) -> _Node:
        parts = []
        while self._at < len(self._text) and self._text[self._at] not in "|)$":
            parts.append(self._repeated(self._atom()))
        return _Sequence(tuple(parts))

    def _repeated(self, atom: _Node) -> _Node:
        count: tuple[int, int | None]
        if self._take("*"):
            count = (0, None)
        elif self._take("+"):
            count = (1, None)
        elif self._take("?"):
            count = (0, 1)
        elif self._take("{"):
            count = self._count()
        else:
            return atom
        self._take("?")  # lazy: the same language
        if self._at < len(self._text) and self._text[self._at] in "*+?{":
            self._refuse("a repetition of a repetition")
        return _Repeat(atom, *count)

    def _count(self) -> tuple[int, int | None]:
        low = self._number()
        high: int | None = low
        if self._take(","):
            high = None if self._text[self._at : self._at + 1] == "}" else self._number()
        if not self._take("}") or (high is not None and high < low):
            self._refuse("a count that is not {m}, {m,} or {m,n}")
        return low, high

    def _number(self) -> int:
        start = self._at
        while self._at < len(self._text) and self._text[self._at] in "0123456789":
            self._at += 1
        if not 0 < self._at - start <= 6 or int(self._text[start : self._at]) > _MAX_COUNT:
            self._refuse(f"a count that is no number up to {_MAX_COUNT:,}")
        return int(self._text[start : self._at])

    def _atom(self) -> _Node:
        char = self._next()
        if char == "(":
            return self._group()
        if char == "[":
            return _Set(self._class())
        if char == ".":
            return _Set(complement(_LINE_ENDS))
        if char == "\\":
            return _Set(self._escape()[0])
        if char in "*+?{":
            self._refuse("a repetition of nothing")
        if char == "^":
            self._refuse("an anchor within")
        return _Set(self._one(ord(char)))

    def _group(self) -> _Node:
        if self._take("?"):
            if self._take("<") and self._text[self._at : self._at + 1] not in ("=", "!"):
                while self._next() != ">":
                    pass
            elif not self._take(":"):
                self._refuse("looking ahead or behind")
        self._depth += 1
        if self._depth > 50:
            self._refuse("more than 50 groups within groups")
        inner = self._choice()
        if self._text[self._at : self._at + 1] == "$":
            self._refuse("an anchor within")
        if not self._take(")"):
            self._refuse("a '(' without its ')'")
        self._depth -= 1
        return inner

    def _class(self) -> Ranges:
        negated = self._take("^")
        ranges: list[tuple[int, int]] = []
        named = False  # holds \d or the like
        while not self._take("]"):
            low, is_class = self._class_item()
            named |= is_class
            if self._text[self._at : self._at + 1] == "-" and self._text[self._at + 1 :][:1] != "]":
                self._at += 1
                high, is_class_too = self._class_item()
                if is_class or is_class_too or high[-1][1] < low[0][0]:
                    self._refuse("a range in [] whose ends are not in order")
                ranges.append((low[0][0], high[-1][1]))
            else:
                ranges += low
        if negated:
            return complement(ranges, _ASCII if named else ANY)
        return intersection(_merged(ranges), ANY)

    def _class_item(self) -> tuple[Ranges, bool]:
        char = self._next()
        if char == "\\":
            if self._take("b"):
                return ((8, 8),), False
            return self._escape()
        return self._one(ord(char)), False

    def _escape(self) -> tuple[Ranges, bool]:
        """What a backslash stands for, and whether that is a class."""
        char = self._next()
        if char in _CLASSES:
            return _CLASSES[char], True
        if char.lower() in _CLASSES:
            return complement(_CLASSES[char.lower()], _ASCII), True
        if char in _CONTROLS:
            return self._one(ord(_CONTROLS[char])), False
        if char in "xu":
            size = 2 if char == "x" else 4
            text = self._text[self._at : self._at + size]
            if len(text) < size or not all(c in "0123456789abcdefABCDEF" for c in text):
                self._refuse(f"\\{char} without {size} hexadecimal digits")
            self._at += size
            return self._one(int(text, 16)), False
        if char not in _SYNTAX:
            self._refuse(f"\\{char}")
        return self._one(ord(char)), False

    def _one(self, code: int) -> Ranges:
        if 0xD800 <= code <= 0xDFFF or code > MAX_CODE:
            self._refuse("half of a surrogate pair")
        return ((code, code),)

    def _next(self) -> str:
        if self._at >= len(self._text):
            self._refuse("an end where something is missing")
        self._at += 1
        return self._text[self._at - 1]

    def _take(self, char: str) -> bool:
        taken = self._text[self._at : self._at + 1] == char
        self._at += taken
        return taken

    def _refuse(self, what: str) -> NoReturn:
        raise UsageError(f"the pattern {self._text!r} has {what}, which is not supported")


def _merged(ranges: list[tuple[int, int]]) -> Ranges:
    return complement(complement(ranges))
