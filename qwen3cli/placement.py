"""What of a model lies where: decided before it is opened, from sizes alone.

Every token reads the dense weights and the experts that it is routed to. The former are held in
memory, always; of the latter as many as the memory has room for, the rest stays in the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwen3cli.errors import DoesNotFit, UsageError
from qwen3cli.memory import available, parse_bytes
from qwen3cli.sizes import KV_ITEM, Sizes, sizes_of

_OVERHEAD = 300_000_000  # the interpreter, the tokenizer, working memory of a pass
_SHARE = 0.85  # of what is available, with --ram auto: the rest is for the user's other programs


@dataclass(frozen=True)
class Placement:
    """expert_bytes 0: everything is used where it is mapped."""

    ram: int | None
    n_ctx: int | None
    expert_bytes: int = 0
    sizes: Sizes | None = None

    def describe(self, name: str) -> str:
        """A line for the user, of a model whose experts do not all fit."""
        assert self.sizes is not None and self.ram is not None
        held, experts = self.expert_bytes / 1e9, self.sizes.experts / 1e9
        return (
            f"{name}: {self.ram / 1e9:.1f} GB of memory for {self.sizes.dense / 1e9:.1f} GB that "
            f"every token needs, {held:.1f} of {experts:.1f} GB of experts "
            f"({held / experts:.0%}) and {self.n_ctx:,} tokens; the other experts are read from "
            "the file"
        )


def place(
    path: Path,
    ram: str | None,
    *,
    n_ctx: int | None = None,
    kv: str | None = None,
    share: float = 1.0,
) -> Placement:
    """ram: "8G", or "auto" (and None): what is available now, if the file does not fit into it.
    share: of that memory, where several models are open.

    Raises UsageError, and for a ram that was asked for DoesNotFit with what is needed.
    """
    asked = None if ram in (None, "auto") else parse_bytes(str(ram), "--ram")
    sizes = sizes_of(path)
    if sizes is None or not sizes.experts:
        if asked is not None:
            raise UsageError(f"--ram: {path.name} has no experts that could stay in the file")
        return Placement(None, n_ctx)
    free = available()
    if asked is None and free is None:
        return Placement(None, n_ctx)
    most = int(share * (asked if asked is not None else (free or 0) * _SHARE))
    item = KV_ITEM[kv or "f16"]
    context = n_ctx or _context(most, sizes.kv_token * item, sizes.n_ctx)
    rest = int(most - sizes.dense - _OVERHEAD - context * sizes.kv_token * item)
    if rest >= sizes.experts * 1.01:  # pages round up
        return Placement(most, context, sizes=sizes)
    if rest < sizes.least_experts:
        if asked is None:  # the page cache makes do with what there is
            return Placement(None, n_ctx)
        needed = (most - rest + sizes.least_experts) / share
        raise DoesNotFit(
            f"{path.name}: {most / share / 1e9:.1f} GB of memory is too little: "
            f"{needed / 1e9:.1f} GB are needed with a context of {context:,} tokens "
            f"(--ctx); {sizes.dense / 1e9:.1f} GB of weights are read for every token, and one "
            f"token meets {sizes.least_experts / 1e9:.1f} GB of experts"
        )
    return Placement(most, context, rest, sizes)


def _context(ram: int, token_bytes: float, most: int) -> int:
    """As many tokens as an eighth of the memory holds, a power of two from 2,048 on, or most."""
    if most * token_bytes <= ram / 8:
        return most
    n = 2048
    while 2 * n * token_bytes <= ram / 8:
        n *= 2
    return min(n, most)
