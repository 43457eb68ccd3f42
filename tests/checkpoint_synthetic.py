"""Checkpoints with random weights in any shape of the family, as large as the real ones."""

from __future__ import annotations

import gzip
import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint_tiny import DATA, TOKENIZER, shapes_of

from quant.checkpoint import Hyperparameters
from qwen3cli.bench.synthetic import random_blocks

_CHUNK = 1 << 24  # weights made at once
Shapes = dict[str, tuple[int, ...]]


def config_of(hp: Hyperparameters) -> dict[str, Any]:
    """The config.json of a release of these hyperparameters."""
    config: dict[str, Any] = {
        "architectures": ["Qwen3MoeForCausalLM" if hp.experts else "Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": hp.head_dim,
        "hidden_act": "silu",
        "hidden_size": hp.n_embd,
        "intermediate_size": hp.n_ff,
        "max_position_embeddings": hp.n_context,
        "num_attention_heads": hp.n_heads,
        "num_hidden_layers": hp.n_layers,
        "num_key_value_heads": hp.n_kv_heads,
        "rms_norm_eps": hp.rms_eps,
        "rope_scaling": None,
        "rope_theta": hp.rope_theta,
        "tie_word_embeddings": hp.tied_embedding,
        "torch_dtype": "bfloat16",
        "vocab_size": hp.n_vocab,
    }
    if hp.experts:
        config |= {
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "moe_intermediate_size": hp.experts.n_ff,
            "norm_topk_prob": hp.experts.norm_topk,
            "num_experts": hp.experts.count,
            "num_experts_per_tok": hp.experts.used,
        }
    return config


def write_synthetic(directory: Path, hp: Hyperparameters, shard_bytes: int = 4 << 30) -> int:
    """Writes a checkpoint in bf16 with an index, in shards of at most shard_bytes (or of one
    tensor). Holds 100 MB at most. Returns the bytes of the weights."""
    directory.mkdir(parents=True)
    config = config_of(hp)
    (directory / "config.json").write_text(json.dumps(config))
    _write_tokenizer(directory, hp.n_vocab)
    shards = _shards(shapes_of(config), shard_bytes)
    rng = np.random.default_rng(0)
    weight_map = {}
    for i, shapes in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        _write_shard(directory / file, shapes, rng)
        weight_map |= dict.fromkeys(shapes, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(2 * math.prod(shape) for shapes in shards for shape in shapes.values())


def _write_tokenizer(directory: Path, n_vocab: int) -> None:
    """That of the releases if it fits, else that of a tiny model."""
    real = DATA / "qwen3-tokenizer"
    if n_vocab < 151_669:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TOKENIZER / name, directory)
        return
    shutil.copy(real / "tokenizer_config.json", directory)
    packed = (real / "tokenizer.json.gz").read_bytes()
    (directory / "tokenizer.json").write_bytes(gzip.decompress(packed))


def _shards(shapes: Shapes, shard_bytes: int) -> list[Shapes]:
    shards: list[Shapes] = [{}]
    size = 0
    for name, shape in shapes.items():
        n_bytes = 2 * math.prod(shape)
        if shards[-1] and size + n_bytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += n_bytes
    return shards


def _write_shard(path: Path, shapes: Shapes, rng: np.random.Generator) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        offsets = [end, end := end + 2 * math.prod(shape)]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": offsets}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            n = math.prod(shape)
            for start in range(0, n, _CHUNK):
                count = min(_CHUNK, n - start)
                file.write(random_blocks(rng, "BF16", count, shape[-1] ** -0.5).data)
