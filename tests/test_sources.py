"""Where weights come from: fp8 checkpoints, GGUF files, names in the cache; and what is refused."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import gguf_files
import numpy as np
import pytest
from checkpoint_tiny import (
    DATA,
    DENSE,
    FP8,
    MOE,
    Tensors,
    edited,
    fp8_values,
    fused,
    tensors_of,
    write_checkpoint,
    write_fp8_checkpoint,
    write_parts,
    write_safetensors,
)
from commandline import Command
from gguf_tiny import Image, tiny_model

from quant.errors import FormatError, QuantError, SourceNotFound, UsageError
from quant.quantize import default_output, predict, quantize
from quant.safetensors import SafetensorsFile
from quant.source import open_source

NANO = ["nano-dense", "nano-moe"]


def rows_of(source: Path) -> Tensors:
    """Every tensor of a source, read in pieces that end anywhere."""
    result = {}
    with closing(open_source(source, allow_requantize=True)) as opened:
        for tensor in opened.tensors:
            pieces = [
                opened.read_rows(run.source, start, min(start + 7, run.stop))
                for run in tensor.runs
                for start in range(run.start, run.stop, 7)
            ]
            result[tensor.name] = np.concatenate(pieces).reshape(tensor.shape)
    return result


def refused(source: Path, says: str, kind: type[QuantError] = FormatError, **how: Any) -> None:
    """Nothing is left behind."""
    folder = source.parent / "empty"
    folder.mkdir(exist_ok=True)
    with pytest.raises(kind, match=says):
        quantize(source, folder / "out.gguf", "q8_0", **how)
    assert list(folder.iterdir()) == []


# ---- fp8 ---------------------------------------------------------------------


def test_fp8_is_what_torch_makes_of_it(tmp_path: Path) -> None:
    """tests/vectors/make_fp8.py: every code, and a matrix of cut blocks."""
    torch = np.load(DATA / "fp8.npz")
    codes = np.arange(256, dtype=np.uint8)
    path = tmp_path / "codes.safetensors"
    write_parts(path, {"codes": ("F8_E4M3", codes)})
    values = SafetensorsFile(path).read_rows("codes", 0, 1)[0]
    assert np.array_equal(values, torch["values"], equal_nan=True)
    assert np.array_equal(np.signbit(values), np.signbit(torch["values"]))
    finite = ~np.isnan(values)
    assert np.array_equal(fp8_values(codes)[finite], values[finite])  # the reference below

    config = DENSE | {"hidden_size": 130, "intermediate_size": 140, "num_hidden_layers": 1}
    write_fp8_checkpoint(tmp_path / "source", config)
    name = "model.layers.0.mlp.up_proj.weight"
    replaced(
        tmp_path / "source",
        {name: ("F8_E4M3", torch["weight"]), f"{name}_scale_inv": ("BF16", torch["scale"])},
    )
    read = rows_of(tmp_path / "source")["blk.0.ffn_up.weight"]
    assert np.array_equal(read, torch["decoded"])


def replaced(source: Path, tensors: dict[str, tuple[str, Any] | None]) -> None:
    """Changes tensors of model.safetensors; None takes one out."""
    path = source / "model.safetensors"
    file, raw = SafetensorsFile(path), path.read_bytes()
    types = {"F8_E4M3": np.uint8, "BF16": np.uint16}
    parts: dict[str, Any] = {
        name: (
            info.dtype,
            np.frombuffer(raw[info.offset : info.end], types[info.dtype]).reshape(info.shape),
        )
        for name, info in file.tensors.items()
    }
    file.close()
    parts |= tensors
    write_parts(path, {name: part for name, part in parts.items() if part is not None})


@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("block", [(128, 128), (48, 32), (7, 5)])
def test_fp8_weights_times_their_scales(
    tmp_path: Path, config: dict[str, Any], block: tuple[int, int]
) -> None:
    exact = write_fp8_checkpoint(tmp_path / "fp8", config, block=block)
    plain = write_checkpoint(tmp_path / "plain", config)
    write_safetensors(plain / "model.safetensors", exact, "F32")
    found, wanted = rows_of(tmp_path / "fp8"), rows_of(plain)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert np.array_equal(found[name], values), name


def test_fp8_experts_that_are_fused(tmp_path: Path) -> None:
    """Blocks begin anew in every expert."""
    config = MOE | {"moe_intermediate_size": 24}
    tensors = fused(tensors_of(config), config)
    exact = write_fp8_checkpoint(tmp_path / "fp8", config, tensors, block=(20, 20))
    both = exact["model.layers.1.mlp.experts.gate_up_proj"]
    found = rows_of(tmp_path / "fp8")
    assert np.array_equal(found["blk.1.ffn_gate_exps.weight"], both[:, :24])
    assert np.array_equal(found["blk.1.ffn_up_exps.weight"], both[:, 24:])


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({f"{UP}_scale_inv": None}, f"lacks {UP}_scale_inv, the scales of {UP}"),
        (
            {f"{UP}_scale_inv": ("BF16", np.ones((2, 1), np.uint16))},
            rf"{UP}_scale_inv has shape \[2, 1\], but \[96, 64\] in blocks of 128 x 128 calls for",
        ),
        ({f"{UP}_scale_inv": ("F8_E4M3", np.ones((1, 1), np.uint8))}, "in F8_E4M3, not in floats"),
        (
            {f"{UP}_scale_inv": ("BF16", np.full((1, 1), 0x7FC0, np.uint16))},
            f"{UP} holds NaN or infinite weights",
        ),
        ({UP: ("F8_E4M3", np.full((96, 64), 0x7F, np.uint8))}, f"{UP} holds NaN"),
        ({UP: ("F8_E4M3", np.full((96, 64), 0xFF, np.uint8))}, f"{UP} holds NaN"),
        (
            {"model.norm.weight": ("F8_E4M3", np.ones(64, np.uint8))},
            "lacks model.norm.weight_scale",
        ),
        (
            {UP: ("BF16", np.ones((96, 64), np.uint16))},
            f"holds '{UP}_scale_inv', which is no part of",
        ),
    ],
)
def test_wrong_fp8_tensors(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    write_fp8_checkpoint(tmp_path / "source", DENSE)
    replaced(tmp_path / "source", change)
    refused(tmp_path / "source", says)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (None, "is F8_E4M3, but there is no quantization_config"),
        (FP8, "weight_block_size of quantization_config is None; it must be two sizes"),
        (FP8 | {"weight_block_size": [128]}, "weight_block_size"),
        (FP8 | {"weight_block_size": [0, 128]}, "weight_block_size"),
        (FP8 | {"weight_block_size": [128, 128], "fmt": "e5m2"}, "is e5m2, not e4m3"),
        (
            {"quant_method": "gptq", "bits": 8},
            r"quantized already \(gptq\); take the bf16",
        ),
        ({"quant_method": "compressed-tensors"}, r"\(compressed-tensors\)"),
    ],
)
def test_wrong_fp8_settings(tmp_path: Path, config: Any, says: str) -> None:
    write_fp8_checkpoint(tmp_path / "source", DENSE)
    edited(tmp_path / "source", "config.json", quantization_config=config)
    refused(tmp_path / "source", says)


# ---- GGUF --------------------------------------------------------------------


@pytest.mark.parametrize("name", NANO)
@pytest.mark.parametrize("recipe", ["q4_k_m", "q8_0"])
def test_a_gguf_source_gives_the_same_file_as_its_checkpoint(
    tmp_path: Path, name: str, recipe: str
) -> None:
    """To the byte, metadata included: BF16 holds all that these checkpoints do."""
    between, direct, out = (tmp_path / f"{i}.gguf" for i in range(3))
    quantize(DATA / name, between, "bf16")
    quantize(DATA / name, direct, recipe)
    quantize(between, out, recipe)
    assert out.read_bytes() == direct.read_bytes()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("experts", [0, 4])
def test_rows_of_a_gguf(tmp_path: Path, kind: str, experts: int) -> None:
    image = tiny_model(kind, experts=experts, experts_used=min(experts, 2), ffn=64, layers=2)
    found = rows_of(image.write(tmp_path / "source.gguf"))
    assert found.keys() == {tensor.name for tensor in image.tensors}
    for name, values in found.items():
        assert np.array_equal(values, image.matrix(name).reshape(values.shape)), name


def test_a_split_gguf(tmp_path: Path) -> None:
    """Opened by its first shard, and never replaced by what is made of it."""
    whole, split = tmp_path / "whole.gguf", tmp_path / "split" / "model.gguf"
    quantize(DATA / "nano-dense", whole, "bf16")
    split.parent.mkdir()
    shards = quantize(DATA / "nano-dense", split, "bf16", split_size=3_000_000).paths
    assert len(shards) > 2
    quantize(whole, tmp_path / "a.gguf", "q8_0")
    quantize(shards[0], tmp_path / "b.gguf", "q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert default_output(shards[0], "q8_0") == Path("model-q8_0.gguf")
    with pytest.raises(UsageError, match="would replace its own source"):
        quantize(shards[0], split, "q8_0")
    shards[1].unlink()
    refused(shards[0], "model-00002")


def test_every_kind_of_metadata_is_copied(tmp_path: Path) -> None:
    image = tiny_model("F32")
    kinds = gguf.GGUFValueType
    wanted = {
        "a.u8": (7, kinds.UINT8),
        "a.i16": (-7, kinds.INT16),
        "a.u64": (1 << 40, kinds.UINT64),
        "a.f64": (0.1, kinds.FLOAT64),
        "a.bool": (True, kinds.BOOL),
        "a.text": ("3 < 5 \u00e9", kinds.STRING),
    }
    for key, (value, kind) in wanted.items():
        image.put(key, value, kind)
    image.put("a.numbers", [3, -4], kinds.INT32)
    image.put("general.alignment", 32, kinds.UINT32)
    image.put("quantize.imatrix.file", "of the source")
    quantize(image.write(tmp_path / "source.gguf"), tmp_path / "out.gguf", "q8_0")
    fields = gguf_files.read(tmp_path / "out.gguf").fields
    for key, (value, kind) in wanted.items():
        assert fields[key].types == [kind] and fields[key].contents() == value, key
    assert fields["a.numbers"].types == [kinds.ARRAY, kinds.INT32]
    assert fields["a.numbers"].contents() == [3, -4]
    assert fields["general.file_type"].contents() == 7
    assert fields["general.quantization_version"].contents() == 2
    assert not {"general.alignment", "quantize.imatrix.file"} & fields.keys()
    tokens = "tokenizer.ggml.tokens"
    assert fields[tokens].contents() == image.get(tokens)


def test_a_quantized_gguf_asks_for_leave(tmp_path: Path) -> None:
    source = tiny_model("Q4_0", layers=2, ffn=64).write(tmp_path / "source.gguf")
    says = r"quantized already \(token_embd.weight is Q4_0\).* or --allow-requantize"
    refused(source, says, UsageError)
    with pytest.raises(UsageError, match=says):
        predict(source, "q8_0")
    quantize(source, tmp_path / "out.gguf", "f32", allow_requantize=True)
    before, after = rows_of(source), rows_of(tmp_path / "out.gguf")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_no_output_replaces_its_source(tmp_path: Path) -> None:
    source, link = tmp_path / "source.gguf", tmp_path / "link.gguf"
    tiny_model("F16").write(source)
    link.symlink_to(source)
    before = source.read_bytes()
    for out in (source, link, tmp_path / "." / "source.gguf"):
        with pytest.raises(UsageError, match="would replace its own source"):
            quantize(source, out, "q8_0")
    assert source.read_bytes() == before


def without(name: str) -> Image:
    image = tiny_model("F16")
    image.tensors = [tensor for tensor in image.tensors if tensor.name != name]
    return image


def with_key(key: str, value: Any, **model: Any) -> Image:
    image = tiny_model("F16", **model)
    image.put(key, value)
    return image


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (with_key("general.architecture", "llama"), "its architecture is llama; only qwen3 and"),
        (with_key("general.architecture", "qwen3vl"), "its architecture is qwen3vl"),
        (without("blk.0.attn_v.weight"), "the tensor blk.0.attn_v.weight is missing"),
        (without("token_embd.weight"), "the tensor token_embd.weight is missing"),
        (with_key("qwen3.feed_forward_length", 40), r"ffn_gate.weight has shape \[48, 32\], but"),
        (with_key("qwen3.block_count", 2), "blk.1.attn_norm.weight is missing"),
        (with_key("qwen3.block_count", 4000), "4000 layers are announced for 13 tensors"),
        (with_key("qwen3.embedding_length", 0), "qwen3.embedding_length is 0"),
        (with_key("qwen3.attention.head_count", 2**31), "attention.head_count is 2147483648"),
        (with_key("qwen3.rope.scaling.type", "linear"), "rope.scaling.type is linear"),
        (
            with_key("qwen3.block_count", 1, layers=2),
            "holds 'blk.1.attn_k.weight', which is no part of qwen3 with 1 layers",
        ),
    ],
)
def test_a_gguf_that_does_not_fit_its_metadata(tmp_path: Path, image: Image, says: str) -> None:
    refused(image.write(tmp_path / "source.gguf"), says)


def test_a_gguf_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "source.gguf"
    whole = tiny_model("F16").encode()
    for size in (0, 3, 24, 200, len(whole) // 2, len(whole) - 64):
        path.write_bytes(whole[:size])
        refused(path, "source.gguf: ")
    image = tiny_model("F16")
    weights = image.tensor("blk.0.attn_q.weight")
    weights.data = b"\xff\xff" + weights.data[2:]
    refused(image.write(path), "blk.0.attn_q.weight holds NaN or infinite")


def test_a_gguf_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tiny_model("F16").write(tmp_path / "source.gguf")
    with closing(open_source(path)) as source:
        last = source.tensors[-1]
        os.truncate(path, 1000)
        with pytest.raises(FormatError, match=f"ends inside {last.name}"):
            source.read_rows(last.name, 0, last.n_rows)


# ---- names and paths ---------------------------------------------------------


def test_the_file_of_a_gguf_is_named_after_its_model(tmp_path: Path) -> None:
    for name, wanted in {
        "Qwen3-0.6B-BF16.gguf": "Qwen3-0.6B-q4_k_m.gguf",
        "nano-q4_k_m.gguf": "nano-q4_k_m.gguf",
        "model.F16.gguf": "model-q4_k_m.gguf",
        "f16.gguf": "f16-q4_k_m.gguf",
    }.items():
        (tmp_path / name).touch()
        assert default_output(tmp_path / name, "q4_k_m") == Path(wanted)


def test_sources_that_are_none(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "no such checkpoint directory or GGUF file", SourceNotFound)
    (tmp_path / "text.gguf").write_text("not a model")
    refused(tmp_path / "text.gguf", "text.gguf: ")


@pytest.mark.parametrize(
    "name",
    [
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3NextForCausalLM",
        "Qwen3OmniMoeForConditionalGeneration",
        "Qwen3ForSequenceClassification",
        "Qwen2ForCausalLM",
    ],
)
def test_relatives_that_are_not_qwen3(tmp_path: Path, name: str) -> None:
    source = write_checkpoint(tmp_path / "source", DENSE | {"architectures": [name]})
    refused(source, f"its architecture is {name}; only Qwen3ForCausalLM and Qwen3MoeForCausalLM")


def test_an_embedding_model_is_named_as_what_it_is(tmp_path: Path) -> None:
    """Its config says Qwen3ForCausalLM, its tensors are those of a Qwen3Model."""
    tensors = {
        name.removeprefix("model."): values
        for name, values in tensors_of(DENSE | {"tie_word_embeddings": True}).items()
    }
    source = write_checkpoint(tmp_path / "source", DENSE, tensors)
    refused(source, "as in an embedding model .Qwen3Model.; such a model cannot generate")


# ---- the command -------------------------------------------------------------


def test_the_command_reads_a_gguf(qwen3: Command) -> None:
    tiny_model("F16").write(qwen3.home / "tiny-f16.gguf")
    done = qwen3("quantize", "tiny-f16.gguf", "--q8")
    assert done.returncode == 0 and (qwen3.home / "tiny-q8_0.gguf").is_file(), done.stderr
    again = qwen3("quantize", "tiny-q8_0.gguf", "--type", "q4_0")
    assert again.returncode == 2 and "--allow-requantize" in again.stderr


def test_the_command_predicts(qwen3: Command) -> None:
    write_checkpoint(qwen3.home / "source", MOE)
    arguments = ("quantize", "source", "--q8", "--tensor", "down=f16", "--tensor", "embd=f16")
    dry = qwen3(*arguments, "--dry-run")
    assert dry.returncode == 0 and dry.stderr.startswith("Q8_0, 144,320 weights, 0.2 MB (11.17 ")
    assert [path.name for path in qwen3.home.iterdir()] == ["source"]
    assert qwen3(*arguments, "-o", "out.gguf").returncode == 0
    rows = [line.split("\t") for line in dry.stdout.splitlines()]
    assert {row[0] for row in rows} == {"Q8_0", "F16", "F32", "file"}
    assert rows[-1][-1].replace(",", "") == str((qwen3.home / "out.gguf").stat().st_size)
    wrong = qwen3("quantize", "source", "--q8", "--tensor", "dwon=f16", "--dry-run")
    assert wrong.returncode == 2 and "dwon=f16: no matrix has such a name" in wrong.stderr
