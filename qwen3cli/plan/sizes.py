"""What a token reads of a model, known from the header of its file or from its shape alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3cli.engine import DEFAULT_CONTEXT, ModelFile

if TYPE_CHECKING:
    from qwen3cli.hub.releases import Release

OVERHEAD = 300_000_000  # the interpreter, the tokenizer, working memory of a pass
KV_ITEM = {"f16": 2.0, "f32": 4.0, "q8": 34 / 32}  # bytes of a value in the kv cache
_PAGE = 4096
_FLOAT = ("F32", "F16", "BF16")  # multiplied as f32, all else as int8

Row = tuple[str, tuple[int, ...], str, int]  # a tensor's name, shape, type and bytes


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
    int8: float = 0.0  # products for a token of a prompt, but those of the output matrix
    f32: float = 0.0

    def kv_bytes(self, positions: float, kv: str | None = None) -> float:
        """Of the kv cache for so many positions."""
        return positions * self.kv_token * KV_ITEM[kv or self.kv]

    def least(self, n_ctx: int, kv: str | None = None) -> int:
        """Memory that it takes to run with such a context, the other experts in the file."""
        kv_bytes = math.ceil(self.kv_bytes(n_ctx, kv))
        return self.dense + OVERHEAD + kv_bytes + self.least_experts

    def needed(self, n_ctx: int, kv: str | None = None) -> int:
        """Memory for all of it."""
        pages = math.ceil(self.experts * 1.01)  # pages round up
        return self.least(n_ctx, kv) - self.least_experts + pages


@dataclass(frozen=True)
class _Counts:
    """Of the hyperparameters those that sizes follow from."""

    n_layers: int
    n_kv: int  # values of the keys of a token in a layer
    n_context: int
    n_experts: int
    n_used: int


def sizes_of(path: Path) -> Sizes | None:
    """None for a file that the engine will refuse."""
    file = ModelFile(path)
    meta = file.metadata(0)
    architecture = meta.get("general.architecture")

    def count(key: str) -> int:
        value = meta.get(f"{architecture}.{key}")
        return value if type(value) is int and value > 0 else 0

    counts = _Counts(
        n_layers=count("block_count"),
        n_kv=count("attention.head_count_kv") * count("attention.key_length"),
        n_context=count("context_length") or DEFAULT_CONTEXT,
        n_experts=count("expert_count"),
        n_used=count("expert_used_count"),
    )
    table = file.tensors()
    mixture = architecture == "qwen3moe"
    if not counts.n_layers or not (mixture or architecture == "qwen3"):
        return None
    if mixture != any("_exps." in name for name, *_ in table):
        return None
    if mixture and not (counts.n_experts and counts.n_used):
        return None
    return _sizes(counts, table)


def sizes_of_release(release: Release, quant: str) -> Sizes:
    """Of the file that this quantization is, there or not. Raises UsageError for an unknown
    quant."""
    hp = release.shape
    experts = hp.experts
    counts = _Counts(
        n_layers=hp.n_layers,
        n_kv=hp.n_kv_heads * hp.head_dim,
        # the files of hybrids let a context go a little beyond the training
        n_context=hp.n_context if release.mode == "hybrid" else release.context,
        n_experts=experts.count if experts else 0,
        n_used=experts.used if experts else 0,
    )
    return _sizes(counts, release.tensors(quant))


def _sizes(counts: _Counts, table: Iterable[Row]) -> Sizes:
    rows = {name: (shape, kind, n_bytes) for name, shape, kind, n_bytes in table}
    experts = {name: n_bytes for name, (_, _, n_bytes) in rows.items() if "_exps." in name}
    used = counts.n_used / counts.n_experts if experts else 0.0
    products = {"int8": 0.0, "f32": 0.0}
    for name, (shape, kind, _) in rows.items():
        if len(shape) > 1 and name.startswith("blk."):
            share = used if name in experts else 1.0
            products["f32" if kind in _FLOAT else "int8"] += share * math.prod(shape)
    dense = sum(n_bytes for _, _, n_bytes in rows.values()) - sum(experts.values())
    if "output.weight" in rows and "token_embd.weight" in rows:
        # a row of the embedding is read for a token, unless it is the output matrix, too
        dense -= rows["token_embd.weight"][2]
    _, kind, _ = rows.get("blk.0.attn_k.weight", ((), "", 0))
    return Sizes(
        dense=dense,
        experts=sum(experts.values()),
        used=used,
        least_experts=_least_experts(experts, counts) if experts else 0,
        kv_token=2 * counts.n_layers * counts.n_kv,
        kv="f32" if kind == "F32" else "f16",  # as the engine has it
        n_ctx=min(counts.n_context, DEFAULT_CONTEXT),
        **products,
    )


def _least_experts(experts: dict[str, int], counts: _Counts) -> int:
    """Room for the experts that one token meets, of the largest size; one is computed
    while the next is read. Never less than what the engine asks for, which knows where in a page
    each matrix begins: here all that it may touch are counted."""
    of_layer: dict[str, int] = {}
    for name, n_bytes in experts.items():
        layer = name.rsplit(".", 2)[0]
        pages = (n_bytes // counts.n_experts + 2 * _PAGE - 1) // _PAGE
        of_layer[layer] = of_layer.get(layer, 0) + pages * _PAGE
    return max(counts.n_used * counts.n_layers, 2) * max(of_layer.values())
