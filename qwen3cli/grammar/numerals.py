"""JSON numbers within bounds, digit by digit.

Digits are limited, so that an answer cannot lose itself in them: 20 before the point and 20
behind it. A number with a bound has no exponent.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from functools import cache

from qwen3cli.grammar.program import Place, Program

DIGITS = 20
_EXACT = 15  # digits that a double keeps, whatever they are
_LARGE = Decimal(10) ** DIGITS  # no number reaches it
_CONTEXT = Context(prec=200)


@dataclass(frozen=True)
class Bounds:
    low: Decimal | None = None
    high: Decimal | None = None
    low_open: bool = False  # the bound itself is outside
    high_open: bool = False

    def hold(self, value: Decimal) -> bool:
        low, high = self.low, self.high
        above = low is None or value > low or (value == low and not self.low_open)
        return above and (high is None or value < high or (value == high and not self.high_open))


def integer(program: Program, bounds: Bounds, then: Place) -> Place:
    return _signed(program, bounds, 0, then)


def number(program: Program, bounds: Bounds, then: Place) -> Place:
    if bounds.low is None and bounds.high is None:
        return _unbounded(program, then)
    # Open bounds take so few decimals that no number is rounded to the bound when it is read.
    open_bounds = [
        abs(bound)
        for bound, is_open in ((bounds.low, bounds.low_open), (bounds.high, bounds.high_open))
        if bound is not None and is_open
    ]
    decimals = DIGITS
    if open_bounds:
        decimals = max(1, _EXACT - len(str(int(min(max(open_bounds), _LARGE)))))
    return _signed(program, bounds, decimals, then)


def digits(program: Program, low: int, high: int, then: Place) -> Place:
    place = then
    for n in range(high - 1, -1, -1):
        place = program.one_of(0x30, 0x39, place)
        if n >= low:
            place = program.either(then, place)
    return place


def _unbounded(program: Program, then: Place) -> Place:
    """A fraction, or a digit with an exponent up to 307: what a double can hold."""
    point = program.either(then, program.literal(".", digits(program, 1, DIGITS, then)))
    size = program.either(
        digits(program, 1, 2, then),
        program.one_of(0x30, 0x32, digits(program, 2, 2, then)),
        program.literal("30", program.one_of(0x30, 0x37, then)),
    )
    small = program.either(
        digits(program, 1, 2, then), program.one_of(0x30, 0x32, digits(program, 2, 2, then))
    )
    power = program.either(size, program.literal("+", size), program.literal("-", small))
    exponent = program.either(program.literal("e", power), program.literal("E", power))
    scaled = program.either(exponent, program.literal(".", digits(program, 1, DIGITS, exponent)))
    whole = program.either(
        program.literal("0", point),
        program.one_of(0x31, 0x39, digits(program, 0, DIGITS - 1, point)),
        program.one_of(0x31, 0x39, scaled),
    )
    return program.either(whole, program.literal("-", whole))


def _signed(program: Program, bounds: Bounds, decimals: int, then: Place) -> Place:
    step = Decimal(1).scaleb(-decimals)
    low, low_open = bounds.low, bounds.low_open
    high, high_open = bounds.high, bounds.high_open
    if low is not None and abs(low) < _LARGE:  # the next number that there is
        rounded = low.quantize(step, ROUND_CEILING, _CONTEXT)
        low, low_open = rounded, low_open and rounded == low
    if high is not None and abs(high) < _LARGE:
        rounded = high.quantize(step, ROUND_FLOOR, _CONTEXT)
        high, high_open = rounded, high_open and rounded == high
    zero = Decimal(0)
    ways = []
    if high is None or high >= 0:
        least, least_open = zero, low == 0 and low_open
        if low is not None and low > 0:
            least, least_open = low, low_open
        ways.append(_magnitude(program, least, least_open, high, high_open, decimals, then))
    if low is None or low <= 0:  # -0 is no integer that anybody writes
        least, least_open = zero, decimals == 0 or (high == 0 and high_open)
        if high is not None and high < 0:
            least, least_open = high.copy_abs(), high_open
        most = low if low is None else low.copy_abs()
        size = _magnitude(program, least, least_open, most, low_open, decimals, then)
        ways.append(program.literal("-", size))
    return program.either(*ways)


def _magnitude(
    program: Program,
    low: Decimal,
    low_open: bool,
    high: Decimal | None,
    high_open: bool,
    decimals: int,
    then: Place,
) -> Place:
    """Numbers without a sign, between bounds that have no more decimals than they."""
    step = Decimal(1).scaleb(-decimals)
    high = None if high is None else high.copy_abs()  # -0 is 0
    ways = []
    for length in range(1, DIGITS + 1):
        least = Decimal(10) ** (length - 1) if length > 1 else Decimal(0)
        most = _CONTEXT.subtract(Decimal(10) ** length, step)
        first = max(low, least)
        last = most if high is None else min(high, most)
        if first <= last:
            opened = (low_open and first == low, high_open and last == high)
            texts = (f"{first:.{decimals}f}", f"{last:.{decimals}f}")
            ways.append(_between(program, *texts, length, opened, then))
    return program.either(*ways)


def _between(
    program: Program, low: str, high: str, length: int, opened: tuple[bool, bool], then: Place
) -> Place:
    """Numbers of `length` digits before the point, between two that are written alike."""
    low, high = low.replace(".", ""), high.replace(".", "")

    def may_end(i: int, at_low: bool, at_high: bool) -> bool:
        """Whether a number with nothing but zeros behind i digits lies between them."""
        low_left, high_left = low[i:].strip("0"), high[i:].strip("0")
        above = not at_low or not (low_left or opened[0])
        return above and (not at_high or bool(high_left) or not opened[1])

    @cache
    def behind(i: int, at_low: bool, at_high: bool) -> Place:
        """Behind i digits, which are those of a bound as long as the number is at it."""
        ways = []
        if i >= length and may_end(i, at_low, at_high):
            ways.append(then)
        if i < len(low):
            a, b = int(low[i]) if at_low else 0, int(high[i]) if at_high else 9
            runs: dict[Place, list[int]] = {}
            for digit in range(a, b + 1):
                place = behind(i + 1, at_low and digit == a, at_high and digit == b)
                runs.setdefault(place, []).append(0x30 + digit)
            more = program.either(*(program.one_of(r[0], r[-1], p) for p, r in runs.items()))
            ways.append(program.literal(".", more) if i == length else more)
        return program.either(*ways)

    return behind(0, True, True)
