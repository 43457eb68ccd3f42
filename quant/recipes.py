"""Recipes: which type each tensor of a file gets.

Norms and the router stay F32: they are small, and routing is sensitive. The mixtures are
those of the ecosystem (tests/vectors/make_recipes.py records what llama.cpp does): the
output matrix has Q6_K, and in some layers so have the tensors that suffer most.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import gguf

from .checkpoint import Hyperparameters
from .errors import UsageError
from .layout import Tensor

# What replaces a type whose blocks do not divide a row: 32-blocks for 256-blocks.
_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}
_KINDS = (
    *("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0"),
    *("Q4_K", "IQ4_NL", "IQ4_XS", "Q4_1", "Q4_0"),
)
_EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")

# The type of a matrix, given whether importances are known.
Choice = Callable[[Tensor, Hyperparameters, bool], str]
# A type, and which layers of how many get it.
Rule = tuple[str, Callable[[int, Hyperparameters, bool], bool]]


@dataclass(frozen=True)
class Recipe:
    """A way to quantize a model; file_type is GGUF's number for it."""

    name: str
    file_type: int
    choose: Choice
    only_experts: bool = False

    def type_of(self, tensor: Tensor, hp: Hyperparameters, *, imatrix: bool = False) -> str:
        """The type of a tensor, such as "Q4_K"; its blocks divide the rows. imatrix:
        importances of the weights are known."""
        if not quantized(tensor):
            return "F32"
        kind = self.choose(tensor, hp, imatrix)
        if tensor.row_length % block_size(kind):
            kind = _FALLBACK.get(kind, "F16")
        if tensor.row_length % block_size(kind):
            kind = "F16"
        return kind


def recipe(name: str) -> Recipe:
    """The recipe of this name, in any case. Raises UsageError."""
    found = RECIPES.get(_ALIASES.get(name.upper(), name.upper()))
    if found is None:
        raise UsageError(f"no type {name!r}; there are {', '.join(RECIPES)}")
    return found


def assign(
    chosen: Recipe,
    tensors: Iterable[Tensor],
    hp: Hyperparameters,
    overrides: Sequence[str] = (),
    *,
    imatrix: bool = False,
) -> list[tuple[Tensor, str]]:
    """Every tensor with its type. An override is PATTERN=TYPE: matrices whose name the
    regular expression is found in get that type; the last one that matches counts.
    Raises UsageError for one that matches none."""
    if chosen.only_experts and hp.experts is None:
        raise UsageError(f"{chosen.name} is for mixtures of experts; this model has none")
    result = {tensor: chosen.type_of(tensor, hp, imatrix=imatrix) for tensor in tensors}
    for override in overrides:
        pattern, kind = _parsed(override)
        found = [tensor for tensor in result if quantized(tensor) and pattern.search(tensor.name)]
        if not found:
            raise UsageError(f"--tensor {override}: no matrix has such a name")
        for tensor in found:
            if tensor.row_length % block_size(kind):
                raise UsageError(
                    f"--tensor {override}: the rows of {tensor.name}, of {tensor.row_length} "
                    f"weights, are not whole {kind} blocks"
                )
            result[tensor] = kind
    return list(result.items())


def quantized(tensor: Tensor) -> bool:
    """Whether a recipe chooses the type of a tensor; the others are F32."""
    return len(tensor.shape) > 1 and tensor.part != "ffn_gate_inp"


def block_size(kind: str) -> int:
    """Weights in a block of this type."""
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]


def _parsed(override: str) -> tuple[re.Pattern[str], str]:
    pattern, equals, kind = override.rpartition("=")
    if not pattern or not equals:
        raise UsageError(f"--tensor {override}: write it as PATTERN=TYPE, such as ffn_down=q6_k")
    if kind.upper() not in _KINDS:
        raise UsageError(f"--tensor {override}: no type {kind!r}; there are {', '.join(_KINDS)}")
    try:
        return re.compile(pattern), kind.upper()
    except re.error as error:
        raise UsageError(f"--tensor {override}: {error}") from None


# ---- which layers -----------------------------------------------------------


def _more_bits(layer: int, hp: Hyperparameters, imatrix: bool) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    eighth = hp.n_layers // 8
    return layer < eighth or layer >= 7 * hp.n_layers // 8 or (layer - eighth) % 3 == 2


def _first_four(layer: int, hp: Hyperparameters, imatrix: bool) -> bool:
    return layer < 4


def _first_eighth(layer: int, hp: Hyperparameters, imatrix: bool) -> bool:
    return layer < hp.n_layers // 8


def _first_eighth_if_important(layer: int, hp: Hyperparameters, imatrix: bool) -> bool:
    return imatrix and _first_eighth(layer, hp, imatrix)


def _first_eighth_unless_important(layer: int, hp: Hyperparameters, imatrix: bool) -> bool:
    return not imatrix and _first_eighth(layer, hp, imatrix)


def _few_kv_heads(layer: int, hp: Hyperparameters, imatrix: bool) -> bool:
    """Every value head serves four query heads or more: attn_v is small and matters."""
    return hp.n_heads >= 4 * hp.n_kv_heads


# ---- recipes ----------------------------------------------------------------


def _uniform(kind: str) -> Choice:
    return lambda tensor, hp, imatrix: kind


def _mixture(kind: str, attn_v: Rule | None = None, ffn_down: Rule | None = None) -> Choice:
    """Mostly kind, and more for the output matrix and where a rule holds."""
    rules = {"attn_v": attn_v, "ffn_down": ffn_down, "ffn_down_exps": ffn_down}

    def choose(tensor: Tensor, hp: Hyperparameters, imatrix: bool) -> str:
        part = tensor.part
        if part == "output" or (part == "token_embd" and hp.tied_embedding):
            return "Q6_K"
        if hp.experts is not None and hp.experts.count == 8:
            # attention is a small part of such a file
            if part in ("attn_k", "attn_v"):
                return "Q8_0"
            if part == "attn_output" and kind in ("Q4_K", "IQ4_NL", "IQ4_XS"):
                return "Q5_K"
        rule = rules.get(part)
        if rule and tensor.layer is not None and rule[1](tensor.layer, hp, imatrix):
            return rule[0]
        return kind

    return choose


def _experts(kind: str, others: str) -> Choice:
    """kind for the experts, which are nearly all of a mixture's weights."""
    return lambda tensor, hp, imatrix: kind if tensor.part in _EXPERTS else others


_FILE = gguf.LlamaFileType
_MORE: Rule = ("Q6_K", _more_bits)
_IQ4: tuple[Rule, Rule] = ("Q5_K", _few_kv_heads), ("Q5_K", _first_eighth_unless_important)

RECIPES = {
    each.name: each
    for each in (
        Recipe("F32", _FILE.ALL_F32, _uniform("F32")),
        Recipe("F16", _FILE.MOSTLY_F16, _uniform("F16")),
        Recipe("BF16", _FILE.MOSTLY_BF16, _uniform("BF16")),
        Recipe("Q8_0", _FILE.MOSTLY_Q8_0, _uniform("Q8_0")),
        Recipe("Q6_K", _FILE.MOSTLY_Q6_K, _mixture("Q6_K")),
        Recipe("Q5_K_M", _FILE.MOSTLY_Q5_K_M, _mixture("Q5_K", _MORE, _MORE)),
        Recipe("Q5_K_S", _FILE.MOSTLY_Q5_K_S, _mixture("Q5_K")),
        Recipe("Q5_1", _FILE.MOSTLY_Q5_1, _mixture("Q5_1")),
        Recipe(
            "Q5_0",
            _FILE.MOSTLY_Q5_0,
            _mixture("Q5_0", ffn_down=("Q5_1", _first_eighth_if_important)),
        ),
        Recipe("Q4_K_M", _FILE.MOSTLY_Q4_K_M, _mixture("Q4_K", _MORE, _MORE)),
        Recipe(
            "Q4_K_S",
            _FILE.MOSTLY_Q4_K_S,
            _mixture("Q4_K", ("Q5_K", _first_four), ("Q5_K", _first_eighth)),
        ),
        Recipe("IQ4_NL", _FILE.MOSTLY_IQ4_NL, _mixture("IQ4_NL", *_IQ4)),
        Recipe("IQ4_XS", _FILE.MOSTLY_IQ4_XS, _mixture("IQ4_XS", *_IQ4)),
        Recipe("Q4_1", _FILE.MOSTLY_Q4_1, _mixture("Q4_1")),
        Recipe(
            "Q4_0",
            _FILE.MOSTLY_Q4_0,
            _mixture("Q4_0", ffn_down=("Q4_1", _first_eighth_if_important)),
        ),
        Recipe("MOE_Q4", _FILE.MOSTLY_Q4_K_S, _experts("Q4_K", "Q6_K"), only_experts=True),
    )
}
_ALIASES = {"Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}  # as everywhere
