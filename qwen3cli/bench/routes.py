"""The experts that tokens take in a benchmark: by their own router, all alike, or as recorded."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3cli.errors import UsageError

GUESSED_RIGHT = 0.88  # of the experts that a token takes
_COLUMNS = ("step", "layer", "slot", "expert")


def routes_of(kind: str, config: Mapping[str, Any], n_tokens: int) -> NDArray[np.int32] | None:
    """int32[tokens, layers, experts used] for Session.force_routes. kind: `own` (None: what the
    router says; of random weights nearly always the same experts), `uniform` (the worst case: no
    cache hits more often than its share), or a csv(.gz) with the columns step, layer, slot,
    expert of a recorded run, of which the steps with all layers count. One that chose fewer
    experts than config says is filled up with random ones. Raises UsageError."""
    if kind == "own":
        return None
    rng = np.random.default_rng(1)
    n, used, layers = config["n_experts"], config["n_experts_used"], config["n_layers"]

    def shuffled() -> NDArray[np.int64]:  # [layers, n]
        return rng.permuted(np.tile(np.arange(n), (layers, 1)), axis=1)

    if kind == "uniform":
        return np.array([shuffled()[:, :used] for _ in range(n_tokens)], np.int32)
    if not Path(kind).is_file():
        raise UsageError(f"--routes {kind}: neither own nor uniform, nor a file that is there")
    steps = [step for step in _recorded(Path(kind), n, layers) if len(step) == layers]
    if not steps:
        raise UsageError(f"{kind}: no step has a route for each of the {layers} layers")
    out = np.empty((len(steps), layers, used), np.int32)
    for row, step in zip(out, steps, strict=True):
        for layer, others in enumerate(shuffled().tolist()):
            known = [expert for _, expert in sorted(step[layer].items())]
            row[layer] = (known + [e for e in others if e not in known])[:used]
    return out


def guesses_of(routes: NDArray[np.int32], n_experts: int) -> NDArray[np.int32]:
    """What the experts are taken for a layer before they are chosen, right as often as the next
    layer's router is on Qwen3-30B-A3B. For Session.force_routes."""
    rng = np.random.default_rng(2)
    shape = (*routes.shape[:2], n_experts)
    rank = rng.random(shape, dtype=np.float32)  # the lowest are guessed: the right ones ...
    right = rng.random(routes.shape, dtype=np.float32) < GUESSED_RIGHT
    np.put_along_axis(rank, routes.astype(np.int64), np.where(right, -1.0, 2.0), axis=2)
    return rank.argsort(axis=2, kind="stable")[:, :, : routes.shape[2]].astype(np.int32)


def misses_of(routes: NDArray[np.int32], n_experts: int, held: int, tokens: range) -> float:
    """Of what these tokens take by their routes, the share that a store of so many experts misses,
    who begins empty at the first token and forgets as the engine's does: uses count half after
    eight tokens."""
    n_layers = routes.shape[1]
    heat, last = np.zeros(n_layers * n_experts), np.zeros(n_layers * n_experts)
    order = np.full(n_layers * n_experts, np.inf)  # the lowest of those held leaves; inf: not held
    n_held = wanted = missed = 0
    for t in range(tokens.stop):
        for layer, chosen in enumerate(routes[t % len(routes)]):
            keys = layer * n_experts + chosen.astype(np.int64)
            absent = int(np.isinf(order[keys]).sum())
            order[keys] = np.inf  # none of them leaves
            n_held += absent
            for _ in range(max(0, n_held - held)):
                order[order.argmin()] = np.inf
            n_held = min(n_held, held)
            heat[keys] = 1 + heat[keys] * np.exp2((last[keys] - t) / 8)
            last[keys] = t
            order[keys] = np.log2(heat[keys]) + t / 8
            if t in tokens:
                wanted += len(keys)
                missed += absent
    return missed / wanted


Step = dict[int, dict[int, int]]  # layer -> slot -> expert


def _recorded(file: Path, n_experts: int, n_layers: int) -> list[Step]:
    """In the order of their numbers."""
    steps: dict[int, Step] = {}
    for line, step, layer, slot, expert in _rows(file):
        for name, value, count in (("layer", layer, n_layers), ("expert", expert, n_experts)):
            if not 0 <= value < count:
                raise UsageError(f"{file} line {line}: {name} {value}, the model has {count}")
        chosen = steps.setdefault(step, {}).setdefault(layer, {})
        if slot in chosen or expert in chosen.values():
            raise UsageError(
                f"{file} line {line}: step {step} has slot {slot} or expert {expert} of layer "
                f"{layer} already"
            )
        chosen[slot] = expert
    return [step for _, step in sorted(steps.items())]


def _rows(file: Path) -> Iterator[tuple[int, int, int, int, int]]:
    """The number of each line, and the four columns."""
    line = 1
    try:
        with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as text:
            reader = csv.DictReader(text)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise UsageError(f"{file} line 1: there is no column {missing[0]}")
            for row in reader:
                line = reader.line_num
                step, layer, slot, expert = (int(row[name] or "") for name in _COLUMNS)
                yield line, step, layer, slot, expert
    except (ValueError, csv.Error) as error:  # UnicodeDecodeError is a ValueError
        raise UsageError(f"{file} line {line}: {error}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"{file}: {error}") from None
