"""The colours of code, line by line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen3cli.screen.flow import paint

if TYPE_CHECKING:
    from pygments.lexer import Lexer

_LONGEST = 8000  # characters of a line, or of lines that belong together; what follows is plain
_STYLES = {  # the sixteen colours, which follow the terminal's theme, by the field's token names
    "Comment": "2",
    "Keyword": "35",
    "Literal.String": "32",
    "Literal.Number": "36",
    "Name.Builtin": "36",
    "Name.Class": "34",
    "Name.Decorator": "33",
    "Name.Function": "34",
    "Name.Tag": "35",
    "Name.Attribute": "36",
    "Generic.Deleted": "31",
    "Generic.Inserted": "32",
    "Generic.Heading": "1",
    "Generic.Subheading": "1",
}


class Highlighter:
    """Lines of code in one language. What is in the air at the end of a line, such as a string of
    several lines, is read again with the next one: never the whole text."""

    def __init__(self, language: str) -> None:
        self._lexer = _lexer(language)
        self._open = ""  # lines that the next one belongs to

    def line(self, line: str) -> str:
        """The next line, in colour. Both are without the newline."""
        if self._lexer is None:
            return line
        text = f"{self._open}{line}\n"
        if len(text) > _LONGEST:
            self._lexer = None
            return line
        tokens = [(str(kind)[6:], value) for kind, value in self._lexer.get_tokens(text)]
        if "".join(value for _, value in tokens) != text:
            return line
        parts = []
        shown = len(self._open)  # characters, of the lines before
        for kind, value in tokens:
            parts.append(paint(_style(kind), value[shown:].removesuffix("\n")))
            shown = max(shown - len(value), 0)
        self._open = "" if tokens[-1][0].startswith("Text") else text
        return "".join(parts)


def _style(kind: str) -> str:
    while kind:
        if kind in _STYLES:
            return _STYLES[kind]
        kind = kind.rpartition(".")[0]
    return ""


def _lexer(language: str) -> Lexer | None:
    if not language:
        return None
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None
