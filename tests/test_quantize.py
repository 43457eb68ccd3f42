"""Checkpoint in, GGUF out: every value, every type, every key."""

from __future__ import annotations

import ctypes
import gzip
import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import gguf_files
import numpy as np
import pytest
from checkpoint_synthetic import config_of, write_synthetic
from checkpoint_tiny import (
    DATA,
    DENSE,
    MOE,
    Tensors,
    edited,
    fused,
    tensors_of,
    write_checkpoint,
)
from gguf.quants import dequantize
from numpy.typing import NDArray

from quant.card import model_card
from quant.errors import UsageError
from quant.quantize import default_output, quantize
from quant.recipes import RECIPES
from quant.safetensors import Weights
from quant.vocab import add_tokenizer
from qwen3cli.bench.synthetic import SHAPES
from qwen3cli.engine import Model, Sampling

ROOT = Path(__file__).resolve().parent.parent
NANO = ["nano-dense", "nano-moe"]


def contents(path: Path) -> tuple[dict[str, Any], dict[str, gguf.ReaderTensor]]:
    """The metadata and the tensors of a file, as the ecosystem's reader sees them."""
    reader = gguf_files.read(path)
    metadata = {
        key: field.contents()
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.") and field.types[0] != gguf.GGUFValueType.ARRAY
    }
    return metadata, {tensor.name: tensor for tensor in reader.tensors}


def decoded(tensor: gguf.ReaderTensor) -> NDArray[np.float32]:
    return dequantize(tensor.data, tensor.tensor_type)


# ---- values -----------------------------------------------------------------


def expected(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """The GGUF tensors a checkpoint of separate experts must become."""
    names = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "mlp.gate": "ffn_gate_inp",
    }
    result = {
        "token_embd.weight": tensors["model.embed_tokens.weight"],
        "output_norm.weight": tensors["model.norm.weight"],
    }
    if not config["tie_word_embeddings"]:
        result["output.weight"] = tensors["lm_head.weight"]
    for i in range(config["num_hidden_layers"]):
        for source, name in names.items():
            if (weight := f"model.layers.{i}.{source}.weight") in tensors:
                result[f"blk.{i}.{name}.weight"] = tensors[weight]
        for part in ("gate", "up", "down") if "num_experts" in config else ():
            result[f"blk.{i}.ffn_{part}_exps.weight"] = np.stack(
                [
                    tensors[f"model.layers.{i}.mlp.experts.{e}.{part}_proj.weight"]
                    for e in range(config["num_experts"])
                ]
            )
    return result


@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("recipe", ["F32", "BF16"])
def test_every_value_arrives(tmp_path: Path, config: dict[str, Any], recipe: str) -> None:
    tensors = tensors_of(config)
    source = write_checkpoint(tmp_path / "source", config, tensors)
    quantize(source, tmp_path / "out.gguf", recipe)
    written = contents(tmp_path / "out.gguf")[1]
    wanted = expected(tensors, config)
    assert written.keys() == wanted.keys()
    for name, values in wanted.items():
        assert tuple(written[name].shape) == values.shape[::-1], name
        assert np.array_equal(decoded(written[name]), values), name


def test_a_tied_embedding_is_written_once(tmp_path: Path) -> None:
    tied = DENSE | {"tie_word_embeddings": True}
    tensors = tensors_of(tied)
    quantize(write_checkpoint(tmp_path / "a", tied, tensors), tmp_path / "a.gguf", "f32")
    assert "output.weight" not in contents(tmp_path / "a.gguf")[1]
    repeated = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    quantize(write_checkpoint(tmp_path / "b", tied, repeated), tmp_path / "b.gguf", "f32")
    assert "output.weight" not in contents(tmp_path / "b.gguf")[1]


def test_shards_and_fused_experts_give_the_same_file(tmp_path: Path) -> None:
    tensors = tensors_of(MOE)
    variants = {
        "whole": write_checkpoint(tmp_path / "1" / "x", MOE, tensors),
        "shards": write_checkpoint(tmp_path / "2" / "x", MOE, tensors, shards=3),
        "fused": write_checkpoint(tmp_path / "3" / "x", MOE, fused(tensors, MOE)),
    }
    files = {name: tmp_path / f"{name}.gguf" for name in variants}
    for name, source in variants.items():
        quantize(source, files[name], "q8_0")
    assert len({path.read_bytes() for path in files.values()}) == 1


@pytest.mark.parametrize("name", ["0.6b", "30b-a3b", "235b-a22b"])
def test_shards_in_the_shapes_of_the_family(tmp_path: Path, name: str) -> None:
    """Small in every dimension but the experts, as bench/peak_memory.py has them large."""
    hp = SHAPES[name]
    experts = replace(hp.experts, n_ff=32) if hp.experts else None
    hp = replace(hp, n_layers=2, n_embd=64, head_dim=16, n_ff=96, n_vocab=352, experts=experts)
    n_bytes = write_synthetic(tmp_path / "source", hp, shard_bytes=100_000)
    shards = list((tmp_path / "source").glob("*.safetensors"))
    assert len(shards) > 2 and sum(shard.stat().st_size for shard in shards) > n_bytes
    with closing(Weights(tmp_path / "source")) as weights:
        names = weights.names
        tensors = {
            name: weights.read_rows(name, 0, weights.info(name).n_rows).reshape(
                weights.info(name).shape
            )
            for name in names
        }
    quantize(tmp_path / "source", tmp_path / "out.gguf", "F32")
    written = contents(tmp_path / "out.gguf")[1]
    wanted = expected(tensors, config_of(hp))
    assert written.keys() == wanted.keys()
    for part, values in wanted.items():
        assert np.array_equal(decoded(written[part]), values), part


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    """The weights of nano-dense."""
    path = tmp_path_factory.mktemp("exact") / "out.gguf"
    quantize(DATA / "nano-dense", path, "F32")
    return {name: decoded(tensor) for name, tensor in contents(path)[1].items()}


@pytest.mark.parametrize("recipe", [r.name for r in RECIPES.values() if not r.only_experts])
def test_each_recipe_stays_close_to_the_weights(
    tmp_path: Path, exact: Tensors, recipe: str
) -> None:
    """By relative error of each tensor."""
    most = {"F32": 0, "BF16": 0, "F16": 1e-3, "Q8_0": 0.007, "Q6_K": 0.02, "Q5_K_M": 0.04}
    summary = quantize(DATA / "nano-dense", tmp_path / "out.gguf", recipe)
    metadata, tensors = contents(summary.paths[0])
    assert metadata["general.file_type"] == RECIPES[recipe].file_type
    assert summary.file_bytes == summary.paths[0].stat().st_size
    assert tensors.keys() == exact.keys()
    for name, wanted in exact.items():
        error = np.sqrt(np.mean((decoded(tensors[name]) - wanted) ** 2) / np.mean(wanted**2))
        assert error <= most.get(recipe, 0.1), (name, error)


@pytest.mark.parametrize("name", NANO)
def test_the_embedded_models_come_from_these_checkpoints(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out.gguf"
    quantize(DATA / name, out, "q8_0")
    assert out.read_bytes() == (ROOT / "qwen3cli" / "models" / f"{name}-q8_0.gguf").read_bytes()


def test_the_bytes_do_not_depend_on_the_threads(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", MOE | {"hidden_size": 1024})
    files = [tmp_path / f"{threads}.gguf" for threads in (0, 1, 3, 16)]
    for file in files:
        quantize(source, file, "q4_k_m", threads=int(file.stem))
    assert len({file.read_bytes() for file in files}) == 1


# ---- metadata ---------------------------------------------------------------


def test_metadata_of_a_dense_model(tmp_path: Path) -> None:
    quantize(DATA / "nano-dense", tmp_path / "out.gguf", "q4_k_m")
    metadata, _ = contents(tmp_path / "out.gguf")
    template = json.loads((DATA / "nano-dense" / "tokenizer_config.json").read_text())
    assert metadata.pop("tokenizer.chat_template") == template["chat_template"]
    assert metadata == {
        "general.architecture": "qwen3",
        "general.type": "model",
        "general.name": "Qwen3 nano dense",
        "general.license": "apache-2.0",
        "general.file_type": 15,
        "general.quantization_version": 2,
        "qwen3.vocab_size": 4224,
        "qwen3.context_length": 4096,
        "qwen3.embedding_length": 256,
        "qwen3.block_count": 4,
        "qwen3.feed_forward_length": 512,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 128,
        "qwen3.attention.value_length": 128,
        "qwen3.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "qwen3.rope.freq_base": 1e6,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.eos_token_id": 4098,
        "tokenizer.ggml.padding_token_id": 4096,
        "tokenizer.ggml.bos_token_id": 4096,
        "tokenizer.ggml.add_bos_token": False,
    }


def test_metadata_of_a_mixture_with_yarn(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    source = write_checkpoint(tmp_path / "source", MOE | {"rope_scaling": yarn})
    quantize(source, tmp_path / "out.gguf", "q8_0")
    metadata, _ = contents(tmp_path / "out.gguf")
    wanted = {
        "expert_count": 4,
        "expert_used_count": 2,
        "expert_feed_forward_length": 32,
        "expert_weights_norm": True,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 32,
    }
    assert {key: metadata[f"qwen3moe.{key}"] for key in wanted} == wanted


CARD = """---
library_name: transformers
license: {license}
license_link: https://huggingface.co/Qwen/Qwen3-30B-A3B-Instruct-2507/blob/main/LICENSE
pipeline_tag: text-generation
base_model:
- Qwen/Qwen3-30B-A3B-Base
tags: [chat, 'thinking']
language: en
---
license: not this
"""


def test_the_card_of_a_release_in_a_hugging_face_cache(tmp_path: Path) -> None:
    source = tmp_path / "models--Qwen--Qwen3-30B-A3B-Instruct-2507" / "snapshots" / "0d7cf23"
    write_checkpoint(source, MOE)
    (source / "README.md").write_text(CARD.format(license='"apache-2.0"'))
    assert default_output(source, "Q8_0") == Path("Qwen3-30B-A3B-Instruct-2507-q8_0.gguf")
    quantize(source, tmp_path / "out.gguf", "q8_0")
    metadata, _ = contents(tmp_path / "out.gguf")
    wanted = {
        "name": "Qwen3 30B A3B Instruct 2507",
        "basename": "Qwen3",
        "size_label": "30B-A3B",
        "finetune": "Instruct",
        "version": "2507",
        "license": "apache-2.0",
        "license.link": (
            "https://huggingface.co/Qwen/Qwen3-30B-A3B-Instruct-2507/blob/main/LICENSE"
        ),
        "base_model.count": 1,
        "base_model.0.name": "Qwen3 30B A3B Base",
        "base_model.0.organization": "Qwen",
        "base_model.0.repo_url": "https://huggingface.co/Qwen/Qwen3-30B-A3B-Base",
    }
    assert {key: metadata[f"general.{key}"] for key in wanted} == wanted
    fields = gguf_files.read(tmp_path / "out.gguf").fields
    assert fields["general.tags"].contents() == ["chat", "thinking", "text-generation"]
    assert fields["general.languages"].contents() == ["en"]


def test_names_of_releases_in_their_parts(tmp_path: Path) -> None:
    for name, parts in {
        "Qwen3-0.6B": ("Qwen3", "0.6B", None, None),
        "Qwen3-8B-Base": ("Qwen3", "8B", "Base", None),
        "Qwen3-4B-Thinking-2507": ("Qwen3", "4B", "Thinking", "2507"),
        "Qwen3-4B-Instruct-2507-FP8": ("Qwen3", "4B", "Instruct", "2507"),
        "Qwen3-30B-A3B-FP8": ("Qwen3", "30B-A3B", None, None),
        "Qwen3-Coder-30B-A3B-Instruct": ("Qwen3-Coder", "30B-A3B", "Instruct", None),
        "my-model": (None, None, None, None),
    }.items():
        card = model_card(tmp_path / name)
        found = (card.basename, card.size_label, card.finetune, card.version)
        assert found == parts, name


def test_the_default_name_follows_the_directory(tmp_path: Path) -> None:
    assert default_output(DATA / "nano-dense", "q4_k_m") == Path("nano-dense-q4_k_m.gguf")
    with pytest.raises(UsageError, match="no type 'q9'; there are F32, "):
        default_output(tmp_path, "q9")


# ---- tokenizer --------------------------------------------------------------


def vocabulary(directory: Path, n_vocab: int, scratch: Path) -> dict[str, Any]:
    writer = gguf.GGUFWriter(scratch / "vocab.gguf", "qwen3")
    add_tokenizer(writer, directory, n_vocab)
    return {key: value.value for key, value in writer.kv_data[0].items()}


def test_the_tokenizer_of_the_releases(tmp_path: Path) -> None:
    source = DATA / "qwen3-tokenizer"
    shutil.copy(source / "tokenizer_config.json", tmp_path)
    packed = (source / "tokenizer.json.gz").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(gzip.decompress(packed))
    found = vocabulary(tmp_path, 151936, tmp_path)
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == len(set(tokens)) == 151936
    assert (tokens[0], tokens[151645], tokens[151667]) == ("!", "<|im_end|>", "<think>")
    assert (types[0], types[151645], types[151667], types[151669]) == (1, 3, 4, 5)
    assert (types.count(3), types.count(4)) == (14, 12)
    assert tokens[151935] == "[PAD151935]"
    merges = found["tokenizer.ggml.merges"]
    assert len(merges) == 151387 and merges[0] == "\u0120 \u0120"
    assert found["tokenizer.ggml.eos_token_id"] == 151645
    assert found["tokenizer.ggml.padding_token_id"] == 151643


def test_ends_and_templates_where_other_releases_keep_them(tmp_path: Path) -> None:
    """eos by id in generation_config.json, the template in a file of its own."""
    source = write_checkpoint(tmp_path / "source", DENSE)
    edited(source, "tokenizer_config.json", eos_token=None, chat_template="old")
    (source / "generation_config.json").write_text('{"eos_token_id": [321, 320]}')
    assert vocabulary(source, 352, tmp_path)["tokenizer.chat_template"] == "old"
    (source / "chat_template.jinja").write_text("new")
    found = vocabulary(source, 352, tmp_path)
    assert found["tokenizer.ggml.eos_token_id"] == 321
    assert found["tokenizer.chat_template"] == "new"


# ---- the ecosystem ----------------------------------------------------------


@pytest.fixture
def llama(monkeypatch: pytest.MonkeyPatch) -> Any:
    """llama-cpp-python, without repacked weights: some machines lack what that needs."""
    llama_cpp = pytest.importorskip("llama_cpp")
    defaults = llama_cpp.llama_model_default_params

    def plain() -> Any:
        params = defaults()
        params.use_extra_bufts = False
        return params

    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", plain)
    return llama_cpp


@pytest.mark.llama
@pytest.mark.parametrize(
    ("name", "recipe"),
    [(n, r) for n in NANO for r in RECIPES if n == "nano-moe" or not RECIPES[r].only_experts],
)
def test_llama_cpp_answers_from_our_files(
    tmp_path: Path, llama: Any, name: str, recipe: str
) -> None:
    out = tmp_path / "out.gguf"
    quantize(DATA / name, out, recipe)
    prompt = "<|im_start|>user\nWhat is 17 + 48 - 5?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    model = llama.Llama(str(out), n_ctx=512, verbose=False)
    theirs = model(prompt, max_tokens=120, temperature=0)["choices"][0]["text"]
    model.close()
    engine = Model(out)
    session = engine.session()
    session.sync(engine.tokenizer.encode(prompt, added=True))
    ids = session.generate(Sampling(temperature=0), stop={engine.tokenizer.added["<|im_end|>"]})
    assert theirs == engine.tokenizer.decode(list(ids))
    assert theirs.endswith("</think>\n\n60")


@pytest.mark.llama
@pytest.mark.parametrize(
    ("name", "recipe"),
    [("nano-dense", "Q4_K_M"), ("nano-dense", "Q5_0"), ("nano-moe", "Q8_0"), ("nano-moe", "Q4_0")],
)
def test_llama_cpp_converts_our_f16_file_to_the_same_types(
    tmp_path: Path, llama: Any, name: str, recipe: str
) -> None:
    """And of types that know one way of rounding to the same bytes. All other recipes are in
    the record that test_recipes.py reads."""
    f16, ours, theirs = (tmp_path / f"{file}.gguf" for file in ("f16", "ours", "theirs"))
    quantize(DATA / name, f16, "F16")
    quantize(f16, ours, recipe)
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.nthread = int(RECIPES[recipe].file_type), 2
    paths = (str(path).encode() for path in (f16, theirs))
    assert llama.llama_model_quantize(*paths, ctypes.byref(params)) == 0
    (our_metadata, ours_by_name), (metadata, by_name) = contents(ours), contents(theirs)
    assert our_metadata == metadata
    assert ours_by_name.keys() == by_name.keys()
    for tensor, its in by_name.items():
        assert ours_by_name[tensor].tensor_type == its.tensor_type, tensor
        if its.tensor_type.name in ("F32", "F16", "BF16", "Q8_0", "Q4_0"):
            assert np.array_equal(ours_by_name[tensor].data, its.data), tensor
