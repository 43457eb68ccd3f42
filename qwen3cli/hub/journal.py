"""What was begun in the Hugging Face cache and has not ended, and how fast the last pull was.

The cache itself does not tell which model a part of a file belongs to, or how much is missing.
A note for each model, in $XDG_STATE_HOME/qwen3/pulls, that nothing depends on: where it is lost
or cannot be written, `ls` knows less.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from qwen3cli.folders import xdg
from qwen3cli.hub import local

_LEAST_SECONDS, _LEAST_BYTES = 1.0, 10**7  # of a pull that tells something about the line


@dataclass(frozen=True)
class Part:
    """A file of the model."""

    name: str
    size: int
    digest: str  # its name among the blobs


@dataclass(frozen=True)
class Begun:
    """A model that is being fetched or removed, or was when that was interrupted."""

    model: str
    kind: Literal["gguf", "weights"]
    repository: str
    files: Sequence[Part]


def begin(what: Begun) -> None:
    """Notes it, until it ends."""
    with suppress(OSError):
        _write(_path(what), asdict(what) | {"cache": str(local.cache())})


def end(what: Begun) -> None:
    """It was fetched, or is gone."""
    with suppress(OSError):
        _path(what).unlink(missing_ok=True)


def unfinished() -> list[Begun]:
    """Of this cache."""
    found = []
    with suppress(OSError):
        for path in sorted(_folder().glob("*.json")):
            with suppress(OSError, ValueError, KeyError, TypeError):
                found += _told(json.loads(path.read_text("utf-8")))
    return found


def _told(note: Any) -> list[Begun]:
    """What a note is about, if that is in this cache. Raises KeyError, TypeError and ValueError
    for one that is none."""
    kind, model, repository = note["kind"], str(note["model"]), str(note["repository"])
    parts = [Part(str(p["name"]), int(p["size"]), str(p["digest"])) for p in note["files"]]
    if kind not in ("gguf", "weights"):
        raise ValueError(kind)
    here = note["cache"] == str(local.cache())
    return [Begun(model, kind, repository, tuple(parts))] if here else []


def note_rate(n_bytes: int, seconds: float) -> None:
    """Of a pull."""
    if seconds >= _LEAST_SECONDS and n_bytes >= _LEAST_BYTES:
        with suppress(OSError):
            _write(_folder() / "rate", n_bytes / seconds)


def rate() -> float | None:
    """Bytes a second of the last pull, if one was long enough to tell."""
    try:
        told = float((_folder() / "rate").read_text("ascii"))
    except (OSError, ValueError):
        return None
    return told if told > 0 else None


def _folder() -> Path:
    return xdg("XDG_STATE_HOME", ".local/state") / "pulls"


def _path(what: Begun) -> Path:
    name = what.model.replace("/", "--").replace(":", "@")  # the name was checked
    return _folder() / f"{name}.{what.kind}.json"


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(value), "utf-8")
    part.replace(path)
