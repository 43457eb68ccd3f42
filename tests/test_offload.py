"""A mixture of experts in less memory than it takes: the same bits, clear words when it fails."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import qwen3_native
from commandline import ROOT, Command
from numpy.typing import NDArray

from qwen3cli.engine import Model
from qwen3cli.errors import DoesNotFit, FormatError, Qwen3Error, UsageError
from qwen3cli.memory import available
from qwen3cli.placement import place, sizes_of

NANO_MOE = ROOT / "qwen3cli/models/nano-moe-q8_0.gguf"
DENSE = ROOT / "qwen3cli/models/nano-dense-q8_0.gguf"
IDS = [(i * 7919) % 4000 for i in range(90)]


def least(path: Path) -> int:
    """The smallest budget that the engine takes."""
    low, high = 1, 1 << 34
    while low < high:
        middle = (low + high) // 2
        try:
            Model(path, threads=1, expert_bytes=middle)
            high = middle
        except Qwen3Error:
            low = middle + 1
    return low


def spread(n_tokens: int, seed: int = 0) -> NDArray[np.int32]:
    """Routes that reach every expert alike."""
    rng = np.random.default_rng(seed)
    routes = [[rng.permutation(128)[:8] for _ in range(3)] for _ in range(n_tokens)]
    return np.array(routes, np.int32)


def computed(expert_bytes: int, threads: int, chunk: int) -> tuple[bytes, Model]:
    """The logits behind a prompt and each of twelve tokens more."""
    model = Model(NANO_MOE, threads=threads, expert_bytes=expert_bytes)
    session = model._native.session(256, "f16")
    session.force_routes(spread(200))
    for at in range(0, len(IDS), chunk):
        session.extend(IDS[at : at + chunk])
    rows = [session.logits()]
    for token in range(12):
        session.extend([token * 31])
        rows.append(session.logits())
    return np.stack(rows).tobytes(), model


def test_the_same_bits_at_every_budget() -> None:
    want, model = computed(0, 2, 90)
    assert model.expert_stats.budget_bytes == 0
    smallest = least(NANO_MOE)
    everything = sizes_of(NANO_MOE).experts * 2  # type: ignore[union-attr]
    for budget in (smallest, everything // 5, everything // 2, everything):
        for threads, chunk in ((1, 90), (2, 7), (3, 90), (8, 40)):
            got, model = computed(budget, threads, chunk)
            assert got == want, (budget, threads, chunk)
            stats = model.expert_stats
            assert 0 < stats.used_bytes <= stats.budget_bytes == budget
            assert stats.misses > 0 and stats.bytes_read > 0
    assert model.expert_stats.misses <= 3 * 128  # the last one had room for all


def test_who_has_room_for_all_reads_each_expert_once() -> None:
    _, model = computed(1 << 30, 2, 90)
    first = model.expert_stats
    session = model._native.session(256, "f16")
    session.force_routes(spread(200))
    session.extend(IDS)
    assert model.expert_stats.misses == first.misses
    assert model.expert_stats.bytes_read == first.bytes_read


def test_a_budget_that_is_too_small_names_the_least() -> None:
    smallest = least(NANO_MOE)
    with pytest.raises(Qwen3Error, match=r"8 in each of 3 layers, which take \d+ MB"):
        Model(NANO_MOE, expert_bytes=smallest - 1)
    with pytest.raises(Qwen3Error, match="no experts"):
        Model(DENSE, expert_bytes=1 << 30)


@pytest.fixture
def cut(tmp_path: Path) -> Callable[[], tuple[Model, Path]]:
    """A model that is open with the least memory, and its file."""

    def opened() -> tuple[Model, Path]:
        path = tmp_path / "model.gguf"
        shutil.copy(NANO_MOE, path)
        return Model(path, threads=2, expert_bytes=least(NANO_MOE)), path

    return opened


def test_a_file_that_is_cut_while_it_runs(cut: Callable[[], tuple[Model, Path]]) -> None:
    model, path = cut()
    session = model.session(n_ctx=256)
    session._native.force_routes(spread(200))
    session.sync(IDS[:4])
    before = session.logits().tobytes()
    size = path.stat().st_size
    os.truncate(path, size // 3)
    with pytest.raises(FormatError, match="it was cut while in use"):
        session.sync(IDS)
    shutil.copy(NANO_MOE, path)  # into the same file
    session.sync([])
    session.sync(IDS[:4])
    assert session.logits().tobytes() == before
    session.sync(IDS)


def test_a_nan_that_comes_from_the_file_is_found(cut: Callable[[], tuple[Model, Path]]) -> None:
    model, path = cut()
    session = model.session(n_ctx=256)
    session._native.force_routes(spread(200))
    at = qwen3_native.File(bytes(path)).data_offsets()["blk.1.ffn_up_exps.weight"]
    with path.open("r+b") as out:
        out.seek(at)
        for _ in range(128 * 32 * 256 // 32):  # every block of the tensor
            out.write(b"\x00\x7e")
            out.seek(32, os.SEEK_CUR)
    with pytest.raises(FormatError, match="NaN or an infinity"):
        session.sync(IDS)


def test_models_open_and_close_without_leaks() -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    smallest, count = least(NANO_MOE), open_files()
    for _ in range(300):
        Model(NANO_MOE, threads=1, expert_bytes=smallest)
    assert open_files() == count
    assert len(list(Path("/proc/self/task").iterdir())) < 50


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
    with pytest.raises(UsageError, match="no experts"):
        place(DENSE, "1M")


GB = 10**9


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
    monkeypatch.setattr("qwen3cli.placement.available", lambda: free)
    found, sizes = place(NANO_MOE, ram, n_ctx=n_ctx), sizes_of(NANO_MOE)
    assert sizes is not None and found.n_ctx == context
    assert (found.expert_bytes > 0) == held
    if found.expert_bytes:
        used = sizes.dense + 300_000_000 + 2 * sizes.kv_token * found.n_ctx + found.expert_bytes
        assert abs(used - (found.ram or 0)) <= 1
        assert sizes.least_experts <= found.expert_bytes < 1.01 * sizes.experts


def test_the_least_that_is_planned_is_enough() -> None:
    sizes = sizes_of(NANO_MOE)
    assert sizes is not None and least(NANO_MOE) <= sizes.least_experts


def test_memory_that_is_too_little_says_how_much_is_needed() -> None:
    with pytest.raises(DoesNotFit, match=r"0\.3 GB are needed"):
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
    assert 0 < part["experts"]["hit_rate"] < 1 and part["experts"]["bytes_read"] > 0
    assert "the other experts are read from the file" in done.stderr
    refused = qwen3(*run, "--ram", "100M")
    assert refused.returncode == 4 and "are needed" in refused.stderr
