"""The command `verify`: a table of the tensors, everything that is wrong with a file, and for
those in the Hugging Face cache whether they still are what their checksums say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from quant.shards import files as shards_of
from quant.verify import Report, TensorReport
from quant.verify import verify as check
from qwen3cli.errors import DAMAGED, Qwen3Error
from qwen3cli.hub import local, registry
from qwen3cli.terminal import Terminal

_SHOWN = 20  # problems; a wrong source makes one of every tensor


def verify(
    name: str,
    source: str | None,
    terminal: Terminal,
    *,
    repair: bool,
    tensors: bool,
    threads: int,
    as_json: bool,
) -> int:
    """source: a Hugging Face folder, a GGUF file of floats, or a family name whose weights are
    in the cache. repair: damaged files of the cache are fetched again. tensors: a line for each,
    instead of one for all layers. The exit code."""
    path = registry.resolve(name)
    origin = registry.source(source)[0] if source is not None else None
    checked = _Checksums(shards_of(path), terminal)
    if repair:
        checked.repair()
    with terminal.progress(path.name, "MB", 10**6) as move:
        report = check(path, origin, threads=threads, progress=move)
    report.problems[:0] = checked.problems
    if as_json:
        terminal.json(_described(path, origin, report) | checked.described)
    else:
        _show(path, origin is not None, report, terminal, tensors=tensors)
    return DAMAGED if report.problems else 0


def verify_weights(name: str, terminal: Terminal, *, repair: bool, as_json: bool) -> int:
    """Compares a model's weights in the Hugging Face cache with their checksums. The exit code."""
    folder, _ = registry.source(name)
    checked = _Checksums(sorted(path for path in folder.rglob("*") if path.is_file()), terminal)
    if repair:
        checked.repair()
    if as_json:
        ok = not checked.problems
        terminal.json(
            {"folder": str(folder), "ok": ok, "problems": checked.problems} | checked.described
        )
    for text in checked.problems:
        terminal.note(f"qwen3: {folder}: {text}")
    if not checked.problems and not as_json:
        terminal.note(f"{folder}: {checked.n_known} files are what their checksums say")
    return DAMAGED if checked.problems else 0


class _Checksums:
    """Whether files in the Hugging Face cache are what it calls them; others have no checksum."""

    def __init__(self, files: Iterable[Path], terminal: Terminal) -> None:
        self._terminal = terminal
        known = [(path, at) for path in files if (at := local.origin(path)) and at.digest]
        self.n_known = len(known)
        total, done = sum(path.stat().st_size for path, _ in known), 0
        self._damaged: list[local.Origin] = []
        self._repaired: list[str] = []
        self._why = "--repair fetches it again"
        with terminal.progress("checksums", "MB", 10**6) as move:
            for path, at in known:
                size = path.stat().st_size
                if _digest(path, at, partial(_moved, move, done, total)) != at.digest:
                    self._damaged.append(at)
                done += size

    def repair(self) -> None:
        """Fetches what is damaged again; what cannot be, stays a problem."""
        if not self._damaged:
            return
        from qwen3cli.library.pull import repair

        try:
            repair(self._damaged, self._terminal)
        except Qwen3Error as error:
            self._why = f"not repaired: {error}"
        else:
            self._repaired = [at.name for at in self._damaged]
            self._damaged = []
            self._terminal.note(f"fetched again: {', '.join(self._repaired)}")

    @property
    def problems(self) -> list[str]:
        return [f"{at.name}: differs from its checksum; {self._why}" for at in self._damaged]

    @property
    def described(self) -> dict[str, Any]:
        return {"checksums": self.n_known, "repaired": self._repaired}


def _moved(move: Callable[[int, int], None], past: int, total: int, n: int) -> None:
    move(past + n, total)


def _digest(path: Path, at: local.Origin, told: Callable[[int], None]) -> str:
    from qwen3cli.hub.remote import RemoteFile

    hasher = RemoteFile(at.name, path.stat().st_size, at.digest or "").hasher()
    n = 0
    with path.open("rb") as data:
        while piece := data.read(2**20):
            hasher.update(piece)
            told(n := n + len(piece))
    return hasher.hexdigest()


def _described(path: Path, source: Path | None, report: Report) -> dict[str, Any]:
    return {
        "file": str(path),
        "source": str(source) if source else None,
        "ok": not report.problems,
        "problems": report.problems,
        "remarks": report.remarks,
        "tensors": [_tensor(each) for each in report.tensors],
    }


def _tensor(tensor: TensorReport) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": tensor.name,
        "shape": tensor.shape,
        "type": tensor.kind,
        "bytes": tensor.n_bytes,
        "ok": not tensor.problem,
    }
    if tensor.difference:
        difference = tensor.difference
        described |= {
            "rmse": _finite(difference.rmse),
            "worst": _finite(difference.worst),
            "worst_row": difference.row,
        }
    return described


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _show(path: Path, compared: bool, report: Report, terminal: Terminal, *, tensors: bool) -> None:
    head = ["tensor", "", "type", "shape", "MB"]
    if compared:
        head += ["RMSE", "worst"]
    rows = [
        _row(name, group, compared) for name, group in _grouped(report.tensors, tensors).items()
    ]
    if rows:
        terminal.table([*head, ""], rows)
    for text in report.remarks:
        terminal.note(f"{path}: {text}")
    for text in report.problems[:_SHOWN]:
        terminal.note(f"qwen3: {path}: {text.removeprefix(f'{path.name}: ')}")
    if len(report.problems) > _SHOWN:
        terminal.note(f"qwen3: {path}: and {len(report.problems) - _SHOWN} more (--json: all)")
    if not report.problems:
        total = sum(tensor.n_bytes for tensor in report.tensors)
        against = "is as close to the source as its types allow" if compared else "is whole"
        terminal.note(f"{path}: {against} ({len(report.tensors)} tensors, {total / 1e6:,.1f} MB)")


_Key = tuple[str, str, tuple[int, ...]]


def _grouped(tensors: Sequence[TensorReport], apart: bool) -> dict[_Key, list[TensorReport]]:
    """Tensors of the same kind, type and shape, whatever their layer."""
    groups: dict[_Key, list[TensorReport]] = {}
    for tensor in tensors:
        parts = tensor.name.split(".")
        if not apart and parts[0] == "blk" and len(parts) > 2:
            parts[1] = "*"
        groups.setdefault((".".join(parts), tensor.kind, tensor.shape), []).append(tensor)
    return groups


def _row(key: _Key, group: Sequence[TensorReport], compared: bool) -> list[str]:
    """The worst figures of a group."""
    name, kind, shape = key
    size = sum(tensor.n_bytes for tensor in group)
    row = [name, f"x {len(group)}" if len(group) > 1 else "", kind]
    row += [" x ".join(map(str, shape)), f"{size / 1e6:,.2f}"]
    if compared:
        differences = [tensor.difference for tensor in group if tensor.difference]
        for figure in ("rmse", "worst"):
            worst = max((getattr(each, figure) for each in differences), default=None)
            row.append("-" if worst is None else f"{worst:.2%}")
    wrong = sum(bool(tensor.problem) for tensor in group)
    return [*row, f"{wrong} WRONG" if wrong else "ok"]
