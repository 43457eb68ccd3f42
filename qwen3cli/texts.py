"""The texts that a command is given, and the chunks of tokens that they are read in."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen3cli.engine import Model
from qwen3cli.errors import UsageError


@dataclass(frozen=True)
class Texts:
    """What a model reads. A chunk is read with nothing before it."""

    files: Sequence[str]  # - for stdin
    added: bool = False  # spelled-out added tokens, such as <|im_end|>, are these tokens
    context: int = 512  # tokens of a chunk
    most: int | None = None  # chunks


def read_text(file: str) -> str:
    """The text of a file, of stdin for -. Bytes that are not UTF-8 read as U+FFFD."""
    if file != "-":
        data = Path(file).read_bytes()
    elif sys.stdin is not None:
        data = sys.stdin.buffer.read()
    else:
        raise UsageError("stdin is closed; name a FILE")
    return data.decode("utf-8", "replace")


def check_context(model: Model, chunks: Sequence[Sequence[int]]) -> None:
    """Raises UsageError for a chunk that is longer than what the model was trained on."""
    longest, context = max(map(len, chunks)), model.config["n_ctx_train"]
    if longest > context:
        raise UsageError(
            f"--ctx: {model.path} has a context of {context:,} tokens, a chunk has {longest:,}"
        )


def text_name(file: str) -> str:
    """What a text is called where people read it."""
    return "stdin" if file == "-" else file


def n_chunks(count: int) -> str:
    """1 chunk, 2,000 chunks."""
    return f"{count:,} chunk{'s' * (count != 1)}"
