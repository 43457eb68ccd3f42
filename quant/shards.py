"""How the files of a split model are called: NAME-00001-of-00003.gguf and so on.

The first one opens the model. The names are those of the GGUF ecosystem.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_NUMBERS = re.compile(r"-(\d{5})-of-(\d{5})\.gguf\Z")
MAX_SHARDS = 65535  # the files' metadata counts them in 16 bits


def numbers(path: Path) -> tuple[int, int] | None:
    """(2, 3) of NAME-00002-of-00003.gguf, None of a whole model."""
    found = _NUMBERS.search(path.name)
    return (int(found[1]), int(found[2])) if found else None


def opens_a_model(path: Path) -> bool:
    """Whether by its name it is a whole model or the first shard of one."""
    found = numbers(path)
    return found is None or found[0] == 1


def model_name(path: Path) -> str:
    """NAME of NAME.gguf and of each of its shards."""
    return _NUMBERS.sub("", path.name).removesuffix(".gguf")


def shards(path: Path, count: int) -> list[Path]:
    """The files that NAME.gguf, or a shard of it, is split into."""
    name = model_name(path)
    return [path.with_name(f"{name}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]


def files(path: Path) -> list[Path]:
    """All files of the model that path opens, there or not."""
    found = numbers(path)
    return shards(path, found[1]) if found else [path]


def openers(paths: Iterable[Path]) -> list[Path]:
    """Of these the files that open a model: whole ones, and the first shards of sets of
    which no file is missing."""
    return [
        path
        for path in paths
        if opens_a_model(path) and all(file.is_file() for file in files(path))
    ]


def forms(path: Path) -> list[Path]:
    """The files there are of NAME.gguf: itself and any shards, of each set the first
    ones before the others."""
    beside = sorted(file for file in path.parent.glob("*.gguf") if numbers(file))
    return [path] * path.exists() + [f for f in beside if model_name(f) == model_name(path)]
