"""The command `rm`: models leave the Hugging Face cache or the models folder.

First the links by which a model is found go, then what they lead to: what is interrupted
leaves parts, never a model, and `rm` or `pull` of the same name goes on from there. Nothing
outside those two folders is touched.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from quant.shards import opens_a_model
from qwen3cli.errors import Qwen3Error, UsageError
from qwen3cli.hub import journal, local, registry
from qwen3cli.hub.store import inside, locked
from qwen3cli.library.installed import Installed, installed, select
from qwen3cli.library.pull import size
from qwen3cli.terminal import Terminal

_SHARED = "in the Hugging Face cache, which other tools share"


def rm(
    models: Sequence[str], terminal: Terminal, *, weights: bool, yes: bool, as_json: bool
) -> None:
    """weights: the safetensors, not the GGUF file. yes: nobody is asked. Raises ModelNotFound,
    UsageError, Qwen3Error before anything is removed."""
    with ExitStack() as stack:
        chosen = _chosen(models, weights=weights)
        for repository in sorted({each.repository for each in chosen if each.repository}):
            stack.enter_context(locked(repository, None))
        chosen = _chosen(models, weights=weights)  # a pull may have ended meanwhile
        going = {path for each in chosen for path in each.files if path.is_symlink()}
        plans: list[_Plan] = []
        for each in chosen:
            plans.append(_Plan(each, going, {path for plan in plans for path in plan.gone}))
        # Once each: models can have a file in common, and a file several beginnings.
        for lock in sorted({_lock(blob) for plan in plans for blob in plan.in_blobs}):
            stack.enter_context(_held(lock))
        for plan in plans:
            plan.tell(terminal)
        total = sum(plan.freed for plan in plans)
        if not yes and not terminal.can_ask:
            raise UsageError("nothing was removed: --yes says that it may be")
        if not yes and not terminal.ask(f"Remove {size(total)}?", default=False):
            terminal.note("nothing was removed")
            return
        try:
            for plan in plans:
                plan.carry_out()
        except KeyboardInterrupt:
            terminal.interrupted()
            terminal.note("interrupted; the same command removes what is left")
            raise
    if as_json:
        terminal.json({"removed": [plan.report for plan in plans], "freed_bytes": total})


def _chosen(models: Iterable[str], *, weights: bool) -> list[Installed]:
    found = installed()
    chosen = [each for model in models for each in select(model, found, weights=weights)]
    return list(dict.fromkeys(chosen))


class _Plan:
    """What goes of a model, and what stays because something else uses it."""

    def __init__(self, what: Installed, going: set[Path], counted: set[Path]) -> None:
        """going: links that are removed, of other models too. counted: files that go with a model
        before this one. Raises UsageError for an embedded one, Qwen3Error for links that lead
        elsewhere."""
        self._what = what
        if what.place == "embedded":
            raise UsageError(f"{what.model}: is a part of this program")
        in_cache = what.place == "cache"
        self._root = local.cache() if in_cache else registry.models_folder()
        place = "the cache" if in_cache else "the models folder"
        for path in what.files:
            inside(path.parent, self._root, place)
            if not (path.is_symlink() and _within(path, local.cache())):
                inside(path, self._root, place)
        # config.json and first shards are what a model is found by.
        self._names = sorted(what.files, key=lambda path: not _finds(path))
        self.blobs: list[Path] = []
        self.used: dict[Path, list[Path]] = {}
        if in_cache:
            blobs = {local.real(path) for path in what.files if path.is_symlink() and path.exists()}
            links = _links(blobs)
            for blob in sorted(blobs):
                if others := [link for link in links.get(blob, ()) if link not in going]:
                    self.used[blob] = others
                else:
                    self.blobs.append(blob)
        self.in_blobs = [*self.blobs, *(p for p in what.files if p.parent.name == "blobs")]
        own = {*self.blobs, *(path for path in what.files if not path.is_symlink())} - counted
        self.gone = sorted(path for path in own if path.exists())
        self.freed = sum(p.stat().st_size for p in self.gone if p.stat().st_nlink == 1)
        self._hard = [path for path in self.gone if path.stat().st_nlink > 1]

    def tell(self, terminal: Terminal) -> None:
        what = self._what
        where = _SHARED if what.place == "cache" else "in the models folder"
        part = "" if what.path else "an incomplete "
        of = "weights of " if what.kind == "weights" else ""
        terminal.note(f"{part}{of}{what.name}, {where}: {size(self.freed)} go")
        if len(self._commits) > 1:
            terminal.note(f"  of {len(self._commits)} revisions: {', '.join(self._commits)}")
        for blob, others in self.used.items():
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            terminal.note(f"  {size(blob.stat().st_size)} stay: {others[0]}{more} needs them")
        for path in self._hard:
            terminal.note(f"  {path.name} has another name, a hard link: its bytes stay")

    def carry_out(self) -> None:
        what = self._what
        begun = self._begun()
        if begun:
            journal.begin(begun)
        for path in [*self._names, *self.blobs]:
            path.unlink(missing_ok=True)
        if what.repository:
            _tidy(local.folder(what.repository))
        for each in journal.unfinished():
            if (each.model, each.kind, each.repository) == (what.model, what.kind, what.repository):
                journal.end(each)

    @property
    def report(self) -> dict[str, Any]:
        what = self._what
        return {
            "model": what.model,
            "kind": what.kind,
            "place": what.place,
            "freed_bytes": self.freed,
            "files": [str(path) for path in [*self._names, *self.blobs]],
            "kept": [
                {"path": str(blob), "used_by": [str(link) for link in links]}
                for blob, links in self.used.items()
            ],
        }

    @property
    def _commits(self) -> list[str]:
        origins = [local.origin(path) for path in self._what.files]
        return sorted({each.commit[:12] for each in origins if each})

    def _begun(self) -> journal.Begun | None:
        """What tells of the blobs when their links are gone."""
        what = self._what
        parts = [
            journal.Part(at.name, path.stat().st_size, at.digest)
            for path in what.files
            if path.exists() and (at := local.origin(path)) and at.digest
        ]
        if what.path is None or not what.repository or not parts:
            return None
        return journal.Begun(what.model, what.kind, what.repository, tuple(dict.fromkeys(parts)))


def _finds(path: Path) -> bool:
    return path.name == "config.json" or (path.suffix == ".gguf" and opens_a_model(path))


def _within(path: Path, root: Path) -> bool:
    return local.real(path).is_relative_to(local.real(root))


def _links(blobs: Iterable[Path]) -> dict[Path, list[Path]]:
    """All links to these in the cache, whatever repository they are in, and in the models
    folder."""
    wanted = set(blobs)
    found: dict[Path, list[Path]] = {}
    folders = [*local.cache().glob("*/snapshots")]
    with suppress(OSError):
        folders.append(registry.models_folder())
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_symlink() and (real := local.real(path)) in wanted:
                found.setdefault(real, []).append(path)
    return found


def _lock(blob: Path) -> Path:
    """The lock under which every tool fetches a file, or its beginning, into the cache."""
    repository = blob.parent.parent.name
    return local.cache() / ".locks" / repository / f"{blob.name.partition('.')[0]}.lock"


def _held(lock: Path) -> Any:
    """Raises Qwen3Error when somebody has it."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    inside(lock, local.cache()).parent.mkdir(parents=True, exist_ok=True)
    stack = ExitStack()
    try:
        stack.enter_context(WeakFileLock(lock, timeout=0.2))
    except TimeoutError:
        raise Qwen3Error(
            f"{lock.parent.name}: another process is fetching {lock.stem}; wait for it"
        ) from None
    return stack


def _tidy(folder: Path) -> None:
    """Removes empty folders, names of commits of which nothing is left, and with the last file
    the repository's folder."""
    for base in (folder / "snapshots", folder / "blobs"):
        for path in _below(base):
            if path.is_dir() and not path.is_symlink():
                with suppress(OSError):  # it is not empty
                    path.rmdir()
        with suppress(OSError):
            base.rmdir()
    for ref in _below(folder / "refs"):
        if ref.is_file():
            commit = local.commit(ref)
            if commit is None or not (folder / "snapshots" / commit).exists():
                ref.unlink()
        elif ref.is_dir():
            with suppress(OSError):
                ref.rmdir()
    absent = folder / ".no_exist"
    for path in _below(absent):
        ours = path.parent == absent and path.is_dir() and not path.is_symlink()
        if ours and not (folder / "snapshots" / path.name).exists():
            shutil.rmtree(path)
    for base in (absent, folder / "refs", folder):
        with suppress(OSError):
            base.rmdir()


def _below(base: Path) -> list[Path]:
    """What is in a folder, the deepest first; nothing of a link, which may lead anywhere."""
    return [] if base.is_symlink() else sorted(base.rglob("*"), reverse=True)
