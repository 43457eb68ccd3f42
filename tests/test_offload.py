"""A mixture of experts in less memory than it takes: the same bits, clear words when it fails."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import qwen3_native
from commandline import ROOT, Command
from numpy.typing import NDArray

from qwen3cli.engine import Model
from qwen3cli.errors import FormatError, Qwen3Error
from qwen3cli.plan.sizes import sizes_of

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
    session = model.session(n_ctx=256)
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
    session = model.session(n_ctx=256)
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
    session.force_routes(spread(200))
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
    session.force_routes(spread(200))
    at = qwen3_native.File(bytes(path)).data_offsets()["blk.1.ffn_up_exps.weight"]
    with path.open("r+b") as out:
        out.seek(at)
        for _ in range(128 * 32 * 256 // 32):  # every block of the tensor
            out.write(b"\x00\x7e")
            out.seek(32, os.SEEK_CUR)
    with pytest.raises(FormatError, match="NaN or an infinity"):
        session.sync(IDS)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_models_open_and_close_without_leaks() -> None:
    """A thousand of them, each of which reads and computes: a kB lost each time would show."""
    path = ROOT / "tests/data/tiny-moe.gguf"
    smallest = least(path)

    def cycles(n: int) -> None:
        for _ in range(n):
            session = Model(path, threads=2, expert_bytes=smallest)._native.session(8, "f16")
            session.extend([1, 2])

    def taken() -> tuple[int, int, int]:
        """Descriptors, threads and pages of memory."""
        process = Path("/proc/self")
        counts = [len(list((process / name).iterdir())) for name in ("fd", "task")]
        return counts[0], counts[1], int((process / "statm").read_text().split()[1])

    cycles(100)
    files, threads, pages = taken()
    cycles(900)
    assert taken()[0] == files
    assert taken()[1] <= threads + 10  # one that has ended may be listed for a moment
    assert (taken()[2] - pages) * os.sysconf("SC_PAGE_SIZE") < 900 * 1024


def test_the_least_that_is_planned_is_enough() -> None:
    sizes = sizes_of(NANO_MOE)
    assert sizes is not None and least(NANO_MOE) <= sizes.least_experts


def half_of_the_experts(n_ctx: int, kv_item: float = 2) -> str:
    """--ram for nano-moe with such a context."""
    sizes = sizes_of(NANO_MOE)
    assert sizes is not None
    always = 300_000_000 + sizes.dense + int(n_ctx * kv_item * sizes.kv_token)
    return f"{(always + sizes.experts // 2) // 10**3}K"


def test_chat_tells_what_became_of_the_experts(tmp_path: Path) -> None:
    qwen3 = Command(tmp_path)
    chat = ("chat", "-m", "nano-moe", "--no-think", "--temp", "0", "--ctx", "2048")
    done = qwen3(*chat, "--ram", half_of_the_experts(2048), input="12 + 30\n/stats\n")
    told = re.search(
        r"experts: \d+ of (\d+) MB .* ([\d,]+) were in memory, ([\d,]+) came .*waited",
        done.stderr,
    )
    assert told and all(float(number.replace(",", "")) > 0 for number in told.groups())
    assert "experts:" not in qwen3(*chat, input="12 + 30\n/stats\n").stderr


def test_texts_are_read_with_less_memory_than_the_model(tmp_path: Path) -> None:
    """The figures of eval and the importance matrix are those of the whole model."""
    qwen3 = Command(tmp_path)
    (tmp_path / "text").write_text("1 + 2 = 3, and 40 + 2 - 30 = 12. " * 12)
    texts = ("text", "--ctx", "128")
    for what, ram in [
        (("eval", "ppl", "nano-moe", *texts, "--json"), half_of_the_experts(128, 4)),
        (("imatrix", "nano-moe", *texts, "-o", "i.gguf", "--force"), half_of_the_experts(128)),
    ]:
        whole = qwen3(*what)
        assert whole.returncode == 0 and "from the file" not in whole.stderr
        made = [file.read_bytes() for file in tmp_path.glob("*.gguf")]
        part = qwen3(*what, "--ram", ram)
        assert (part.returncode, part.stdout) == (0, whole.stdout)
        assert "the other experts are read from the file" in part.stderr
        assert [file.read_bytes() for file in tmp_path.glob("*.gguf")] == made
        refused = qwen3(*what, "--ram", "50M")
        assert refused.returncode == 4 and "50 MB of memory is too little" in refused.stderr
    assert qwen3("eval", "ppl", "nano", *texts, "--ram", "50M").returncode == 4


def test_two_models_share_the_memory(tmp_path: Path) -> None:
    qwen3 = Command(tmp_path)
    (tmp_path / "text").write_text("1 + 2 = 3, and 40 + 2 - 30 = 12. " * 12)
    both = ("eval", "kl", "nano-moe", "text", "--reference", "nano-moe", "--ctx", "128", "--json")
    ram = int(half_of_the_experts(128, 4)[:-1])
    done = qwen3(*both, "--ram", f"{2 * ram}K")
    assert json.loads(done.stdout)["kl"]["max"] == 0
    assert done.stderr.count(f"{ram / 1e3:.0f} MB of memory for") == 2
    refused = qwen3(*both, "--ram", "400M")
    assert refused.returncode == 4 and "400 MB of memory is too little: 6" in refused.stderr
