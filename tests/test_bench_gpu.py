"""bench/gpu.py on the emulated GPU: every goal gets a figure. No test judges a speed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commandline import ROOT

SHORT = ("--tokens=6", "--decode=2", "--prefill=4", "--depth=8", "--rounds=1", "--threads=1")


def run(gpu: Path | str, *args: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """path: a folder of programs that come first."""
    search = os.pathsep.join([*([str(path)] if path else []), os.environ["PATH"]])
    env = {**os.environ, "QWEN3_GPU_LIBRARY": str(gpu), "PATH": search}
    command = [sys.executable, ROOT / "bench/gpu.py", *SHORT, *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def test_every_goal_has_a_figure(emulated_gpu: Path) -> None:
    done = run(emulated_gpu, "--shapes=nano-moe", "--vram=20M", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["device"]["backend"] == "emulated" and report["date"]
    assert all(math.isfinite(rate) and rate > 0 for rate in report["rates"].values())
    rows = {row["what"]: row for row in report["rows"]}
    assert list(rows) == [
        "logits of nano",
        "logits of nano-moe",
        "nano-moe: decode 2",
        "nano-moe: prefill 4",
        "nano-moe: decode 2 at 8",
        "nano-moe, --vram 20M",
    ]
    for row in rows.values():
        assert row["reached"] is not None, row
    for name in ("nano", "nano-moe"):
        values = rows[f"logits of {name}"]["values"]
        assert values["tokens"] == 6 and 0 <= values["kl"] < 1e-3 and values["same_top"] > 0.5
    for row in list(rows.values())[2:]:
        values = row["values"]
        assert values["fraction"] == pytest.approx(values["tok_s"] / values["limit_tok_s"])
        assert values["tok_s"] > 0 and math.isfinite(values["limit_tok_s"])
    values = rows["nano-moe, --vram 20M"]["values"]
    assert 0 <= values["misses"] <= 1 and 0 < values["expert_bytes"] < 6e6  # of 10 MB


def test_the_report_is_a_table_for_the_readme(emulated_gpu: Path) -> None:
    """And what cannot be measured says why, without costing the rest."""
    only = "--only=offload,batch"
    done = run(emulated_gpu, "--shapes=nano-moe,nothing,nano", "--vram=1M", only)
    assert done.returncode == 0, done.stderr
    head, _, table = done.stdout.partition("\n|")
    assert head.startswith("### emulation\n") and "GB/s" in head and "emulated" in head
    rows = [line.split(" | ") for line in ("|" + table).splitlines()[2:]]
    assert all(len(row) == 4 for row in rows)
    assert [(row[0], row[3]) for row in rows] == [
        ("| nano-moe: offload", "- |"),  # dense weights alone take more
        ("| nothing: offload", "- |"),
        ("| nothing: batch", "- |"),
        ("| nano: 4 sessions", rows[3][3]),
    ]
    assert "none fit" in rows[0][2] and "nothing" in rows[1][2] and " x" in rows[3][2]


def test_compute_sanitizers_summary(emulated_gpu: Path, tmp_path: Path) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text('#!/bin/sh\n"$@" && echo "========= ERROR SUMMARY: 3 errors"\n')
    tool.chmod(0o755)
    args = ("--sanitize", "--only=batch", "--shapes=nano-moe", "--tokens=2", "--json")
    done = run(emulated_gpu, *args, path=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert row["figure"] == "3 errors" and row["reached"] is False


def test_without_a_gpu_it_says_why() -> None:
    done = run("/there/is/none.so")
    assert done.returncode == 1 and "no GPU 0" in done.stderr and "none.so" in done.stderr
    assert done.stdout == ""


def test_a_part_that_is_misspelt() -> None:
    done = run("/there/is/none.so", "--only=decode,prefil")
    assert done.returncode == 2 and "prefil" in done.stderr and "prefill" in done.stderr
