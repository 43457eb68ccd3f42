"""`qwen3 verify`: sound files pass, and every kind of damage is found and named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import gguf_files
import numpy as np
import pytest
from checkpoint_tiny import DENSE, MOE, tensors_of, write_checkpoint
from commandline import ROOT, Command
from gguf_tiny import Image, Tensor, decoded, tiny_model

from quant.errors import FormatError, SourceNotFound, UsageError
from quant.quantize import quantize
from quant.recipes import RECIPES
from quant.verify import verify

NANO = ROOT / "tests/data/nano-dense"
MATRIX = "blk.1.ffn_down.weight"


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """nano in a recipe."""
    folder = tmp_path_factory.mktemp("gguf")

    def converted(recipe: str) -> Path:
        path = folder / f"{recipe}.gguf"
        if not path.exists():
            quantize(NANO, path, recipe)
        return path

    return converted


def with_bit(path: Path, out: Path, tensor: str, byte: int, bit: int) -> Path:
    """The file with one bit of a tensor flipped."""
    offset = next(t.data_offset for t in gguf_files.read(path).tensors if t.name == tensor)
    data = bytearray(path.read_bytes())
    data[int(offset) + byte] ^= 1 << bit
    out.write_bytes(data)
    return out


def flagged(path: Path, source: Path | None = None) -> list[str]:
    """The tensors that have a problem."""
    return [tensor.name for tensor in verify(path, source).tensors if tensor.problem]


# ---- sound files -------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [r.name for r in RECIPES.values() if not r.only_experts])
def test_what_the_quantizer_writes_is_as_its_types_allow(
    nano: Callable[[str], Path], recipe: str
) -> None:
    report = verify(nano(recipe), NANO)
    assert report.problems == [] and report.remarks == []
    reference = {t.name: t for t in gguf_files.read(nano(recipe)).tensors}
    plain = {t.name: t for t in gguf_files.read(nano("F32")).tensors}
    assert [tensor.name for tensor in report.tensors] == list(reference)
    for tensor in report.tensors:
        exact = np.array(plain[tensor.name].data, np.float64)
        raw = reference[tensor.name]
        error = gguf.quants.dequantize(raw.data, raw.tensor_type).reshape(exact.shape) - exact
        difference = tensor.difference
        assert difference is not None
        rmse = np.sqrt(np.square(error).mean() / np.square(exact).mean())
        assert difference.rmse == pytest.approx(rmse, rel=1e-5, abs=1e-12)
        assert difference.row == 0 or abs(error[difference.row]).max() > 0


@pytest.mark.parametrize("recipe", ["BF16", "Q8_0", "Q4_K_M", "Q6_K"])
@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
def test_heavy_tails_and_scaled_rows_are_no_damage(
    tmp_path: Path, config: dict[str, Any], recipe: str
) -> None:
    """Of shards and of a mixture of experts, too."""
    rng = np.random.default_rng(3)
    tensors = {
        name: (
            0.02 * rng.standard_t(2, values.shape) * np.exp(rng.standard_normal(values.shape[-1]))
        ).astype(np.float32)
        for name, values in tensors_of(config).items()
    }
    source = write_checkpoint(tmp_path / "source", config, tensors, shards=3)
    quantize(source, tmp_path / "out.gguf", recipe)
    assert verify(tmp_path / "out.gguf", source).problems == []


def test_a_file_of_floats_is_a_source(nano: Callable[[str], Path], tmp_path: Path) -> None:
    from_floats = verify(nano("Q4_K_M"), nano("BF16"))
    assert from_floats.problems == []
    assert from_floats.tensors == verify(nano("Q4_K_M"), NANO).tensors
    with pytest.raises(UsageError, match="quantized itself"):
        verify(nano("BF16"), nano("Q8_0"))


def test_threads_change_nothing(nano: Callable[[str], Path]) -> None:
    one, four = (verify(nano("Q4_K_M"), NANO, threads=n).tensors for n in (1, 4))
    assert one == four


def test_progress_counts_the_bytes(nano: Callable[[str], Path]) -> None:
    calls: list[tuple[int, int]] = []
    report = verify(nano("Q8_0"), NANO, progress=lambda done, total: calls.append((done, total)))
    total = sum(tensor.n_bytes for tensor in report.tensors)
    assert calls == sorted(calls) and calls[-1] == (total, total)


def test_shards_as_a_file_and_as_a_source(tmp_path: Path) -> None:
    quantize(NANO, tmp_path / "q.gguf", "Q8_0", split_size=1_000_000)
    quantize(NANO, tmp_path / "f.gguf", "BF16", split_size=3_000_000)
    (shards,), (source,) = (list(tmp_path.glob(f"{name}-00001-of-*.gguf")) for name in "qf")
    assert verify(shards, NANO).problems == [] and verify(shards, source).problems == []
    last = max(tmp_path.glob("q-*.gguf"))
    name = gguf_files.read(last).tensors[-1].name
    with_bit(last, last, name, 2, 6)
    assert flagged(shards, source) == [name]
    last.write_bytes(last.read_bytes()[:-100])
    assert last.name in verify(shards).problems[0]


# ---- damage ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "byte", "bit"),
    [
        ("F32", 4 * 77, 0),
        ("F32", 4 * 77 + 3, 6),  # 10^38 times as large
        ("BF16", 2 * 77, 0),
        ("F16", 2 * 77, 3),
        ("Q8_0", 34 * 9 + 20, 1),  # a weight, off by 2 steps
        ("Q8_0", 34 * 9, 6),  # a scale
        ("Q4_0", 18 * 9 + 2, 3),
        ("Q6_K", 210 * 3 + 5, 3),
        ("Q4_K", 144 * 3 + 50, 7),  # a weight, off by half the range
        ("Q4_K", 144 * 3 + 1, 2),  # the scale of scales
        ("Q4_K", 144 * 3 + 4, 5),  # a scale of 32 weights
    ],
)
def test_a_flipped_bit_is_found(
    nano: Callable[[str], Path], tmp_path: Path, recipe: str, byte: int, bit: int
) -> None:
    path = with_bit(nano(recipe), tmp_path / "damaged.gguf", MATRIX, byte, bit)
    assert flagged(path, NANO) == [MATRIX]
    assert flagged(path) == []


@pytest.mark.parametrize("type_", ["F32", "F16", "BF16", "Q8_0", "Q4_K", "Q3_K"])
def test_a_nan_is_found_without_a_source(tmp_path: Path, type_: str) -> None:
    """In the experts too, which a model larger than half of memory opens without reading."""
    image = tiny_model(type_, hidden=256, ffn=256, experts=4, experts_used=2, head_dim=64)
    tensor = image.tensor("blk.0.ffn_up_exps.weight")
    row_bytes = len(tensor.data) // 1024
    at = {"F32": 2, "F16": 0, "BF16": 0, "Q8_0": 0, "Q4_K": 2, "Q3_K": 108}[type_]
    nan = b"\xff\x7f"
    data = bytearray(tensor.data)
    data[700 * row_bytes + at : 700 * row_bytes + at + 2] = nan
    tensor.data = bytes(data)
    report = verify(image.write(tmp_path / "nan.gguf"))
    assert report.problems == ["blk.0.ffn_up_exps.weight: holds a NaN or an infinity in row 700"]


def test_a_truncated_file_and_one_that_is_none(tmp_path: Path, nano: Callable[[str], Path]) -> None:
    data = nano("Q8_0").read_bytes()
    (tmp_path / "short.gguf").write_bytes(data[:-1000])
    (problem,) = verify(tmp_path / "short.gguf").problems
    assert "outside the file" in problem
    (tmp_path / "text.gguf").write_text("no model")
    assert len(verify(tmp_path / "text.gguf").problems) == 1
    with pytest.raises(SourceNotFound):
        verify(tmp_path / "none.gguf")


def renamed(image: Image) -> None:
    image.tensor("blk.0.attn_k.weight").name = "blk.0.attn_z.weight"


def reshaped(image: Image) -> None:
    image.tensor("blk.0.attn_k.weight").shape = (16, 64)


def fewer_tokens(image: Image) -> None:
    image.put("tokenizer.ggml.token_type", [1] * 3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda image: image.drop("qwen3.rope.freq_base"), "lacks qwen3.rope.freq_base"),
        (lambda image: image.drop("tokenizer.ggml.pre"), "lacks tokenizer.ggml.pre"),
        (lambda image: image.drop("general.architecture"), "lacks general.architecture"),
        (lambda image: image.put("qwen3.block_count", 2), "blk.1.attn_norm.weight is missing"),
        (renamed, "blk.0.attn_k.weight is missing"),
        (reshaped, "blk.0.attn_k.weight has shape [64, 16]"),
        (fewer_tokens, "the tokenizer: "),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, change: Callable[[Image], None], says: str
) -> None:
    image = tiny_model()
    change(image)
    problems = verify(image.write(tmp_path / "tiny.gguf")).problems
    assert any(says in problem for problem in problems), problems


def test_the_source_of_another_model(nano: Callable[[str], Path], tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", DENSE, tensors_of(DENSE))
    problems = verify(nano("Q8_0"), other).problems
    assert any("has shape" in problem for problem in problems)
    assert any("is not in the source" in problem for problem in problems)
    same_shapes = tensors_of(DENSE, seed=9)
    quantize(write_checkpoint(tmp_path / "x", DENSE, same_shapes), tmp_path / "x.gguf", "Q8_0")
    assert len(verify(tmp_path / "x.gguf", other).problems) > 5


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    image = tiny_model()
    image.put("general.architecture", "llama")
    with pytest.raises(FormatError, match="its architecture is llama"):
        verify(image.write(tmp_path / "llama.gguf"))


def test_importances_excuse_single_weights(tmp_path: Path) -> None:
    """An encoder that knows them may give up a weight that hardly counts."""
    image, source = tiny_model("Q4_0", ffn=64), decoded(tiny_model("Q4_0", ffn=64))
    values = source.matrix("blk.0.ffn_up.weight").copy()
    values[5, 3] += 0.8 * np.abs(values[5]).max()
    source.tensor("blk.0.ffn_up.weight").data = values.tobytes()
    plain = source.write(tmp_path / "plain.gguf")
    assert flagged(image.write(tmp_path / "a.gguf"), plain) == ["blk.0.ffn_up.weight"]
    image.put("quantize.imatrix.file", "imatrix.gguf")
    assert flagged(image.write(tmp_path / "b.gguf"), plain) == []


# ---- the command -------------------------------------------------------------------------


def test_the_table_folds_layers(qwen3: Command, nano: Callable[[str], Path]) -> None:
    done = qwen3("verify", str(nano("Q4_K_M")), "--source", str(NANO))
    assert done.returncode == 0 and done.stderr.count("\n") == 1
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    (norms,) = (row for row in rows if row[0] == "blk.*.attn_norm.weight")
    assert norms == [norms[0], "x 4", "F32", "256", "0.00", "0.00%", "0.00%", "ok"]
    assert {row[2] for row in rows if row[0] == MATRIX.replace("1", "*")} == {"Q4_K", "Q6_K"}
    apart = qwen3("verify", str(nano("Q4_K_M")), "--tensors").stdout.splitlines()
    assert len(apart) == len(verify(nano("Q4_K_M")).tensors) > len(rows)


def test_damage_is_exit_code_7(qwen3: Command, nano: Callable[[str], Path], tmp_path: Path) -> None:
    path = with_bit(nano("Q8_0"), tmp_path / "damaged.gguf", MATRIX, 34 * 9 + 20, 7)
    done = qwen3("verify", "damaged.gguf", "--source", str(NANO))
    assert done.returncode == 7
    assert f"qwen3: damaged.gguf: {MATRIX}: a weight in row" in done.stderr
    assert done.stdout.count("1 WRONG") == 1
    done = qwen3("verify", "damaged.gguf", "--source", str(NANO), "--json")
    described = json.loads(done.stdout)
    assert (done.returncode, described["ok"], len(described["problems"])) == (7, False, 1)
    (wrong,) = (tensor for tensor in described["tensors"] if not tensor["ok"])
    assert wrong["name"] == MATRIX and wrong["type"] == "Q8_0" and wrong["worst"] > 0.1

    with_bit(nano("F32"), path, MATRIX, 4 * 77 + 3, 6)
    done = qwen3("verify", "damaged.gguf", "--source", str(NANO), "--json")
    (wrong,) = (tensor for tensor in json.loads(done.stdout)["tensors"] if not tensor["ok"])
    assert (wrong["name"], wrong["worst_row"]) == (MATRIX, 0)

    path.write_bytes(path.read_bytes()[:-1])
    done = qwen3("verify", "damaged.gguf", "--json")
    assert done.returncode == 7 and json.loads(done.stdout)["tensors"] == []


def test_names_and_wrong_arguments(qwen3: Command, nano: Callable[[str], Path]) -> None:
    assert qwen3("verify", "nano").returncode == 0
    assert qwen3("verify", "none.gguf").returncode == 3
    assert qwen3("verify", str(NANO)).returncode == 2
    file = str(nano("Q8_0"))
    assert qwen3("verify", file, "--source", "none").returncode == 3
    assert qwen3("verify", file, "--source", "0.6b").returncode == 3
    done = qwen3("verify", file, "--source", file)
    assert done.returncode == 2 and "quantized itself" in done.stderr
    (qwen3.home / "empty").mkdir()
    assert qwen3("verify", file, "--source", "empty").returncode == 1


def test_names_in_a_file_cannot_drive_a_terminal(qwen3: Command) -> None:
    image = tiny_model()
    image.tensor("blk.0.attn_k.weight").name = "blk.0.\x1b]0;x\x07.weight"
    image.write(qwen3.home / "hostile.gguf")
    done = qwen3("verify", "hostile.gguf")
    assert done.returncode == 7
    assert "\x1b" not in done.stdout + done.stderr and "\x07" not in done.stdout + done.stderr


def test_a_damaged_source_is_no_damaged_file(
    qwen3: Command, nano: Callable[[str], Path], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(NANO, source)
    weights = source / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2:] = b"\xc0\x7f"
    weights.write_bytes(data)
    done = qwen3("verify", str(nano("Q8_0")), "--source", str(source))
    assert done.returncode == 1 and "the source: " in done.stderr
    weights.write_bytes(data[:-100])
    assert qwen3("verify", str(nano("Q8_0")), "--source", str(source)).returncode == 1


def test_ctrl_c_and_nobody_reads(qwen3: Command, nano: Callable[[str], Path]) -> None:
    done = qwen3.shell(f'"$@" verify {nano("Q8_0")} 2>err | true; echo ${{PIPESTATUS[0]}}')
    assert done.stdout == "141\n" and "Error" not in (qwen3.home / "err").read_text()
    image = tiny_model()
    image.tensors.append(Tensor("long.weight", (1 << 20, 10_000), 0, b""))
    path = image.write(qwen3.home / "long.gguf")
    os.truncate(path, path.stat().st_size + (40_000 << 20))  # a hole
    terminal = qwen3.terminal("verify", "long.gguf", "--threads", "1")
    terminal.wait_for("MB/s")
    terminal.press("c")
    assert terminal.finish() == 130
