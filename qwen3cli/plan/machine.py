"""How fast this machine reads memory and disk and multiplies: measured once, kept for a month.

$XDG_CACHE_HOME/qwen3/machine.json holds a rate for each machine and number of threads, for each
file system, and for each GPU with its driver. A cache that is damaged, or that cannot be written,
costs a second measurement.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import mmap
import os
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant.shards import files
from qwen3cli.engine import Model, Probe, probe_device
from qwen3cli.errors import Qwen3Error
from qwen3cli.hub import registry
from qwen3cli.plan.gpu import Card
from qwen3cli.plan.system import nvidia_driver

_MONTH = 30 * 86400
_READERS = 4  # as many threads as the engine reads with, a matrix of an expert at a time
_PIECE = 1 << 20  # which takes 0.9 MB in 30B-A3B
_MOST_PIECES = 1 << 15
_STEP = 1 << 24  # written at once
_LEAST_FILE = 1 << 28  # a smaller one is read in no time, and says little about its disk
_MEMORY = 1 << 28  # to read, many times a cache
_LEAST_PROBE = 1 << 22  # of memory, for one that reads none


@dataclass(frozen=True)
class Rates:
    """Bytes a second."""

    memory: float  # read by the threads of a model
    disk: float  # random reads of a matrix of an expert


@dataclass(frozen=True)
class Peaks:
    """Products a second, each added up."""

    int8: float
    f32: float


@dataclass(frozen=True)
class GpuRates:
    """Of a GPU, a second."""

    read: float  # bytes of its memory
    upload: float  # bytes from the host's memory
    f16: float  # products of matrix units, each added up; 0: there are none
    int8: float


def rates(path: Path, threads: int, *, fresh: bool = False) -> Rates:
    """For a model in this file, computed by so many threads (0: as the engine chooses). fresh:
    measured now, whatever is kept. It takes up to two seconds, else none. Raises OSError
    for a file that cannot be read."""
    # resolved last: links of the Hugging Face cache lead to files that are named otherwise
    path = max(files(path), key=lambda file: file.stat().st_size).resolve()
    model = Model(registry.resolve("nano"), threads=threads)
    with _Kept(fresh) as kept:
        memory = _memory(model, kept)
        disk = kept.rate(
            f"disk: {_machine()}, {_file_system(path)}",
            lambda: disk_rate(path),
            keep=path.stat().st_size >= _LEAST_FILE,
        )
    return Rates(memory, min(disk, memory))  # faster than memory is what was in memory


def rates_of_folder(folder: Path, threads: int, *, fresh: bool = False) -> Rates:
    """As rates, for a model that is not there yet but will be in this folder. The disk is read
    from a large file below it, else from one that is written and gone again: up to three
    seconds. A disk that cannot be measured has rate nan."""
    folder = nearest(folder)
    model = Model(registry.resolve("nano"), threads=threads)
    with _Kept(fresh) as kept:
        memory = _memory(model, kept)
        try:
            disk = kept.rate(
                f"disk: {_machine()}, {_file_system(folder / 'file')}",
                lambda: folder_rate(folder),
            )
        except OSError:
            disk = math.nan
    return Rates(memory, memory if disk > memory else disk)


def peaks(threads: int, *, fresh: bool = False) -> Peaks:
    """Of so many threads of the engine (0: as it chooses); a tenth of a second, else none."""
    model = Model(registry.resolve("nano"), threads=threads)
    of = f"{_machine()}, {model.isa}, {model.threads} threads"
    with _Kept(fresh) as kept:
        int8 = kept.rate(f"int8: {of}", lambda: Probe(model, _LEAST_PROBE).int8())
        f32 = kept.rate(f"f32: {of}", lambda: Probe(model, _LEAST_PROBE).f32())
    return Peaks(int8, f32)


def gpu_rates(card: Card, *, fresh: bool = False) -> GpuRates | None:
    """Of a GPU that is there, with this driver; some tenths of a second, else no time. None: it
    is not there, or cannot be measured."""
    if card.index < 0:
        return None
    key = f"gpu: {_machine()}, {card.name}, {card.backend}, driver {nvidia_driver() or '-'}"
    with _Kept(fresh) as kept:
        try:
            measured = kept.all(key, lambda: probe_device(card.index))
        except Qwen3Error:
            return None
    found = GpuRates(*(measured.get(name, 0.0) for name in ("read", "upload", "f16", "int8")))
    return found if found.read and found.upload else None


def nearest(folder: Path) -> Path:
    """The folder, or of those above it the first one that is there."""
    return next(path for path in (folder, *folder.parents) if path.is_dir()).resolve()


def _memory(model: Model, kept: _Kept) -> float:
    key = f"memory: {_machine()}, {model.threads} threads"
    return kept.rate(key, lambda: _memory_rate(model))


def _memory_rate(model: Model) -> float:
    return Probe(model, _MEMORY).read()


# ---- the disk ------------------------------------------------------------------------


def disk_rate(path: Path, *, seconds: float = 1.0) -> float:
    """Bytes a second that the engine's readers get: random pieces of the file, none of them
    twice, past the page cache, for so long or until it is read. inf: it takes no place on a disk.
    Raises OSError."""
    fd, direct = _open(path)
    try:
        return _disk_rate(fd, direct, seconds)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        os.close(fd)


def folder_rate(folder: Path) -> float:
    """disk_rate of the largest file in a Hugging Face cache, or in the models folder on the same
    file system; if there is no large one, of one that is written for a second and has no name by
    then: a kill leaves nothing. What was just written may come from a cache of the disk's own.
    Raises OSError where nothing can be written."""
    if path := _large_file(folder):
        return disk_rate(path)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".qwen3-", delete=False) as file:
        fd, direct = -1, False
        try:
            try:
                file.write(os.urandom(_PIECE))
                file.flush()
                fd, direct = _open(Path(file.name))
            finally:
                Path(file.name).unlink()
            _fill(file.fileno(), 1.0)
            return _disk_rate(fd, direct, 1.0)
        finally:
            if fd >= 0:
                os.close(fd)


def reads_directly(folder: Path) -> bool | None:
    """Whether reads of files in this folder can go past the page cache. None: nothing can be
    written there to try it."""
    try:
        with tempfile.NamedTemporaryFile(dir=nearest(folder), prefix=".qwen3-") as file:
            file.write(bytes(mmap.PAGESIZE))
            file.flush()
            fd, direct = _open(Path(file.name))
            os.close(fd)
            return direct
    except OSError:
        return None


def _large_file(folder: Path) -> Path | None:
    folders = [(folder, "models--*/blobs/*")]
    with suppress(OSError):
        folders.append((registry.models_folder(), "*.gguf"))
    device, found = folder.stat().st_dev, []
    for base, pattern in folders:
        for path in base.glob(pattern):
            with suppress(OSError):
                at = path.stat()
                if at.st_dev == device and at.st_size >= _LEAST_FILE and os.access(path, os.R_OK):
                    found.append((at.st_size, path.resolve()))
    return max(found)[1] if found else None


def _fill(fd: int, seconds: float) -> None:
    """Writes to the disk, to the least size of a file that is measured, for so long at most and
    into an eighth of the free space."""
    most = min(_LEAST_FILE, os.fstatvfs(fd).f_bavail * os.fstatvfs(fd).f_frsize // 8)
    end = time.monotonic() + seconds
    data = os.urandom(_STEP)  # that no file system can pack
    for _ in range(most // _STEP):
        os.write(fd, data)
        os.fsync(fd)
        if time.monotonic() >= end:
            break


def _disk_rate(fd: int, direct: bool, seconds: float) -> float:
    n = max(1, os.fstat(fd).st_size // _PIECE)
    pieces = iter(random.sample(range(n), min(n, _MOST_PIECES)))
    end = time.monotonic() + seconds

    def read(_: int) -> int:
        done = 0
        with mmap.mmap(-1, _PIECE) as buffer:  # begins with a page, as O_DIRECT asks for
            for piece in pieces:
                at = piece * _PIECE
                if not _is_hole(fd, at):
                    if not direct:
                        _forget(fd, at)
                    done += os.preadv(fd, [buffer], at)
                if time.monotonic() >= end:
                    break
        return done

    started = time.monotonic()
    with ThreadPoolExecutor(_READERS) as pool:
        done = sum(pool.map(read, range(_READERS)))
    return done / (time.monotonic() - started) if done else math.inf


def _open(path: Path) -> tuple[int, bool]:
    """The file, and whether its reads go past the page cache. A file system may take the flag
    and refuse the read: a page is tried."""
    if hasattr(os, "O_DIRECT"):
        with suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
            try:
                with mmap.mmap(-1, mmap.PAGESIZE) as page:
                    os.preadv(fd, [page], 0)
                return fd, True
            except OSError:
                os.close(fd)
    fd = os.open(path, os.O_RDONLY)
    if no_cache := getattr(fcntl, "F_NOCACHE", None):  # macOS
        fcntl.fcntl(fd, no_cache, 1)
    return fd, False


def _is_hole(fd: int, at: int) -> bool:
    """Whether these bytes take no place on the disk: they would come from nowhere. Asked for the
    next data: for the next hole some file systems search the whole file."""
    try:
        return os.lseek(fd, at, os.SEEK_DATA) > at
    except OSError as error:
        return error.errno == errno.ENXIO  # none up to the end; else one that does not tell


def _forget(fd: int, at: int) -> None:
    """What the page cache has of a piece."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, at, _PIECE, os.POSIX_FADV_DONTNEED)


# ---- what is kept --------------------------------------------------------------------


class _Kept:
    """The rates that were measured before, and now: these are kept in the end."""

    def __init__(self, fresh: bool) -> None:
        """fresh: all are measured."""
        self._before = {} if fresh else _load()
        self._now: dict[str, dict[str, float]] = {}

    def __enter__(self) -> _Kept:
        return self

    def __exit__(self, *_: object) -> None:
        if self._now:
            _save(self._now)

    def rate(self, key: str, measure: Callable[[], float], *, keep: bool = True) -> float:
        """As it was measured before, or is by measure now."""
        found = _valid(self._before.get(key)) if keep else None
        if found is None:
            found = measure()
            if keep and math.isfinite(found):
                self._now[key] = {"per_s": found, "time": time.time()}
        return found

    def all(self, key: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """As rate, of rates that are measured at once; those that are 0 are left out."""
        before = {
            name.removeprefix(f"{key}, "): _valid(entry)
            for name, entry in self._before.items()
            if name.startswith(f"{key}, ")
        }
        found = {name: rate for name, rate in before.items() if rate is not None}
        if not found:
            found = {name: rate for name, rate in measure().items() if 0 < rate < math.inf}
            for name, rate in found.items():
                self._now[f"{key}, {name}"] = {"per_s": rate, "time": time.time()}
        return found


def _machine() -> str:
    """What tells machines apart that share a home: not their names, which change."""
    cpu = os.uname().machine
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), cpu)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{cpu}, {os.cpu_count()} CPUs, {memory >> 30} GB"


def _file_system(path: Path) -> str:
    """Where it is mounted, and its size: numbers of devices change when a machine starts."""
    mount = next(folder for folder in path.parents if folder.is_mount())
    found = os.statvfs(mount)
    return f"{mount}, {found.f_blocks * found.f_frsize} bytes"


def _cache() -> Path:
    return registry.xdg("XDG_CACHE_HOME", ".cache") / "machine.json"


def _load() -> dict[str, Any]:
    try:
        found = json.loads(_cache().read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _valid(entry: Any) -> float | None:
    """The rate of an entry, unless it is too old or is none."""
    try:
        rate, age = float(entry["per_s"]), time.time() - float(entry["time"])
    except (TypeError, KeyError, ValueError, OverflowError):
        return None
    return rate if 0 < rate < math.inf and 0 <= age < _MONTH else None


def _save(measured: dict[str, dict[str, float]]) -> None:
    """Beside what is kept of other machines and file systems, if it can be written."""
    with suppress(OSError):
        path = _cache()
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {key: entry for key, entry in _load().items() if _valid(entry)} | measured
        new = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            new.write_text(json.dumps(kept, indent=1) + "\n")
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
