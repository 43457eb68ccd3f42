"""What of a model lies where: decided before it is opened, from sizes alone.

Every token reads the dense weights and the experts that it is routed to. The former are held in
memory, always; of the latter as many as the memory has room for, the rest stays in the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from quant.shards import files
from qwen3cli.errors import DoesNotFit, UsageError
from qwen3cli.memory import amount, available, parse_bytes
from qwen3cli.sizes import Sizes, sizes_of

if TYPE_CHECKING:  # what it needs takes longer to import than a model that fits to be placed
    from qwen3cli.predict import Speed

OVERHEAD = 300_000_000  # the interpreter, the tokenizer, working memory of a pass
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
    model is mapped, whatever there is.

    Raises UsageError, and for a ram that was asked for DoesNotFit with what is needed.
    """
    sizes = sizes_of(path)
    if sizes is not None and sizes.experts:
        found = place_sizes(path.name, sizes, ram, n_ctx=n_ctx, kv=kv, share=share)
        # who makes do with less memory than is needed, makes do with any context
        return found if found.where in ("resident", "offloaded") else replace(found, n_ctx=n_ctx)
    most = math.inf if ram in (None, "auto") else parse_bytes(str(ram), "--ram")
    if sum(file.stat().st_size for file in files(path)) > most:
        raise UsageError(f"--ram: {path.name} has no experts that could stay in the file")
    return Placement(None, n_ctx, sizes=sizes)


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
    asked = None if ram in (None, "auto") else int(parse_bytes(str(ram), "--ram") * share)
    free = None if asked is not None else available()
    most = asked if free is None else int(free * _SHARE * share)
    context = n_ctx or (sizes.n_ctx if most is None else _context(most, sizes, kv))
    always = sizes.dense + OVERHEAD + math.ceil(sizes.kv_bytes(context, kv))
    needed = always + math.ceil(sizes.experts * 1.01)  # pages round up
    least = always + sizes.least_experts
    held = 0
    if most is not None and needed > most:
        if least <= most:
            held = most - always
        elif asked is not None:  # else the page cache makes do with what there is
            raise _refusal(name, sizes, most, least, context, share)
    return Placement(most, context, held, sizes, needed, least)


def _refusal(
    name: str, sizes: Sizes, most: int, least: int, context: int, share: float
) -> DoesNotFit:
    enough = math.ceil(least / share / 1e7) / 100  # as --ram takes it
    text = (
        f"{name}: {amount(most / share)} of memory is too little: {enough:.2f} GB are needed with "
        f"a context of {context:,} tokens (--ctx); {amount(sizes.dense)} of weights are read for "
        "every token"
    )
    if sizes.experts:
        text += f", and one token meets {amount(sizes.least_experts)} of experts"
    return DoesNotFit(text)


def _context(ram: int, sizes: Sizes, kv: str | None) -> int:
    """A power of two of tokens from 2,048 on, or the model's: as many as there is room for, but
    beside experts, which gain more by it, no more than an eighth of the memory holds."""
    room = ram - sizes.dense - OVERHEAD - sizes.least_experts
    most = min(room, ram / 8) if sizes.experts else room
    n = min(_LEAST_CONTEXT, sizes.n_ctx)
    while n < sizes.n_ctx and sizes.kv_bytes(min(2 * n, sizes.n_ctx), kv) <= most:
        n = min(2 * n, sizes.n_ctx)
    return n
