"""What a token reads of a model, known from the header of its file or from its shape alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3cli.engine import DEFAULT_CONTEXT, ModelFile

if TYPE_CHECKING:
    from qwen3cli.hub.releases import Release

OVERHEAD = 300_000_000  # the interpreter, the tokenizer, working memory of a pass
KV_ITEM = {"f16": 2.0, "f32": 4.0, "q8": 34 / 32}  # bytes of a value in the kv cache
_PAGE = 4096
_FLOAT = ("F32", "F16", "BF16")  # multiplied as f32, all else as int8
_FEW, _PARTS, _TILE, _TOP = 8, 64, 16, 64  # FEW_COLUMNS, ATTEND_PARTS, KV_TILE, TOP_MOST

Row = tuple[str, tuple[int, ...], str, int]  # a tensor's name, shape, type and bytes
_Tensor = tuple[tuple[int, ...], str, int]  # without the name


@dataclass(frozen=True)
class Layer:
    """Bytes of the weights of a layer."""

    dense: int
    experts: int = 0
    dense_device: int = 0  # as a device holds them
    slot: int = 0  # of an expert there


@dataclass(frozen=True)
class Shape:
    """What the working memory of a device follows from."""

    n_embd: int
    n_q: int  # values of the queries of a token
    n_kv: int
    head_dim: int
    n_ff: int  # of an expert, in a mixture
    n_vocab: int
    n_experts: int
    n_used: int


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
    layers: tuple[Layer, ...] = ()  # without them nothing is planned for a device
    output: int = 0  # of the output matrix and its norm
    output_device: int = 0
    embedding_device: int = 0  # 0: it is the output matrix, too
    shape: Shape | None = None

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

    def above(self, n: int) -> Sizes:
        """Of the last n layers, and the output: what a device has."""
        layers = self.layers[len(self.layers) - n :]
        return self._part(layers, self.output if n else 0)

    def below(self, n: int, *, experts: bool) -> Sizes:
        """Of the others: what is left for the host when a device has the last n layers and the
        output. experts: those of the last layers are needed here as well, as the device holds a
        part of them and takes the others from here."""
        found = self._part(self.layers[: len(self.layers) - n], 0 if n else self.output)
        if not experts:
            return found
        return replace(found, experts=self.experts, least_experts=self.least_experts)

    def _part(self, layers: Sequence[Layer], output: int) -> Sizes:
        experts = sum(layer.experts for layer in layers)
        share = len(layers) / max(1, len(self.layers))
        return replace(
            self,
            dense=sum(layer.dense for layer in layers) + output,
            experts=experts,
            least_experts=self.least_experts if experts else 0,
            kv_token=round(self.kv_token * share),
            int8=self.int8 * share,
            f32=self.f32 * share,
            layers=tuple(layers),
            output=output,
        )


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
    tied = "output.weight" not in rows
    ends = ["token_embd.weight" if tied else "output.weight", "output_norm.weight"]
    output = [rows[name][2] for name in ends if name in rows]
    embedding = 0 if tied or "token_embd.weight" not in rows else rows["token_embd.weight"][2]
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
        layers=_layers(rows, counts),
        output=sum(output),
        output_device=sum(map(_on_device, output)),
        embedding_device=_on_device(embedding),
        shape=_shape(rows, counts),
        **products,
    )


def _layers(rows: Mapping[str, _Tensor], counts: _Counts) -> tuple[Layer, ...]:
    found = []
    for i in range(counts.n_layers):
        sizes = {name: row[2] for name, row in rows.items() if name.startswith(f"blk.{i}.")}
        experts = [n_bytes for name, n_bytes in sizes.items() if "_exps." in name]
        dense = [n_bytes for name, n_bytes in sizes.items() if "_exps." not in name]
        found.append(
            Layer(
                dense=sum(dense),
                experts=sum(experts),
                dense_device=sum(map(_on_device, dense)),
                slot=sum(_up(n_bytes // counts.n_experts, 256) for n_bytes in experts),
            )
        )
    return tuple(found)


def _shape(rows: Mapping[str, _Tensor], counts: _Counts) -> Shape | None:
    """None for a table without what a model has."""
    mixture = counts.n_experts > 0
    try:
        return Shape(
            n_embd=rows["token_embd.weight"][0][1],
            n_q=rows["blk.0.attn_q.weight"][0][0],
            n_kv=counts.n_kv,
            head_dim=rows["blk.0.attn_q_norm.weight"][0][0],
            n_ff=rows[f"blk.0.ffn_gate{'_exps' if mixture else ''}.weight"][0][-2],
            n_vocab=rows["token_embd.weight"][0][0],
            n_experts=counts.n_experts,
            n_used=counts.n_used if mixture else 1,
        )
    except (KeyError, IndexError):
        return None


def _on_device(n_bytes: int) -> int:
    """A driver hands out large pieces in pages of 2 MB, small ones from such a page."""
    return _up(n_bytes, 1 << 21 if n_bytes >= 1 << 20 else 512)


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def device_kv(sizes: Sizes, n_layers: int, n_ctx: int, kv: str) -> int:
    """Bytes of the kv cache of so many layers on a device, where all of it is taken at once."""
    item = KV_ITEM[kv] * sizes.kv_token / max(1, len(sizes.layers))
    return math.ceil(_up(n_ctx, _TILE) * item) * n_layers


def device_work(shape: Shape, n_ctx: int) -> int:
    """Bytes of a session's working memory on a device: what native/gpu/sequence.c carves beside
    the kv cache."""
    batch = max(_FEW, min(n_ctx, pass_tokens(shape.n_experts > 0)))
    entries = batch * shape.n_used
    heads = shape.n_q // shape.head_dim
    floats, group = 4, 40 / 32  # bytes of a float, and of an int8 with its share of the scales
    top = _TOP * 8 + 12
    parts = [
        batch * 4,
        batch * 24,
        *[batch * shape.n_embd * floats] * 2,
        batch * shape.n_embd * group,
        *[batch * shape.n_q * floats] * 2,
        batch * shape.n_q * group,
        *[batch * shape.n_kv * floats] * 2,
        _FEW * heads * _PARTS * (shape.head_dim + 2) * floats,
        entries * shape.n_ff * floats,
        entries * shape.n_ff * group,
        _FEW * shape.n_vocab * floats,
        min(n_ctx, shape.n_vocab) * 4,
        _TOP * top,
        top,
    ]
    if shape.n_experts:
        parts += [
            batch * shape.n_experts * floats,
            (entries + _FEW * shape.n_used) * shape.n_embd * floats,
            *[entries * 4] * 5,
            *[(shape.n_experts + 1) * 4] * 3,
            max(entries, shape.n_experts) * 3 * 8,
        ]
    return sum(_up(math.ceil(part), 256) for part in parts)


def pass_tokens(mixture: bool) -> int:
    """The most that are computed at once, on a device as here."""
    return 2048 if mixture else 512


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
