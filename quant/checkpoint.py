"""The hyperparameters of a Hugging Face checkpoint, from its config.json.

Two dialects are read: rope_theta and rope_scaling at the top level, as in the
official Qwen3 releases, and rope_parameters, as transformers 5 writes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import FormatError
from .jsonfile import read_json

ARCHITECTURES = {"Qwen3ForCausalLM": "qwen3", "Qwen3MoeForCausalLM": "qwen3moe"}


@dataclass(frozen=True)
class Yarn:
    """Rope scaling by YaRN: positions beyond original_context, factor times as many."""

    factor: float
    original_context: int


@dataclass(frozen=True)
class Experts:
    """The mixture of a qwen3moe layer."""

    count: int
    used: int
    n_ff: int  # of one expert
    norm_topk: bool  # the weights of the chosen experts are renormalized


@dataclass(frozen=True)
class Hyperparameters:
    """What the weights are computed with. Sizes are counts of values."""

    architecture: str  # qwen3 or qwen3moe, as GGUF names them
    n_layers: int
    n_embd: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_ff: int
    n_vocab: int  # rows of the embedding, padding included
    n_context: int
    rms_eps: float
    rope_theta: float
    yarn: Yarn | None
    tied_embedding: bool
    experts: Experts | None


def read_hyperparameters(directory: Path) -> Hyperparameters:
    """Reads and checks directory/config.json. Raises FormatError naming the key."""
    path = directory / "config.json"
    if not path.is_file():
        raise FormatError(f"{directory}: there is no config.json; is it a checkpoint directory?")
    return _Config(path).hyperparameters()


def read_fp8_block(directory: Path) -> tuple[int, int] | None:
    """Rows and columns of the blocks that share a scale in an fp8 checkpoint, None where
    directory/config.json announces no fp8."""
    return _Config(directory / "config.json").fp8_block()


class _Config:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.values = read_json(path)

    def error(self, text: str) -> FormatError:
        return FormatError(f"{self.path}: {text}")

    def hyperparameters(self) -> Hyperparameters:
        architecture = self.architecture()
        self.refuse_variants()
        n_embd = self.integer("hidden_size", 1 << 20)
        n_heads = self.integer("num_attention_heads", 1 << 12)
        n_kv_heads = self.integer("num_key_value_heads", n_heads)
        if n_heads % n_kv_heads:
            raise self.error(f"{n_heads} heads cannot share num_key_value_heads {n_kv_heads}")
        rope = self.rope()
        return Hyperparameters(
            architecture=architecture,
            n_layers=self.integer("num_hidden_layers", 1 << 12),
            n_embd=n_embd,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=self.head_dim(n_embd, n_heads),
            n_ff=self.integer("intermediate_size", 1 << 24),
            n_vocab=self.integer("vocab_size", 1 << 24),
            n_context=self.integer("max_position_embeddings", 1 << 30),
            rms_eps=self.number(self.values, "rms_norm_eps", 1.0),
            rope_theta=self.number(rope, "rope_theta", 1e12),
            yarn=self.yarn(rope),
            tied_embedding=self.flag("tie_word_embeddings"),
            experts=self.experts() if architecture == "qwen3moe" else None,
        )

    def architecture(self) -> str:
        names = self.values.get("architectures")
        name = names[0] if isinstance(names, list) and len(names) == 1 else names
        if not isinstance(name, str) or name not in ARCHITECTURES:
            raise self.error(
                f"its architecture is {str(name)[:200]}; "
                f"only {' and '.join(ARCHITECTURES)} can be converted"
            )
        return ARCHITECTURES[name]

    def refuse_variants(self) -> None:
        """Settings that no Qwen3 release has and that would change the computation."""
        self.fp8_block()
        if self.flag("attention_bias"):
            raise self.error("attention_bias is true; Qwen3 has no biases")
        if self.values.get("hidden_act", "silu") != "silu":
            raise self.error(f"hidden_act is {str(self.values['hidden_act'])[:40]}, not silu")
        layers = self.values.get("layer_types")
        full = not isinstance(layers, list) or all(kind == "full_attention" for kind in layers)
        if self.flag("use_sliding_window") or not full:
            raise self.error("use_sliding_window or layer_types ask for a sliding window")

    def fp8_block(self) -> tuple[int, int] | None:
        """Refuses all other weights that are quantized already."""
        config = self.values.get("quantization_config")
        if not config:
            return None
        method = config.get("quant_method") if isinstance(config, dict) else config
        if not isinstance(config, dict) or method != "fp8":
            raise self.error(
                f"the weights are quantized already ({str(method)[:40]}); "
                "take the bf16 or the FP8 release"
            )
        if (fmt := config.get("fmt", "e4m3")) != "e4m3":
            raise self.error(f"the fmt of quantization_config is {str(fmt)[:40]}, not e4m3")
        block = config.get("weight_block_size")
        if (
            not isinstance(block, list)
            or len(block) != 2
            or not all(type(size) is int and 1 <= size <= 1 << 20 for size in block)
        ):
            raise self.error(
                f"the weight_block_size of quantization_config is {str(block)[:40]}; "
                "it must be two sizes, such as [128, 128]"
            )
        return block[0], block[1]

    def head_dim(self, n_embd: int, n_heads: int) -> int:
        if self.values.get("head_dim") is None:
            if n_embd % n_heads:
                raise self.error("head_dim is missing and hidden_size / heads is not whole")
            size = n_embd // n_heads
        else:
            size = self.integer("head_dim", 1 << 12)
        if size % 2:
            raise self.error(f"head_dim {size} is odd; rope rotates pairs")
        return size

    def experts(self) -> Experts:
        if self.values.get("mlp_only_layers") or self.values.get("decoder_sparse_step", 1) != 1:
            raise self.error(
                "mlp_only_layers or decoder_sparse_step make some layers dense; "
                "GGUF has no qwen3moe of mixed layers"
            )
        # transformers 5 calls it num_local_experts
        key = "num_experts" if "num_experts" in self.values else "num_local_experts"
        count = self.integer(key, 1 << 12)
        return Experts(
            count=count,
            used=self.integer("num_experts_per_tok", count),
            n_ff=self.integer("moe_intermediate_size", 1 << 24),
            norm_topk=self.flag("norm_topk_prob"),
        )

    def rope(self) -> dict[str, Any]:
        """Both dialects as one: rope_theta, rope_type, and what scaling needs."""
        for key in ("rope_parameters", "rope_scaling"):
            if not isinstance(self.values.get(key) or {}, dict):
                raise self.error(f"{key} is {str(self.values[key])[:200]}, not an object")
        rope: dict[str, Any] = {"rope_theta": self.values.get("rope_theta")}
        rope.update(self.values.get("rope_scaling") or {})
        rope.update(self.values.get("rope_parameters") or {})
        rope.setdefault("rope_type", rope.get("type", "default"))
        if rope.get("partial_rotary_factor", 1) != 1:
            raise self.error("partial_rotary_factor is not 1; Qwen3 rotates whole heads")
        return rope

    def yarn(self, rope: dict[str, Any]) -> Yarn | None:
        if rope["rope_type"] == "default":
            return None
        if rope["rope_type"] != "yarn":
            raise self.error(f"rope_type {str(rope['rope_type'])[:40]} is not run; yarn is")
        factor = self.number(rope, "factor", 1e4)
        if factor < 1:
            raise self.error(f"the yarn factor is {factor}; it must be at least 1")
        usual = {
            "beta_fast": 32,
            "beta_slow": 1,
            "attention_factor": 0.1 * math.log(factor) + 1,
            "truncate": True,
            "mscale": None,
            "mscale_all_dim": None,
        }
        for key, value in usual.items():
            if rope.get(key) is not None and not _close(rope[key], value):
                raise self.error(f"yarn with {key} {str(rope[key])[:40]} is not run, only {value}")
        key = "original_max_position_embeddings"
        if rope.get(key) is None:
            rope = {key: self.values.get("max_position_embeddings")}
        return Yarn(factor, self.integer(key, 1 << 30, rope))

    def integer(self, key: str, most: int, values: dict[str, Any] | None = None) -> int:
        """A required count of 1..most."""
        value = (self.values if values is None else values).get(key)
        if value is None:
            raise self.error(f"{key} is missing")
        if type(value) is not int or not 1 <= value <= most:
            raise self.error(f"{key} is {str(value)[:40]}; it must be an integer, 1 to {most}")
        return value

    def number(self, values: dict[str, Any], key: str, most: float) -> float:
        """A required number above 0 and at most most."""
        value = values.get(key)
        if value is None:
            raise self.error(f"{key} is missing")
        if type(value) not in (int, float) or not 0 < value <= most:
            raise self.error(f"{key} is {str(value)[:40]}; it must be above 0, at most {most:g}")
        return float(value)

    def flag(self, key: str) -> bool:
        """An optional truth value, false by default as in transformers."""
        value = self.values.get(key)
        if value is not None and type(value) is not bool:
            raise self.error(f"{key} is {str(value)[:40]}; it must be true or false")
        return bool(value)


def _close(value: object, usual: float | None) -> bool:
    if not isinstance(value, int | float) or usual is None:
        return False
    return math.isclose(value, usual, rel_tol=1e-5)
