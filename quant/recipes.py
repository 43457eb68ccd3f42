"""Recipes: which type each tensor of a file gets.

Norms and the router stay F32: they are small, and routing is sensitive. Q4_K_M is
the ecosystem's mixture: Q4_K, with Q6_K for the output matrix and, in some
layers, for the tensors that suffer most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gguf

from .checkpoint import Hyperparameters
from .errors import UsageError
from .layout import Tensor

# What replaces a type whose blocks do not divide a row: 32-blocks for 256-blocks.
_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


@dataclass(frozen=True)
class Recipe:
    """A way to quantize a model; file_type is GGUF's number for it."""

    name: str
    file_type: int
    choose: Callable[[Tensor, Hyperparameters], str]

    def type_of(self, tensor: Tensor, hp: Hyperparameters) -> str:
        """The type of a tensor, such as "Q4_K"; its blocks divide the rows."""
        if len(tensor.shape) == 1 or ".ffn_gate_inp." in tensor.name:
            return "F32"
        kind = self.choose(tensor, hp)
        if tensor.row_length % block_size(kind):
            kind = _FALLBACK.get(kind, "F16")
        if tensor.row_length % block_size(kind):
            kind = "F16"
        return kind


def recipe(name: str) -> Recipe:
    """The recipe of this name, in any case. Raises UsageError."""
    found = RECIPES.get(name.upper())
    if found is None:
        raise UsageError(f"no type {name!r}; there are {', '.join(RECIPES)}")
    return found


def block_size(kind: str) -> int:
    """Weights in a block of this type."""
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]


def _uniform(kind: str) -> Callable[[Tensor, Hyperparameters], str]:
    return lambda tensor, hp: kind


def _q4_k_m(tensor: Tensor, hp: Hyperparameters) -> str:
    part = tensor.part
    if part == "output" or (part == "token_embd" and hp.tied_embedding):
        return "Q6_K"
    if hp.experts is not None and hp.experts.count == 8:
        # attention is a small part of such a file
        if part in ("attn_k", "attn_v"):
            return "Q8_0"
        if part == "attn_output":
            return "Q5_K"
    if part in ("attn_v", "ffn_down", "ffn_down_exps") and _more_bits(tensor, hp.n_layers):
        return "Q6_K"
    return "Q4_K"


def _more_bits(tensor: Tensor, n_layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    layer = tensor.layer or 0
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


RECIPES = {
    each.name: each
    for each in (
        Recipe("F32", gguf.LlamaFileType.ALL_F32, _uniform("F32")),
        Recipe("F16", gguf.LlamaFileType.MOSTLY_F16, _uniform("F16")),
        Recipe("BF16", gguf.LlamaFileType.MOSTLY_BF16, _uniform("BF16")),
        Recipe("Q8_0", gguf.LlamaFileType.MOSTLY_Q8_0, _uniform("Q8_0")),
        Recipe("Q6_K", gguf.LlamaFileType.MOSTLY_Q6_K, _uniform("Q6_K")),
        Recipe("Q5_K", gguf.LlamaFileType.MOSTLY_Q5_K_S, _uniform("Q5_K")),
        Recipe("Q5_1", gguf.LlamaFileType.MOSTLY_Q5_1, _uniform("Q5_1")),
        Recipe("Q5_0", gguf.LlamaFileType.MOSTLY_Q5_0, _uniform("Q5_0")),
        Recipe("Q4_K_M", gguf.LlamaFileType.MOSTLY_Q4_K_M, _q4_k_m),
        Recipe("Q4_K", gguf.LlamaFileType.MOSTLY_Q4_K_S, _uniform("Q4_K")),
        Recipe("Q4_1", gguf.LlamaFileType.MOSTLY_Q4_1, _uniform("Q4_1")),
        Recipe("Q4_0", gguf.LlamaFileType.MOSTLY_Q4_0, _uniform("Q4_0")),
    )
}
