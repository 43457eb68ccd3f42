"""What a GGUF file of the Qwen3 family holds: every tensor, its shape, its place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from .checkpoint import Hyperparameters


@dataclass(frozen=True)
class Run:
    """Rows start..stop of a tensor of the source."""

    source: str
    start: int
    stop: int


@dataclass(frozen=True)
class Tensor:
    """A tensor of the GGUF file, a matrix of rows; shape has the fastest dimension last.
    Its rows are those of the runs, one run after the other."""

    name: str
    shape: tuple[int, ...]
    layer: int | None = None  # None outside the layers
    runs: tuple[Run, ...] = ()

    @property
    def part(self) -> str:
        """The name without its layer: attn_q, ffn_down_exps, output."""
        return self.name.split(".")[-2]

    @property
    def n_experts(self) -> int:
        """The matrices that it stacks."""
        return self.shape[0] if len(self.shape) == 3 else 1

    @property
    def row_length(self) -> int:
        return self.shape[-1]

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[:-1])


def layout(hp: Hyperparameters) -> Iterator[Tensor]:
    """Every tensor of a model, in file order, without the runs."""
    n, q, kv = hp.n_embd, hp.n_heads * hp.head_dim, hp.n_kv_heads * hp.head_dim
    yield Tensor("token_embd.weight", (hp.n_vocab, n))
    for i in range(hp.n_layers):
        layer: dict[str, tuple[int, ...]] = {
            "attn_norm": (n,),
            "attn_q": (q, n),
            "attn_k": (kv, n),
            "attn_v": (kv, n),
            "attn_output": (n, q),
            "attn_q_norm": (hp.head_dim,),
            "attn_k_norm": (hp.head_dim,),
            "ffn_norm": (n,),
        }
        if hp.experts:
            count, ff = hp.experts.count, hp.experts.n_ff
            layer["ffn_gate_inp"] = (count, n)
            layer["ffn_gate_exps"] = layer["ffn_up_exps"] = (count, ff, n)
            layer["ffn_down_exps"] = (count, n, ff)
        else:
            layer["ffn_gate"] = layer["ffn_up"] = (hp.n_ff, n)
            layer["ffn_down"] = (n, hp.n_ff)
        for part, shape in layer.items():
            yield Tensor(f"blk.{i}.{part}.weight", shape, i)
    yield Tensor("output_norm.weight", (n,))
    if not hp.tied_embedding:
        yield Tensor("output.weight", (hp.n_vocab, n))
