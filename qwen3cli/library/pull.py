"""The command `pull`: which files of a repository, whether they fit on the disk, a bar, and
what to do when it cannot be."""

from __future__ import annotations

import errno
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from quant.shards import files as shards_of
from quant.shards import opens_a_model
from qwen3cli.errors import FormatError, ModelNotFound, Qwen3Error, UsageError
from qwen3cli.hub import journal, local, registry
from qwen3cli.hub.registry import Wanted
from qwen3cli.hub.remote import Hub, Listing, RemoteFile, Unreachable
from qwen3cli.hub.store import Store, locked
from qwen3cli.names import check_file
from qwen3cli.terminal import Terminal

_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*\Z")

_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_GOES_ON = "the same command goes on where this one ended"


def pull(
    model: str,
    terminal: Terminal,
    *,
    weights: bool,
    revision: str | None,
    offline: bool,
    as_json: bool,
) -> None:
    """model: as registry.wanted has it. weights: the safetensors instead of a GGUF file.
    revision: a branch, tag or commit. offline: look whether all is there, without a network."""
    from huggingface_hub import constants

    at = "main" if revision is None else _checked(revision)
    wish = registry.wanted(model, weights=weights)
    started = time.monotonic()
    if offline or constants.HF_HUB_OFFLINE:
        report = _cached(model, wish, at)
    else:
        try:
            report = _fetched(model, wish, at, terminal)
        except Unreachable as error:
            raise Qwen3Error(f"{error}; {_what_is_cached(wish)}") from None
    report["seconds"] = round(time.monotonic() - started, 3)
    if as_json:
        terminal.json(report)
    else:
        _tell(wish, report, terminal)


def _checked(revision: str) -> str:
    if len(revision) > 200 or ".." in revision or not _REVISION.match(revision):
        raise UsageError(f"--revision {revision}: cannot be a branch, tag or commit")
    return revision


def _fetched(model: str, wish: Wanted, revision: str, terminal: Terminal) -> dict[str, Any]:
    with Hub(terminal.note) as source:
        return Order(model, wish, source, revision, terminal.note).fetch(terminal)


class Order:
    """What there is to fetch for a model. Lives as long as its source."""

    def __init__(
        self, model: str, wish: Wanted, source: Hub, revision: str, note: Callable[[str], None]
    ) -> None:
        """Asks the hub. Raises ModelNotFound, FormatError, Unreachable."""
        self._model, self._wish, self._source, self._revision = model, wish, source, revision
        self._note = note
        self._listing = source.listing(wish.repository, revision)
        self._files = _chosen(wish, self._listing)
        self._store = Store(self._listing, note)
        self._missing = [file for file in self._files if not self._store.has(file)]
        self.needed = sum(map(self._store.missing_bytes, self._missing))  # bytes

    @property
    def free(self) -> int:
        """Bytes on the disk of the cache."""
        return _free(self._store.root)

    def fetch(self, terminal: Terminal) -> dict[str, Any]:
        """Into the cache, behind a bar; the report for --json. Raises Qwen3Error."""
        wish, root = self._wish, self._store.root
        if self.needed > self.free:
            raise Qwen3Error(
                f"{_too_little(self._model, self.needed, root)}, or set HF_HOME to a folder on "
                "another disk"
            )
        try:
            with locked(wish.repository, self._note):
                received = self._receive(terminal)
        except Unreachable as error:
            raise Qwen3Error(f"{error}; {_GOES_ON}") from None
        except KeyboardInterrupt:
            terminal.interrupted()
            terminal.note(f"interrupted; {_GOES_ON}")
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                text = f"{root}: the disk is full; free some space; {_GOES_ON}"
                raise Qwen3Error(text) from None
            if error.errno not in _READ_ONLY or self._missing:
                raise
            received = 0  # a cache that somebody else fills needs no lock to be read
        names = [file.name for file in self._files]
        report = _report(wish, self._store.snapshot, self._listing.commit, names)
        return report | {"received_bytes": received}

    def _receive(self, terminal: Terminal) -> int:
        """Bytes that came."""
        wish, started = self._wish, time.monotonic()
        parts = [journal.Part(file.name, file.size, file.digest) for file in self._files]
        begun = journal.Begun(wish.name, wish.kind, wish.repository, parts)
        journal.begin(begun)
        with terminal.progress(f"{wish.name} from {wish.repository}", "MB", 10**6) as move:
            received = _Count(move, self.needed)
            for file in self._files:
                if not self._store.has(file):  # asked again: now nobody removes it
                    self._store.fetch(self._source, file, received)
        self._store.publish(self._files, self._revision)
        journal.end(begun)
        journal.note_rate(received.bytes, time.monotonic() - started)
        return received.bytes


def repair(origins: Sequence[local.Origin], terminal: Terminal) -> None:
    """Fetches damaged files of a repository and a commit again, into their places. Raises
    Qwen3Error when that cannot be."""
    repository, commit = origins[0].repository, origins[0].commit
    with Hub(terminal.note) as source, locked(repository, terminal.note):
        listing = source.listing(repository, commit)
        if gone := {each.name for each in origins} - set(listing.names):
            raise ModelNotFound(f"{repository}: the hub has no {min(gone)} at {commit}")
        store = Store(listing, terminal.note)
        files = [listing.file(each.name) for each in origins]
        total = sum(file.size for file in files)
        needed = max(map(store.missing_again, files))  # each takes the place of a damaged one
        if needed > _free(store.root):
            raise Qwen3Error(_too_little(repository, needed, store.root))
        with terminal.progress(f"{repository}: {len(files)} again", "MB", 10**6) as move:
            received = _Count(move, total)
            for file in files:
                store.fetch(source, file, received)
        store.publish(files, commit)


def _free(root: Path) -> int:
    """Bytes on the disk of a folder, which need not be there yet."""
    disk = next(folder for folder in (root, *root.parents) if folder.exists())
    return shutil.disk_usage(disk).free


def _too_little(what: str, needed: int, root: Path) -> str:
    return (
        f"{what}: needs {size(needed)}, but the disk of {root} has {size(_free(root))} free; "
        "free some space"
    )


class _Count:
    """Moves a bar by the bytes that come."""

    def __init__(self, move: Any, total: int) -> None:
        self._move = move
        self._total = total
        self.bytes = 0

    def __call__(self, n: int) -> None:
        """n below 0: so many come once more."""
        self.bytes += max(n, 0)
        self._total += max(-n, 0)
        self._move(self.bytes, self._total)


def _chosen(wish: Wanted, listing: Listing) -> list[RemoteFile]:
    """The files to fetch, checked. Raises ModelNotFound, FormatError."""
    names = wish.choose(listing.names)
    if absent := set(_whole(names)) - set(listing.names):
        raise ModelNotFound(f"{wish.repository}: lacks {min(absent)}, a part of a split model")
    names = _whole(names)
    for name in names:
        try:
            check_file(name)
        except UsageError as error:
            raise FormatError(f"{wish.repository}: {error}; nothing was fetched") from None
    if len({name.casefold() for name in names}) < len(names):
        raise FormatError(f"{wish.repository}: names of files differ in case alone: {names}")
    return [listing.file(name) for name in names]


def _whole(names: Iterable[str]) -> list[str]:
    """With all parts of the models that are split."""
    every = (part.as_posix() for name in names for part in shards_of(Path(name)))
    return list(dict.fromkeys(every))


# ---- without a network ------------------------------------------------------


def _cached(model: str, wish: Wanted, revision: str) -> dict[str, Any]:
    """Raises ModelNotFound unless all files are there."""
    snapshot = local.snapshot(wish.repository, revision)
    if wish.kind == "weights" and not local.weights(wish.repository, revision):
        snapshot = None
    if snapshot:
        there = [p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file()]
        try:
            names = wish.choose(there)
        except ModelNotFound:
            names = []
        if names and not set(_whole(names)) - set(there):
            return _report(wish, snapshot, snapshot.name, names) | {"received_bytes": 0}
    from huggingface_hub import constants

    way = "unset HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "leave out --offline"
    raise ModelNotFound(
        f"{model}: not all on this machine, and this is offline; {_what_is_cached(wish)}; "
        f"{way} to fetch it"
    )


def _what_is_cached(wish: Wanted) -> str:
    if wish.kind == "weights":
        there = [str(folder)] if (folder := local.weights(wish.repository)) else []
    else:
        there = [path.name for path in local.gguf_files(wish.repository)]
    if there:
        return f"in the cache there is: {', '.join(there)}"
    return f"nothing of {wish.repository} is in the cache"


# ---- what to tell -----------------------------------------------------------


def _report(wish: Wanted, snapshot: Path, commit: str, names: list[str]) -> dict[str, Any]:
    # The quickest thing to type next: the file that opens the model, or the folder of weights.
    opens = snapshot
    if wish.kind == "gguf":
        opens = snapshot / next(name for name in names if opens_a_model(Path(name)))
    sizes = {name: (snapshot / PurePosixPath(name)).stat().st_size for name in names}
    return {
        "model": wish.name,
        "repository": wish.repository,
        "commit": commit,
        "path": str(opens),
        "files": [{"name": name, "bytes": size} for name, size in sizes.items()],
        "bytes": sum(sizes.values()),
    }


def _tell(wish: Wanted, report: dict[str, Any], terminal: Terminal) -> None:
    received, seconds = report["received_bytes"], report["seconds"]
    how = "is here already"
    if received:
        how = f"received {size(received)} in {seconds:,.1f} s, {size(received / seconds)}/s"
    terminal.note(f"{wish.name}: {report['path']} ({size(report['bytes'])}): {how}")
    if wish.kind == "weights":
        terminal.note(f"`qwen3 quantize {wish.name} --q4` makes a model of them")


def size(n: float) -> str:
    """Bytes for people: 2.5 GB, 0.3 MB."""
    return f"{n / 1e9:,.1f} GB" if n >= 1e9 else f"{n / 1e6:,.1f} MB"
