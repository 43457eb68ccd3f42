"""config.json in both dialects, and every setting that would compute something else."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from checkpoint_tiny import DENSE, MOE

from quant.checkpoint import Experts, Hyperparameters, Yarn, read_hyperparameters
from quant.errors import FormatError

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def read(directory: Path, config: dict[str, Any], without: str = "") -> Hyperparameters:
    """without: a key to leave out."""
    values = {key: value for key, value in config.items() if key != without}
    (directory / "config.json").write_text(json.dumps(values))
    return read_hyperparameters(directory)


def modern(config: dict[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    """As transformers 5 writes it."""
    renamed = {"num_experts": "num_local_experts", "torch_dtype": "dtype"}
    result = {
        renamed.get(key, key): value
        for key, value in config.items()
        if key not in ("rope_theta", "rope_scaling")
    }
    layers = ["full_attention"] * config["num_hidden_layers"]
    return result | {"rope_parameters": {"rope_theta": 1e6} | rope, "layer_types": layers}


def test_a_dense_model(tmp_path: Path) -> None:
    assert read(tmp_path, DENSE) == Hyperparameters(
        architecture="qwen3",
        n_layers=2,
        n_embd=64,
        n_heads=4,
        n_kv_heads=2,
        head_dim=32,
        n_ff=96,
        n_vocab=352,
        n_context=128,
        rms_eps=1e-6,
        rope_theta=1e6,
        yarn=None,
        tied_embedding=False,
        experts=None,
    )


def test_a_mixture(tmp_path: Path) -> None:
    hp = read(tmp_path, MOE)
    assert hp.architecture == "qwen3moe"
    assert hp.experts == Experts(count=4, used=2, n_ff=32, norm_topk=True)


@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
def test_the_dialects_agree(tmp_path: Path, config: dict[str, Any]) -> None:
    official = read(tmp_path, config)
    assert read(tmp_path, modern(config, {"rope_type": "default"})) == official
    scaled = read(tmp_path, config | {"rope_scaling": YARN})
    assert scaled.yarn == Yarn(4.0, 32768) and scaled.rope_theta == 1e6
    assert read(tmp_path, modern(config, YARN)) == scaled


def test_yarn_by_its_older_key_and_with_its_usual_options(tmp_path: Path) -> None:
    old = {"type" if key == "rope_type" else key: value for key, value in YARN.items()}
    assert read(tmp_path, DENSE | {"rope_scaling": old}).yarn == Yarn(4.0, 32768)
    usual = {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 1.138629436111989}
    assert read(tmp_path, DENSE | {"rope_scaling": YARN | usual}).yarn == Yarn(4.0, 32768)
    short = {"rope_type": "yarn", "factor": 2}
    assert read(tmp_path, DENSE | {"rope_scaling": short}).yarn == Yarn(2.0, 128)


def test_the_head_size_defaults_to_hidden_over_heads(tmp_path: Path) -> None:
    assert read(tmp_path, DENSE, without="head_dim").head_dim == 16
    assert read(tmp_path, DENSE | {"head_dim": None}).head_dim == 16


def test_switches_default_to_off(tmp_path: Path) -> None:
    assert not read(tmp_path, DENSE, without="tie_word_embeddings").tied_embedding
    experts = read(tmp_path, MOE, without="norm_topk_prob").experts
    assert experts is not None and not experts.norm_topk


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "architecture is LlamaForCausalLM"),
        ({"architectures": ["Qwen3NextForCausalLM"]}, "architecture is Qwen3NextForCausalLM"),
        ({"architectures": ["Qwen3ForCausalLM", "Other"]}, "architecture is"),
        ({"architectures": None}, "architecture is None"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu"),
        ({"use_sliding_window": True}, "sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized already .awq"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"hidden_size": -64}, "hidden_size is -64"),
        ({"hidden_size": 10**40}, "hidden_size is 1000"),
        ({"hidden_size": 64.0}, "hidden_size is 64.0"),
        ({"hidden_size": "64"}, "hidden_size is 64"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"num_attention_heads": 2**31}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"num_key_value_heads": 8}, "num_key_value_heads is 8"),
        ({"head_dim": 33}, "head_dim 33 is odd"),
        ({"head_dim": None, "hidden_size": 66}, "head_dim is missing"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"intermediate_size": 0}, "intermediate_size is 0"),
        ({"max_position_embeddings": 2**40}, "max_position_embeddings is"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
        ({"rope_scaling": [4]}, "rope_scaling is"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "rope_type llama3"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "factor is missing"),
        ({"rope_scaling": YARN | {"factor": 0.5}}, "factor is 0.5"),
        ({"rope_scaling": YARN | {"beta_fast": 16}}, "beta_fast 16"),
        ({"rope_scaling": YARN | {"mscale": 1.0}}, "mscale 1.0"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(FormatError, match=says) as error:
        read(tmp_path, DENSE | change)
    assert "config.json" in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mlp_only_layers": [0]}, "mlp_only_layers"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ({"num_experts": 0}, "num_experts is 0"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok is 5"),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size is 0"),
    ],
)
def test_a_wrong_mixture_is_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(FormatError, match=says):
        read(tmp_path, MOE | change)


@pytest.mark.parametrize("key", sorted(set(MOE) - {"rope_scaling", "head_dim", "attention_bias"}))
def test_a_missing_key_is_named_unless_it_has_a_default(tmp_path: Path, key: str) -> None:
    optional = {
        "decoder_sparse_step",
        "hidden_act",
        "mlp_only_layers",
        "norm_topk_prob",
        "tie_word_embeddings",
    }
    named = {"num_experts": "num_local_experts", "architectures": "architecture"}.get(key, key)
    if key in optional:
        read(tmp_path, MOE, without=key)
    else:
        with pytest.raises(FormatError, match=named):
            read(tmp_path, MOE, without=key)


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"there is no config\.json"):
        read_hyperparameters(tmp_path)


def test_any_junk_is_an_error_of_ours(tmp_path: Path) -> None:
    """Random values in random keys: hyperparameters in range, or a FormatError."""
    rng = random.Random(2)
    junk = [None, True, 0, -1, 2**63, 1e308, float("nan"), "", "x" * 500, [], [[]], {}, {"a": 1}]
    refused = 0
    for i in range(2000):
        config = dict(rng.choice([DENSE, MOE, modern(MOE, YARN), DENSE | {"rope_scaling": YARN}]))
        for _ in range(rng.choice([1, 1, 2])):
            config[rng.choice(sorted(config))] = rng.choice(junk)
        directory = tmp_path / str(i)
        directory.mkdir()
        try:
            hp = read(directory, config)
        except FormatError:
            refused += 1
            continue
        assert min(hp.n_layers, hp.n_embd, hp.n_heads, hp.n_kv_heads, hp.head_dim) > 0
    assert 1000 < refused < 2000
