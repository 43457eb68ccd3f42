"""What `qwen3 fit` tells of a GPU, and of one that is not there."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cards import GB, HOST, QUICK, Devices
from printed import Printed

from qwen3cli.errors import DoesNotFit, Qwen3Error
from qwen3cli.plan.fit import Memory, fit
from qwen3cli.plan.machine import GpuRates, Peaks
from qwen3cli.plan.overview import overview

Fitted = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fitted:
    """What fit tells of a model, or of all, on a machine with 16 GB of memory."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("qwen3cli.plan.placement.available", lambda: 16 * GB)
    for module in ("fit", "overview"):
        monkeypatch.setattr(f"qwen3cli.plan.{module}.rates_of_folder", lambda *_, **__: HOST)
        monkeypatch.setattr(f"qwen3cli.plan.{module}.peaks", lambda *_, **__: Peaks(400e9, 100e9))

    def fitted(model: str | None, rates: GpuRates | None, **given: Any) -> Any:
        for module in ("fit", "overview"):
            monkeypatch.setattr(
                f"qwen3cli.plan.{module}.gpu_rates",
                lambda card, **_: rates if card.index >= 0 else None,
            )
        printed: Any = Printed()
        more: dict[str, Any] = {"n_ctx": None, "kv": None, "threads": 0, "memory": Memory(**given)}
        for as_json in (True, False):
            if model:
                fit(model, printed, as_json=as_json, **more)
            else:
                overview(printed, as_json=as_json, everything=False, **more)
        return printed.value, printed.text

    return fitted


def test_fit_tells_what_is_on_the_gpu(devices: Devices, fitted: Fitted) -> None:
    devices(20)
    report, text = fitted("8b:q4_k_m", QUICK)
    assert "fits, all of it on the GPU" in text and "GPU 400 GB/s" in text
    assert report["gpu"]["layers"] == report["gpu"]["of_layers"] == 36
    fast = report["decode"][0]["tok_s"]
    report, text = fitted("8b:q4_k_m", QUICK, vram="4G")
    assert f"{report['gpu']['layers']} of 36 layers on the GPU, the others on the CPU" in text
    assert report["gpu"]["budget_bytes"] == 4 * GB
    off, text = fitted("8b:q4_k_m", QUICK, gpu="off")
    assert "gpu" not in off and "GPU" not in text
    assert fast > report["decode"][0]["tok_s"] > off["decode"][0]["tok_s"]
    report, text = fitted("30b-a3b:q4_k_m", QUICK, vram="6G", ram="24G")
    there = report["gpu"]["expert_bytes"] / report["experts"]["bytes"]
    assert f"all layers on the GPU; experts: {there:.0%} there, all in memory" in text
    report, text = fitted("30b-a3b:q4_k_m", QUICK, vram="6G", ram="8G")
    assert report["where"] == "offloaded"
    assert re.search(r"experts: \d+% there, \d+% in memory, all in the file", text)
    report, text = fitted("30b-a3b:q4_k_m", QUICK, vram="6G", gpu="10", ram="24G")
    assert re.search(r"10 of 48 layers on the GPU; experts: 2.% there, the others in memory", text)
    report, text = fitted("32b:q6_k", QUICK, vram="6G", ram="auto")
    assert report["where"] == "mapped" and "64 layers on the GPU; the rest does not fit" in text


def test_fit_tells_of_a_gpu_that_holds_nothing_of_it(devices: Devices, fitted: Fitted) -> None:
    devices(20)
    report, text = fitted("8b:q4_k_m", QUICK, vram="100M")
    assert report["gpu"]["layers"] == report["gpu"]["needed_bytes"] == 0
    assert "Quick 0: computes nothing of it; 100 MB of its memory may be taken" in text
    assert "fits, all of it in memory" in text and "CPU alone" not in text
    assert (
        report["decode"][0]["tok_s"]
        == fitted("8b:q4_k_m", QUICK, gpu="off")[0]["decode"][0]["tok_s"]
    )


def test_fit_for_a_card_that_is_not_there(devices: Devices, fitted: Fitted) -> None:
    devices(why="none")
    report, text = fitted("8b:q4_k_m", None, vram="8G")
    assert "all of it on the GPU" in text and "a GPU of 8.0 GB" in text
    assert {row["tok_s"] for row in report["decode"]} == {None}
    assert report["gpu"]["read_gb_s"] is None and report["prompt_1000_s"] is None
    with pytest.raises(Qwen3Error, match="--gpu 3: none"):
        fitted("8b:q4_k_m", None, gpu="3")
    with pytest.raises(DoesNotFit, match="fit"):
        fitted("8b:q4_k_m", None, gpu="36", vram="4G")


def test_fit_compares_with_the_cpu_alone(devices: Devices, fitted: Fitted) -> None:
    devices(20)
    off, plain = fitted("8b:q4_k_m", QUICK, gpu="off")
    assert "CPU alone" not in plain
    told = "the CPU alone is expected to decode faster: --gpu off"
    for rates, slower in ((QUICK, False), (replace(QUICK, read=HOST.memory), False),
                          (replace(QUICK, read=HOST.memory / 2), True)):  # fmt: skip
        report, text = fitted("8b:q4_k_m", rates)
        assert "CPU alone" in text and (told in text) == slower
        assert report["decode"][0]["cpu_tok_s"] == off["decode"][0]["tok_s"]
    report, text = fitted("32b:q4_k_m", QUICK)  # which memory alone does not hold
    assert {row["cpu_tok_s"] for row in report["decode"]} == {None} and told not in text


def test_the_table_with_a_gpu(devices: Devices, fitted: Fitted) -> None:
    devices(11)
    report, text = fitted(None, QUICK)
    rows = {row["model"].partition(":")[0]: row for row in report["models"]}
    assert rows["8b"]["gpu"] == pytest.approx(1, abs=0.1)
    assert 0.1 < rows["30b-a3b"]["gpu"] < 0.9 and " gpu " in text
    assert fitted(None, QUICK, gpu="20")[0] == report  # a number is for one model
    without, plain = fitted(None, QUICK, gpu="off")
    assert "gpu" not in without and " gpu " not in plain
    assert rows["8b"]["tok_s"] > 4 * next(
        row["tok_s"] for row in without["models"] if row["model"].startswith("8b:")
    )
    unknown, text = fitted(None, None)  # the CPU's figures are not worse than none
    assert unknown["models"] == without["models"] and "cannot be measured" in text
    devices(why="none")
    supposed, text = fitted(None, None, vram="8G")
    assert supposed["recommended"] is None and "how fast it is, is not known" in text
    found = {row["model"]: row["gpu"] for row in supposed["models"]}
    assert (
        found["8b:q4_k_m"] == found["4b:q8_0"] == 1 and found["0.6b:q8_0"] == 1
    )  # the best that it holds
    assert found["14b:q4_k_m"] < 1
