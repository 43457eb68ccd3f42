"""The command `verify`: a table of the tensors, and everything that is wrong with a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quant.verify import Report, TensorReport
from quant.verify import verify as check
from qwen3cli import registry
from qwen3cli.errors import DAMAGED
from qwen3cli.terminal import Terminal

_SHOWN = 20  # problems; a wrong source makes one of every tensor


def verify(
    name: str, source: str | None, terminal: Terminal, *, tensors: bool, threads: int, as_json: bool
) -> int:
    """source: a Hugging Face folder, a GGUF file of floats, or a family name whose weights are
    in the cache. tensors: a line for each, instead of one for all layers. The exit code."""
    path = registry.resolve(name)
    origin = registry.source(source)[0] if source is not None else None
    with terminal.progress(path.name, "MB", 10**6) as move:
        report = check(path, origin, threads=threads, progress=move)
    if as_json:
        terminal.json(_described(path, origin, report))
    else:
        _show(path, origin is not None, report, terminal, tensors=tensors)
    return DAMAGED if report.problems else 0


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
        terminal.note(f"qwen3: {path}: {text}")
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
