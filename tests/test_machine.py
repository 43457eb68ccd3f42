"""The rates of the machine: what is measured, and what is kept of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen3cli.plan import machine
from qwen3cli.plan.machine import Rates, disk_rate, rates

MB = 10**6


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the rates are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "qwen3/machine.json"


@pytest.fixture
def measured(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was measured, in turn; each time the machine is 1 byte a second faster."""
    done: list[str] = []

    def measure(what: str, rate: float) -> Callable[..., float]:
        def measured(*_: Any) -> float:
            done.append(what)
            return rate + len(done)

        return measured

    monkeypatch.setattr(machine, "_memory_rate", measure("memory", 20e9))
    monkeypatch.setattr(machine, "disk_rate", measure("disk", 1e9))
    monkeypatch.setattr(machine, "_LEAST_FILE", 1000)
    return done


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(2000))
    return path


def test_a_machine_is_measured_once(measured: list[str], model: Path, cache: Path) -> None:
    first = rates(model, 1)
    assert first == Rates(20e9 + 1, 1e9 + 2) and measured == ["memory", "disk"]
    assert rates(model, 1) == first and len(measured) == 2
    assert [file.name for file in cache.parent.iterdir()] == ["machine.json"]
    rates(model, 2)  # other threads: the same disk
    assert measured[2:] == ["memory"]
    assert rates(model, 1, fresh=True) != first and measured[3:] == ["memory", "disk"]
    assert rates(model, 1) != first and len(measured) == 5
    assert len(json.loads(cache.read_text())) == 3


def test_another_machine_and_another_disk(
    measured: list[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = rates(model, 1)
    with monkeypatch.context() as other:
        other.setattr(machine, "_file_system", lambda _: "/mnt, 5 bytes")
        rates(model, 1)
        assert measured[2:] == ["disk"]
    with monkeypatch.context() as other:
        other.setattr(machine, "_machine", lambda: "abacus")
        rates(model, 1)
        assert measured[3:] == ["memory", "disk"]
    assert rates(model, 1) == first and len(measured) == 5


@pytest.mark.parametrize("damage", ["", "[1]", "{", "nothing", '{"a": 1}', "\0\xff", "[" * 9999])
def test_a_damaged_cache_is_measured_again(
    measured: list[str], model: Path, cache: Path, damage: str
) -> None:
    cache.parent.mkdir()
    cache.write_text(damage, encoding="latin-1")
    first = rates(model, 1)
    assert rates(model, 1) == first and len(measured) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"per_s": -1},
        {"per_s": math.nan},
        {"per_s": "fast"},
        {"per_s": 10**400},
        {"per_s": None},
        {"time": 0},  # long ago
        {"time": 1e18},  # in the future
        {"time": math.nan},
        {"time": []},
    ],
)
def test_an_entry_that_means_nothing_or_is_old(
    measured: list[str], model: Path, cache: Path, change: dict[str, Any]
) -> None:
    rates(model, 1)
    kept = json.loads(cache.read_text())
    cache.write_text(json.dumps({key: entry | change for key, entry in kept.items()}))
    rates(model, 1)
    assert measured == ["memory", "disk"] * 2
    rates(model, 1)
    assert len(measured) == 4


def test_a_cache_that_cannot_be_written(
    measured: list[str], model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.write_text("a file where the folder should be")
    assert rates(model, 1) == Rates(20e9 + 1, 1e9 + 2)
    rates(model, 1)
    assert len(measured) == 4

    def no_home(*_: str) -> Path:
        raise OSError("there is no home directory")

    monkeypatch.setattr("qwen3cli.hub.registry.xdg", no_home)
    rates(model, 1)
    assert len(measured) == 6


def test_a_small_file_says_nothing_of_its_disk(
    measured: list[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_LEAST_FILE", 2001)
    rates(model, 1)
    rates(model, 1)
    assert measured == ["memory", "disk", "disk"]


def test_the_largest_file_of_a_split_model_is_read(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(machine, "disk_rate", lambda path: read.append(path.name) or 1e9)
    for i, size in enumerate((10, 3000, 20)):
        (tmp_path / f"blob-{i}").write_bytes(bytes(size))
        (tmp_path / f"m-0000{i + 1}-of-00003.gguf").symlink_to(tmp_path / f"blob-{i}")
    rates(tmp_path / "m-00001-of-00003.gguf", 1)
    assert read == ["blob-1"]


def test_rates_that_are_measured(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(os.urandom(1 << 20) * 20)
    found = rates(path, 2)
    assert 100 * MB < found.memory < 10**13
    assert MB < found.disk <= found.memory


def test_reads_without_direct_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    path = tmp_path / "model.gguf"
    path.write_bytes(os.urandom(5 * MB))
    assert MB < disk_rate(path) < math.inf
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    assert MB < disk_rate(path) < math.inf


@pytest.mark.parametrize("size", [1, 4095, 5000, (1 << 20) - 1, (1 << 20) + 1])
def test_short_files(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(os.urandom(size))
    assert 0 < disk_rate(path) < math.inf


def test_what_takes_no_place_on_the_disk_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"")
    assert disk_rate(path) == math.inf
    with path.open("wb") as out:
        out.truncate(1 << 33)
    if path.stat().st_blocks:
        pytest.skip("the file system has no holes")
    assert disk_rate(path) == math.inf
    with path.open("r+b") as out:
        out.seek(1 << 32)
        out.write(os.urandom(4 << 20))
        os.fsync(out.fileno())
    read, preadv = [], os.preadv

    def recorded(fd: int, buffers: list[Any], at: int) -> int:
        read.append(at)
        return preadv(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", recorded)
    assert disk_rate(path, seconds=60) < math.inf
    assert sorted(read[1:]) == [(1 << 32) + (i << 20) for i in range(4)]  # behind the try of a page


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError) as error:
        disk_rate(tmp_path / "nothing")
    assert error.value.filename == str(tmp_path / "nothing")
