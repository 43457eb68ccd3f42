"""Which type each tensor gets: as in the ecosystem, as asked for, and what that comes to."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import gguf_files
import numpy as np
import pytest
import qwen3_native
from checkpoint_tiny import DATA, DENSE, MOE, write_checkpoint

from quant.checkpoint import Experts, Hyperparameters
from quant.errors import UsageError
from quant.layout import Tensor, layout
from quant.quantize import predict, quantize
from quant.recipes import RECIPES, assign, recipe
from qwen3cli.bench.synthetic import SHAPES

Recorded = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    """What llama.cpp does, by model (tests/vectors/make_recipes.py)."""
    result: Recorded = json.loads(gzip.decompress((DATA / "recipes.json.gz").read_bytes()))
    return result


def hyperparameters(shape: dict[str, Any]) -> Hyperparameters:
    experts = shape["experts"]
    return Hyperparameters(**shape | {"experts": Experts(**experts) if experts else None})


def test_the_types_are_those_of_llama_cpp(recorded: Recorded) -> None:
    """Every tensor of every model of the family, with and without an importance matrix."""
    checked = 0
    for model, record in recorded.items():
        hp = hyperparameters(record["shape"])
        for name, wanted in record["types"].items():
            chosen, _, imatrix = name.partition("+")
            found: dict[str, list[str]] = {}
            for tensor in layout(hp):
                kind = RECIPES[chosen].type_of(tensor, hp, imatrix=bool(imatrix))
                found.setdefault(tensor.part, []).append(kind)
            for part, kinds in found.items():
                expected = wanted[part]
                if isinstance(expected, str):
                    expected = [expected] * len(kinds)
                assert kinds == expected, (model, name, part)
                checked += len(kinds)
    assert checked > 100_000


def test_the_record_covers_the_family_and_every_recipe_of_the_ecosystem(
    recorded: Recorded,
) -> None:
    assert SHAPES.keys() < recorded.keys()
    assert all(hyperparameters(recorded[name]["shape"]) == hp for name, hp in SHAPES.items())
    names = {name.partition("+")[0] for name in recorded["0.6b"]["types"]}
    assert RECIPES.keys() - names == {"MOE_Q4"}


def test_our_recipe_for_mixtures() -> None:
    hp = SHAPES["30b-a3b"]
    kinds = {tensor.part: kind for tensor, kind in assign(recipe("moe_q4"), layout(hp), hp)}
    experts = {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"}
    assert {part for part, kind in kinds.items() if kind == "Q4_K"} == experts
    small = {part for part in kinds if "norm" in part or part == "ffn_gate_inp"}
    assert {part for part, kind in kinds.items() if kind == "F32"} == small
    assert {kinds[part] for part in kinds.keys() - experts - small} == {"Q6_K"}
    with pytest.raises(UsageError, match="MOE_Q4 is for mixtures of experts; this model has none"):
        assign(recipe("moe_q4"), layout(SHAPES["0.6b"]), SHAPES["0.6b"])


def test_names_of_the_ecosystem() -> None:
    assert (recipe("q4_k").name, recipe("Q5_k").name) == ("Q4_K_M", "Q5_K_M")
    with pytest.raises(UsageError, match="no type 'q9'; there are F32, "):
        recipe("q9")


# ---- overrides --------------------------------------------------------------


def types(model: str, *overrides: str) -> dict[str, str]:
    hp = SHAPES[model]
    found = assign(recipe("Q4_K_S"), layout(hp), hp, overrides)
    return {tensor.name: kind for tensor, kind in found}


def changed(model: str, *overrides: str) -> dict[str, str]:
    """The tensors that the overrides change."""
    plain = types(model)
    return {n: kind for n, kind in types(model, *overrides).items() if kind != plain[n]}


def test_an_override_reaches_the_matrices_its_pattern_is_found_in() -> None:
    down = {f"blk.{i}.ffn_down.weight": "Q6_K" for i in range(28)}
    assert changed("0.6b", "ffn_down=q6_k") == down
    exps = {f"blk.{i}.ffn_down_exps.weight": "Q6_K" for i in range(48)}
    assert changed("30b-a3b", "ffn_down=Q6_K") == exps
    assert changed("0.6b", r"blk\.(0|1)\.attn_q=q8_0") == {
        "blk.0.attn_q.weight": "Q8_0",
        "blk.1.attn_q.weight": "Q8_0",
    }


def test_the_last_override_that_matches_counts() -> None:
    found = types("0.6b", "attn=q8_0", r"blk\.5\.attn_k=f16", "token_embd=bf16")
    assert found["blk.5.attn_k.weight"] == "F16" and found["blk.6.attn_k.weight"] == "Q8_0"
    assert found["token_embd.weight"] == "BF16"


def test_norms_and_the_router_stay_f32_whatever_is_asked_for() -> None:
    found = types("30b-a3b", ".=q8_0")
    assert {kind for name, kind in found.items() if "norm" in name} == {"F32"}
    assert found["blk.7.ffn_gate_inp.weight"] == "F32"
    assert set(found.values()) == {"F32", "Q8_0"}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("ffn_dwon=q6_k", "no matrix has such a name"),
        ("attn_norm=q8_0", "no matrix has such a name"),
        ("ffn_gate_exps=q8_0", "no matrix has such a name"),
        ("ffn_down=q9", "no type 'q9'; there are F32, "),
        ("ffn_down=q4_k_m", "no type 'q4_k_m'"),
        ("ffn_down", "write it as PATTERN=TYPE"),
        ("=q8_0", "write it as PATTERN=TYPE"),
        ("ffn_(down=q8_0", "--tensor"),
    ],
)
def test_a_wrong_override_is_named(override: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        types("0.6b", override)


def test_an_override_needs_whole_blocks() -> None:
    hp = SHAPES["0.6b"]
    tensors = [Tensor("blk.0.ffn_down.weight", (8, 96), 0)]
    with pytest.raises(UsageError, match="of 96 weights, are not whole Q6_K blocks"):
        assign(recipe("q8_0"), tensors, hp, ["ffn_down=q6_k"])


def test_every_type_that_can_be_asked_for_can_be_written() -> None:
    names = [kind.name for kind in gguf.GGMLQuantizationType]
    for name in names:
        try:
            qwen3_native.quantize(name, np.zeros((1, 256), np.float32))
        except (ValueError, qwen3_native.NativeError):
            with pytest.raises(UsageError, match="no type"):
                types("0.6b", f"ffn_down={name}")
        else:
            assert name in types("0.6b", f"ffn_down={name}").values()


# ---- sizes ------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_the_predicted_size_is_that_of_the_file(tmp_path: Path, name: str) -> None:
    source = write_checkpoint(tmp_path / "source", MOE | {"hidden_size": 256})
    out, overrides = tmp_path / "out.gguf", ["blk.1=f16"]
    told = predict(source, name, overrides=overrides)
    summary = quantize(source, out, name, overrides=overrides)
    assert told.file_bytes == [out.stat().st_size] == [summary.file_bytes]
    written = gguf_files.read(out).tensors
    assert {share.kind: share.n_tensors for share in told.shares} == Counter(
        tensor.tensor_type.name for tensor in written
    )
    assert sum(share.n_bytes for share in told.shares) == sum(t.n_bytes for t in written)
    assert told.n_weights == summary.n_weights == sum(int(t.n_elements) for t in written)


def test_the_predicted_sizes_of_shards(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", DENSE)
    told = predict(source, "q8_0", split_size=30_000)
    done = quantize(source, tmp_path / "out.gguf", "q8_0", split_size=30_000)
    assert len(told.file_bytes) > 2
    assert told.file_bytes == [path.stat().st_size for path in done.paths]


def test_rows_that_are_not_whole_blocks_of_anything() -> None:
    """Those of whole blocks of 32 are in the record."""
    hp, tensor = SHAPES["0.6b"], Tensor("blk.4.ffn_up.weight", (8, 80), 4)
    kinds = {name: RECIPES[name].type_of(tensor, hp) for name in ("Q4_K_M", "Q8_0", "BF16")}
    assert kinds == {"Q4_K_M": "F16", "Q8_0": "F16", "BF16": "BF16"}
