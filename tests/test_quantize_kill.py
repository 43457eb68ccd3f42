"""A quantization that ends at any moment: no wrong file, and the next one starts clean."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, groupby
from pathlib import Path
from typing import Any

import pytest
from checkpoint_tiny import DATA, DENSE, tensors_of, write_checkpoint

from quant.errors import QuantError
from quant.quantize import quantize
from quant.shards import files, forms, opens_a_model

Contents = dict[str, bytes]
MOMENTS = 60


def contents(paths: list[Path]) -> Contents:
    return {path.name: path.read_bytes() for path in paths}


def clean(source: Path, folder: Path, recipe: str, split_size: int) -> Contents:
    """What an undisturbed run writes for out.gguf."""
    folder.mkdir()
    return contents(quantize(source, folder / "out.gguf", recipe, split_size=split_size).paths)


def verify(out: Path, known: list[Contents]) -> None:
    """Every file that opens a model is one of the known runs', whole."""
    for entry in filter(opens_a_model, forms(out)):
        assert contents(files(entry)) in known, entry.name


def test_killed_at_random_moments(tmp_path: Path, forks: Any) -> None:
    """Again and again over what the last one left: one file or shards, of one type or another."""
    source, place = DATA / "nano-dense", tmp_path / "place"
    place.mkdir()
    out = place / "out.gguf"
    jobs = [("q8_0", 0), ("f16", 0), ("q8_0", 2_000_000), ("f16", 4_000_000)]
    known = [clean(source, tmp_path / f"{recipe}{size}", recipe, size) for recipe, size in jobs]

    def start(job: tuple[str, int]) -> Any:
        how = {"threads": 1, "split_size": job[1]}
        process = forks.Process(target=quantize, args=(source, out, job[0]), kwargs=how)
        process.start()
        return process

    start(jobs[0]).join()  # the first one waits for the others' imports
    rng = random.Random(0)
    duration: float | None = None  # of the last run that ended by itself
    killed = 0
    for _ in range(MOMENTS):
        started = time.monotonic()
        process = start(rng.choice(jobs))
        process.join(duration and rng.uniform(0, 1.2 * duration))
        if process.exitcode is not None:
            duration = time.monotonic() - started
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        verify(out, known)
    assert killed > MOMENTS / 4
    for (recipe, size), wanted in zip(jobs, known, strict=True):
        quantize(source, out, recipe, split_size=size)
        assert contents(list(place.iterdir())) == wanted


# ---- every step of the last one ---------------------------------------------


@contextmanager
def ending(step: int, end: Callable[[], None]) -> Iterator[None]:
    """Calls end in place of the step-th change of the file system that publishing makes."""
    steps = count()

    def interrupted(change: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(steps) == step:
                end()
            return change(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink")):
            patch.setattr(owner, name, interrupted(getattr(owner, name)))
        yield


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def quantize_until(step: int, source: Path, out: Path, split_size: int) -> None:
    with ending(step, kill):
        quantize(source, out, "q8_0", split_size=split_size)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints of the same shapes."""
    folder = tmp_path_factory.mktemp("sources")
    return (
        write_checkpoint(folder / "old", DENSE, tensors_of(DENSE, seed=1)),
        write_checkpoint(folder / "new", DENSE, tensors_of(DENSE, seed=2)),
    )


CHANGES = {  # split sizes before (None: nothing is there) and after
    "a file": (None, 0),
    "shards": (None, 60_000),
    "a file for a file": (0, 0),
    "shards for as many": (60_000, 60_000),
    "fewer shards": (40_000, 80_000),
    "shards for a file": (0, 80_000),
    "a file for shards": (80_000, 0),
}


def with_files(place: Path, files: dict[str, bytes]) -> tuple[Path, Path]:
    """A new folder that holds them, and where the next output goes."""
    place.mkdir()
    for name, data in files.items():
        (place / name).write_bytes(data)
    return place, place / "out.gguf"


@pytest.mark.parametrize(("before", "after"), CHANGES.values(), ids=CHANGES.keys())
def test_killed_at_every_step_of_the_end(
    tmp_path: Path, forks: Any, sources: tuple[Path, Path], before: int | None, after: int
) -> None:
    old, new = sources
    wanted = clean(new, tmp_path / "new", "q8_0", after)
    was = clean(old, tmp_path / "old", "q8_0", before) if before is not None else {}
    for step in count():
        place, out = with_files(tmp_path / str(step), was)
        process = forks.Process(target=quantize_until, args=(step, new, out, after))
        process.start()
        process.join()
        verify(out, [was, wanted])
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        quantize(new, out, "q8_0", split_size=after)
        assert contents(list(place.iterdir())) == wanted
    assert contents(list(place.iterdir())) == wanted
    assert step > 2


@pytest.mark.parametrize(("before", "after"), CHANGES.values(), ids=CHANGES.keys())
def test_an_error_at_every_step_of_the_end(
    tmp_path: Path, sources: tuple[Path, Path], before: int | None, after: int
) -> None:
    """What was there stays until what comes is whole. Only a set that has the names of the new
    one goes before."""
    old, new = sources
    wanted = clean(new, tmp_path / "new", "q8_0", after)
    was = clean(old, tmp_path / "old", "q8_0", before) if before is not None else {}
    stages = []
    for step in count():
        place, out = with_files(tmp_path / str(step), was)
        try:
            with ending(step, fail):
                quantize(new, out, "q8_0", split_size=after)
            break
        except QuantError as error:
            assert "cannot be written: No space left on device; free some space" in str(error)
        verify(out, [was, wanted])
        left = contents(list(place.iterdir()))
        if left == was:
            stages.append("old")
        elif not left:
            stages.append("none")
        else:
            assert wanted.items() <= left.items() <= (was | wanted).items()
            stages.append("new")
    assert contents(list(place.iterdir())) == wanted
    same_names = len(wanted) > 1 and was.keys() == wanted.keys()
    assert [stage for stage, _ in groupby(stages)] == ["old"] + ["none"] * same_names + ["new"]


# ---- full disks -------------------------------------------------------------


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors find 3 MB, the last write has room for a part, and none does from then on."""
    room = 3_000_000
    usual = Path.open

    class Small(io.FileIO):
        def write(self, data: Any) -> int:
            nonlocal room
            if room == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = super().write(memoryview(data)[:room])
            room -= written
            return written

    def opened(path: Path, mode: str = "r", **kwargs: Any) -> Any:
        return io.BufferedWriter(Small(path, mode)) if mode == "ab" else usual(path, mode, **kwargs)

    monkeypatch.setattr(Path, "open", opened)


@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize("split_size", [0, 500_000, 2_000_000])
def test_a_disk_that_fills_up(tmp_path: Path, split_size: int) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(QuantError, match=r"out\.gguf: cannot be written: No space left on device"):
        quantize(DATA / "nano-dense", out, "q8_0", split_size=split_size)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("split_size", [0, 500_000])
def test_a_disk_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split_size: int
) -> None:
    """It is told before the work."""
    usage = shutil.disk_usage(tmp_path)._replace(free=3_100_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(QuantError, match=r"needs 4\.\d MB, but its disk has 3\.1 MB free"):
        quantize(DATA / "nano-dense", tmp_path / "out.gguf", "q8_0", split_size=split_size)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_between_the_names_of_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits until they are all given: the new set is whole, and nothing of the old is left."""
    source, out = DATA / "nano-dense", tmp_path / "out.gguf"
    new = clean(source, tmp_path / "new", "q8_0", 2_000_000)
    quantize(source, out, "f16", split_size=4_000_000)
    replace, renamed = Path.replace, count()

    def interrupted(self: Path, target: Path) -> Path:
        if next(renamed) == 1:
            signal.raise_signal(signal.SIGINT)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantize(source, out, "q8_0", split_size=2_000_000)
    assert contents([path for path in tmp_path.iterdir() if path.is_file()]) == new
