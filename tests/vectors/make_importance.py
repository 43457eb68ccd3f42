"""Makes the reference of the importance matrix: what enters the weights of the checkpoints.

Needs torch and transformers, which the tests do not. make_logits.py comes first:

    python tests/vectors/make_importance.py

Reads the sequences of tests/data/logits/MODEL.npz and writes tests/data/importance/MODEL.npz, with
sums of squares over all tokens of all sequences for every layer L:
    L.qkv, L.o, L.gate_up, L.down   float32[n_in], of the matrices that these vectors enter
and for the experts of a MoE model
    L.counts                        int32[n_experts]: tokens that each met
    L.gate_up, L.down               float32[n_experts, n_in]; of nano-moe, to be small,
    L.gate_up.rows, L.gate_up.columns, L.down.rows, L.down.columns: its sums in both directions
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from make_logits import DATA, load

MODELS = ("nano-dense", "nano-moe", "tiny-gqa2", "tiny-moe8")
Sums = dict[str, Any]


def adds(sums: Sums, name: str) -> Callable[..., None]:
    def hook(_module: Any, inputs: Any) -> None:
        sums[name] += inputs[0].double().square().flatten(0, -2).sum(0).numpy()

    return hook


def adds_experts(sums: Sums, prefix: str) -> Callable[..., None]:
    """Computes again what enters down, which the module does not show."""

    def hook(module: Any, inputs: Any) -> None:
        x, chosen = inputs[:2]
        n = module.num_experts
        parts: dict[str, list[Any]] = {"gate_up": [], "down": [], "counts": []}
        for expert in range(n):
            met = x[(chosen == expert).any(-1)]
            gate, up = (met @ module.gate_up_proj[expert].T).chunk(2, -1)
            hidden = torch.nn.functional.silu(gate) * up
            parts["gate_up"].append(met.double().square().sum(0).numpy())
            parts["down"].append(hidden.double().square().sum(0).numpy())
            parts["counts"].append(len(met))
        for name, rows in parts.items():
            sums[prefix + name] += np.array(rows)

    return hook


@torch.inference_mode()
def sums_of(model: Any, sequences: list[list[int]]) -> Sums:
    sums: Sums = defaultdict(float)
    for i, layer in enumerate(model.model.layers):
        layer.self_attn.q_proj.register_forward_pre_hook(adds(sums, f"{i}.qkv"))
        layer.self_attn.o_proj.register_forward_pre_hook(adds(sums, f"{i}.o"))
        if hasattr(layer.mlp, "experts"):
            layer.mlp.experts.register_forward_pre_hook(adds_experts(sums, f"{i}."))
        else:
            layer.mlp.gate_proj.register_forward_pre_hook(adds(sums, f"{i}.gate_up"))
            layer.mlp.down_proj.register_forward_pre_hook(adds(sums, f"{i}.down"))
    for ids in sequences:
        model(torch.tensor([ids]))
    return dict(sums)


def small(sums: Sums) -> Sums:
    out: Sums = {}
    for name, values in sums.items():
        if values.ndim == 2:
            out[name + ".rows"], out[name + ".columns"] = values.sum(1), values.sum(0)
        else:
            out[name] = values
    return out


def main() -> None:
    (DATA / "importance").mkdir(exist_ok=True)
    for name in MODELS:
        with np.load(DATA / "logits" / f"{name}.npz") as file:
            sequences = [file[key].tolist() for key in file if key.startswith("ids_")]
        sums = sums_of(load(DATA / name), sequences)
        if name == "nano-moe":
            sums = small(sums)
        path = DATA / "importance" / f"{name}.npz"
        kinds = {key: np.int32 if key.endswith("counts") else np.float32 for key in sums}
        np.savez_compressed(path, **{key: sums[key].astype(kinds[key]) for key in sums})
        print(f"{name}: {len(sums)} arrays, {path.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    main()
