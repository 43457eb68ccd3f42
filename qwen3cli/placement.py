"""What of a model lies where: decided before it is opened, from sizes alone.

Every token reads the dense weights and the experts that it is routed to. The former are held in
memory, always; of the latter as many as the memory has room for, the rest stays in the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quant.shards import files
from qwen3cli.engine import DEFAULT_CONTEXT, ModelFile
from qwen3cli.errors import DoesNotFit, UsageError
from qwen3cli.memory import available, parse_bytes

_KV_ITEM = {"f16": 2.0, "f32": 4.0, "q8": 1.0625}  # bytes
_OVERHEAD = 300_000_000  # the interpreter, the tokenizer, working memory of a pass
_SHARE = 0.85  # of what is available, with --ram auto: the rest is for the user's other programs
_PAGE = 4096


@dataclass(frozen=True)
class Sizes:
    """Bytes of a mixture of experts."""

    dense: int  # read for every token
    experts: int
    least_experts: int  # the least that a store of experts works with
    kv_token: int  # values in the kv cache, for a token
    n_ctx: int  # the most tokens that a session takes when nobody names a number


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


def sizes_of(path: Path) -> Sizes | None:
    """None for a dense model, and for a file that the engine will refuse."""
    file = ModelFile(path)
    meta = file.metadata(0)

    def count(key: str) -> int:
        value = meta.get(f"qwen3moe.{key}")
        return value if type(value) is int and value > 0 else 0

    n_layers, n_experts, n_used = map(count, ("block_count", "expert_count", "expert_used_count"))
    head = 2 * count("attention.head_count_kv") * count("attention.key_length")
    tensors = {name: n_bytes for name, _, _, n_bytes in file.tensors()}
    experts = {name: n_bytes for name, n_bytes in tensors.items() if "_exps." in name}
    if meta.get("general.architecture") != "qwen3moe" or not (n_layers and n_experts and experts):
        return None
    of_layer: dict[str, int] = {}
    for name, n_bytes in experts.items():
        layer = name.rsplit(".", 2)[0]
        # the pages that a matrix touches, wherever it begins
        pages = (n_bytes // n_experts + 2 * _PAGE - 1) // _PAGE
        of_layer[layer] = of_layer.get(layer, 0) + pages * _PAGE
    embedding = tensors.pop("token_embd.weight", 0)
    dense = sum(tensors.values()) - sum(experts.values())
    return Sizes(
        # a row of the embedding is read for a token, unless it is the output matrix, too
        dense=dense if "output.weight" in tensors else dense + embedding,
        experts=sum(experts.values()),
        least_experts=n_layers * n_used * max(of_layer.values()),
        kv_token=n_layers * head,
        n_ctx=min(count("context_length") or DEFAULT_CONTEXT, DEFAULT_CONTEXT),
    )


def place(
    path: Path, ram: str | None, *, n_ctx: int | None = None, kv: str | None = None
) -> Placement:
    """ram: "8G", or "auto" (and None): what is available now, if the file does not fit into it.

    Raises UsageError, and for a ram that was asked for DoesNotFit with what is needed.
    """
    asked = None if ram in (None, "auto") else parse_bytes(str(ram), "--ram")
    sizes = sizes_of(path)
    if sizes is None:
        if asked is not None and sum(file.stat().st_size for file in files(path)) > asked:
            raise UsageError(f"--ram: {path.name} has no experts that could stay in the file")
        return Placement(None, n_ctx)
    free = available()
    if asked is None and free is None:
        return Placement(None, n_ctx)
    most = asked if asked is not None else int((free or 0) * _SHARE)
    item = _KV_ITEM[kv or "f16"]
    context = n_ctx or _context(most, sizes.kv_token * item, sizes.n_ctx)
    rest = int(most - sizes.dense - _OVERHEAD - context * sizes.kv_token * item)
    if rest >= sizes.experts * 1.01:  # pages round up
        return Placement(most, context, sizes=sizes)
    if rest < sizes.least_experts:
        if asked is None:  # the page cache makes do with what there is
            return Placement(None, n_ctx)
        needed = most - rest + sizes.least_experts
        raise DoesNotFit(
            f"{path.name}: {most / 1e9:.1f} GB of memory is too little: "
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
