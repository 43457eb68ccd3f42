"""JSON from a file nobody has vouched for: bounded, with errors that name the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import FormatError, QuantError

MAX_BYTES = 100_000_000
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of at most MAX_BYTES."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise FormatError(f"{path}: there is no such file") from None
    except OSError as error:
        raise QuantError(f"{path}: cannot be read: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise FormatError(f"{path}: larger than {MAX_BYTES:,} bytes, which no such file needs")
    return parse_json(raw, path)


def parse_json(raw: bytes, where: Path) -> dict[str, Any]:
    """The object that raw spells; where is named in errors. A key given twice, a
    string that is not Unicode and endless nesting are errors."""
    try:
        value = json.loads(raw.decode(), object_pairs_hook=lambda pairs: _unique(pairs, where))
        if _SURROGATE.search(raw):  # half a surrogate pair passes the parser
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{where}: a JSON object was expected, not {type(value).__name__}")
    return value


def _unique(pairs: Iterable[tuple[str, Any]], where: Path) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise FormatError(f"{where}: the key {key[:200]!r} appears twice")
        result[key] = value
    return result
