"""The local Hugging Face cache: which files of a repository are on this machine.

Reads the cache's documented layout, models--OWNER--NAME/{refs,snapshots}, and never
the network.
"""

from __future__ import annotations

import json
from pathlib import Path

from quant.shards import openers
from qwen3cli.names import check_repository


def cache_folder() -> Path:
    """Where the cache keeps all repositories, there or not."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def folder(repository: str) -> Path:
    """Where the cache keeps a repository, there or not. Raises UsageError for what is none."""
    return cache_folder() / f"models--{check_repository(repository).replace('/', '--')}"


def snapshot(repository: str, revision: str = "main") -> Path | None:
    """The folder of the files cached for a repository at a branch, tag or commit; where nobody
    fetched `main`, that of what was fetched last."""
    base = folder(repository)
    try:
        at = base / "snapshots" / (base / "refs" / revision).read_text("ascii").strip()
    except (OSError, ValueError):
        at = base / "snapshots" / revision
    if at.is_dir():
        return at
    if revision != "main":
        return None
    revisions = [path for path in base.glob("snapshots/*") if path.is_dir()]
    return max(revisions, key=lambda path: path.stat().st_mtime, default=None)


def gguf_files(repository: str) -> list[Path]:
    """The cached GGUF files of a repository that open a model: of a split one the first,
    if all are there."""
    at = snapshot(repository)
    return sorted(openers(at.rglob("*.gguf"))) if at else []


def weights(repository: str, revision: str = "main") -> Path | None:
    """The folder of a repository's safetensors weights, None unless all are cached."""
    at = snapshot(repository, revision)
    if at is None or not (at / "config.json").is_file():
        return None
    index = at / "model.safetensors.index.json"
    if not index.is_file():
        return at if (at / "model.safetensors").is_file() else None
    try:
        shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return at if all((at / str(name)).is_file() for name in shards) else None
