"""The one sanitizer: what a model, a file or a server says, before a terminal sees it."""

from __future__ import annotations

import json

# C0 but tab and newline, DEL, C1, and the characters that reorder the text around them.
_RANGES = [(0, 8), (0x0B, 0x1F), (0x7F, 0x9F), (0x202A, 0x202E), (0x2066, 0x2069)]
_DRIVING = {code: None for first, last in _RANGES for code in range(first, last + 1)}
_ESCAPED = {code: f"\\u{code:04x}" for code in _DRIVING}  # the same, as JSON writes them


def clean(text: str) -> str:
    """The text without the characters that drive a terminal; newlines and tabs stay.

    Looks at one character at a time, so the pieces of a stream may be cleaned apart."""
    return text.translate(_DRIVING)


def one_line(text: str) -> str:
    """The text cleaned, and on one line, with spaces for newlines and tabs."""
    return clean(text).replace("\n", " ").replace("\t", " ")


def json_line(value: object) -> str:
    """A JSON value on a line; what could drive a terminal is escaped, and so are surrogates, which
    stand for bytes that were no UTF-8. Raises ValueError for NaN."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False).translate(_ESCAPED)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"
