"""The shapes of the family, and how many weights they are."""

from __future__ import annotations

import math
from dataclasses import replace

from quant.checkpoint import Experts, Hyperparameters
from quant.layout import layout


def _dense(
    n_layers: int, n_embd: int, n_heads: int, n_kv_heads: int, n_ff: int, *, tied: bool = False
) -> Hyperparameters:
    return Hyperparameters(
        architecture="qwen3",
        n_layers=n_layers,
        n_embd=n_embd,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=128,
        n_ff=n_ff,
        n_vocab=151936,
        n_context=40960,
        rms_eps=1e-6,
        rope_theta=1e6,
        yarn=None,
        tied_embedding=tied,
        experts=None,
    )


def _mixture(dense: Hyperparameters, n_ff_expert: int) -> Hyperparameters:
    experts = Experts(count=128, used=8, n_ff=n_ff_expert, norm_topk=True)
    return replace(dense, architecture="qwen3moe", experts=experts)


SHAPES = {  # Qwen3 Technical Report, tables 1 and 2, and the releases' config.json
    "0.6b": _dense(28, 1024, 16, 8, 3072, tied=True),
    "1.7b": _dense(28, 2048, 16, 8, 6144, tied=True),
    "4b": _dense(36, 2560, 32, 8, 9728, tied=True),
    "8b": _dense(36, 4096, 32, 8, 12288),
    "14b": _dense(40, 5120, 40, 8, 17408),
    "32b": _dense(64, 5120, 64, 8, 25600),
    "30b-a3b": _mixture(_dense(48, 2048, 32, 4, 6144), 768),
    "235b-a22b": _mixture(_dense(94, 4096, 64, 4, 12288), 1536),
}


def n_weights(hp: Hyperparameters) -> int:
    """The weights of a model."""
    return sum(math.prod(tensor.shape) for tensor in layout(hp))
