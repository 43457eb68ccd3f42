"""What a model's speed is judged by: what the machine could do at best.

Decoding reads every weight that a token uses, and the keys and values of all positions
before it, from memory once:

    limit = read bandwidth / (weight bytes + positions x kv bytes of a position)
    weight bytes = dense tensors + used / count of the experts + one row of the embedding
                   + the whole output matrix (which a tied embedding is)

with the mean of the positions over the tokens that are decoded. Prefill multiplies:

    limit = n / (sum over the kinds of weights of products / peak of that kind)
    products = n x (matrices of the layers, used / count of the experts) + output matrix, once

Quantized weights multiply as int8; F32, F16 and BF16 weights (a mixture's router always) as
f32, at the peak of its fused multiply-add. Attention is not in it, nor is anything else.

Where a GPU computes a share, its part of the bytes and products counts at its own rates, with
f16 in place of f32, and the parts are done one after the other. Of the experts that it wanted
and did not have, a share m, the bytes are copied or used by the CPU, both at the same time:

    seconds of a GPU's part = (Bd + (1 - m) Be) / BW_gpu + m Be / (BW_upload + BW_cpu)

with the bytes of its experts, Be, and of all else, Bd.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen3cli.engine import Model

Tensor = tuple[str, tuple[int, ...], str, int]  # as ModelFile lists them

_FLOAT = ("F32", "F16", "BF16")
_KV_BYTES = {"f16": 2, "f32": 4, "q8": 34 / 32}


@dataclass(frozen=True)
class Work:
    """A prompt of so many tokens, or tokens decoded one by one behind depth others."""

    kind: str  # prefill or decode
    tokens: int
    depth: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.tokens}" + (f" at {self.depth}" if self.depth else "")

    @property
    def positions(self) -> float:
        """How many positions a decoded token attends to, on average."""
        return self.depth + (self.tokens + 1) / 2


@dataclass(frozen=True)
class Rates:
    """What the machine does in a second: bytes read, products of int8 and of f32; and a GPU."""

    read: float
    int8: float
    f32: float
    gpu_read: float = 0
    gpu_upload: float = 0  # bytes to it
    gpu_int8: float = 0
    gpu_f16: float = 0


def _no_products() -> dict[str, float]:
    return {"int8": 0.0, "f32": 0.0}


@dataclass
class Cost:
    """What a token costs a model."""

    weight_bytes: float = 0  # read for a decoded token
    kv_bytes: float = 0  # read for each position before it
    products: dict[str, float] = field(default_factory=_no_products)
    output_products: dict[str, float] = field(default_factory=_no_products)
    expert_bytes: float = 0  # of weight_bytes, those of experts
    gpu: Cost | None = None  # of all this, a GPU's share

    @classmethod
    def of(
        cls, config: Mapping[str, Any], tensors: Iterable[Tensor], *, gpu_layers: int = 0
    ) -> Cost:
        """config: as Model has it. gpu_layers: the last so many are a GPU's, and the output."""
        cost = cls()
        cost.kv_bytes = (
            2 * config["n_layers"] * config["n_kv_heads"] * config["head_dim"]
            * _KV_BYTES[config["kv"]]
        )  # fmt: skip
        theirs = []
        for tensor in tensors:
            cost._add(config, tensor)
            if gpu_layers and _on_gpu(config, tensor[0], gpu_layers):
                theirs.append(tensor)
        if gpu_layers:
            cost.gpu = cls.of({**config, "n_layers": gpu_layers}, theirs)
        return cost

    def _add(self, config: Mapping[str, Any], tensor: Tensor) -> None:
        name, shape, kind, size = tensor
        part = name.split(".")[-2]
        unit = "f32" if kind in _FLOAT else "int8"
        if part == "token_embd":
            self.weight_bytes += size / shape[0]
        if part == "output" or (part == "token_embd" and config["tied_embedding"]):
            self.weight_bytes += size
            self.output_products[unit] += math.prod(shape)
        elif part != "token_embd":
            used = part.endswith("_exps")
            share = config["n_experts_used"] / config["n_experts"] if used else 1.0
            self.weight_bytes += size * share
            if used:
                self.expert_bytes += size * share
            if len(shape) > 1:
                self.products[unit] += math.prod(shape) * share

    def bytes_of(self, work: Work) -> float:
        """Read for one token, decoded."""
        return self.weight_bytes + work.positions * self.kv_bytes

    def products_of(self, work: Work) -> dict[str, float]:
        """For one token of the prompt."""
        output = self.output_products
        return {unit: n + output[unit] / work.tokens for unit, n in self.products.items()}

    def limit(self, work: Work, rates: Rates, misses: float = 0) -> float:
        """Tokens a second at best. misses: of the experts that the GPU wanted, the share that it
        did not have."""
        if work.kind == "decode":
            return 1 / self._reading(work, rates, misses)
        return 1 / self._multiplying(work, rates)

    def _reading(self, work: Work, rates: Rates, misses: float) -> float:
        if self.gpu is None:
            return self.bytes_of(work) / rates.read
        theirs, missed = self.gpu.bytes_of(work), misses * self.gpu.expert_bytes
        return (
            (self.bytes_of(work) - theirs) / rates.read
            + (theirs - missed) / rates.gpu_read
            + missed / (rates.gpu_upload + rates.read)
        )

    def _multiplying(self, work: Work, rates: Rates) -> float:
        ours = self.products_of(work)
        if self.gpu is None:
            return ours["int8"] / rates.int8 + ours["f32"] / rates.f32
        theirs = self.gpu.products_of(work)
        return (
            (ours["int8"] - theirs["int8"]) / rates.int8
            + (ours["f32"] - theirs["f32"]) / rates.f32
            + theirs["int8"] / rates.gpu_int8
            + theirs["f32"] / rates.gpu_f16
        )


def _on_gpu(config: Mapping[str, Any], name: str, layers: int) -> bool:
    """Whether the tensor belongs to the last layers or to what comes behind them."""
    first, *rest = name.split(".")
    if first == "blk":
        return bool(int(rest[0]) >= config["n_layers"] - layers)
    every = layers == config["n_layers"]
    return first != "token_embd" or bool(config["tied_embedding"]) or every


class Misses:
    """The share of the experts wanted on a GPU that were not there, since it was asked last."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._before = model.gpu_stats

    def __call__(self) -> float:
        before, now = self._before, self._model.gpu_stats
        self._before = now
        misses = now.misses - before.misses
        return misses / max(1, misses + now.hits - before.hits)
