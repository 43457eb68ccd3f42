"""Sessions of a model of which a GPU has a share, as Python uses them. Each script is a process
that finds the emulated GPU of the native tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gguf_tiny import tiny_model

ROOT = Path(__file__).resolve().parent.parent
DENSE, MOE = ROOT / "tests/data/tiny-gpu.gguf", ROOT / "tests/data/tiny-gpu-moe.gguf"

PRELUDE = """
import sys, threading
from pathlib import Path
from qwen3cli.engine import *
from qwen3cli.errors import *

path, layers = sys.argv[1], int(sys.argv[2])
ids = list(range(7, 19))
host, model = Model(path, threads=1), Model(path, threads=1)
model.use_gpu(0, layers)

def answer(model, seed=1, kv="f16"):
    session = model.session(n_ctx=40, kv=kv)
    session.sync(ids)
    sampling = Sampling(0.8, top_k=20, top_p=0.95, presence_penalty=0.5, seed=seed)
    return list(session.generate(sampling, max_tokens=5))
"""


def run(gpu: Path, model: Path, layers: int, script: str) -> None:
    env = {**os.environ, "QWEN3_GPU_LIBRARY": str(gpu)}
    command = [sys.executable, "-c", PRELUDE + script, str(model), str(layers)]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_gpu_is_described_and_a_share_counted(emulated_gpu: Path) -> None:
    script = """
(device,), why = devices()
assert (device.backend, device.name, device.unified, why) == ("emulated", "emulation", False, "")
assert 0 < device.free_bytes <= device.total_bytes
stats = model.gpu_stats
assert stats.n_layers == 2 and 0 < stats.expert_bytes < stats.bytes and stats.n_slots == 16
assert host.gpu_stats.n_layers == host.gpu_stats.bytes == 0
"""
    run(emulated_gpu, MOE, 2, script)


@pytest.mark.parametrize("layers", [1, 3])
def test_the_answer_is_the_cpus(emulated_gpu: Path, layers: int) -> None:
    run(emulated_gpu, DENSE, layers, "assert answer(model) == answer(host)")


def test_threads_take_turns(emulated_gpu: Path) -> None:
    script = """
alone = [answer(model, seed) for seed in range(3)]
found = [None] * 3
def work(seed):
    found[seed] = answer(model, seed)
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert found == alone and len(set(map(tuple, alone))) > 1
"""
    run(emulated_gpu, DENSE, 2, script)


def test_what_a_gpu_cannot_is_said(emulated_gpu: Path) -> None:
    script = """
def refused(kind, text, call, *args, **named):
    try:
        call(*args, **named)
    except kind as error:
        assert text in str(error), error
    else:
        raise AssertionError(text)

refused(UsageError, "f16 or q8", model.session, n_ctx=8, kv="f32")
refused(UsageError, "already", model.use_gpu, 0, 1)
refused(UsageError, "no GPU 5", host.use_gpu, 5, 1)
refused(UsageError, "1 to 3", host.use_gpu, 0, 4)
refused(DoesNotFit, "context of", model.session, n_ctx=1 << 23)
session = model.session(n_ctx=8)
refused(UsageError, "GPU", session.observe, Importance(model))
assert answer(host) and answer(model)
"""
    run(emulated_gpu, DENSE, 1, script)


def test_more_experts_of_a_token_than_a_warp_has_lanes_are_refused(
    emulated_gpu: Path, tmp_path: Path
) -> None:
    def model(used: int) -> Path:
        image = tiny_model(head_dim=32, ffn=32, experts=40, experts_used=used)
        return image.write(tmp_path / f"{used}.gguf")

    run(emulated_gpu, model(32), 1, "assert answer(model) == answer(host)")
    script = f"""
try:
    Model({str(model(33))!r}, threads=1).use_gpu(0, 1)
except FormatError as error:
    assert "33 experts of a token" in str(error), error
else:
    raise AssertionError("33 experts")
"""
    run(emulated_gpu, MOE, 1, script)
