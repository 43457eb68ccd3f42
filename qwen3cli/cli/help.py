"""The help of a command, where the terminal is narrow."""

from __future__ import annotations

from shutil import get_terminal_size
from typing import Any

import typer

_NARROW = 64  # columns of text: below, names would take most of them
_FIRST = 12  # columns of the names there; what a longer one means stands below it

_click_formatter: Any = typer.Context.formatter_class


class _Formatter(_click_formatter):  # type: ignore[misc]
    """Click's, which takes 50 columns for granted, and up to 34 of them for names."""

    def __init__(self, width: int | None, max_width: int | None) -> None:
        super().__init__(width=width, max_width=max_width)
        self.width: int = min(self.width, max(_FIRST, get_terminal_size().columns - 2))

    def write_dl(self, rows: Any) -> None:
        super().write_dl(rows, **({"col_max": _FIRST} if self.width < _NARROW else {}))


def fit_narrow_terminals() -> None:
    """Lets every command write its help so."""
    context: Any = typer.Context.__base__  # click.Context, wherever Typer keeps it
    context.formatter_class = _Formatter
