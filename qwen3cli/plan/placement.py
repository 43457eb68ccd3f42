"""What of a model lies where: decided before it is opened, from sizes alone.

Every token reads the dense weights and the experts that it is routed to. The former are held in
memory, always; of the latter as many as the memory has room for, the rest stays in the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3cli.errors import DoesNotFit
from qwen3cli.plan.memory import amount, available, parse_bytes
from qwen3cli.plan.sizes import OVERHEAD, Sizes, sizes_of

if TYPE_CHECKING:  # what it needs takes longer to import than a model that fits to be placed
    from qwen3cli.plan.predict import Speed

_SHARE = 0.85  # of what is available, with --ram auto: the rest is for the user's other programs
_LEAST_CONTEXT = 2048


@dataclass(frozen=True)
class Placement:
    """expert_bytes 0: everything is used where it is mapped."""

    ram: int | None  # what it was decided with; None: not known
    n_ctx: int | None
    expert_bytes: int = 0
    sizes: Sizes | None = None
    needed: int = 0  # for all of it to be in memory
    least: int = 0  # for it to be offloaded; as much as needed if it is dense

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
        """A line for the user, of a model whose experts do not all fit. speed: of its decode."""
        assert self.sizes is not None and self.ram is not None
        held, experts = self.expert_bytes / 1e9, self.sizes.experts / 1e9
        text = (
            f"{name}: {self.ram / 1e9:.1f} GB of memory for {self.sizes.dense / 1e9:.1f} GB that "
            f"every token needs, {held:.1f} of {experts:.1f} GB of experts "
            f"({held / experts:.0%}) and {self.n_ctx:,} tokens; the other experts are read from "
            "the file"
        )
        if speed is None:
            return text
        return f"{text}, for about {speed.tok_s:{'.2g' if speed.tok_s < 10 else '.0f'}} tok/s"

    def warning(self, name: str, speed: Speed | None = None) -> str:
        """A line for the user, of a model that is mapped into too little memory. speed: of its
        decode, if the page cache does well."""
        from qwen3cli.plan.advice import instead

        assert self.ram is not None
        text = (
            f"qwen3: {name}: needs {amount(self.least)} of memory, {amount(self.ram)} are "
            "available: it will read from the disk all the time"
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
) -> Placement:
    """Of a model that is to run. ram: "8G", or "auto" (and None): what is available now, if the
    file does not fit into it. share: of that memory, where several models are open. A dense
    model is mapped whatever is available: the page cache may make do.

    Raises UsageError, and for a ram that was asked for DoesNotFit with what is needed and what
    fits instead.
    """
    sizes = sizes_of(path)
    if sizes is None:
        return Placement(None, n_ctx)
    if not sizes.experts and ram in (None, "auto"):
        # all that is available counts: what it takes of the page cache comes back when asked for
        free = available()
        least = sizes.least(n_ctx or min(_LEAST_CONTEXT, sizes.n_ctx), kv)
        most = None if free is None else int(free * share)
        return Placement(most, n_ctx, sizes=sizes, needed=least, least=least)
    found = place_sizes(path.name, sizes, ram, n_ctx=n_ctx, kv=kv, share=share)
    # who makes do with less memory than is needed, makes do with any context
    return found if found.where in ("resident", "offloaded") else replace(found, n_ctx=n_ctx)


def place_sizes(
    name: str,
    sizes: Sizes,
    ram: str | None,
    *,
    n_ctx: int | None = None,
    kv: str | None = None,
    share: float = 1.0,
) -> Placement:
    """As place, of a model of these sizes, dense ones judged as well."""
    found = plan(sizes, budget(ram, share), n_ctx=n_ctx, kv=kv)
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
    sizes: Sizes, ram: int | None, *, n_ctx: int | None = None, kv: str | None = None
) -> Placement:
    """In so many bytes; where it does not fit, it is mapped."""
    context = n_ctx or (sizes.n_ctx if ram is None else _context(ram, sizes, kv))
    needed, least = sizes.needed(context, kv), sizes.least(context, kv)
    held = 0
    if sizes.experts and ram is not None and least <= ram < needed:
        held = ram - (least - sizes.least_experts)
    return Placement(ram, context, held, sizes, needed, least)


def _refusal(name: str, found: Placement, share: float, kv: str | None) -> DoesNotFit:
    from qwen3cli.plan.advice import instead

    sizes, ram = found.sizes, found.ram
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
