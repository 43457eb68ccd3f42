"""The sha256 of model files, computed once.

$XDG_CACHE_HOME/qwen3/sha256.json holds them by path; a file of another size, time or inode is
another one. A cache that is damaged, or that cannot be written, costs the computation again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from qwen3cli.folders import xdg
from qwen3cli.hub import local
from qwen3cli.terminal import Terminal

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_PIECE = 1 << 20
_MOST = 1000  # entries; the oldest go


def checksums(files: Iterable[Path], terminal: Terminal) -> dict[Path, str]:
    """The sha256 of each file; of one in the Hugging Face cache that by which the cache calls it,
    which `qwen3 verify` compares with the content. Raises OSError."""
    known = {path: _named(path) or _kept(path) for path in files}
    unknown = [path for path, digest in known.items() if digest is None]
    total, done = sum(path.stat().st_size for path in unknown), 0
    with terminal.progress("sha256", "MB", 10**6) as move:
        for path in unknown:
            before = _state(path)
            digest = _compute(path, partial(_moved, move, done, total))
            if _state(path) == before:
                _keep(path, before, digest)
            known[path] = digest
            done += before["size"]
    return {path: digest for path, digest in known.items() if digest}


def _moved(move: Callable[[int, int], None], past: int, total: int, n: int) -> None:
    move(past + n, total)


def _named(path: Path) -> str | None:
    """By the cache, whose large files are called by their sha256."""
    file = local.real(path)
    if file.parent.name != "blobs" or not file.is_relative_to(local.real(local.cache())):
        return None
    return file.name if _SHA256.match(file.name) else None


def _compute(path: Path, told: Callable[[int], None]) -> str:
    hasher, n = hashlib.sha256(), 0
    with path.open("rb") as data:
        while piece := data.read(_PIECE):
            hasher.update(piece)
            told(n := n + len(piece))
    return hasher.hexdigest()


def _state(path: Path) -> dict[str, int]:
    found = path.stat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "inode": found.st_ino}


def _cache() -> Path:
    return xdg("XDG_CACHE_HOME", ".cache") / "sha256.json"


def _load() -> dict[str, Any]:
    try:
        found = json.loads(_cache().read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _kept(path: Path) -> str | None:
    entry = _load().get(str(local.real(path)))
    if not isinstance(entry, dict):
        return None
    digest = entry.pop("sha256", None)
    right = isinstance(digest, str) and _SHA256.match(digest) and entry == _state(path)
    return str(digest) if right else None


def _keep(path: Path, state: dict[str, int], digest: str) -> None:
    with suppress(OSError):
        kept = _load()
        kept.pop(str(local.real(path)), None)
        kept[str(local.real(path))] = state | {"sha256": digest}
        cache = _cache()
        cache.parent.mkdir(parents=True, exist_ok=True)
        new = cache.with_name(f".{cache.name}.{os.getpid()}")
        try:
            new.write_text(json.dumps(dict(list(kept.items())[-_MOST:]), indent=1) + "\n", "utf-8")
            new.replace(cache)
        finally:
            new.unlink(missing_ok=True)
