"""Hugging Face checkpoints of a few kilobytes, written without Hugging Face."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).parent / "data"
TOKENIZER = DATA / "tiny-gqa1"  # its tokenizer has 346 tokens
Tensors = dict[str, NDArray[np.float32]]

DENSE: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "vocab_size": 352,
}
MOE: dict[str, Any] = DENSE | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}


def bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves: exact for values that are bf16 already."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def encoded(values: NDArray[np.float32], dtype: str) -> bytes:
    kinds = {"F32": "<f4", "F16": "<f2"}
    return (bf16(values) if dtype == "BF16" else values.astype(kinds[dtype])).tobytes()


def write_safetensors(path: Path, tensors: Tensors, dtype: str = "F32") -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, values in tensors.items():
        raw = encoded(values, dtype)
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": offsets}
        data += raw
    write_raw(path, header, data)


def write_raw(path: Path, header: object, data: bytes = b"") -> None:
    """Any header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_hollow(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """BF16 zeros as a hole in the file: large for the reader, nothing on the disk."""
    header, size = {}, 0
    for name, shape in shapes.items():
        end = size + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [size, end]}
        size = end
    write_raw(path, header)
    os.truncate(path, path.stat().st_size + size)


def shapes_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint, under the names of the releases."""
    hidden, ff = config["hidden_size"], config["intermediate_size"]
    head = config["head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            "self_attn.q_proj": (q, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, q),
            "self_attn.q_norm": (head,),
            "self_attn.k_norm": (head,),
        }
        if "num_experts" in config:
            layer["mlp.gate"] = (config["num_experts"], hidden)
            ff = config["moe_intermediate_size"]
        experts = range(config.get("num_experts", 0))
        for mlp in [f"mlp.experts.{e}" for e in experts] or ["mlp"]:
            layer[f"{mlp}.gate_proj"] = layer[f"{mlp}.up_proj"] = (ff, hidden)
            layer[f"{mlp}.down_proj"] = (hidden, ff)
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def tensors_of(config: dict[str, Any], seed: int = 0) -> Tensors:
    """Random weights, exact in bf16."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes_of(config).items():
        values = rng.standard_normal(shape, dtype=np.float32)
        tensors[name] = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    return tensors


def fused(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """The same weights with the experts of a layer in two tensors, as transformers 5
    can save them."""
    result = {name: values for name, values in tensors.items() if ".experts." not in name}
    for i in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{i}.mlp.experts."

        def stacked(part: str, prefix: str = prefix) -> NDArray[np.float32]:
            names = [f"{prefix}{e}.{part}_proj.weight" for e in range(config["num_experts"])]
            return np.stack([tensors[name] for name in names])

        result[prefix + "gate_up_proj"] = np.concatenate([stacked("gate"), stacked("up")], axis=1)
        result[prefix + "down_proj"] = stacked("down")
    return result


def write_checkpoint(
    directory: Path, config: dict[str, Any], tensors: Tensors | None = None, *, shards: int = 1
) -> Path:
    """A whole checkpoint directory; tensors default to random ones, in bf16."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, directory)
    tensors = tensors_of(config) if tensors is None else tensors
    if shards == 1:
        write_safetensors(directory / "model.safetensors", tensors, "BF16")
        return directory
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[i::shards])
        write_safetensors(directory / file, part, "BF16")
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def edited(directory: Path, name: str, **changes: Any) -> None:
    """Changes values of a JSON file of a checkpoint; None takes one out."""
    path = directory / name
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


FP8 = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "modules_to_not_convert": ["lm_head", "model.norm"],
    "quant_method": "fp8",
}


def write_fp8_checkpoint(
    directory: Path,
    config: dict[str, Any],
    tensors: Tensors | None = None,
    block: tuple[int, int] = (128, 128),
) -> Tensors:
    """A checkpoint as the -FP8 releases are: the matrices of the layers but the router are
    fp8 with bf16 scales. Returns the weights that it stands for."""
    tensors = tensors_of(config) if tensors is None else tensors
    write_checkpoint(
        directory, config | {"quantization_config": FP8 | {"weight_block_size": block}}
    )
    rng = np.random.default_rng(1)
    raw: dict[str, tuple[str, NDArray[Any]]] = {}
    exact: Tensors = {}
    for name, values in tensors.items():
        if values.ndim == 1 or ".layers." not in name or name.endswith("mlp.gate.weight"):
            raw[name], exact[name] = ("BF16", bf16(values)), values
            continue
        codes = rng.integers(0, 255, values.shape, np.uint8)
        codes[codes & 0x7F == 0x7F] = 0  # NaN
        *stack, rows, columns = values.shape
        shape = (*stack, -(-rows // block[0]), -(-columns // block[1]))
        scales = rng.uniform(0.5, 2, shape).astype(np.float32)
        scales = (scales.view(np.uint32) & 0xFFFF0000).view(np.float32)
        raw[name], raw[f"{name}_scale_inv"] = ("F8_E4M3", codes), ("BF16", bf16(scales))
        whole = np.repeat(np.repeat(scales, block[0], -2), block[1], -1)
        exact[name] = fp8_values(codes) * whole[..., :rows, :columns]
    write_parts(directory / "model.safetensors", raw)
    return exact


def fp8_values(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What fp8 codes stand for, by way of f16: E4M3 has the bits of the same f16, whose
    exponent is 8 larger, without its last 7."""
    bits = (codes.astype(np.uint16) & 0x80) << 8 | (codes.astype(np.uint16) & 0x7F) << 7
    return bits.view(np.float16).astype(np.float32) * 256


def write_parts(path: Path, tensors: dict[str, tuple[str, NDArray[Any]]]) -> None:
    """A safetensors file of raw data, each with its dtype."""
    header, data = {}, b""
    for name, (dtype, values) in tensors.items():
        offsets = [len(data), len(data) + values.nbytes]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": offsets}
        data += values.tobytes()
    write_raw(path, header, data)
