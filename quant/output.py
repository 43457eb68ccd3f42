"""Writing large files so that nobody ever sees half of them."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import QuantError, UsageError
from .shards import forms, numbers


def destination(out: str, name: Path | str) -> Path:
    """The file that out means: itself, or in the folder out the one of this name. Raises
    UsageError for an empty out, and for a folder/ that is not there."""
    if not out:
        raise UsageError("-o takes the name of a file or of a folder")
    path = Path(out)
    if path.is_dir():
        return path / name
    if out.endswith("/"):
        raise UsageError(f"{out}: there is no such folder; create it first")
    return path


@contextmanager
def replacing(path: Path, elsewhere: str = "-o") -> Iterator[Path]:
    """replacing_all for one file that is no model: nothing else of its name leaves."""
    with replacing_all([path], path, elsewhere, sweep=False) as (part,):
        yield part


@contextmanager
def replacing_all(
    files: list[Path], path: Path, elsewhere: str = "-o", *, sweep: bool = True
) -> Iterator[list[Path]]:
    """Gives a temporary name for each of the files that the model path becomes: path
    itself, or its shards. What the block writes there is synced and renamed when the
    block ends well, and then (sweep) older files of the same model are removed; when it
    does not, nothing has changed. What is left by a killed process is overwritten or removed
    by the next. An OSError of the block becomes a QuantError that names path, and
    elsewhere, which chooses another."""
    parts = [path.with_name(f".{path.name}.part{i or ''}") for i in range(len(files))]
    if numbers(path):
        raise UsageError(f"{path}: the name of one part of a split model; leave the numbers out")
    for file in [path, *files]:
        refuse_others(file, elsewhere)
    try:
        lock = _locked(parts[0], path)
    except OSError as error:
        raise _refusal(path, error, elsewhere) from None
    try:
        try:
            _remove_leftovers(path)
            yield parts
            for part in parts:
                sync(part)
            with _undisturbed():
                _publish(parts, files)
                for old in forms(path) if sweep else ():
                    if old not in files:
                        old.unlink(missing_ok=True)
                sync(path.parent)
        except BaseException:
            for part in parts:
                part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _refusal(path, error, elsewhere) from error
    finally:
        os.close(lock)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits until the block has ended: between two names of a set it would cost both the
    old and the new one."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield  # nobody is interrupted here
        return
    came = False

    def remember(*_: object) -> None:
        nonlocal came
        came = True

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


def _publish(parts: list[Path], files: list[Path]) -> None:
    """The first file, by which a set is opened, leaves before the others come and comes
    after them: no set is ever half old and half new."""
    directory = files[0].parent
    if len(files) > 1:
        files[0].unlink(missing_ok=True)
        try:
            sync(directory)
            for part, file in zip(parts[1:], files[1:], strict=True):
                part.replace(file)
            sync(directory)
            parts[0].replace(files[0])
        except BaseException:
            for file in files:
                file.unlink(missing_ok=True)
            raise
    else:
        parts[0].replace(files[0])
    sync(directory)


def _locked(part: Path, path: Path) -> int:
    """The opened first temporary file, which nobody else may write to until it is closed."""
    while True:
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), part.lstat()):  # not renamed or removed meanwhile
                return fd
        except BlockingIOError:
            os.close(fd)
            raise QuantError(f"{path}: another process is writing this file; wait for it") from None
        except FileNotFoundError:
            pass
        os.close(fd)


def _remove_leftovers(path: Path) -> None:
    """Empties the first temporary file, which is the lock, and removes the others."""
    first = f".{path.name}.part"
    for file in list(path.parent.iterdir()):
        if file.name.startswith(first) and file.name[len(first) :].isdigit():
            file.unlink(missing_ok=True)
    os.truncate(path.with_name(first), 0)


def refuse_others(path: Path, elsewhere: str = "-o") -> None:
    """Raises UsageError for what is there and no GGUF file, and so is never replaced: a slip of
    the pen must not cost a checkpoint."""
    try:
        if not path.exists():
            return
        if path.is_file():
            with path.open("rb") as file:
                if file.read(4) in (b"GGUF", b""):
                    return
    except OSError as error:
        raise _refusal(path, error, elsewhere) from None
    raise UsageError(f"{path}: exists and is no GGUF file; choose another name with {elsewhere}")


def sync(path: Path) -> None:
    """Waits until the disk has what was written; of a directory: its names."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _refusal(path: Path, error: OSError, elsewhere: str) -> QuantError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        advice = f"free some space or choose another disk with {elsewhere}"
    elif error.errno == errno.ENOENT and not path.parent.is_dir():
        return QuantError(f"{path}: there is no directory {path.parent}; create it first")
    else:
        advice = f"choose another place with {elsewhere}"
    return QuantError(f"{path}: cannot be written: {error.strerror}; {advice}")
