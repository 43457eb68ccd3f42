"""Makes the random tiny checkpoints of tests/data and the reference logits of every model.

Needs torch, transformers, tokenizers and safetensors, which the tests do not:

    python tests/vectors/make_logits.py

Writes tests/data/tiny-*/ (Hugging Face checkpoints, bf16) and tests/data/logits/MODEL.npz:
    ids_I        int32[n]              a sequence of token ids
    top1_I       int32[n]              the argmax of every position
    positions_I  int32[m]              the positions whose logits are kept
    logits_I     float32[m, n_vocab]   computed in float32 with eager attention
for I = 0, 1, ... The weights are bf16 values, so a conversion to F32 is exact.
"""

from __future__ import annotations

import json
import random
import shutil
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

DATA = Path(__file__).resolve().parent.parent / "data"
N_MERGES = 64  # of the Qwen3 BPE, after its 256 bytes
N_KEPT = 40  # positions of a nano sequence whose logits are stored
NANO_TOKENS = 128


@dataclass(frozen=True)
class Tiny:
    """One odd shape of the family."""

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    ffn: int  # of one expert in a MoE model
    layers: int = 2
    tied: bool = False
    padded_rows: int = 0  # rows of the embedding beyond the vocabulary
    experts: int = 0
    experts_used: int = 0
    norm_topk: bool = True
    eps: float = 1e-6
    rope: dict[str, Any] = field(default_factory=lambda: {"rope_theta": 1000000.0})
    lengths: tuple[int, ...] = (24, 61)


YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
TINY = [
    Tiny("tiny-gqa1", 4, 4, 16, hidden=96, ffn=160),
    Tiny(
        "tiny-gqa2", 4, 2, 64, hidden=96, ffn=104, tied=True, padded_rows=38,
        rope={"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
    ),
    Tiny("tiny-gqa5", 10, 2, 16, hidden=80, ffn=136, eps=1e-5, rope={"rope_theta": 10000.0}),
    Tiny("tiny-gqa8", 8, 1, 128, hidden=32, ffn=224, tied=True, padded_rows=6),
    Tiny(
        "tiny-yarn", 2, 1, 64, hidden=64, ffn=96, tied=True, lengths=(80,),
        rope={"rope_theta": 1000000.0, "rope_scaling": {"rope_type": "yarn", **YARN}},
    ),
    Tiny(
        "tiny-moe8", 4, 2, 32, hidden=64, ffn=32, experts=8, experts_used=2,
        rope={"rope_parameters": {"rope_type": "yarn", "rope_theta": 1000000.0, **YARN}},
    ),
    Tiny(
        "tiny-moe8-raw", 4, 1, 16, hidden=64, ffn=48, layers=1, experts=8, experts_used=3,
        norm_topk=False, tied=True,
    ),
    Tiny("tiny-moe128", 2, 2, 16, hidden=32, ffn=24, layers=1, experts=128, experts_used=8),
]  # fmt: skip


# ---- checkpoints -----------------------------------------------------------


def small_tokenizer() -> dict[str, Any]:
    """The first bytes and merges of the Qwen3 tokenizer and its added tokens."""
    full: dict[str, Any] = json.loads((DATA / "nano-dense" / "tokenizer.json").read_text())
    n = 256 + N_MERGES
    model = full["model"]
    model["vocab"] = {text: i for text, i in model["vocab"].items() if i < n}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    for i, token in enumerate(full["added_tokens"]):
        token["id"] = n + i
    return full


def config_of(t: Tiny, n_tokens: int) -> dict[str, Any]:
    end = 256 + N_MERGES + 2  # <|im_end|>
    config: dict[str, Any] = {
        "architectures": ["Qwen3MoeForCausalLM" if t.experts else "Qwen3ForCausalLM"],
        "attention_bias": False,
        "bos_token_id": end - 2,
        "eos_token_id": end,
        "head_dim": t.head_dim,
        "hidden_act": "silu",
        "hidden_size": t.hidden,
        "intermediate_size": t.ffn,
        "max_position_embeddings": 128,
        "model_type": "qwen3_moe" if t.experts else "qwen3",
        "num_attention_heads": t.heads,
        "num_hidden_layers": t.layers,
        "num_key_value_heads": t.kv_heads,
        "rms_norm_eps": t.eps,
        "tie_word_embeddings": t.tied,
        "torch_dtype": "bfloat16",
        "vocab_size": n_tokens + t.padded_rows,
        **t.rope,
    }
    if t.experts:
        config |= {
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "moe_intermediate_size": t.ffn,
            "norm_topk_prob": t.norm_topk,
            "num_experts": t.experts,
            "num_experts_per_tok": t.experts_used,
        }
    return config


def weights_of(t: Tiny, n_vocab: int) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(zlib.crc32(t.name.encode()))
    weights: dict[str, torch.Tensor] = {}

    def matrix(name: str, rows: int, columns: int, gain: float = 1.0) -> None:
        values = rng.standard_normal((rows, columns)) * gain / columns**0.5
        weights[name + ".weight"] = torch.tensor(values).to(torch.bfloat16)

    def norm(name: str, n: int) -> None:
        values = 1 + 0.25 * rng.standard_normal(n)
        weights[name + ".weight"] = torch.tensor(values).to(torch.bfloat16)

    def swiglu(name: str) -> None:
        matrix(name + ".gate_proj", t.ffn, t.hidden, 1.5)
        matrix(name + ".up_proj", t.ffn, t.hidden, 1.5)
        matrix(name + ".down_proj", t.hidden, t.ffn, 1.5)

    matrix("model.embed_tokens", n_vocab, t.hidden, 3.0)
    for i in range(t.layers):
        layer = f"model.layers.{i}."
        norm(layer + "input_layernorm", t.hidden)
        norm(layer + "post_attention_layernorm", t.hidden)
        norm(layer + "self_attn.q_norm", t.head_dim)
        norm(layer + "self_attn.k_norm", t.head_dim)
        matrix(layer + "self_attn.q_proj", t.heads * t.head_dim, t.hidden)
        matrix(layer + "self_attn.k_proj", t.kv_heads * t.head_dim, t.hidden)
        matrix(layer + "self_attn.v_proj", t.kv_heads * t.head_dim, t.hidden)
        matrix(layer + "self_attn.o_proj", t.hidden, t.heads * t.head_dim)
        if t.experts:
            matrix(layer + "mlp.gate", t.experts, t.hidden, 2.0)
            for e in range(t.experts):
                swiglu(layer + f"mlp.experts.{e}")
        else:
            swiglu(layer + "mlp")
    norm("model.norm", t.hidden)
    if not t.tied:
        matrix("lm_head", n_vocab, t.hidden, 3.0)
    return weights


def write_tiny(t: Tiny) -> Path:
    directory = DATA / t.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    tokenizer = small_tokenizer()
    config = config_of(t, 256 + N_MERGES + len(tokenizer["added_tokens"]))
    save_file(
        weights_of(t, config["vocab_size"]), directory / "model.safetensors", {"format": "pt"}
    )
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False) + "\n")
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}) + "\n"
    )
    return directory


# ---- reference logits ------------------------------------------------------


def load(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@torch.inference_mode()
def logits_of(model: Any, ids: list[int]) -> np.ndarray:
    return model(torch.tensor([ids])).logits[0].float().numpy()


def nano_sequences(model: Any, directory: Path) -> list[list[int]]:
    """Chat prompts in three languages, continued by the model itself."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    think = "<|im_start|>assistant\n"
    no_think = think + "<think>\n\n</think>\n\n"

    def user(text: str) -> str:
        return f"<|im_start|>user\n{text}<|im_end|>\n"

    prompts = [
        user("What is 17 + 48 - 5 + 36?") + think,
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        + user("Sort 8, 71, 25, 90. /no_think")
        + no_think
        + "8, 25, 71, 90<|im_end|>\n"
        + user("37, 12, 85, 49, 66 중 가장 큰 수는? /think")
        + think,
        user("你好")
        + no_think
        + "你好！请给我一道算术题。<|im_end|>\n"
        + user("63 + 29 - 14 + 55等于多少？")
        + think,
    ]
    sequences = []
    for prompt in prompts:
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        out = model.generate(
            torch.tensor([ids]), do_sample=False, max_length=NANO_TOKENS, pad_token_id=4096
        )
        sequences.append(out[0].tolist())
    return sequences


def router_margin(model: Any, ids: list[int]) -> float:
    """The smallest gap between the last chosen expert and the next: above rounding, or the
    reference itself is a matter of luck."""
    gaps: list[float] = []
    used = model.config.num_experts_per_tok

    def watch(_module: Any, _inputs: Any, outputs: Any) -> None:
        top = outputs[0].topk(used + 1, dim=-1).values
        gaps.append(float((top[:, used - 1] - top[:, used]).min()))

    hooks = [layer.mlp.gate.register_forward_hook(watch) for layer in model.model.layers]
    logits_of(model, ids)
    for hook in hooks:
        hook.remove()
    return min(gaps)


def write_vectors(name: str, model: Any, sequences: list[list[int]], n_kept: int) -> None:
    arrays = {}
    for i, ids in enumerate(sequences):
        logits = logits_of(model, ids)
        n = len(ids)
        positions = np.unique(np.linspace(0, n - 1, min(n, n_kept)).round().astype(np.int32))
        arrays[f"ids_{i}"] = np.array(ids, np.int32)
        arrays[f"top1_{i}"] = logits.argmax(-1).astype(np.int32)
        arrays[f"positions_{i}"] = positions
        arrays[f"logits_{i}"] = logits[positions]
        if hasattr(model.config, "num_experts_per_tok"):
            margin = router_margin(model, ids)
            assert margin > 1e-5, f"{name}: expert logits {margin} apart, choose another seed"
    path = DATA / "logits" / f"{name}.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **arrays)
    spread = arrays["logits_0"].std()
    print(f"{name}: {[len(ids) for ids in sequences]} tokens, logits std {spread:.2f}, "
          f"{path.stat().st_size / 1e6:.2f} MB")  # fmt: skip


def main() -> None:
    torch.manual_seed(0)
    for t in TINY:
        model = load(write_tiny(t))
        rng = random.Random(t.name)
        n_vocab = model.config.vocab_size - t.padded_rows
        sequences = [[rng.randrange(n_vocab) for _ in range(n)] for n in t.lengths]
        write_vectors(t.name, model, sequences, max(t.lengths))
    for name in ("nano-dense", "nano-moe"):
        model = load(DATA / name)
        write_vectors(name, model, nano_sequences(model, DATA / name), N_KEPT)


if __name__ == "__main__":
    main()
