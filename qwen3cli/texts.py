"""The texts that a command is given, the model that reads them, and the chunks of tokens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from qwen3cli.engine import Model
from qwen3cli.errors import UsageError
from qwen3cli.options import Reading
from qwen3cli.plan.placement import place
from qwen3cli.terminal import Terminal


def reader(
    path: Path, reading: Reading, terminal: Terminal, *, kv: str | None = None, share: float = 1.0
) -> Model:
    """The model in a file, with that share of the memory, for chunks in a cache of type kv."""
    placement = place(path, reading.ram, n_ctx=reading.ctx, kv=kv, share=share)
    if placement.expert_bytes:
        terminal.note(placement.describe(path.stem))
    elif placement.where == "mapped":
        terminal.note(placement.warning(path.name))
    return Model(path, threads=reading.threads, expert_bytes=placement.expert_bytes)


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
