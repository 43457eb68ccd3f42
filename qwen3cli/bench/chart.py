"""Line charts as SVG, by hand: a file that every browser shows, on light and dark paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 76, 56  # around the field of the lines
_COLORS = ("#2f81d0", "#d9822b", "#3a9d5d", "#9a6fc0")  # on white and on black
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #333 }
.title { font-size: 15px; font-weight: 600 }
.grid { stroke: #8883; fill: none }
.axis { stroke: #888; fill: none }
.line { fill: none; stroke-width: 2 }
.other { stroke-dasharray: 6 4 }
@media (prefers-color-scheme: dark) { text { fill: #ddd } }
"""


@dataclass(frozen=True)
class Series:
    """A line through points (x, y)."""

    name: str
    points: Sequence[tuple[float, float]]


def line_chart(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """The first series is the subject, drawn through; the others, up to three, are dashed. Both
    axes are linear, and that of y begins at 0."""
    xs = [x for each in series for x, _ in each.points]
    ys = [y for each in series for _, y in each.points]
    across = _Axis(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT)
    up = _Axis(0, max(ys), _HEIGHT - _BOTTOM, _TOP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        _text(_LEFT, 24, title, "start", ' class="title"'),
    ]
    for value, x in across.ticks():
        lines.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
        lines.append(_text(x, _HEIGHT - _BOTTOM + 20, value, "middle"))
    for value, y in up.ticks():
        lines.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        lines.append(_text(_LEFT - 8, y + 4, value, "end"))
    lines.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}"/>')
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    lines.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 14, x_label, "middle"))
    lines.append(_text(18, middle, y_label, "middle", f' transform="rotate(-90 18 {middle})"'))
    for i, (each, color) in enumerate(zip(series, _COLORS, strict=False)):
        points = [(across.at(x), up.at(y)) for x, y in sorted(each.points)]
        kind = "line other" if i else "line"
        d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        lines.append(f'<g stroke="{color}" fill="{color}"><path class="{kind}" d="{d}"/>')
        lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points]
        at = _LEFT + i * (_WIDTH - _LEFT - _RIGHT) / len(_COLORS)
        lines.append(f'<path class="{kind}" d="M{at:.1f} 48h28"/></g>')
        lines.append(_text(at + 34, 52, each.name, "start"))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


class _Axis:
    """Values from low to high, rounded to whole steps, on a line from start to end."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        if low == high:
            low = 0
        rough = (high - low or 1) / 6
        power = 10.0 ** math.floor(math.log10(rough))
        self._step = power * next(n for n in (1, 2, 5, 10) if n * power >= rough)
        self._first, self._last = math.floor(low / self._step), math.ceil(high / self._step)
        self._last = max(self._last, self._first + 1)
        self._start, self._end = start, end

    def at(self, value: float) -> float:
        share = (value / self._step - self._first) / (self._last - self._first)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[tuple[str, float]]:
        """What is written, and where."""
        values = [n * self._step for n in range(self._first, self._last + 1)]
        return [(f"{value:g}", self.at(value)) for value in values]
