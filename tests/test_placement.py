"""What of a model lies where, how fast that should be, and what a user is told of it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commandline import ROOT, Command
from gguf_tiny import tiny_model
from printed import Printed

from qwen3cli.errors import DoesNotFit
from qwen3cli.plan.fit import Memory, fit
from qwen3cli.plan.machine import Peaks, Rates
from qwen3cli.plan.memory import available
from qwen3cli.plan.placement import place, place_sizes
from qwen3cli.plan.predict import expected_misses, predict
from qwen3cli.plan.sizes import OVERHEAD, Sizes, sizes_of

NANO_MOE = ROOT / "qwen3cli/models/nano-moe-q8_0.gguf"
DENSE = ROOT / "qwen3cli/models/nano-dense-q8_0.gguf"
GB = 10**9

# ---- where things lie ---------------------------------------------------------------


def test_memory_within_a_control_group(tmp_path: Path) -> None:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   8000000 kB\n")
    (proc / "self/cgroup").write_text("0::/user/app\n")
    assert available(proc, cgroup) == 8_000_000 * 1024
    group = cgroup / "user"
    (group / "app").mkdir(parents=True)
    (group / "app/memory.max").write_text("max\n")
    (group / "memory.max").write_text("4000000000\n")
    (group / "memory.current").write_text("1500000000\n")
    (group / "memory.stat").write_text("anon 5\ninactive_file 300000000\nactive_file 200000000\n")
    assert available(proc, cgroup) == 3_000_000_000
    (proc / "self/cgroup").write_text("5:cpu,memory:/job\n0::/\n")
    job = cgroup / "memory/job"
    job.mkdir(parents=True)
    (job / "memory.limit_in_bytes").write_text("2000000000\n")
    (job / "memory.usage_in_bytes").write_text("1900000000\n")
    (job / "memory.stat").write_text(
        "inactive_file 1\nactive_file 1\ntotal_inactive_file 900000000\ntotal_active_file 0\n"
    )
    assert available(proc, cgroup) == 1_000_000_000
    assert available(tmp_path / "none", cgroup) is None


def test_a_model_that_fits_stays_mapped() -> None:
    assert place(NANO_MOE, None).expert_bytes == 0
    assert place(NANO_MOE, "16G").expert_bytes == 0
    assert place(DENSE, None).expert_bytes == 0
    assert place(DENSE, "4G").expert_bytes == 0
    with pytest.raises(DoesNotFit, match="are needed"):
        place(DENSE, "1M")


@pytest.mark.parametrize(
    ("free", "ram", "n_ctx", "held", "context"),
    [
        (32 * GB, None, None, False, 4096),  # all of it fits
        (32 * GB, None, 512, False, 512),
        (32 * GB, "auto", None, False, 4096),
        (None, None, None, False, None),  # nobody knows: as it was
        (GB // 10, None, None, False, None),  # nothing fits: the page cache makes do
        (32 * GB, "320M", None, True, 4096),  # never more than the model was trained on
        (32 * GB, "314M", 2048, True, 2048),
        (int(314e6 / 0.85), "auto", 2048, True, 2048),
    ],
)
def test_what_is_held(
    monkeypatch: pytest.MonkeyPatch,
    free: int | None,
    ram: str | None,
    n_ctx: int | None,
    held: bool,
    context: int | None,
) -> None:
    monkeypatch.setattr("qwen3cli.plan.placement.available", lambda: free)
    found, sizes = place(NANO_MOE, ram, n_ctx=n_ctx), sizes_of(NANO_MOE)
    assert sizes is not None and found.n_ctx == context
    assert (found.expert_bytes > 0) == held
    if found.expert_bytes:
        used = sizes.dense + 300_000_000 + 2 * sizes.kv_token * found.n_ctx + found.expert_bytes
        assert abs(used - (found.ram or 0)) <= 1
        assert sizes.least_experts <= found.expert_bytes < 1.01 * sizes.experts


def test_memory_that_is_too_little_says_how_much_is_needed() -> None:
    with pytest.raises(DoesNotFit, match=r"320 MB are needed"):
        place(NANO_MOE, "100M")


def test_the_command_runs_with_less_memory_than_the_model(tmp_path: Path) -> None:
    qwen3 = Command(tmp_path)
    sizes = sizes_of(NANO_MOE)
    assert sizes is not None
    always = 300_000_000 + sizes.dense + int(2048 * 2 * sizes.kv_token)
    ram = (always + sizes.experts // 2) // 10**6
    run = ("run", "-m", "nano-moe", "--temp", "0", "--ctx", "2048", "--json", "12 + 30")
    full = json.loads(qwen3(*run).stdout)
    assert "experts" not in full
    done = qwen3(*run, "--ram", f"{ram}M")
    part = json.loads(done.stdout)
    assert part["answer"] == full["answer"] and part["thoughts"] == full["thoughts"]
    stats = part["experts"]
    assert 0 < stats["hit_rate"] < 1 and stats["bytes_read"] > 0 and stats["stall_s"] >= 0
    assert stats["right_guesses"] <= min(stats["guesses"], stats["misses"])
    assert round(stats["hits"] / (stats["hits"] + stats["misses"]), 4) == stats["hit_rate"]
    assert 0 < stats["used_bytes"] <= stats["budget_bytes"]
    assert re.search(r"the other experts are read from the file, for about \S+ tok/s", done.stderr)
    refused = qwen3(*run, "--ram", "100M")
    assert refused.returncode == 4 and "are needed" in refused.stderr


def test_sizes_are_those_of_the_file() -> None:
    moe, dense = sizes_of(NANO_MOE), sizes_of(DENSE)
    assert moe is not None and dense is not None
    # 3 layers x 3 matrices x 128 experts of 32 x 256 weights, 34 bytes for 32 of them
    assert moe.experts == 3 * 3 * 128 * 32 * 256 // 32 * 34
    assert moe.used == 8 / 128 and (dense.experts, dense.used, dense.least_experts) == (0, 0, 0)
    assert dense.dense < DENSE.stat().st_size and dense.kv == "f16"
    assert dense.kv_bytes(10) == dense.kv_bytes(10, "f32") / 2 == 10 * 2 * dense.kv_token


def test_sizes_of_a_file_that_will_be_refused(tmp_path: Path) -> None:
    image = tiny_model()
    image.put("general.architecture", "llama")
    image.write(tmp_path / "llama.gguf")
    assert sizes_of(tmp_path / "llama.gguf") is None
    assert place(tmp_path / "llama.gguf", None).expert_bytes == 0
    done = Command(tmp_path)("fit", "llama.gguf")
    assert done.returncode == 1 and "not a qwen3 or qwen3moe model" in done.stderr


MIX = Sizes(
    dense=GB,
    experts=16 * GB,
    used=1 / 16,
    least_experts=GB,
    kv_token=50_000,
    kv="f16",
    n_ctx=40_960,
)


def test_the_context_never_takes_the_room_of_the_least_experts() -> None:
    """Who gives the memory that a refusal asks for is not refused again."""
    with pytest.raises(DoesNotFit) as refused:
        place_sizes("m", MIX, "1G")
    enough = str(refused.value).partition(" GB are needed")[0].split()[-1]
    assert place_sizes("m", MIX, f"{enough}G").n_ctx == 2048
    assert place_sizes("m", MIX, "4G").n_ctx == 4096
    dense = replace(MIX, experts=0, used=0.0, least_experts=0)
    assert place_sizes("m", dense, "4G").n_ctx == 16384  # all that there is room for


def test_auto_keeps_within_a_control_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text("0::/\n")
    (tmp_path / "meminfo").write_text("MemAvailable: 64000000 kB\n")
    (tmp_path / "memory.max").write_text(f"{8 * GB}\n")
    (tmp_path / "memory.current").write_text(f"{GB}\n")
    (tmp_path / "memory.stat").write_text("inactive_file 0\nactive_file 0\n")
    monkeypatch.setattr("qwen3cli.plan.placement.available", lambda: available(tmp_path, tmp_path))
    found = place_sizes("m", MIX, "auto")
    assert found.where == "offloaded" and found.ram == int(7 * GB * 0.85)
    assert found.n_ctx is not None
    total = MIX.dense + OVERHEAD + MIX.kv_bytes(found.n_ctx) + found.expert_bytes
    assert total == pytest.approx(found.ram, abs=1)


# ---- how fast --------------------------------------------------------------------------


def test_the_formula_of_the_speed() -> None:
    """A token reads 1 GB of dense weights, 1 GB of experts, and the cache of what precedes it."""
    rates = Rates(memory=20e9, disk=1e9)
    found = predict(MIX, 8 * GB, rates, misses=0.5)  # 0.1 s and 0.5 s
    assert found.floor == pytest.approx(1 / 0.6) and found.limit == pytest.approx(1 / 0.5)
    assert 0.8 * found.floor < found.tok_s < found.limit
    deep = predict(MIX, 8 * GB, rates, misses=0.5, positions=10_000)  # 1 GB more
    assert deep.floor == pytest.approx(1 / 0.65) and deep.limit == found.limit
    assert predict(MIX, 8 * GB, rates, misses=0.5, positions=10_000, kv="q8").floor > deep.floor
    resident = predict(MIX, 0, rates)
    assert resident.floor == resident.limit == pytest.approx(10)
    assert resident.tok_s == pytest.approx(7.5)  # what the engine reaches: bench/README.md


def test_more_memory_is_never_slower() -> None:
    rates = Rates(memory=20e9, disk=1e9)
    for of in ("tok_s", "floor", "limit"):
        speeds = [getattr(predict(MIX, n * GB, rates), of) for n in (1, 2, 4, 8, 12, 16)]
        assert speeds == sorted(speeds) and speeds[0] < speeds[-1]
    assert expected_misses(0) == 1 and expected_misses(1) == expected_misses(1.2) == 0
    assert expected_misses(0.35) == pytest.approx(math.exp(-6.8 * 0.35) + 0.025)
    assert expected_misses(-1) == 1


# ---- the command `fit` -----------------------------------------------------------------


def fitted(monkeypatch: pytest.MonkeyPatch, path: Path, free: int | None, **more: Any) -> Any:
    """The report and the text of fit, in so much memory."""
    monkeypatch.setattr("qwen3cli.plan.fit.rates", lambda *_, **__: Rates(20e9, 1e9))
    monkeypatch.setattr("qwen3cli.plan.fit.peaks", lambda *_, **__: Peaks(400e9, 100e9))
    monkeypatch.setattr("qwen3cli.plan.placement.available", lambda: free)
    printed: Any = Printed()
    memory = Memory(more.pop("ram", None), gpu="off")
    given = {"memory": memory, "n_ctx": None, "kv": None, "threads": 0, **more}
    fit(str(path), printed, as_json=True, **given)
    fit(str(path), printed, as_json=False, **given)
    return printed.value, printed.text


def test_fit_where_all_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    report, text = fitted(monkeypatch, NANO_MOE, 32 * GB)
    assert report["where"] == "resident" and "fits, all of it in memory" in text
    assert report["experts"]["held_bytes"] == report["experts"]["bytes"]
    assert report["experts"]["hit_rate"] == 1
    dense, _ = fitted(monkeypatch, DENSE, 32 * GB)
    assert dense["where"] == "resident" and "experts" not in dense
    assert set(dense) == {
        "model", "installed", "bytes", "where",
        "ram_bytes", "needed_bytes", "least_bytes", "dense_bytes",
        "n_ctx", "kv", "kv_bytes", "decode", "prompt_1000_s", "machine",
    }  # fmt: skip
    start, full = dense["decode"]
    assert (start["depth"], full["depth"]) == (0, dense["n_ctx"]) and dense["n_ctx"] == 4096
    assert start["limit_tok_s"] == pytest.approx(20e9 / dense["dense_bytes"], rel=1e-3)
    assert full["limit_tok_s"] < start["limit_tok_s"] and start["tok_s"] < start["limit_tok_s"]
    assert dense["machine"] == {
        "read_gb_s": 20, "disk_gb_s": 1, "int8_gmac_s": 400, "f32_gmac_s": 100,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0342, "0.034"), (2.0, "2.0"), (9.96, "10"), (36.8, "37"), (1302.6, "1,303")],
)
def test_fit_predicts_no_more_digits_than_it_knows(
    monkeypatch: pytest.MonkeyPatch, seconds: float, shown: str
) -> None:
    monkeypatch.setattr("qwen3cli.plan.fit.prompt_seconds", lambda *_, **__: seconds)
    report, text = fitted(monkeypatch, DENSE, 32 * GB)
    assert report["prompt_1000_s"] == seconds and f" {shown} s for 1,000 tokens" in text


def test_fit_is_the_plan_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    report, text = fitted(monkeypatch, NANO_MOE, 32 * GB, ram="312M", n_ctx=1024, kv="q8")
    planned = place(NANO_MOE, "312M", n_ctx=1024, kv="q8")
    assert report["where"] == planned.where == "offloaded"
    assert report["experts"]["held_bytes"] == planned.expert_bytes > 0
    assert (report["n_ctx"], report["kv"]) == (1024, "q8") and report["ram_bytes"] == 312 * 10**6
    share = planned.expert_bytes / report["experts"]["bytes"]
    assert f"fits with {share:.0%} of its experts" in text
    sizes = planned.sizes
    assert sizes is not None
    speed = predict(sizes, planned.expert_bytes, Rates(20e9, 1e9))
    assert report["decode"][0]["tok_s"] == pytest.approx(speed.tok_s, abs=0.01)
    assert "for about 0.56 tok/s" in planned.describe("m", replace(speed, tok_s=0.5611))
    assert "for about 1234 tok/s" in planned.describe("m", replace(speed, tok_s=1234.4))


@pytest.mark.parametrize("path", [DENSE, NANO_MOE])
def test_fit_where_the_page_cache_decides(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    report, text = fitted(monkeypatch, path, 300 * 10**6)
    assert report["where"] == "mapped" and report["n_ctx"] == 2048
    assert report["needed_bytes"] >= report["least_bytes"] > report["ram_bytes"]
    assert "does not fit: 0.3" in text and "  -  -  " in text
    resident, _ = fitted(monkeypatch, path, 32 * GB)
    for row, best in zip(report["decode"], resident["decode"], strict=True):
        assert row["tok_s"] is None and row["floor_tok_s"] is None
        assert 0 < row["limit_tok_s"] < best["limit_tok_s"]


def test_fit_where_nobody_knows_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    report, text = fitted(monkeypatch, NANO_MOE, None)
    assert report["where"] == "unknown" and report["ram_bytes"] is None
    assert report["needed_bytes"] > 0 and "(--ram)" in text


def test_the_command_fit(tmp_path: Path) -> None:
    qwen3 = Command(tmp_path)
    report = json.loads(qwen3("fit", "nano-moe", "--ram", "312M", "--json").stdout)
    assert report["where"] == "offloaded"
    assert 0 < report["machine"]["disk_gb_s"] <= report["machine"]["read_gb_s"] < 10_000
    for model in ("nano", "nano-moe"):
        refused = qwen3("fit", model, "--ram", "200M")
        assert refused.returncode == 4 and refused.stdout == ""
        enough = refused.stderr.partition(" MB are needed")[0].split()[-1]
        assert qwen3("fit", model, "--ram", f"{enough}M").returncode == 0
    assert qwen3("fit", "nano", "--ram", "much").returncode == 2
    assert qwen3("fit", "9b").returncode == 3
