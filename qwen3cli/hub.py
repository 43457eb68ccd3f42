"""The local Hugging Face cache: which files of a repository are on this machine.

Reads the cache's documented layout, models--OWNER--NAME/{refs,snapshots}, and never
the network.
"""

from __future__ import annotations

import json
from pathlib import Path

from quant.shards import openers
from qwen3cli.names import check_repository


def snapshot(repository: str) -> Path | None:
    """The folder of the files cached for a repository, at the revision that was fetched
    as `main`, or else the one fetched last. Raises UsageError for what is no repository."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{check_repository(repository).replace('/', '--')}"
    try:
        main = folder / "snapshots" / (folder / "refs" / "main").read_text("ascii").strip()
        if main.is_dir():
            return main
    except (OSError, ValueError):
        pass
    revisions = [path for path in folder.glob("snapshots/*") if path.is_dir()]
    return max(revisions, key=lambda path: path.stat().st_mtime, default=None)


def gguf_files(repository: str) -> list[Path]:
    """The cached GGUF files of a repository that open a model: of a split one the first,
    if all are there."""
    folder = snapshot(repository)
    if folder is None:
        return []
    return sorted(openers(folder.rglob("*.gguf")))


def weights(repository: str) -> Path | None:
    """The folder of a repository's safetensors weights, None unless all are cached."""
    folder = snapshot(repository)
    if folder is None or not (folder / "config.json").is_file():
        return None
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return folder if (folder / "model.safetensors").is_file() else None
    try:
        shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return folder if all((folder / str(name)).is_file() for name in shards) else None
