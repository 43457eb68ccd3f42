"""The local Hugging Face cache: which files of a repository are on this machine.

Reads the cache's documented layout, models--OWNER--NAME/{blobs,refs,snapshots}, and never
the network.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from quant.shards import openers
from qwen3cli.errors import UsageError
from qwen3cli.names import check_repository

_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_DIGEST = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")


@dataclass(frozen=True)
class Origin:
    """Where a file of the cache comes from."""

    repository: str  # OWNER/NAME
    commit: str
    name: str  # the file's path in the repository
    digest: str | None  # sha256 of a large file, git's blob id of a small one; None: not known


def cache() -> Path:
    """The folder of the cache, there or not."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def folder(repository: str) -> Path:
    """Where the cache keeps a repository, there or not. Raises UsageError for what is none."""
    return cache() / f"models--{check_repository(repository).replace('/', '--')}"


def repositories() -> list[str]:
    """All of models that the cache has a folder of."""
    found = []
    for path in sorted(cache().glob("models--*")):
        name = path.name.removeprefix("models--").replace("--", "/")
        try:
            found.append(check_repository(name))
        except UsageError:  # not made by any tool
            continue
    return found


def origin(path: Path) -> Origin | None:
    """Of a file in a snapshot; None for any other."""
    at = Path(os.path.abspath(path))  # its links are the point  # noqa: PTH100
    try:
        repository, snapshots, commit, *name = at.relative_to(cache().absolute()).parts
    except ValueError:
        return None
    if snapshots != "snapshots" or not name or not repository.startswith("models--"):
        return None
    digest = at.readlink().name if at.is_symlink() else ""
    return Origin(
        repository.removeprefix("models--").replace("--", "/"),
        commit,
        "/".join(name),
        digest if _DIGEST.match(digest) else None,
    )


def real(path: Path) -> Path:
    """What links lead to; no error for links in a circle, as Path.resolve has before 3.13."""
    return Path(os.path.realpath(path))


def snapshots(repository: str) -> list[Path]:
    """The folders of all its commits: that of `main`, then what was fetched last first."""
    found = [path for path in folder(repository).glob("snapshots/*") if path.is_dir()]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    main = snapshot(repository)
    return sorted(found, key=lambda path: path != main)


def snapshot(repository: str, revision: str = "main") -> Path | None:
    """The folder of the files cached for a repository at a branch, tag or commit; where nobody
    fetched `main`, that of what was fetched last."""
    base = folder(repository)
    at = base / "snapshots" / (commit(base / "refs" / revision) or revision)
    if at.is_dir():
        return at
    if revision != "main":
        return None
    revisions = [path for path in base.glob("snapshots/*") if path.is_dir()]
    return max(revisions, key=lambda path: path.stat().st_mtime, default=None)


def commit(ref: Path) -> str | None:
    """What a file in refs names; None: it is not there, or damaged."""
    try:
        told = ref.read_text("ascii").strip()
    except (OSError, ValueError):
        return None
    return told if _COMMIT.match(told) else None


def gguf_files(repository: str) -> list[Path]:
    """The cached GGUF files of a repository that open a model: of a split one the first,
    if all are there. Of those at several commits the newest; the older a commit, the earlier."""
    found: dict[Path, Path] = {}
    for at in snapshots(repository):
        for path in sorted(openers(at.rglob("*.gguf")), reverse=True):
            found.setdefault(path.relative_to(at), path)
    return list(found.values())[::-1]


def weights(repository: str, revision: str | None = None) -> Path | None:
    """The folder of a repository's safetensors weights, None unless all are cached. revision:
    at a branch, tag or commit; None: the newest that are whole."""
    at = [snapshot(repository, revision)] if revision else snapshots(repository)
    return next((path for path in at if path and _has_weights(path)), None)


def _has_weights(at: Path) -> bool:
    if not (at / "config.json").is_file():
        return False
    index = at / "model.safetensors.index.json"
    if not index.is_file():
        return (at / "model.safetensors").is_file()
    try:
        shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False
    return all((at / str(name)).is_file() for name in shards)
