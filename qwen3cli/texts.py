"""The texts that a command is given: files, and - for stdin."""

from __future__ import annotations

import sys
from pathlib import Path

from qwen3cli.errors import UsageError


def read_text(file: str) -> str:
    """The text of a file, of stdin for -. Bytes that are not UTF-8 read as U+FFFD."""
    if file != "-":
        data = Path(file).read_bytes()
    elif sys.stdin is not None:
        data = sys.stdin.buffer.read()
    else:
        raise UsageError("stdin is closed; name a FILE")
    return data.decode("utf-8", "replace")
