"""What a token reads of a model, known from the header of its file alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwen3cli.engine import DEFAULT_CONTEXT, ModelFile

KV_ITEM = {"f16": 2.0, "f32": 4.0, "q8": 34 / 32}  # bytes of a value in the kv cache
_PAGE = 4096


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model's weights; of a dense one all are dense."""

    dense: int  # read for every token
    experts: int
    used: float  # of the experts, the share that a token is routed to
    least_experts: int  # what a store of experts works with; the engine's least is never more
    kv_token: int  # values in the kv cache, for a token
    kv: str  # type of the cache when nobody names one
    n_ctx: int  # the most tokens that a session takes when nobody names a number

    def kv_bytes(self, positions: float, kv: str | None = None) -> float:
        """Of the kv cache for so many positions."""
        return positions * self.kv_token * KV_ITEM[kv or self.kv]


def sizes_of(path: Path) -> Sizes | None:
    """None for a file that the engine will refuse."""
    file = ModelFile(path)
    meta = file.metadata(0)
    architecture = meta.get("general.architecture")

    def count(key: str) -> int:
        value = meta.get(f"{architecture}.{key}")
        return value if type(value) is int and value > 0 else 0

    table = file.tensors()
    kinds = {name: kind for name, _, kind, _ in table}
    tensors = {name: n_bytes for name, _, _, n_bytes in table}
    experts = {name: n_bytes for name, n_bytes in tensors.items() if "_exps." in name}
    n_layers, n_experts, n_used = map(count, ("block_count", "expert_count", "expert_used_count"))
    mixture = architecture == "qwen3moe"
    if not n_layers or not (mixture or architecture == "qwen3"):
        return None
    if mixture != bool(experts) or (mixture and not (n_experts and n_used)):
        return None
    embedding = tensors.pop("token_embd.weight", 0)
    dense = sum(tensors.values()) - sum(experts.values())
    head = 2 * count("attention.head_count_kv") * count("attention.key_length")
    return Sizes(
        # a row of the embedding is read for a token, unless it is the output matrix, too
        dense=dense if "output.weight" in tensors else dense + embedding,
        experts=sum(experts.values()),
        used=n_used / n_experts if mixture else 0.0,
        least_experts=_least_experts(experts, n_experts, n_used * n_layers) if mixture else 0,
        kv_token=n_layers * head,
        kv="f32" if kinds.get("blk.0.attn_k.weight") == "F32" else "f16",  # as the engine has it
        n_ctx=min(count("context_length") or DEFAULT_CONTEXT, DEFAULT_CONTEXT),
    )


def _least_experts(experts: dict[str, int], n_experts: int, n_met: int) -> int:
    """Room for the n_met experts that one token meets, of the largest size; one is computed
    while the next is read. Never less than what the engine asks for, which knows where in a page
    each matrix begins: here all that it may touch are counted."""
    of_layer: dict[str, int] = {}
    for name, n_bytes in experts.items():
        layer = name.rsplit(".", 2)[0]
        pages = (n_bytes // n_experts + 2 * _PAGE - 1) // _PAGE
        of_layer[layer] = of_layer.get(layer, 0) + pages * _PAGE
    return max(n_met, 2) * max(of_layer.values())
