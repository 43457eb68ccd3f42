"""What is inside a model file: metadata, tensors, and its vocabulary's view of a text."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from qwen3cli.engine import ModelFile, Tokenizer
from qwen3cli.hub import local, registry
from qwen3cli.library import obtain
from qwen3cli.prompt import Generation, detect_generation, is_coder
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
    origin = local.origin(path)
    if as_json:
        described = {
            "file": str(path),
            "format": _format(metadata),
            "place": _place(path, origin),
            "repository": origin.repository if origin else None,
            "commit": origin.commit if origin else None,
            "sha256": _sha256(origin),
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
            ("from", f"{origin.repository} at {origin.commit}" if origin else _place(path, origin)),
            *([("sha256", digest)] if (digest := _sha256(origin)) else []),
            ("prompts", _FORMATS[_format(metadata)]),
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
    tokenizer = Tokenizer(obtain.choose(model, terminal))
    ids = tokenizer.encode(text, added=added)
    pieces = [tokenizer.token_bytes(token) for token in ids]
    if as_json:
        decoded = [piece.decode("utf-8", "replace") for piece in pieces]
        terminal.json({"count": len(ids), "ids": ids, "pieces": decoded})
        return
    terminal.print("".join(f"{i}\t{_quoted(p)}\n" for i, p in zip(ids, pieces, strict=True)))
    terminal.note(f"{len(ids)} tokens")


_FORMATS = {
    "hybrid": "hybrid: thinks or not",
    "thinking": "thinking-2507: always thinks",
    "instruct": "instruct-2507: never thinks",
    "coder": "coder: never thinks",
}


def _format(metadata: dict[str, Any]) -> str:
    """How prompts are written for a model, by its template or its name."""
    if is_coder(metadata):
        return "coder"
    generation = detect_generation(metadata)
    return "hybrid" if generation is Generation.HYBRID else generation.value.partition("-")[0]


def _place(path: Path, origin: local.Origin | None) -> str:
    if origin:
        return "cache"
    if path in map(registry.resolve, registry.EMBEDDED):
        return "embedded"
    return "models" if path in registry.installed() else "file"


def _sha256(origin: local.Origin | None) -> str | None:
    """That of the whole file, by which the cache calls it; None: not known."""
    digest = origin.digest if origin else None
    return digest if digest and len(digest) == 64 else None


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
