"""What bench/gpu.py and `qwen3 bench` report of the emulated GPU. No test judges a speed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commandline import ROOT, Command
from gguf_tiny import tiny_model

from qwen3cli.bench import speed
from qwen3cli.bench.limits import Cost
from qwen3cli.bench.speed import Plan
from qwen3cli.errors import DoesNotFit
from qwen3cli.plan.gpu import Card, share_of
from qwen3cli.plan.sizes import sizes_of
from qwen3cli.terminal import Terminal

SHAPE: dict[str, Any] = {"hidden": 64, "ffn": 64, "head_dim": 32, "layers": 2}
SHORT = ("--tokens=12", "--decode=2", "--prefill=4", "--depth=8", "--rounds=1", "--threads=1")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "dense.gguf"
    return tiny_model("Q8_0", **SHAPE).write(path)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "mixture.gguf"
    return tiny_model("Q8_0", **SHAPE, experts=8, experts_used=2).write(path)


def run(gpu: Path | str, *args: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """path: a folder of programs that come first."""
    search = os.pathsep.join([*([str(path)] if path else []), os.environ["PATH"]])
    env = {**os.environ, "QWEN3_GPU_LIBRARY": str(gpu), "PATH": search}
    command = [sys.executable, ROOT / "bench/gpu.py", *SHORT, *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def test_every_goal_has_a_figure(emulated_gpu: Path, mixture: Path) -> None:
    """But for what is in the tests below."""
    only = "--only=logits,decode,prefill,context"
    done = run(emulated_gpu, f"--shapes={mixture}", f"--logits={mixture}", only, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["device"]["backend"] == "emulated" and report["date"]
    assert all(math.isfinite(rate) and rate > 0 for rate in report["rates"].values())
    rows = {row["what"]: row for row in report["rows"]}
    assert list(rows) == [
        "logits of mixture",
        "mixture: decode 2",
        "mixture: prefill 4",
        "mixture: decode 2 at 8",
    ]
    for what, row in rows.items():
        values = row["values"]
        assert row["reached"] is not None and row["goal"], row
        if what.startswith("logits"):
            assert values["tokens"] == 12 and 0 <= values["kl"] < 1e-3 and values["same_top"] > 0.5
        else:
            assert values["tok_s"] > 0 and math.isfinite(values["limit_tok_s"])
            assert values["fraction"] == pytest.approx(values["tok_s"] / values["limit_tok_s"])


def test_the_report_is_a_table_for_the_readme(
    emulated_gpu: Path, dense: Path, mixture: Path
) -> None:
    """And what cannot be measured says why, without costing the rest."""
    shapes, only = f"--shapes={mixture},nothing,{dense}", "--only=offload,batch"
    done = run(emulated_gpu, shapes, "--vram=10K", only)
    assert done.returncode == 0, done.stderr
    head, _, table = done.stdout.partition("\n|")
    assert head.startswith("### emulation\n") and "GB/s" in head and "emulated" in head
    rows = [line.split(" | ") for line in ("|" + table).splitlines()[2:]]
    assert [(row[0], row[3]) for row in rows[:3]] == [
        ("| mixture: offload", "- |"),  # dense weights alone take more
        ("| nothing: offload", "- |"),
        ("| nothing: batch", "- |"),
    ]
    assert "none fit" in rows[0][2] and "nothing" in rows[1][2]
    assert len(rows) == 4 and rows[3][0] == "| dense: 4 sessions" and rows[3][2].endswith(" x")


def vram_for_half(mixture: Path) -> int:
    """Of its experts."""
    sizes = sizes_of(mixture)
    assert sizes is not None
    whole = share_of("", sizes, Card("", 1 << 30, layers=len(sizes.layers)), n_ctx=2)
    assert whole is not None and whole.expert_bytes == 0
    return whole.bytes - sum(8 // 2 * layer.slot for layer in sizes.layers)


def test_what_is_missed_of_an_offloaded_mixture(emulated_gpu: Path, mixture: Path) -> None:
    vram = vram_for_half(mixture)
    done = run(emulated_gpu, f"--shapes={mixture}", "--only=offload", f"--vram={vram}", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    values = row["values"]
    assert row["reached"] is not None and f"m = {values['misses']:.1%}" in row["figure"], row
    assert 0 < values["misses"] < 1 and 0 < values["expert_bytes"] < vram
    assert values["copied"] + values["computed"] > 0


def test_compute_sanitizers_summary(emulated_gpu: Path, dense: Path, tmp_path: Path) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text('#!/bin/sh\n"$@" && echo "========= ERROR SUMMARY: 3 errors"\n')
    tool.chmod(0o755)
    args = ("--sanitize", f"--logits={dense}", "--only=batch", f"--shapes={dense}", "--json")
    done = run(emulated_gpu, *args, path=tmp_path)
    assert done.returncode == 0, done.stderr
    row, _ = json.loads(done.stdout)["rows"]
    assert row["figure"] == "3 errors" and row["reached"] is False


def test_without_a_gpu_it_says_why() -> None:
    done = run("/there/is/none.so")
    assert done.returncode == 1 and "/there/is/none.so" in done.stderr
    assert done.stdout == ""


def test_a_part_that_is_misspelt() -> None:
    done = run("/there/is/none.so", "--only=decode,prefil")
    assert done.returncode == 2 and "prefil" in done.stderr and "prefill" in done.stderr


def test_what_a_gpu_holds_takes_no_memory_here(
    dense: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """60 MB are free, for a cache of 80 MB, most of which is the GPU's, and 100 MB of weights."""
    monkeypatch.setattr(speed, "available", lambda: 60_000_000)
    monkeypatch.setattr(speed, "_file_bytes", lambda _: 100_000_000)
    plan = Plan.parse("1000", 1, "0", 1)
    cost = Cost(kv_bytes=80_000, gpu=Cost(kv_bytes=75_000))

    def check(cost: Cost, *, unified: bool, weights: int = 0) -> str:
        device = SimpleNamespace(unified=unified) if cost.gpu else None
        stats = SimpleNamespace(bytes=weights)
        model: Any = SimpleNamespace(path=dense, device=device, gpu_stats=stats)
        speed._check_memory(model, cost, plan, Terminal())
        return capfd.readouterr().err

    for alone, unified in ((replace(cost, gpu=None), False), (cost, True)):
        with pytest.raises(DoesNotFit, match="take 95 MB, but 60 MB are free"):
            check(alone, unified=unified)
    assert "does not fit into the 40 MB" in check(cost, unified=False)
    assert check(cost, unified=False, weights=70_000_000) == ""


def test_qwen3_bench_judges_by_the_gpu_where_it_computes(
    emulated_gpu: Path, dense: Path, qwen3: Command
) -> None:
    work = ("--prefill", "4", "--decode", "2", "--rounds", "1", "--threads", "1", "--json")
    gpu = {"QWEN3_GPU_LIBRARY": str(emulated_gpu)}
    done = qwen3("bench", "-m", str(dense), "--gpu", "2", *work, **gpu)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["gpu"]["layers"] == 2
    decode, prefill = report["decode"], report["prefill"]
    limit = decode["gpu"]["read_gb_s"] / decode["gb_per_token"]
    assert decode["limit_tok_s"] == pytest.approx(limit, rel=1e-3)
    limit = prefill["gpu"]["int8_gmac_s"] / prefill["gmac_per_token"]  # all of it is Q8_0
    assert prefill["limit_tok_s"] == pytest.approx(limit, rel=1e-3)
