"""What is inside a model file: metadata, tensors, and its vocabulary's view of a text."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from qwen3cli import registry
from qwen3cli.engine import ModelFile, Tokenizer
from qwen3cli.terminal import Terminal
from qwen3cli.texts import read_text

_MAX_ITEMS = 8  # of an array, in full
_MAX_TEXT = 120  # characters of a string, in full


def show(path: Path, terminal: Terminal, *, tensors: bool, as_json: bool) -> None:
    """Prints the metadata of a GGUF file, the sum of its tensors, and each of them."""
    file = ModelFile(path)
    metadata = file.metadata(_MAX_ITEMS)
    table = file.tensors()
    shards = file.shards()
    if as_json:
        described = {
            "file": str(path),
            "version": file.version,
            "metadata": {key: _plain(value) for key, value in metadata.items()},
            "tensors": [
                {"name": name, "shape": shape, "type": kind, "bytes": size, "shard": shard}
                for (name, shape, kind, size), shard in zip(table, shards, strict=True)
            ],
        }
        terminal.json(described)
        return
    kinds = Counter(kind for _, _, kind, _ in table)
    parameters = sum(math.prod(shape) for _, shape, _, _ in table)
    total = sum(size for *_, size in table)
    terminal.table(
        ("key", "value"),
        [
            ("file", f"{path} (GGUF version {file.version})"),
            *((key, _abbreviated(value)) for key, value in metadata.items()),
            ("tensors", ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())),
            ("parameters", f"{parameters:,}"),
            ("tensor bytes", f"{total:,}"),
        ],
    )
    if tensors:
        rows = [
            (name, " x ".join(map(str, shape)), kind, f"{size:,}", str(shard))
            for (name, shape, kind, size), shard in zip(table, shards, strict=True)
        ]
        columns = ("tensor", "shape", "type", "bytes", "shard")
        shown = len(columns) if max(shards, default=1) > 1 else len(columns) - 1
        terminal.table(columns[:shown], [row[:shown] for row in rows])


def tokenize(
    model: str | None, file: str, terminal: Terminal, *, added: bool, as_json: bool
) -> None:
    """Prints the ids and pieces of a text file, - for stdin. A piece that ends inside a
    character is shown as bytes; in JSON, U+FFFD stands for the incomplete part."""
    text = read_text(file)
    tokenizer = Tokenizer(registry.choose(model, terminal.note))
    ids = tokenizer.encode(text, added=added)
    pieces = [tokenizer.token_bytes(token) for token in ids]
    if as_json:
        decoded = [piece.decode("utf-8", "replace") for piece in pieces]
        terminal.json({"count": len(ids), "ids": ids, "pieces": decoded})
        return
    terminal.print("".join(f"{i}\t{_quoted(p)}\n" for i, p in zip(ids, pieces, strict=True)))
    terminal.note(f"{len(ids)} tokens")


def _quoted(piece: bytes) -> str:
    try:
        return repr(piece.decode())
    except UnicodeDecodeError:
        return repr(piece)


def _abbreviated(value: Any) -> str:
    if isinstance(value, tuple):
        _, kind, count = value
        return f"[{count:,} x {kind}]"
    if isinstance(value, str) and len(value) > _MAX_TEXT:
        return f"{value[:_MAX_TEXT]}... ({len(value):,} characters)"
    return str(value)


def _plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    if isinstance(value, tuple):
        _, kind, count = value
        return {"array": kind, "count": count}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
