"""Commands that use a GPU, the emulated one: what they compute, tell and refuse.

A token takes a third of a second there, so all of them are short: most end at one token, with
exit code 6, and have one layer there.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cards import Devices
from commandline import ROOT, Command

from qwen3cli.engine import Model
from qwen3cli.errors import DoesNotFit, Qwen3Error
from qwen3cli.plan.sizes import device_kv, device_work, sizes_of
from qwen3cli.run import receipts, replay
from qwen3cli.terminal import Terminal

SHORT = ("--no-think", "--temp", "0", "--seed", "1")
ASK = ("run", "-m", "nano", *SHORT, "--ctx", "512", "2 + 2 = ?")
FIRST = (*ASK, "--max-tokens", "1", "--json")  # token
CUT = 6
DENSE = ROOT / "qwen3cli/models/nano-dense-q8_0.gguf"
NANO_MOE = ROOT / "qwen3cli/models/nano-moe-q8_0.gguf"


class Gpu:
    """The command on a machine with the emulated GPU."""

    def __init__(self, qwen3: Command, library: Path) -> None:
        self.qwen3 = qwen3
        self.library = str(library)

    def __call__(self, *args: str, code: int = 0, input: str = "", **env: str) -> Any:
        done = self.qwen3(*args, input=input, QWEN3_GPU_LIBRARY=self.library, **env)
        assert done.returncode == code, done.stderr
        return done


@pytest.fixture
def gpu(qwen3: Command, emulated_gpu: Path) -> Gpu:
    return Gpu(qwen3, emulated_gpu)


def test_the_same_answer_on_the_gpu(gpu: Gpu) -> None:
    off = gpu(*ASK, "--gpu", "off", "--json")
    auto = gpu(*ASK, "--json")
    want, found = json.loads(off.stdout), json.loads(auto.stdout)
    assert found["answer"] == want["answer"] and "gpu" not in want
    weights = found["gpu"].pop("weight_bytes")
    assert found["gpu"] == {"name": "emulation", "backend": "emulated", "layers": 4}
    planned = json.loads(gpu("fit", "nano", "--ctx", "512", "--json").stdout)["gpu"]
    assert weights <= planned["weight_bytes"] < 1.3 * weights  # in a driver's pages
    assert planned["weight_bytes"] < planned["needed_bytes"] < planned["budget_bytes"]
    assert off.stderr == auto.stderr == ""  # all of it is in one memory: nothing to tell
    some = gpu(*FIRST, QWEN3_GPU="1", code=CUT)
    part = json.loads(some.stdout)
    assert part["answer"] == want["answer"] and part["gpu"]["layers"] == 1
    assert re.search(r"^nano-dense-q8_0: 1 of 4 layers on emulation, the first 3 on", some.stderr)
    assert gpu(*ASK, "--gpu", "off", QWEN3_GPU="99").stderr == ""  # the flag counts


def test_a_mixture(gpu: Gpu) -> None:
    ask = ("run", "-m", "nano-moe", *SHORT, "--max-tokens", "1", "--ctx", "64", "--json", "1 + 1")
    off, one = (json.loads(gpu(*ask, "--gpu", how, code=CUT).stdout) for how in ("off", "1"))
    assert one["answer"] == off["answer"] and one["gpu"]["layers"] == 1


def test_three_tiers(gpu: Gpu, qwen3: Command) -> None:
    """Half of the experts on the GPU, most of the others in memory, some in the file alone."""
    (qwen3.home / "t").write_text("1 + 1 is 2")
    ppl = ("eval", "ppl", "nano-moe", "t", "--ctx", "4", "--chunks", "1", "--json")
    here = json.loads(gpu(*ppl, "--gpu", "off").stdout)
    done = gpu(*ppl, "--vram", "8M", "--ram", "308M")
    assert re.search(r"3 layers on emulation with .*; the other experts are read", done.stderr)
    found = json.loads(done.stdout)
    experts = found["gpu"]["experts"]
    assert 0 < experts["slots"] < 3 * 128 and experts["hits"] > 0 and experts["misses"] > 0
    assert found["gpu"]["weight_bytes"] < 8_000_000
    told = r" with 3 MB of .*; 4 tokens of context; 308 MB of memory for 8 of 10 MB of experts \("
    assert re.search(told, done.stderr)
    assert found["perplexity"]["value"] == pytest.approx(here["perplexity"]["value"], rel=0.05)


def test_too_little_memory_takes_fewer_layers(gpu: Gpu) -> None:
    """No piece of more than 12 MB can be had, and a context of 4,096 takes 24."""
    ask = (*FIRST, "--ctx", "4096")
    refused = gpu(*ask, "--gpu", "4", code=4, QWEN3_TEST_BACKEND="small")
    assert "no room for a context of 4096 tokens, 24.1 MB on the GPU: " in refused.stderr
    assert not refused.stdout
    done = gpu(*ask, code=CUT, QWEN3_TEST_BACKEND="small")
    told = json.loads(done.stdout)
    assert told["gpu"]["layers"] == 1 and told["answer"] == "2"
    lines = done.stderr.splitlines()
    assert len(lines) == 3  # of 3, 2 and 1 layers: each why, and what comes instead
    for n, line in zip((3, 2, 1), lines, strict=True):
        assert "no room for a context of 4096 tokens, " in line
        assert f" bytes left: trying less of it: nano-dense-q8_0: {n} of 4 layers on emul" in line
    allowed = gpu(*ask, "--vram", "16M", code=CUT)  # from the start
    assert json.loads(allowed.stdout)["gpu"]["layers"] == 1
    assert len(allowed.stderr.splitlines()) == 1
    none = gpu(*ask, "--vram", "2M", code=CUT)
    assert "gpu" not in json.loads(none.stdout)


def test_a_gpu_that_has_nothing_left_leaves_it_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch, emulated_gpu: Path
) -> None:
    from qwen3cli import opening
    from qwen3cli.engine import Device
    from qwen3cli.plan.gpu import Card

    tried = []

    def use_gpu(self: Model, device: int, layers: int, **_: int) -> None:
        tried.append(layers)
        raise DoesNotFit("no memory is left")

    monkeypatch.setattr(Model, "use_gpu", use_gpu)
    quick = Device("cuda", "Quick 5", 10**9, 10**9, 1, False)
    monkeypatch.setattr("qwen3cli.engine.devices", lambda: ([quick], ""))
    told: list[str] = []
    asked = opening.Opening(DENSE, card=Card("Quick 5", 10**9), n_ctx=4096)
    model, placement = opening.open_model(asked, told.append)
    assert placement.gpu is None and model.device is None and tried == [4, 3, 2, 1]
    assert told[-1] == "qwen3: no memory is left: the CPU computes it" and len(told) == 4
    model.session(n_ctx=8)


def test_working_memory_is_what_is_planned(emulated_gpu: Path, gpu: Gpu) -> None:
    """A refusal tells how much a session takes."""
    for name, path in (("nano", DENSE), ("nano-moe", NANO_MOE)):
        sizes = sizes_of(path)
        assert sizes is not None and sizes.shape is not None
        layers = str(len(sizes.layers))
        ask = ("run", "-m", name, "--ctx", "4096", "--gpu", layers, "hi")
        refused = gpu(*ask, code=4, QWEN3_TEST_BACKEND="small").stderr
        found = re.search(r"no (\d+) bytes left", refused)
        assert found, refused
        planned = device_kv(sizes, len(sizes.layers), 4096, "f16")
        planned += device_work(sizes.shape, 4096)
        assert int(found[1]) <= planned <= 1.02 * int(found[1])


def test_what_is_refused(gpu: Gpu, qwen3: Command) -> None:
    many = gpu(*ASK, "--gpu", "99", code=2)
    assert many.stderr == (
        "qwen3: --gpu 99: nano-dense-q8_0.gguf has 4 layers; auto takes as many as fit\n"
    )
    little = gpu(*ASK, "--gpu", "4", "--vram", "16M", "--ctx", "4096", code=4)
    assert re.search(
        r"4 layers .* take 30 MB on emulation, of which 16 MB .*; 1 fits", little.stderr
    )
    close = gpu(*ASK, "--gpu", "4", "--vram", "29.5M", "--ctx", "4096", code=4).stderr
    assert "take 30 MB on emulation, of which 29 MB" in close  # 29.52 and 29.5
    assert "is not auto, off or a number" in gpu(*ASK, "--gpu", "all", code=2).stderr
    assert "--vram 0G" in gpu(*ASK, "--vram", "0G", code=2).stderr
    assert "QWEN3_GPU: gpu: 'x' is not auto" in gpu(*ASK, code=2, QWEN3_GPU="x").stderr
    assert "is not auto" in qwen3("config", "set", "gpu", "-3").stderr
    assert qwen3("config", "set", "gpu", "off").returncode == 0
    assert qwen3("config", "set", "vram", "6G").returncode == 0
    asleep = gpu(*ASK, "--gpu", "2", code=1, QWEN3_TEST_BACKEND="none")
    assert asleep.stderr == "qwen3: --gpu 2: the driver is asleep; --gpu off does without\n"
    auto = gpu(*ASK, "--gpu", "auto", QWEN3_TEST_BACKEND="none")
    assert (auto.stdout, auto.stderr) == ("2\n", "")


def test_a_chat_and_a_batch(gpu: Gpu, qwen3: Command) -> None:
    one = (*SHORT, "--max-tokens", "1", "--gpu", "1", "-m", "nano", "--ctx", "64")
    said = gpu("chat", *one, "--private", input="2 + 2 = ?\n/stats\n", code=CUT)
    assert said.stdout == "2\n"
    assert "1 of 4 layers on the GPU" in said.stderr  # of the reply
    assert re.search(r"^gpu: 1 of 4 layers on emulation, 2 MB of weights$", said.stderr, re.M)
    lines = "2 + 2 = ?\n/model nano-moe\n/stats\n"
    moved = gpu("chat", *one, "--private", input=lines, code=CUT).stderr
    assert re.search(r"^last reply: .* 1 of 4 layers on the GPU$", moved, re.M)  # of nano
    assert re.search(r"^gpu: 1 of 3 layers on emulation, ", moved, re.M)
    (qwen3.home / "in.jsonl").write_text('{"prompt": "2 + 2 = ?"}\n' * 2)
    gpu("run", *one, "--batch", "in.jsonl", "-o", "out.jsonl", code=CUT)
    answers = [json.loads(line) for line in (qwen3.home / "out.jsonl").read_text().splitlines()]
    assert [answer["answer"] for answer in answers] == ["2", "2"]


def test_a_receipt_names_the_device(gpu: Gpu, qwen3: Command) -> None:
    gpu(*FIRST, "--gpu", "1", "--receipt", "r.json", code=CUT)
    told = json.loads((qwen3.home / "r.json").read_text())
    assert told["versions"]["gpu"] == "emulation (emulated, 1 of 4 layers)"
    assert told["gpu_layers"] == 1
    again = gpu("replay", "r.json", "--json")
    found = json.loads(again.stdout)
    assert found["reproduced"] and found["changes"] == [] and found["gpu"]["layers"] == 1
    without = json.loads(qwen3("replay", "r.json", "--json").stdout)
    assert without["changes"] == ["gpu was emulation (emulated, 1 of 4 layers) and is none"]
    assert "gpu" not in without
    del told["gpu_layers"], told["versions"]["gpu"]  # as before there were GPUs
    (qwen3.home / "r.json").write_text(json.dumps(told))
    assert json.loads(gpu("replay", "r.json", "--json").stdout)["changes"] == []


def test_a_replay_takes_the_experts_of_the_receipt(gpu: Gpu, qwen3: Command) -> None:
    """Those that --vram had left, though all would fit; where not even those do, it is told."""
    ask = ("run", "-m", "nano-moe", *SHORT, "--max-tokens", "1", "--ctx", "64", "1 + 1")
    gpu(*ask, "--gpu", "1", "--vram", "7M", "--receipt", "r.json", code=CUT)
    told = json.loads((qwen3.home / "r.json").read_text())
    there = re.search(r"1 of 3 layers, (\d+) of 128 experts", told["versions"]["gpu"])
    assert there and 0 < int(there[1]) < 128 and told["gpu_expert_bytes"] > 0
    again = json.loads(gpu("replay", "r.json", "--json").stdout)
    assert again["reproduced"] and again["changes"] == []
    less = gpu("replay", "r.json", "--json", QWEN3_TEST_BACKEND="none")
    (change,) = json.loads(less.stdout)["changes"]
    assert change.endswith(f"{there[1]} of 128 experts) and is none")


def test_a_replay_does_without_a_gpu_that_fails(
    qwen3: Command, devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices(8)
    assert qwen3(*FIRST, "--receipt", "r.json").returncode == CUT
    receipt = replace(receipts.read(str(qwen3.home / "r.json")), gpu_layers=2)
    tried: list[int | None] = []

    def use_gpu(self: Model, device: int, layers: int, **_: int) -> None:
        tried.append(layers)
        raise Qwen3Error("the kernel does not load")

    monkeypatch.setattr(Model, "use_gpu", use_gpu)
    session = replay._open(receipt, DENSE, None, 1, Terminal())
    assert tried == [2, 4] and session.model.device is None


@pytest.mark.parametrize(("n_slots", "told"), [(384, ""), (51, ", 51 of 384 experts")])
def test_a_receipt_tells_of_experts_that_the_gpu_lacks(n_slots: int, told: str) -> None:
    """The CPU may compute those, to other bits."""
    model: Any = SimpleNamespace(
        isa="scalar",
        device=SimpleNamespace(name="Quick 5", backend="cuda"),
        gpu_stats=SimpleNamespace(n_layers=3, n_slots=n_slots),
        config={"n_layers": 3, "n_experts": 128},
    )
    assert receipts.versions(model)["gpu"] == f"Quick 5 (cuda, 3 of 3 layers{told})"


def test_a_perplexity(gpu: Gpu, qwen3: Command) -> None:
    (qwen3.home / "t").write_text("2 + 2 is 4, and 3 + 3 is 6")
    ppl = ("eval", "ppl", "nano", "t", "--ctx", "8", "--chunks", "1", "--json")
    here, there = (json.loads(gpu(*ppl, "--gpu", how).stdout) for how in ("off", "1"))
    assert there["gpu"]["layers"] == 1 and "gpu" not in here
    assert there["perplexity"]["value"] == pytest.approx(here["perplexity"]["value"], rel=0.02)


def test_doctor_tells_of_a_backend_that_cannot_be_used(gpu: Gpu, qwen3: Command) -> None:
    old = gpu("doctor", QWEN3_TEST_BACKEND="old").stderr
    assert re.search(r"^look: no GPU can be used: .* another version .*_LIBRARY names", old, re.M)
    asked = gpu(*ASK, "--gpu", "2", code=1, QWEN3_TEST_BACKEND="old")
    assert "of another version of qwen3" in asked.stderr
    assert gpu(*ASK, QWEN3_TEST_BACKEND="old").stdout == "2\n"  # auto: the CPU
    lost = qwen3("doctor", "--json", QWEN3_GPU_LIBRARY="/there/is/none.so")
    report = json.loads(lost.stdout)
    assert lost.returncode == 0 and report["gpu"]["failed"]
    assert "/there/is/none.so" in report["findings"][0]["text"]
    asleep = json.loads(gpu("doctor", "--json", QWEN3_TEST_BACKEND="none").stdout)
    assert not asleep["gpu"]["failed"] and asleep["gpu"]["why"] == "the driver is asleep"
    assert not any("asleep" in found["text"] for found in asleep["findings"])


def test_doctor_and_fit(gpu: Gpu) -> None:
    report = json.loads(gpu("doctor", "--json").stdout)["gpu"]
    (device,) = report["devices"]
    assert device["name"] == "emulation" and device["rates"]["read_gb_s"] > 0
    assert 0 < device["free_bytes"] <= device["total_bytes"] and report["why"] == ""
    fit = json.loads(gpu("fit", "nano", "--json").stdout)
    assert fit["gpu"]["layers"] == 4 and fit["gpu"]["read_gb_s"] > 0
    assert fit["decode"][0]["tok_s"] > 0
