"""JSON as text: its strings and constants as parts of a grammar.

One spelling is allowed where JSON has many, so that an answer cannot lose itself in white
space: at most one space behind a colon or comma and none elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from functools import cache
from typing import Any

from qwen3cli.grammar.program import ANY, Place, Program, Ranges, complement, intersection

_SHORT = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_PLAIN: Ranges = complement([(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)])
_LONG = tuple((code, code) for code in range(0x20) if chr(code) not in _SHORT)


# ---- strings ---------------------------------------------------------------------


def character(program: Program, ranges: Iterable[tuple[int, int]], then: Place) -> Place:
    """One character of a string, escaped only where JSON asks for it."""
    ranges = tuple(ranges)
    places = [program.characters(intersection(ranges, _PLAIN), then)]
    for char, short in _SHORT.items():
        if any(low <= ord(char) <= high for low, high in ranges):
            places.append(program.literal("\\" + short, then))
    for code, _ in intersection(ranges, _LONG):
        places.append(program.literal(f"\\u{code:04x}", then))
    return program.either(*places)


def _hex(program: Program, digits: str, then: Place) -> Place:
    """A hexadecimal digit, in either case, of those named."""
    text = "".join(sorted(set(digits.lower() + digits.upper())))
    return program.characters([(ord(c), ord(c)) for c in text], then)


def any_character(program: Program, then: Place) -> Place:
    """One character of a string, escaped in any way that JSON has."""
    every = "0123456789abcdef"
    three = _hex(program, every, _hex(program, every, _hex(program, every, then)))
    two = _hex(program, every, _hex(program, every, then))
    low = program.literal("\\u", _hex(program, "d", _hex(program, "cdef", two)))
    two_low = _hex(program, every, _hex(program, every, low))
    code = program.either(
        _hex(program, every.replace("d", ""), three),
        _hex(program, "d", program.either(
            _hex(program, "01234567", two),
            _hex(program, "89ab", two_low),  # the first half of a pair: the second must follow
        )),
    )  # fmt: skip
    escape = program.either(
        program.characters([(ord(c), ord(c)) for c in sorted('"\\/bfnrt')], then),
        program.literal("u", code),
    )
    return program.either(program.characters(_PLAIN, then), program.literal("\\", escape))


def string(program: Program, low: int, high: int | None, then: Place) -> Place:
    """A string of low to high characters."""

    def body(after: Place) -> Place:
        return any_character(program, after)

    content = program.repeat(body, low, high, program.literal('"', then))
    return program.literal('"', content)


def other_key(program: Program, names: Collection[str], then: Place) -> Place:
    """A string that is none of the names; without needless escapes, which could spell one."""
    end = program.literal('"', then)

    def free(after: Place) -> Place:
        return character(program, ANY, after)

    rest = program.loop(free, end)
    # The names as a tree: what goes on from each of their beginnings, the empty one first.
    tree: list[dict[str, int]] = [{}]
    whole = set()
    for name in names:
        at = 0
        for char in name:
            if char not in tree[at]:
                tree[at][char] = len(tree)
                tree.append({})
            at = tree[at][char]
        whole.add(at)

    @cache
    def unlike(chars: str) -> Place:
        """A character that none of the names goes on with."""
        return character(program, complement((ord(char), ord(char)) for char in chars), rest)

    places = [end] * len(tree)
    for at in range(len(tree) - 1, -1, -1):  # what goes on came later
        longer = sorted(tree[at])
        ways = [unlike("".join(longer))]
        ways += [program.literal(quoted(char)[1:-1], places[tree[at][char]]) for char in longer]
        if at not in whole:
            ways.append(end)
        places[at] = program.either(*ways)
    return program.literal('"', places[0] if names else rest)


# ---- values -----------------------------------------------------------------------


def space(program: Program, then: Place) -> Place:
    return program.either(program.literal(" ", then), then)


def comma(program: Program, then: Place) -> Place:
    return program.literal(",", space(program, then))


def colon(program: Program, then: Place) -> Place:
    return program.literal(":", space(program, then))


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def constant(program: Program, value: Any, then: Place) -> Place:
    """Exactly this value."""
    if isinstance(value, list):
        then = program.literal("]", then)
        for i in range(len(value) - 1, -1, -1):
            then = constant(program, value[i], then)
            then = comma(program, then) if i else then
        return program.literal("[", then)
    if isinstance(value, dict):
        then = program.literal("}", then)
        items = list(value.items())
        for i in range(len(items) - 1, -1, -1):
            then = colon(program, constant(program, items[i][1], then))
            then = program.literal(quoted(items[i][0]), then)
            then = comma(program, then) if i else then
        return program.literal("{", then)
    return program.literal(json.dumps(value, ensure_ascii=False), then)
