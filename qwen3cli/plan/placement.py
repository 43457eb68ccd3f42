"""What of a model lies where: decided before it is opened, from sizes alone.

Every token reads the dense weights and the experts that it is routed to. The former are held in
memory, always; of the latter as many as the memory has room for, the rest stays in the file. What
a GPU computes lies in its own memory, and counts there alone: see gpu.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3cli.errors import DoesNotFit
from qwen3cli.plan.gpu import Card, Share, share_of
from qwen3cli.plan.memory import amount, available, parse_bytes, part
from qwen3cli.plan.sizes import OVERHEAD, Sizes, sizes_of

if TYPE_CHECKING:  # what it needs takes longer to import than a model that fits to be placed
    from qwen3cli.plan.predict import Speed

_SHARE = 0.85  # of what is available, with --ram auto: the rest is for the user's other programs
_LEAST_CONTEXT = 2048


@dataclass(frozen=True)
class Placement:
    """expert_bytes 0: everything is used where it is mapped. What is needed is what the host needs:
    a GPU has the rest."""

    ram: int | None  # what it was decided with; None: not known
    n_ctx: int | None
    expert_bytes: int = 0
    sizes: Sizes | None = None
    needed: int = 0  # for all of it to be in memory
    least: int = 0  # for it to be offloaded; as much as needed if it is dense
    gpu: Share | None = None

    @property
    def host(self) -> Sizes | None:
        """Of what lies in the host's memory."""
        return self.sizes if self.sizes is None else _host(self.sizes, self.gpu)

    @property
    def on_gpu(self) -> float:
        """The share of the weights that a GPU has."""
        if self.sizes is None or self.gpu is None:
            return 0.0
        there = self.sizes.above(self.gpu.layers)
        experts = self.gpu.expert_bytes or there.experts
        return (there.dense + experts) / (self.sizes.dense + self.sizes.experts)

    @property
    def where(self) -> str:
        """resident: in memory; offloaded: with some of the experts; mapped: the page cache makes do
        with what there is; unknown: mapped, into nobody knows how much memory."""
        if self.expert_bytes:
            return "offloaded"
        if self.ram is None:
            return "unknown"
        return "resident" if self.needed <= self.ram else "mapped"

    def describe(self, name: str, speed: Speed | None = None) -> str:
        """A line for the user, of a model that is not all in one memory. speed: of its decode."""
        parts = []
        if self.gpu:
            parts.append(self._on_gpu(self.gpu))
        if self.expert_bytes:
            parts.append(self._in_memory())
            parts.append("the other experts are read from the file")
        text = f"{name}: {'; '.join(parts)}"
        if speed is None:
            return text
        about = f"about {speed.tok_s:{'.2g' if speed.tok_s < 10 else '.0f'}} tok/s"
        return f"{text}, {'for ' if self.expert_bytes else ''}{about}"

    def _in_memory(self) -> str:
        """What the host holds, if not all experts."""
        host = self.host
        assert host is not None and self.ram is not None
        held = f"{part(self.expert_bytes, host.experts)} of experts"
        held += f" ({self.expert_bytes / host.experts:.0%})"
        if host.dense:
            held = f"{amount(host.dense)} that every token needs, {held}"
        if host.kv_token:
            held += f" and {self.n_ctx:,} tokens"
        return f"{amount(self.ram)} of memory for {held}"

    def _on_gpu(self, gpu: Share) -> str:
        assert self.sizes is not None
        every = len(self.sizes.layers)
        rest = every - gpu.layers
        text = f"{gpu.layers} of {every} layers" if rest else f"all {every} layers"
        text += f" on {gpu.card.name}"
        if gpu.expert_bytes:
            experts = self.sizes.above(gpu.layers).experts
            text += f" with {amount(gpu.expert_bytes)} of their {amount(experts)} of experts"
            text += f" ({gpu.expert_bytes / experts:.0%})"
        if rest:
            text += f", the first{f' {rest}' if rest > 1 else ''} on the CPU"
        if rest and self.expert_bytes:  # told with what is in memory
            return text
        return f"{text}; {gpu.n_ctx:,} tokens of context"

    def warning(self, name: str, speed: Speed | None = None) -> str:
        """A line for the user, of a model that is mapped into too little memory. speed: of its
        decode, if the page cache does well."""
        from qwen3cli.plan.advice import instead

        assert self.ram is not None
        text = (
            f"qwen3: {name}: needs {amount(self.least, math.ceil)} of memory, "
            f"{amount(self.ram, math.floor)} are available: it will read from the disk all the time"
        )
        if speed is not None:
            text += f", for {speed.limit:.2g} tok/s at most"
        return text + instead(name, self.ram, n_ctx=self.n_ctx)


def place(
    path: Path,
    ram: str | None,
    *,
    n_ctx: int | None = None,
    kv: str | None = None,
    share: float = 1.0,
    card: Card | None = None,
) -> Placement:
    """Of a model that is to run. ram: "8G", or "auto" (and None): what is available now, if the
    file does not fit into it. share: of that memory, where several models are open. A dense
    model is mapped whatever is available: the page cache may make do. card: a GPU, to compute
    what it has room for.

    Raises UsageError, and for a ram that was asked for DoesNotFit with what is needed and what
    fits instead; so also for a number of layers on the card.
    """
    sizes = sizes_of(path)
    if sizes is None:
        return Placement(None, n_ctx)
    if sizes.experts or ram not in (None, "auto"):
        found = place_sizes(path.name, sizes, ram, n_ctx=n_ctx, kv=kv, share=share, card=card)
        # who makes do with less memory than is needed, makes do with any context
        fits = found.gpu or found.where in ("resident", "offloaded")
        return found if fits else replace(found, n_ctx=n_ctx)
    # all that is available counts: what it takes of the page cache comes back when asked for
    free = available()
    most = None if free is None else int(free * share)
    gpu = _share(path.name, sizes, card, most, n_ctx, kv)
    context = gpu.n_ctx if gpu else n_ctx
    least = _host(sizes, gpu).least(context or min(_LEAST_CONTEXT, sizes.n_ctx), kv)
    return Placement(most, context, sizes=sizes, needed=least, least=least, gpu=gpu)


def place_sizes(
    name: str,
    sizes: Sizes,
    ram: str | None,
    *,
    n_ctx: int | None = None,
    kv: str | None = None,
    share: float = 1.0,
    card: Card | None = None,
) -> Placement:
    """As place, of a model of these sizes, dense ones judged as well."""
    found = plan(sizes, budget(ram, share), n_ctx=n_ctx, kv=kv, card=card, name=name)
    if found.where == "mapped" and ram not in (None, "auto"):
        raise _refusal(name, found, share, kv)
    return found


def budget(ram: str | None, share: float = 1.0) -> int | None:
    """The memory that ram says, None where nobody knows what is available. Raises UsageError."""
    if ram not in (None, "auto"):
        return int(parse_bytes(str(ram), "--ram") * share)
    free = available()
    return None if free is None else int(free * _SHARE * share)


def plan(
    sizes: Sizes,
    ram: int | None,
    *,
    n_ctx: int | None = None,
    kv: str | None = None,
    card: Card | None = None,
    name: str = "",
) -> Placement:
    """In so many bytes; where it does not fit, it is mapped. Raises as share_of."""
    gpu = _share(name, sizes, card, ram, n_ctx, kv)
    found = _plan(_host(sizes, gpu), ram, n_ctx, kv)
    if gpu is None:
        return found
    assert found.n_ctx is not None
    if card and gpu.n_ctx != found.n_ctx:  # both hold the same tokens: the fewer
        n_ctx = min(gpu.n_ctx, found.n_ctx)
        gpu = share_of(name, sizes, card, n_ctx=n_ctx, kv=kv) or gpu
        found = _plan(_host(sizes, gpu), ram, n_ctx, kv)
    if gpu.card.unified and found.where in ("offloaded", "mapped"):
        return _one_memory(sizes, found, gpu, kv)
    return replace(found, sizes=sizes, gpu=gpu)


def _plan(sizes: Sizes, ram: int | None, n_ctx: int | None, kv: str | None) -> Placement:
    context = n_ctx or (sizes.n_ctx if ram is None else _context(ram, sizes, kv))
    needed, least = sizes.needed(context, kv), sizes.least(context, kv)
    held = 0
    if sizes.experts and ram is not None and least <= ram < needed:
        held = ram - (least - sizes.least_experts)
    return Placement(ram, context, held, sizes, needed, least)


def _share(
    name: str, sizes: Sizes, card: Card | None, ram: int | None, n_ctx: int | None, kv: str | None
) -> Share | None:
    """What a GPU takes; of one memory for both no more than ram."""
    if card is None:
        return None
    if card.unified and ram is not None:
        card = card.within(max(0, ram - OVERHEAD))
    return share_of(name, sizes, card, n_ctx=n_ctx, kv=kv)


def _host(sizes: Sizes, gpu: Share | None) -> Sizes:
    if gpu is None or gpu.card.unified:
        return sizes
    return sizes.below(gpu.layers, experts=gpu.expert_bytes > 0)


def _one_memory(sizes: Sizes, found: Placement, gpu: Share, kv: str | None) -> Placement:
    """Of a model that does not fit into memory which is the GPU's as well: its slots get what is
    there for experts, the host's only what it needs to read the others."""
    if found.where == "mapped":  # what a GPU uses cannot give way
        return found
    assert found.ram is not None
    room = found.ram - OVERHEAD - sizes.least_experts
    card = replace(gpu.card.within(room), layers=None)
    less = share_of("", sizes, card, n_ctx=found.n_ctx, kv=kv)
    if less is None or less.layers < len(sizes.layers):
        return found
    return replace(found, expert_bytes=sizes.least_experts, gpu=less)


def _refusal(name: str, found: Placement, share: float, kv: str | None) -> DoesNotFit:
    from qwen3cli.plan.advice import instead

    sizes, ram = found.host, found.ram
    assert sizes is not None and ram is not None
    least = math.ceil(found.least / share / 1e7)  # in 10 MB, as --ram takes it
    enough = f"{least / 100:.2f} GB" if least >= 100 else f"{least}0 MB"
    text = (
        f"{name}: {amount(ram / share)} of memory is too little: {enough} are needed with a "
        f"context of {found.n_ctx:,} tokens (--ctx); {amount(sizes.dense)} of weights are read "
        "for every token"
    )
    if sizes.experts:
        text += f", and one token meets {amount(sizes.least_experts)} of experts"
    return DoesNotFit(text + instead(name, ram, n_ctx=found.n_ctx, kv=kv))


def _context(ram: int, sizes: Sizes, kv: str | None) -> int:
    """A power of two of tokens from 2,048 on, or the model's: as many as there is room for, but
    beside experts, which gain more by it, no more than an eighth of the memory holds."""
    room = ram - sizes.dense - OVERHEAD - sizes.least_experts
    most = min(room, ram / 8) if sizes.experts else room
    n = min(_LEAST_CONTEXT, sizes.n_ctx)
    while n < sizes.n_ctx and sizes.kv_bytes(min(2 * n, sizes.n_ctx), kv) <= most:
        n = min(2 * n, sizes.n_ctx)
    return n
