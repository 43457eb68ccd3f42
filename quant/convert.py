"""Hugging Face tensors to GGUF tensors: names, shapes, and where the rows lie.

A GGUF tensor is a matrix of rows; its rows are runs of rows of source tensors.
For most that is one run. The experts of a layer are stacked into one tensor, a
run per expert, whether the checkpoint keeps them apart or fused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .checkpoint import Experts, Hyperparameters
from .errors import FormatError
from .safetensors import Weights


@dataclass(frozen=True)
class Run:
    """Rows start..stop of a source tensor."""

    source: str
    start: int
    stop: int


@dataclass(frozen=True)
class Tensor:
    """A tensor of the GGUF file; shape has the fastest dimension last."""

    name: str
    shape: tuple[int, ...]
    runs: tuple[Run, ...]
    layer: int | None = None  # None outside the layers

    @property
    def row_length(self) -> int:
        return self.shape[-1]

    @property
    def n_rows(self) -> int:
        return sum(run.stop - run.start for run in self.runs)


def plan(hp: Hyperparameters, weights: Weights) -> list[Tensor]:
    """Every tensor of the GGUF file, in file order.

    Raises FormatError when weights lack a tensor, hold one of another shape than
    the hyperparameters demand, or hold one that Qwen3 does not have.
    """
    planner = _Planner(hp, weights)
    tensors = list(planner.tensors())
    planner.refuse_rest()
    return tensors


class _Planner:
    def __init__(self, hp: Hyperparameters, weights: Weights) -> None:
        self.hp = hp
        self.weights = weights
        self.unused = weights.names

    def tensors(self) -> Iterator[Tensor]:
        hp = self.hp
        embedding = (hp.n_vocab, hp.n_embd)
        yield self.single("token_embd", "model.embed_tokens", embedding)
        for layer in range(hp.n_layers):
            yield from self.attention(layer)
            yield from self.ffn(layer) if hp.experts is None else self.mixture(layer, hp.experts)
        yield self.single("output_norm", "model.norm", (hp.n_embd,))
        if not hp.tied_embedding:
            yield self.single("output", "lm_head", embedding)

    def attention(self, layer: int) -> Iterator[Tensor]:
        hp = self.hp
        q, kv = hp.n_heads * hp.head_dim, hp.n_kv_heads * hp.head_dim
        for name, source, shape in (
            ("attn_norm", "input_layernorm", (hp.n_embd,)),
            ("attn_q", "self_attn.q_proj", (q, hp.n_embd)),
            ("attn_k", "self_attn.k_proj", (kv, hp.n_embd)),
            ("attn_v", "self_attn.v_proj", (kv, hp.n_embd)),
            ("attn_output", "self_attn.o_proj", (hp.n_embd, q)),
            ("attn_q_norm", "self_attn.q_norm", (hp.head_dim,)),
            ("attn_k_norm", "self_attn.k_norm", (hp.head_dim,)),
            ("ffn_norm", "post_attention_layernorm", (hp.n_embd,)),
        ):
            yield self.single(name, source, shape, layer)

    def ffn(self, layer: int) -> Iterator[Tensor]:
        up, down = (self.hp.n_ff, self.hp.n_embd), (self.hp.n_embd, self.hp.n_ff)
        yield self.single("ffn_gate", "mlp.gate_proj", up, layer)
        yield self.single("ffn_up", "mlp.up_proj", up, layer)
        yield self.single("ffn_down", "mlp.down_proj", down, layer)

    def mixture(self, layer: int, experts: Experts) -> Iterator[Tensor]:
        yield self.single("ffn_gate_inp", "mlp.gate", (experts.count, self.hp.n_embd), layer)
        prefix = f"model.layers.{layer}.mlp.experts."
        fused = prefix + "gate_up_proj" in self.weights
        runs = self.fused(prefix, experts) if fused else self.separate(prefix, experts)
        up, down = (experts.n_ff, self.hp.n_embd), (self.hp.n_embd, experts.n_ff)
        for part, matrix in (("gate", up), ("up", up), ("down", down)):
            name = f"blk.{layer}.ffn_{part}_exps.weight"
            yield Tensor(name, (experts.count, *matrix), tuple(runs[part]), layer)

    def separate(self, prefix: str, experts: Experts) -> dict[str, list[Run]]:
        """The experts as the releases keep them: three matrices each."""
        up, down = (experts.n_ff, self.hp.n_embd), (self.hp.n_embd, experts.n_ff)
        n = experts.count
        return {
            part: [self.take(f"{prefix}{i}.{part}_proj.weight", shape) for i in range(n)]
            for part, shape in (("gate", up), ("up", up), ("down", down))
        }

    def fused(self, prefix: str, experts: Experts) -> dict[str, list[Run]]:
        """The experts as transformers 5 holds them: one tensor of gate rows, then up
        rows, expert by expert, and one of down rows."""
        n, n_embd, n_ff = experts.count, self.hp.n_embd, experts.n_ff
        both = self.take(prefix + "gate_up_proj", (n, 2 * n_ff, n_embd)).source
        halves = [Run(both, i * n_ff, (i + 1) * n_ff) for i in range(2 * n)]
        down = self.take(prefix + "down_proj", (n, n_embd, n_ff))
        return {"gate": halves[0::2], "up": halves[1::2], "down": [down]}

    def single(
        self, name: str, source: str, shape: tuple[int, ...], layer: int | None = None
    ) -> Tensor:
        if layer is not None:
            name, source = f"blk.{layer}.{name}", f"model.layers.{layer}.{source}"
        run = self.take(f"{source}.weight", shape)
        return Tensor(f"{name}.weight", shape, (run,), layer)

    def take(self, source: str, shape: tuple[int, ...]) -> Run:
        """All rows of a source tensor, which must have this shape."""
        if source not in self.weights:
            raise FormatError(f"the checkpoint lacks the tensor {source}; download it again")
        info = self.weights.info(source)
        if info.shape != shape:
            raise FormatError(
                f"the tensor {source} has shape {list(info.shape)}, "
                f"but config.json calls for {list(shape)}"
            )
        self.unused.discard(source)
        return Run(source, 0, info.n_rows)

    def refuse_rest(self) -> None:
        if self.hp.tied_embedding:  # some checkpoints repeat the embedding here
            self.unused.discard("lm_head.weight")
        if self.unused:
            names = sorted(self.unused)
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise FormatError(
                f"the checkpoint holds {names[0][:200]!r}{more}, "
                f"which is no part of {self.hp.architecture} with {self.hp.n_layers} layers"
            )
