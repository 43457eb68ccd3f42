"""Hugging Face tensors to GGUF tensors: names, shapes, and where the rows lie.

For most tensors that is one run. The experts of a layer are stacked into one tensor,
a run per expert, whether the checkpoint keeps them apart or fused.
"""

from __future__ import annotations

import re
from dataclasses import replace

from .checkpoint import Hyperparameters
from .errors import FormatError
from .fp8 import scales_of
from .layout import Run, Tensor, layout
from .safetensors import Weights

_NAMES = {  # of layers in a checkpoint
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
}
_OUTSIDE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_EXPERTS = re.compile(r"ffn_(gate|up|down)_exps")


def plan(hp: Hyperparameters, weights: Weights) -> list[Tensor]:
    """Every tensor of the GGUF file with its runs, in file order.

    Raises FormatError when weights lack a tensor, hold one of another shape than
    the hyperparameters demand, or hold one that Qwen3 does not have.
    """
    if "embed_tokens.weight" in weights:
        raise FormatError(
            f"{weights.directory}: its tensors have no output matrix beside them, as in an "
            "embedding model (Qwen3Model); such a model cannot generate"
        )
    planner = _Planner(hp, weights)
    tensors = [replace(tensor, runs=planner.runs(tensor)) for tensor in layout(hp)]
    planner.refuse_rest()
    return tensors


class _Planner:
    def __init__(self, hp: Hyperparameters, weights: Weights) -> None:
        self.hp = hp
        self.weights = weights
        self.unused = weights.names

    def runs(self, tensor: Tensor) -> tuple[Run, ...]:
        if tensor.layer is None:
            return (self.take(f"{_OUTSIDE[tensor.part]}.weight", tensor.shape),)
        prefix = f"model.layers.{tensor.layer}."
        if not (expert := _EXPERTS.fullmatch(tensor.part)):
            return (self.take(f"{prefix}{_NAMES[tensor.part]}.weight", tensor.shape),)
        prefix += "mlp.experts."
        if prefix + "gate_up_proj" in self.weights:
            return self.fused(prefix, expert[1], tensor.shape)
        count, *matrix = tensor.shape
        names = [f"{prefix}{i}.{expert[1]}_proj.weight" for i in range(count)]
        return tuple(self.take(name, tuple(matrix)) for name in names)

    def fused(self, prefix: str, part: str, shape: tuple[int, ...]) -> tuple[Run, ...]:
        """The experts as transformers 5 holds them: one tensor of gate rows, then up
        rows, expert by expert, and one of down rows."""
        if part == "down":
            return (self.take(prefix + "down_proj", shape),)
        count, n_ff, n_embd = shape
        both = self.take(prefix + "gate_up_proj", (count, 2 * n_ff, n_embd)).source
        first = 0 if part == "gate" else n_ff
        starts = range(first, 2 * n_ff * count, 2 * n_ff)
        return tuple(Run(both, start, start + n_ff) for start in starts)

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
        if info.dtype == "F8_E4M3":
            self.unused.discard(scales_of(source))
        return Run(source, 0, info.n_rows)

    def refuse_rest(self) -> None:
        if self.hp.tied_embedding:  # some checkpoints repeat the embedding here
            self.unused -= {"lm_head.weight", scales_of("lm_head.weight")}
        if self.unused:
            names = sorted(self.unused)
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise FormatError(
                f"the checkpoint holds {names[0][:200]!r}{more}, "
                f"which is no part of {self.hp.architecture} with {self.hp.n_layers} layers"
            )
