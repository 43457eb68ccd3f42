"""Models that are not installed: their sizes, what fits, what is recommended, what a refusal
names instead."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commandline import ROOT, Command
from printed import Printed

from quant.recipes import recipe
from qwen3cli.bench.limits import Cost
from qwen3cli.bench.synthetic import write
from qwen3cli.engine import Model, ModelFile
from qwen3cli.errors import DoesNotFit
from qwen3cli.hub.releases import RELEASES
from qwen3cli.plan import machine
from qwen3cli.plan.advice import Candidate, candidate_of, hybrids, instead
from qwen3cli.plan.fit import Memory
from qwen3cli.plan.machine import Peaks, Rates, folder_rate, peaks, rates_of_folder
from qwen3cli.plan.overview import overview, recommended
from qwen3cli.plan.placement import place, place_sizes
from qwen3cli.plan.predict import PREFILL_REACHED, prompt_seconds
from qwen3cli.plan.sizes import sizes_of, sizes_of_release

DENSE = ROOT / "qwen3cli/models/nano-dense-q8_0.gguf"
NANO_MOE = ROOT / "qwen3cli/models/nano-moe-q8_0.gguf"
GB = 10**9

# ---- sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [DENSE, NANO_MOE])
def test_products_are_those_of_bench(path: Path) -> None:
    sizes = sizes_of(path)
    cost = Cost.of(Model(path).config, ModelFile(path).tensors())
    assert sizes is not None
    assert {"int8": sizes.int8, "f32": sizes.f32} == pytest.approx(cost.products)


def test_the_sizes_of_a_release_are_those_of_its_file(tmp_path: Path) -> None:
    release = RELEASES["0.6b"]
    write(tmp_path / "m.gguf", "0.6b", release.shape, recipe("q4_k_m"))
    assert sizes_of(tmp_path / "m.gguf") == sizes_of_release(release, "q4_k_m")


def test_a_prompt_takes_its_products_and_the_experts_in_the_file() -> None:
    rates, products = Rates(20e9, 1e9), Peaks(400e9, 100e9)
    dense = sizes_of_release(RELEASES["4b"], "q4_k_m")
    expected = 1000 * dense.int8 / 400e9 / PREFILL_REACHED
    assert prompt_seconds(dense, 0, rates, products) == pytest.approx(expected)
    mixture = sizes_of_release(RELEASES["30b-a3b"], "q4_k_m")
    resident = prompt_seconds(mixture, 0, rates, products)
    half = prompt_seconds(mixture, mixture.experts // 2, rates, products)
    assert resident < half < resident + mixture.experts / 2 / 1e9
    assert prompt_seconds(mixture, mixture.experts // 2, rates, products, 4000) > 2 * half


# ---- what fits instead ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("8b", "8b:q4_k_m"),
        ("0.6b", "0.6b:q8_0"),  # which is what `pull` takes
        ("4b-base:q6_k", "4b-base:q6_k"),
        ("Qwen3-8B-Q8_0.gguf", "8b:q8_0"),
        ("Qwen3-30B-A3B-Q4_K_M-00001-of-00002.gguf", "30b-a3b:q4_k_m"),
        ("mine.gguf", None),
        ("nano", None),
    ],
)
def test_which_release_a_name_means(model: str, name: str | None) -> None:
    found = candidate_of(model)
    assert (found and found.name) == name


def test_a_refusal_names_what_is_nearest() -> None:
    text = instead("Qwen3-8B-Q8_0.gguf", int(6.2e9), n_ctx=4096)
    names = re.findall(r"(\S+) needs", text)
    assert [name.partition(":")[0] for name in names] == ["8b", "4b"]
    for name in names:
        found = candidate_of(name)
        assert found and found.sizes.least(4096) <= 6.2e9
    assert "0.6b" in instead("mine.gguf", int(1.3e9), n_ctx=None)
    assert instead("8b:q8_0", 10**8, n_ctx=None) == ""
    base = instead("8b-base:q8_0", int(6.2e9), n_ctx=2048)
    assert base.startswith("; 8b-base:q5_k_m needs")  # the same model first
    sizes = sizes_of_release(RELEASES["8b"], "q8_0")
    with pytest.raises(DoesNotFit, match=r"8\.65 GB are needed .*; 8b:q5_k_m needs 6\.0 GB, 4b:"):
        place_sizes("8b:q8_0", sizes, "6.2G")


def test_a_dense_model_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3cli.plan.placement.available", lambda: 10**8)
    with pytest.raises(DoesNotFit):
        place(DENSE, "100M")
    found = place(DENSE, None)  # the page cache may make do
    assert found.where == "mapped" and found.n_ctx is None and found.expert_bytes == 0
    assert "needs 313 MB of memory, 100 MB are available" in found.warning("m")
    monkeypatch.setattr("qwen3cli.plan.placement.available", lambda: GB)
    assert place(DENSE, None, n_ctx=100).where == "resident"
    assert place(DENSE, "1G").n_ctx == 4096


# ---- the table -----------------------------------------------------------------------------


Overview = Callable[..., tuple[dict[str, Any], list[str]]]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Overview:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("qwen3cli.plan.overview.peaks", lambda *_, **__: Peaks(400e9, 100e9))

    def table(free: int | None, disk: float = 1e9, **more: Any) -> Any:
        monkeypatch.setattr(
            "qwen3cli.plan.overview.rates_of_folder", lambda *_, **__: Rates(60e9, disk)
        )
        monkeypatch.setattr("qwen3cli.plan.placement.available", lambda: free)
        printed: Any = Printed()
        memory = Memory(more.pop("ram", None), gpu="off")
        given = {
            "memory": memory, "n_ctx": None, "kv": None, "threads": 0, "everything": False, **more,
        }  # fmt: skip
        overview(printed, as_json=True, **given)
        overview(printed, as_json=False, **given)
        return printed.value, printed.lines

    return table


def test_the_largest_that_is_fast_enough_is_recommended(table: Overview) -> None:
    report, lines = table(int(8e9 / 0.85))
    models = {row["model"].partition(":")[0]: row for row in report["models"]}
    assert list(models) == [release.name for release in hybrids()]
    # 32b is dense and too large; a mixture is held in part
    assert models["32b"]["where"] == "mapped" and models["32b"]["tok_s"] is None
    assert models["32b"]["least_bytes"] > 8e9
    assert models["30b-a3b"]["where"] == "offloaded" and 0 < models["30b-a3b"]["held"] < 1
    found = report["recommended"]
    row = next(row for row in report["models"] if row["model"] == found["model"])
    assert row["tok_s"] >= 8 and "reach 8 tok/s" in found["why"]
    larger = report["models"][: report["models"].index(row)]
    assert all(each["tok_s"] is None or each["tok_s"] < 8 for each in larger)
    assert lines[-1].startswith(f"take {found['model']}") and "`qwen3 pull" in lines[-1]
    slow, _ = table(int(8e9 / 0.85), disk=1e5)  # the experts would never come
    assert slow["recommended"]["model"].startswith("8b:")
    assert table(10**8)[0]["recommended"] is None
    asked, _ = table(None, ram="64G", n_ctx=2048)
    assert asked["recommended"]["model"].startswith("30b-a3b:")  # 32b is too slow
    assert asked["n_ctx"] == 2048 and asked["ram_bytes"] == 64 * GB


def test_where_none_is_fast_enough() -> None:
    rows = [
        {"model": name, "tok_s": tok_s, "get": [], "bytes": 1}
        for name, tok_s in (("a", 2.0), ("b", None), ("c", 5.0))
    ]
    found = recommended(rows)
    assert found and found["model"] == "c" and "fastest" in found["why"]


def test_where_memory_or_disk_are_not_known(table: Overview) -> None:
    report, lines = table(None)
    assert {row["where"] for row in report["models"]} == {"unknown"}
    assert report["recommended"] is None and "--ram" in lines[-1]
    report, _ = table(int(8e9 / 0.85), disk=float("nan"))
    row = next(row for row in report["models"] if row["model"].startswith("30b"))
    assert row["where"] == "offloaded" and row["tok_s"] is None
    assert report["machine"]["disk_gb_s"] is None


def test_what_is_installed_is_marked(table: Overview, tmp_path: Path) -> None:
    models = tmp_path / "qwen3/models"
    models.mkdir(parents=True)
    (models / "Qwen3-4B-Q8_0.gguf").write_bytes(b"GGUF")
    report, lines = table(64 * GB, everything=True)
    assert len(report["models"]) == 4 * len(RELEASES)
    assert [row["model"] for row in report["models"] if row["installed"]] == ["4b:q8_0"]
    assert next(line for line in lines if " * " in line).startswith("4b:q8_0")
    assert Candidate(RELEASES["4b"], "q4_k_m").commands == ("qwen3 pull 4b:q4_k_m",)
    assert len(Candidate(RELEASES["0.6b"], "q4_k_m").commands) == 2


# ---- the rates of a folder -----------------------------------------------------------------


def test_a_disk_is_measured_before_there_is_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_LEAST_FILE", 1 << 25)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert folder_rate(tmp_path) > 0 and list(tmp_path.iterdir()) == []

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qwen3cli.plan.machine._fill", full)
    with pytest.raises(OSError):
        folder_rate(tmp_path)
    assert list(tmp_path.iterdir()) == []
    blobs = tmp_path / "models--a--b/blobs"
    blobs.mkdir(parents=True)
    (blobs / "0").write_bytes(os.urandom(1 << 25))
    assert folder_rate(tmp_path) > 0  # nothing is written where there is a file


def test_rates_of_a_folder_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "_memory_rate", lambda *_: 20e9)
    done: list[Path] = []
    monkeypatch.setattr(machine, "folder_rate", lambda folder: done.append(folder) or 1e9)
    assert rates_of_folder(tmp_path / "not/there", 1) == Rates(20e9, 1e9)
    assert rates_of_folder(tmp_path / "there/neither", 1) == Rates(20e9, 1e9)
    assert done == [tmp_path.resolve()]
    first = peaks(1)
    assert peaks(1) == first and first.int8 > 0 and first.f32 > 0
    keys = json.loads((tmp_path / "qwen3/machine.json").read_text())
    assert sorted(key.partition(":")[0] for key in keys) == ["disk", "f32", "int8", "memory"]


# ---- the command ---------------------------------------------------------------------------


def test_the_command_before_any_download(tmp_path: Path) -> None:
    qwen3 = Command(tmp_path)
    offline = {"HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    report = json.loads(qwen3("fit", "30b-a3b:q4", "--ram", "8G", "--json", **offline).stdout)
    assert report["installed"] is False and report["get"] == ["qwen3 pull 30b-a3b:q4_k_m"]
    assert report["where"] == "offloaded" and report["prompt_1000_s"] > 0
    assert not list(tmp_path.rglob(".qwen3-*"))
    assert qwen3("fit", "9b", **offline).returncode == 3
    assert qwen3("fit", "8b", "--all", **offline).returncode == 2
    refused = qwen3("fit", "8b:q8_0", "--ram", "6G", **offline)
    assert refused.returncode == 4 and "; 8b:q4_k_m needs" in refused.stderr


def test_the_table_fits_a_terminal(tmp_path: Path) -> None:
    shown = Command(tmp_path).terminal("fit", "--all", "--ram", "8G", COLUMNS="80")
    assert shown.finish() == 0
    lines = [line for line in shown.text.splitlines() if re.match(r" (\S+:q\d|-{3}|─)", line)]
    assert len(lines) == 4 * len(RELEASES) + 1
    assert all(len(line) <= 80 and line.count(":") == (":" in line) for line in lines)


@pytest.mark.skipif(sys.platform != "linux", reason="its /proc")
def test_a_disk_that_cannot_be_measured_is_unknown(tmp_path: Path) -> None:
    qwen3, nowhere = Command(tmp_path), {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": "/proc/none"}
    assert "GB/s, disk unknown\n" in qwen3("fit", "30b-a3b:q4", **nowhere).stdout
    assert "its rate is not known\n" in qwen3("doctor", **nowhere).stdout
