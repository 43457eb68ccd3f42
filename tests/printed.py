"""What a command of plans prints, kept instead of printed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any


class Printed:
    """A terminal that keeps what it is given: the last object, and all lines."""

    def __init__(self) -> None:
        self.value: dict[str, Any] = {}
        self.lines: list[str] = []

    def json(self, value: dict[str, Any]) -> None:
        self.value = json.loads(json.dumps(value, allow_nan=False))

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        self.lines += ["  ".join(row) for row in [head, *rows]]

    def note(self, text: str) -> None:
        self.lines.append(text)

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for line in self.lines)
