"""Opens a model where its placement says: on the GPU what fits there, the rest here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwen3cli.engine import Model, Session
from qwen3cli.errors import DoesNotFit, Qwen3Error
from qwen3cli.plan.gpu import Card, Share, device_type, smaller
from qwen3cli.plan.placement import Placement, place

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Opening:
    """What is asked of a model that is to run."""

    path: Path
    ram: str | None = None
    card: Card | None = None  # a GPU to use
    n_ctx: int | None = None
    kv: str | None = None
    threads: int = 0
    share: float = 1.0  # of the memory, where several models are open


def open_session(opening: Opening, tell: Tell, *, expected: bool = False) -> Session:
    """An empty session of a model, as open_model opens it."""
    model, placement = open_model(opening, tell, expected=expected)
    return model.session(n_ctx=placement.n_ctx, kv=opening.kv)


def open_model(opening: Opening, tell: Tell, *, expected: bool = False) -> tuple[Model, Placement]:
    """A model, and where it lies. tell: if it is not all in one memory; expected: and how fast it
    will be, for which the machine may have to be measured.

    A GPU that has too little memory after all, for a session as well, gets less of the model, in
    the end nothing; that is told, too. Raises as Model and place do; and what is wrong with a GPU
    where it was to have a number of layers."""
    card, why = opening.card, ""
    while True:
        placement = _placed(opening, card)
        for line in _plan(opening, placement, expected, why):
            tell(line)
        model = Model(opening.path, threads=opening.threads, expert_bytes=placement.expert_bytes)
        gpu = placement.gpu
        if gpu is None:
            return model, placement
        try:
            _use(model, placement, gpu, opening.kv)
            return model, placement
        except Qwen3Error as error:
            if gpu.card.layers is not None:
                raise
            too_little, why = isinstance(error, DoesNotFit), str(error)
        del model  # and what it has of the GPU
        card = smaller(gpu) if too_little else None


def _placed(opening: Opening, card: Card | None) -> Placement:
    return place(
        opening.path,
        opening.ram,
        n_ctx=opening.n_ctx,
        kv=opening.kv,
        share=opening.share,
        card=card,
    )


def _use(model: Model, placement: Placement, gpu: Share, kv: str | None) -> None:
    """Raises DoesNotFit, also where a session has no room beside the model."""
    assert placement.sizes is not None
    model.use_gpu(gpu.card.index, gpu.layers, expert_bytes=gpu.expert_bytes)
    model.session(n_ctx=placement.n_ctx, kv=device_type(placement.sizes, kv))


def _plan(opening: Opening, placement: Placement, expected: bool, why: str) -> list[str]:
    """What to tell of a model that is not all in one memory, or, and why, was to have another
    place on a GPU."""
    sizes, host, gpu = placement.sizes, placement.host, placement.gpu
    if sizes is None or host is None:
        return []
    lines = [f"qwen3: {why}: the CPU computes it"] if why and not gpu else []
    mapped = placement.where == "mapped"
    split = gpu is not None and (gpu.layers < len(sizes.layers) or gpu.expert_bytes > 0)
    again = bool(why and gpu)
    if not (mapped or split or again or placement.expert_bytes):
        return lines
    speed = limit = None
    if expected:
        from qwen3cli.plan.machine import gpu_rates, rates
        from qwen3cli.plan.predict import at_best, predict

        machine = rates(opening.path, opening.threads)
        there = gpu_rates(gpu.card) if gpu else None
        if mapped and placement.ram is not None:
            limit = at_best(host, placement.ram, machine)
        elif gpu is None or there is not None:
            both = (gpu, there) if gpu and there else None
            speed = predict(sizes, placement.expert_bytes, machine, kv=opening.kv, gpu=both)
    if split or again or placement.expert_bytes:
        line = placement.describe(opening.path.stem, speed)
        lines.append(f"qwen3: {why}: trying less of it: {line}" if again else line)
    if mapped:
        lines.append(placement.warning(opening.path.name, limit))
    return lines
