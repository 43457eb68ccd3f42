"""The command `ls`: which models are on this machine, whole or in part."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from quant.shards import files as shards_of
from quant.shards import model_name, numbers, openers
from qwen3cli.errors import ModelNotFound, Qwen3Error
from qwen3cli.hub import journal, local, registry
from qwen3cli.hub.releases import RELEASES
from qwen3cli.plan.memory import amount
from qwen3cli.terminal import Terminal

Place = Literal["cache", "models", "embedded"]
_PLACES = {"cache": "Hugging Face cache", "models": "models folder", "embedded": "embedded"}


@dataclass(frozen=True)
class Installed:
    """A model, or what there is of one."""

    model: str  # its name: 4b:q4_k_m
    kind: Literal["gguf", "weights"]
    place: Place
    files: tuple[Path, ...]  # in the cache the links of all commits, and parts among the blobs
    path: Path | None  # what opens it: a file, or a folder of weights; None: a part of a model
    repository: str | None = None
    total: int | None = None  # bytes of all of it; None: not known

    @property
    def name(self) -> str:
        """What MODEL has to be for it: its path where the name leads to another file."""
        try:
            if self.path is None or self.kind == "weights":
                return self.model
            return self.model if registry.resolve(self.model) == self.path else str(self.path)
        except Qwen3Error:
            return str(self.path)

    @property
    def quant(self) -> str:
        return registry.split(self.model)[1]

    @property
    def bytes(self) -> int:
        """On the disk."""
        return sum(status.st_size for status in self._status().values())

    @property
    def used(self) -> float | None:
        """When it was last read or written, by any tool, in seconds since 1970: as the file system
        tells it, often to a day. None if it has no files."""
        times = (max(each.st_atime, each.st_mtime) for each in self._status().values())
        return max(times, default=None)

    def _status(self) -> dict[tuple[int, int], Any]:
        """Of each file once, whatever links to it."""
        found = [path.stat() for path in self.files if path.is_file()]
        return {(each.st_dev, each.st_ino): each for each in found}


def ls(terminal: Terminal, *, as_json: bool) -> None:
    """Prints what is installed."""
    found = installed()
    if as_json:
        terminal.json([_described(each) for each in found])
    else:
        head = ("model", "quant", "size", "last used", "place", "")
        terminal.table(head, [_row(each) for each in found])


def installed() -> list[Installed]:
    """All models on this machine: those that are a part of this program, those in the models
    folder, and those in the Hugging Face cache; then what is there of others."""
    embedded = [
        Installed(name, "gguf", "embedded", (path,), path)
        for name in registry.EMBEDDED
        for path in [registry.resolve(name)]
    ]
    cached = [each for name in local.repositories() for each in _cached(name)]
    found = [*embedded, *_in_models_folder(), *cached]
    return sorted(found, key=lambda each: each.path is None)


def _in_models_folder() -> Iterator[Installed]:
    try:
        files = sorted(registry.models_folder().glob("*.gguf"))
    except OSError:  # without a home
        return
    whole = openers(files)
    for path in whole:
        yield Installed(
            registry.installed_name(path), "gguf", "models", tuple(shards_of(path)), path
        )
    taken = {file for path in whole for file in shards_of(path)}
    rest: dict[str, list[Path]] = {}
    for path in files:
        if path not in taken and numbers(path):
            rest.setdefault(registry.installed_name(path), []).append(path)
    for name, parts in rest.items():
        yield Installed(name, "gguf", "models", tuple(parts), None)


def _cached(repository: str) -> Iterator[Installed]:
    snapshots, whole = local.snapshots(repository), set()
    for path in local.gguf_files(repository):
        if registry.is_beside(path.name):
            continue
        at = local.origin(path)
        assert at
        links = [
            link
            for snapshot in snapshots
            for link in shards_of(snapshot / at.name)
            if link.is_symlink() or link.exists()
        ]
        name = _named(repository, registry.quant_of(at.name))
        whole.add((name, "gguf"))
        yield Installed(name, "gguf", "cache", tuple(links), path, repository)
    if (folder := local.weights(repository)) and _is_qwen3(folder):
        links = [link for snapshot in snapshots for link in _weights(repository, snapshot)]
        name = _named(repository, "")
        whole.add((name, "weights"))
        yield Installed(name, "weights", "cache", tuple(links), folder, repository)
    yield from _parts(repository, snapshots, whole)


def _parts(
    repository: str, snapshots: list[Path], whole: set[tuple[str, str]]
) -> Iterator[Installed]:
    """What was noted of pulls and removals that were interrupted, and what no snapshot links to,
    of other tools, as one. whole: models of which all is there; parts are of another commit."""
    blobs = local.folder(repository) / "blobs"
    linked = {local.real(link) for at in snapshots for link in at.rglob("*") if link.is_symlink()}
    loose: dict[str, list[Path]] = {}
    for blob in sorted(blobs.glob("*")):
        if blob.is_file() and local.real(blob) not in linked:
            loose.setdefault(blob.name.partition(".")[0], []).append(blob)
    for begun in journal.unfinished():
        if begun.repository != repository:
            continue
        found = [each for part in begun.files for each in loose.pop(part.digest, ())]
        if (begun.model, begun.kind) not in whole:
            links = [at / part.name for at in snapshots for part in begun.files]
            found += [link for link in links if link.is_symlink()]
        if found:
            total = sum(part.size for part in begun.files)
            yield Installed(begun.model, begun.kind, "cache", tuple(found), None, repository, total)
    known = {r.weights: "weights" for r in RELEASES.values()} | {
        r.gguf: "gguf" for r in RELEASES.values() if r.gguf
    }
    if loose and repository in known:
        files = tuple(each for found in loose.values() for each in found)
        kind: Any = known[repository]
        yield Installed(_named(repository, ""), kind, "cache", files, None, repository)


def _named(repository: str, quant: str) -> str:
    release = registry.release_of(repository)
    name = release.name if release else repository
    return f"{name}:{quant}" if quant else name


def _weights(repository: str, snapshot: Path) -> list[Path]:
    """What `pull --weights` fetches, as far as it is there."""
    files = [path for path in snapshot.rglob("*") if path.is_symlink() or path.is_file()]
    try:
        wish = registry.wanted(repository, weights=True)
        names = wish.choose(path.relative_to(snapshot).as_posix() for path in files)
    except ModelNotFound:
        return []
    return [snapshot / name for name in names]


def _is_qwen3(folder: Path) -> bool:
    """Whether these are weights that quantize reads: the cache has those of other tools, too."""
    try:
        kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return False
    return kind in ("qwen3", "qwen3_moe")


# ---- which of them a name means ---------------------------------------------


def select(model: str, found: Iterable[Installed], *, weights: bool) -> list[Installed]:
    """What MODEL means among the installed: one model, and parts of it. Raises ModelNotFound."""
    name, quant = registry.split(model)
    path = Path(model).absolute()
    kind = "weights" if weights else "gguf"
    named = [
        each
        for each in found
        if path in (each.path, *each.files)
        or (_same(name, each) and quant in ("", each.quant, each.kind))
    ]
    meant = [each for each in named if each.kind == kind]
    whole = [each for each in meant if each.path]
    if len(whole) > 1:  # of two that are called the same, the one that the name opens
        opened = [each for each in whole if quant and each.name == each.model]
        if len(opened) != 1:
            names = ", ".join(each.name for each in whole)
            raise ModelNotFound(f"{model}: there are {names}; name one of them")
        whole = opened
    if meant:
        return [*whole, *(each for each in meant if not each.path)]
    if named and not weights:
        raise ModelNotFound(f"{model}: only its weights are here; --weights means them")
    raise ModelNotFound(f"{model}: not installed; `qwen3 ls` lists what is")


def _same(name: str, each: Installed) -> bool:
    known = registry.split(each.model)[0]
    if release := registry.release_of(name):
        return known == release.name
    stems = {known.lower(), each.model.lower()}
    if each.place == "models":
        stems.add(registry.normalized(model_name(each.files[0])))
    return name.lower() in stems or registry.normalized(name) in stems


# ---- what to tell -----------------------------------------------------------


def _described(each: Installed) -> dict[str, Any]:
    return {
        "model": each.name,
        "kind": each.kind,
        "quant": each.quant or None,
        "bytes": each.bytes,
        "complete": each.path is not None,
        "total_bytes": each.bytes if each.path else each.total,
        "used": _time(each.used).isoformat() if each.used else None,
        "place": each.place,
        "repository": each.repository,
        "path": str(each.path) if each.path else None,
    }


def _row(each: Installed) -> tuple[str, ...]:
    size, state = amount(each.bytes), ""
    if each.path is None:
        size = f"{size} of {amount(each.total) if each.total else '?'}"
        state = "incomplete"
    used = f"{_time(each.used):%Y-%m-%d}" if each.used else "-"
    quant = "weights" if each.kind == "weights" else each.quant or "-"
    return each.name, quant, size, used, _PLACES[each.place], state


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), timezone.utc)
