"""The texts that a command is given, the model that reads them, and the chunks of tokens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from qwen3cli.engine import Model
from qwen3cli.errors import UsageError
from qwen3cli.opening import Opening, open_model
from qwen3cli.options import Reading
from qwen3cli.plan.gpu import Card
from qwen3cli.terminal import Terminal


def reader(
    path: Path,
    reading: Reading,
    terminal: Terminal,
    *,
    kv: str | None = None,
    share: float = 1.0,
    card: Card | None = None,
) -> Model:
    """The model in a file, with that share of the memory, for chunks in a cache of type kv; on
    a GPU there is room for them."""
    opening = Opening(path, reading.ram, card, reading.ctx, kv, reading.threads, share)
    return open_model(opening, terminal.note)[0]


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
