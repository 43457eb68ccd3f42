"""`qwen3 bench`: what it reports, its arithmetic, its peer, and the random models. No test
judges a speed."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoint_tiny import DENSE, MOE, tensors_of, write_checkpoint
from commandline import Command
from gguf_tiny import tiny_model

from quant.checkpoint import Experts, Hyperparameters, read_hyperparameters
from quant.errors import QuantError
from quant.quantize import quantize
from quant.recipes import RECIPES, recipe
from qwen3cli.bench import peer, speed, synthetic
from qwen3cli.bench.limits import Cost, Rates, Work
from qwen3cli.bench.speed import Measurement, Plan, Sample, median_run
from qwen3cli.engine import Model, ModelFile, Sampling
from qwen3cli.errors import DoesNotFit, Qwen3Error
from qwen3cli.terminal import Terminal

SHORT = ("--rounds", "1", "--prefill", "8", "--decode", "2", "--threads", "1")


# ---- the report ----------------------------------------------------------------


def test_json_is_one_object_whose_figures_belong_together(qwen3: Command) -> None:
    more = ("--prefill", "8,4", "--depth", "100,0", "--rounds", "3", "--json")
    done = qwen3("bench", "-m", "nano", *SHORT, *more)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    machine = report["machine"]
    assert machine["threads"] == 1 and machine["read_gb_s"] > 0 and machine["int8_gmac_s"] > 0
    assert report["decode"] == report["by_depth"][0] and report["prefill"] == report["by_length"][0]
    assert [row["depth"] for row in report["by_depth"]] == [0, 100]
    assert [row["tokens"] for row in report["by_length"]] == [8, 4]
    for row in (*report["by_depth"], *report["by_length"]):
        assert row["tok_s"] > 0 and row["limit_tok_s"] > 0
        assert row["fraction"] == pytest.approx(row["tok_s"] / row["limit_tok_s"], rel=1e-3)
    for row in report["by_depth"]:
        limit = row["read_gb_s"] / row["gb_per_token"]
        assert row["limit_tok_s"] == pytest.approx(limit, rel=1e-3)
    for row in report["by_length"]:  # nano's matrices are all Q8_0
        limit = row["int8_gmac_s"] / row["gmac_per_token"]
        assert row["limit_tok_s"] == pytest.approx(limit, rel=1e-3)
    assert "peer" not in report


def test_the_report_is_two_tables_on_stdout(qwen3: Command) -> None:
    terminal = qwen3.terminal("bench", "-m", "nano", *SHORT, "--depth", "0,50")
    assert terminal.finish() == 0
    screen = terminal.screen
    for text in ("tok/s", "limit", "GB/s", "prefill 8", "decode 2 at 50", " %"):
        assert text in screen
    lines = [line.split("\t") for line in qwen3("bench", "-m", "nano", *SHORT).stdout.splitlines()]
    work = {line[0]: line for line in lines}
    assert {"model", "engine", "memory", "prefill 8", "decode 2"} <= set(work)
    assert len(work["decode 2"]) == 4


def test_what_the_command_line_asks_wrongly(qwen3: Command) -> None:
    nothing = qwen3("bench")
    assert nothing.returncode == 2 and nothing.stdout == ""
    assert "-m" in nothing.stderr and "--synthetic" in nothing.stderr
    for arguments, named in [
        (("-m", "nano", "--synthetic", "0.6b"), "--synthetic"),
        (("-m", "nano", "--prefill", "12,x"), "12,x"),
        (("-m", "nano", "--prefill", "0"), "--prefill"),
        (("-m", "nano", "--depth", "-1"), "--depth"),
        (("-m", "nano", "--decode", "0"), "--decode"),
        (("-m", "nano", "--against", "vllm"), "llama.cpp"),
        (("--synthetic", "5b"), "30b-a3b"),
        (("--synthetic", "0.6b:q9"), "Q4_K_M"),
    ]:
        done = qwen3("bench", *arguments)
        assert (done.returncode, done.stdout) == (2, "") and named in done.stderr, arguments
    assert qwen3("bench", "-m", "nothing.gguf").returncode == 3
    assert not (qwen3.home / ".cache").exists()


def test_a_context_beyond_memory_is_refused_before_it_is_filled(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "available", lambda: 6_000_000)
    with pytest.raises(DoesNotFit, match="--depth"):
        run_here(capfd, "8", depth="1000")


def test_weights_beyond_memory_are_measured_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "available", lambda: 6_000_000)
    report, notes = run_here(capfd, "8")
    assert report["decode"]["tok_s"] > 0 and "disk" in notes


def run_here(
    capfd: pytest.CaptureFixture[str], prefill: str, *, depth: str = "0", against: str | None = None
) -> tuple[dict[str, Any], str]:
    """The report on nano, and what stderr got."""
    plan = Plan.parse(prefill, 2, depth, 2)
    speed.bench(
        "nano",
        None,
        plan,
        Terminal(),
        threads=1,
        gpu="off",
        vram=None,
        against=against,
        as_json=True,
    )
    out, err = capfd.readouterr()
    return json.loads(out), err


def test_ctrl_c_ends_it(qwen3: Command) -> None:
    terminal = qwen3.terminal("bench", "-m", "nano", "--rounds", "1000")
    terminal.wait_for("nano-dense")  # the bar
    terminal.press("c")
    assert terminal.finish() == 130
    assert "internal error" not in terminal.text


# ---- arithmetic ------------------------------------------------------------------


def cost_of(path: Path) -> Cost:
    return Cost.of(Model(path, threads=1).config, ModelFile(path).tensors())


def test_the_cost_of_a_dense_model(tmp_path: Path) -> None:
    tiny = tiny_model("Q8_0", hidden=64, heads=4, kv_heads=2, head_dim=32, ffn=96, layers=3)
    cost = cost_of(tiny.write(tmp_path / "tiny.gguf"))
    vocab = 256 + 8 + 5
    matrices = 3 * (64 * 128 + 2 * 64 * 64 + 128 * 64 + 3 * 64 * 96)
    norms = 3 * (64 + 64 + 32 + 32) + 64
    assert cost.products == {"int8": matrices, "f32": 0}
    assert cost.output_products == {"int8": vocab * 64, "f32": 0}
    row = 64 / 32 * 34  # a tied embedding: all rows for the output, and one more
    assert cost.weight_bytes == matrices / 32 * 34 + norms * 4 + vocab * row + row
    assert cost.kv_bytes == 3 * 2 * 32 * 2 * 2


def test_the_cost_of_a_mixture(tmp_path: Path) -> None:
    tiny = tiny_model("Q8_0", experts=8, experts_used=2, tied=False, ffn=64)
    cost = cost_of(tiny.write(tmp_path / "tiny.gguf"))
    vocab, attention, expert = 256 + 8 + 5, 32 * 64 + 2 * 32 * 32 + 64 * 32, 3 * 32 * 64
    assert cost.products == {"int8": attention + 2 * expert, "f32": 32 * 8}  # the router
    norms = 32 + 32 + 16 + 16 + 32
    dense = (attention + 2 * expert + vocab * 32 + 32) / 32 * 34
    assert cost.weight_bytes == dense + (norms + 32 * 8) * 4


def test_the_limits() -> None:
    cost = Cost(1e9, 1000, {"int8": 5e8, "f32": 1e6}, {"int8": 1e8, "f32": 0})
    rates = Rates(read=2e10, int8=4e11, f32=1e11)
    # Tokens 1001 to 1003 attend to 1002 positions on average.
    assert cost.limit(Work("decode", 3, 1000), rates) == pytest.approx(2e10 / (1e9 + 1002 * 1000))
    seconds = (100 * 5e8 + 1e8) / 4e11 + 100 * 1e6 / 1e11
    assert cost.limit(Work("prefill", 100), rates) == pytest.approx(100 / seconds)


def test_the_limits_of_a_gpus_share() -> None:
    """A part of the bytes and products at the GPU's rates, what it misses by both ways at once."""
    cost = Cost(1e9, 1000, {"int8": 5e8, "f32": 1e6}, {"int8": 1e8, "f32": 0})
    cost.gpu = Cost(6e8, 500, {"int8": 3e8, "f32": 1e6}, {"int8": 1e8, "f32": 0}, 4e8)
    rates = Rates(2e10, 4e11, 1e11, gpu_read=4e11, gpu_upload=1e10, gpu_int8=8e13, gpu_f16=4e13)
    decode, kv = Work("decode", 3, 1000), 1002 * 500
    seconds = (4e8 + kv) / 2e10 + (6e8 + kv) / 4e11
    assert cost.limit(decode, rates) == pytest.approx(1 / seconds)
    seconds += -0.25 * 4e8 / 4e11 + 0.25 * 4e8 / (1e10 + 2e10)
    assert cost.limit(decode, rates, misses=0.25) == pytest.approx(1 / seconds)
    seconds = 100 * 2e8 / 4e11 + (100 * 3e8 + 1e8) / 8e13 + 100 * 1e6 / 4e13
    assert cost.limit(Work("prefill", 100), rates) == pytest.approx(100 / seconds)


@pytest.mark.parametrize("tied", [True, False])
def test_what_of_a_model_is_a_gpus(tied: bool, tmp_path: Path) -> None:
    """The last layers and the output; with all layers, all of it."""
    tiny = tiny_model("Q8_0", experts=8, experts_used=2, tied=tied, ffn=64, layers=3)
    path = tiny.write(tmp_path / "tiny.gguf")
    config, tensors = Model(path, threads=1).config, ModelFile(path).tensors()
    every, one = (Cost.of(config, tensors, gpu_layers=n) for n in (3, 1))
    assert every.gpu is not None and one.gpu is not None
    assert every.gpu == Cost.of(config, tensors) and every.gpu.expert_bytes > 0
    assert one.gpu.kv_bytes * 3 == one.kv_bytes
    assert one.gpu.output_products == one.output_products
    assert one.gpu.products["int8"] * 3 == one.products["int8"]
    assert one.gpu.expert_bytes * 3 == one.expert_bytes


def test_a_run_is_judged_by_the_machine_of_its_own_minute() -> None:
    """The machine halves its speed in the middle; the fraction stays."""
    speed = iter([4.0, 4.0, 2.0, 2.0])

    class Steady:
        def prefill(self, n: int) -> float:
            return 1.0

        def decode(self, n: int, depth: int) -> float:
            return 1.0

    cost = Cost(1.0, 0, {"int8": 1.0, "f32": 0.0})
    measurement = Measurement(cost, lambda: Rates(rate := next(speed), rate, rate))
    work = Work("decode", 2)
    measurement.measure(Plan((work,), 3), {"qwen3": Steady()}, lambda _done, _total: None)
    assert [sample.limit for sample in measurement.samples[work]["qwen3"]] == [4, 3, 2]
    assert len(measurement.probes) == 4


def test_the_median_run_is_one_of_the_runs() -> None:
    rates = Rates(1, 1, 1)
    runs = [Sample(tok_s, limit, rates) for tok_s, limit in [(9, 10), (1, 10), (4, 5), (2, 10)]]
    assert median_run(runs[:3]) == Sample(4, 5, rates)
    assert median_run(runs) == Sample(2, 10, rates)


# ---- the peer -----------------------------------------------------------------------


@pytest.fixture
def fake_llama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A llama_cpp that logs what it computes, and crashes when it repacks."""
    package = tmp_path / "llama_cpp"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '9.9'\n")
    (package / "llama_cpp.py").write_text(
        f"""
import ctypes, os, sys, types
llama_token = ctypes.c_int32
print("noise on stdout")
def note(*what): print(*what, file=open({str(tmp_path / "log")!r}, "a"))
def llama_model_default_params(): return types.SimpleNamespace(use_extra_bufts=None)
def llama_context_default_params(): return types.SimpleNamespace()
def llama_model_load_from_file(path, how):
    if how.use_extra_bufts: os.abort()
    return os.path.exists(path)
def llama_init_from_model(model, how):
    note("open", how.n_threads)
    return True
def llama_memory_seq_rm(memory, seq, first, last): note("keep", first)
def llama_batch_get_one(tokens, n): return n
def llama_decode(context, n):
    note("decode", n)
    return 1 if os.environ.get("FAIL") == str(n) else 0
def nothing(*_): return 300
llama_backend_init = llama_get_memory = llama_synchronize = nothing
llama_vocab_n_tokens = llama_model_get_vocab = nothing
"""
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(speed, "PROBE_BYTES", 1 << 22)
    return tmp_path / "log"


def test_a_peer_that_crashes_is_reported_and_the_other_counts(
    fake_llama: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report, notes = run_here(capfd, "5", depth="0,9", against="llama.cpp")
    assert notes == ""
    layouts = report["peer"]["layouts"]
    assert layouts == {"plain": "ok", "repacked": f"crashed ({signal.SIGABRT.name})"}
    assert report["peer"]["llama_cpp_python"] == "9.9"
    for row in (*report["by_depth"], *report["by_length"]):
        assert row["better"] == "plain" and set(row["peer"]) == {"plain"}
        assert row["peer"]["plain"]["ratio"] > 0
    lines = fake_llama.read_text().splitlines()
    assert lines[0] == "open 1"
    # A warm-up and two rounds of the prompt; what is missing of the depth computed once.
    assert lines.count("decode 5") == 3
    assert lines.count("decode 7") == 1 and lines.count("keep 9") == 3
    assert lines.count("decode 1") == 2 + 2 * 2 + 2 * 2


def test_a_peer_that_fails_half_way_leaves_the_rest_of_the_report(
    fake_llama: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "6")
    report, _ = run_here(capfd, "5,6", against="llama.cpp:plain")
    assert [row["better"] for row in report["by_length"]] == ["plain", None]
    assert report["decode"]["better"] is None and report["decode"]["tok_s"] > 0
    assert "6 tokens" in report["peer"]["layouts"]["plain"]


def test_without_the_peer_there_is_an_advice(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Qwen3Error, match=r"pip install 'qwen3\[llama\]'"):
        run_here(capfd, "5", against="llama.cpp")


@pytest.mark.llama
def test_llama_cpp_takes_part(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llama_cpp")
    report, _ = run_here(capfd, "5", depth="0,20", against="llama.cpp:plain")
    assert report["peer"]["layouts"] == {"plain": "ok"}
    assert all(row["peer"]["plain"]["tok_s"] > 0 for row in report["by_depth"])


# ---- random models ------------------------------------------------------------------

# Weights in billions, without and with the embeddings: the official model cards.
CARDS = {
    "0.6b": (0.44, 0.6), "1.7b": (1.4, 1.7), "4b": (3.6, 4.0), "8b": (6.95, 8.2),
    "14b": (13.2, 14.8), "32b": (31.2, 32.8), "30b-a3b": (29.9, 30.5), "235b-a22b": (234, 235),
}  # fmt: skip


@pytest.mark.parametrize("name", synthetic.SHAPES)
def test_a_shape_has_the_weights_of_its_model_card(name: str) -> None:
    hp = synthetic.SHAPES[name]
    tensors = synthetic.table(hp, recipe("q4_k_m"))
    sizes = {tensor.name: math.prod(tensor.shape) for tensor, _ in tensors}
    embeddings = sizes["token_embd.weight"] + sizes.get("output.weight", 0)
    without, all_of_them = CARDS[name]
    assert (sum(sizes.values()) - embeddings) / 1e9 == pytest.approx(without, rel=0.015)
    assert sum(sizes.values()) / 1e9 == pytest.approx(all_of_them, rel=0.015)
    types = {tensor.name: kind for tensor, kind in tensors}
    output = "token_embd.weight" if hp.tied_embedding else "output.weight"
    assert types[output] == "Q6_K" and types["blk.0.attn_q.weight"] == "Q4_K"
    for name, kind in types.items():
        assert (kind == "F32") == ("norm" in name or "ffn_gate_inp" in name)


@pytest.mark.parametrize("config", [DENSE, DENSE | {"tie_word_embeddings": True}, MOE])
def test_a_random_model_has_the_tensors_of_a_quantized_one(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    source = write_checkpoint(tmp_path / "tiny", config, tensors_of(config))
    quantize(source, tmp_path / "real.gguf", "q8_0")
    hp = read_hyperparameters(source)
    synthetic.write(tmp_path / "random.gguf", "tiny", hp, recipe("q8_0"))
    real, random = (ModelFile(tmp_path / f"{name}.gguf") for name in ("real", "random"))
    assert random.tensors() == real.tensors()
    keys = {key for key in real.metadata(8) if key.startswith(hp.architecture)}
    assert keys == {key for key in random.metadata(8) if key.startswith(hp.architecture)}


def tiny(*, mixture: bool) -> Hyperparameters:
    return Hyperparameters(
        architecture="qwen3moe" if mixture else "qwen3",
        n_layers=2,
        n_embd=256,
        n_heads=4,
        n_kv_heads=2,
        head_dim=64,
        n_ff=512,
        n_vocab=320,
        n_context=512,
        rms_eps=1e-6,
        rope_theta=1e6,
        yarn=None,
        tied_embedding=not mixture,
        experts=Experts(count=4, used=2, n_ff=256, norm_topk=True) if mixture else None,
    )


@pytest.mark.parametrize(
    ("kind", "mixture"),
    [(k, m) for k in RECIPES for m in (False, True) if m or not recipe(k).only_experts],
)
def test_a_random_model_generates(tmp_path: Path, kind: str, mixture: bool) -> None:
    path = tmp_path / "random.gguf"
    done: list[tuple[int, int]] = []
    synthetic.write(
        path, "tiny", tiny(mixture=mixture), recipe(kind), lambda *now: done.append(now)
    )
    assert done[-1][0] == done[-1][1] <= path.stat().st_size
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    model = Model(path, threads=1)
    session = model.session()
    session.sync(model.tokenizer.encode("a b"))
    logits = session.logits()
    assert np.isfinite(logits).all() and 0.1 < logits.std() < 10
    assert len(list(session.generate(Sampling(temperature=1), max_tokens=3))) == 3


def test_a_random_model_is_written_once(qwen3: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(qwen3.home))
    monkeypatch.setattr(synthetic, "SHAPES", {"0.6b": tiny(mixture=False)})
    first = synthetic.synthetic("0.6b", Terminal())
    assert first == qwen3.home / "qwen3" / "synthetic" / "qwen3-0.6b-q4_k_m.gguf"
    before = first.stat().st_mtime_ns
    assert synthetic.synthetic("0.6B:Q4_K_M", Terminal()) == first
    assert first.stat().st_mtime_ns == before


def test_a_disk_too_small_is_named_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**9))
    with pytest.raises(QuantError, match=r"18\.6 GB.* 1\.0 GB free"):
        synthetic.synthetic("30b-a3b:q4_k_m", Terminal())
    assert list((tmp_path / "qwen3" / "synthetic").iterdir()) == []


def test_ctrl_c_removes_the_unfinished_file(qwen3: Command) -> None:
    cache = qwen3.home / "cache"
    terminal = qwen3.terminal("bench", "--synthetic", "0.6b:q8_0", XDG_CACHE_HOME=str(cache))
    terminal.wait_for("writing")
    terminal.press("c")
    assert terminal.finish() == 130
    assert list((cache / "qwen3" / "synthetic").iterdir()) == []
