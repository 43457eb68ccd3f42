"""Writing a large file so that nobody ever sees half of it."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import QuantError, UsageError


@contextmanager
def replacing(path: Path, elsewhere: str = "-o") -> Iterator[Path]:
    """Gives a temporary name beside path. What the block writes there is synced and
    renamed to path when the block ends well, and removed when it does not; what is
    left there by a killed process is overwritten by the next. An OSError of the
    block becomes a QuantError that names path, and elsewhere, which chooses another."""
    _refuse_others(path, elsewhere)
    part = path.with_name(f".{path.name}.part")
    try:
        lock = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise _refusal(path, error, elsewhere) from None
    try:
        _lock(lock, path)
        try:
            yield part
            os.fsync(lock)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)
    except OSError as error:
        raise _refusal(path, error, elsewhere) from error
    finally:
        os.close(lock)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise QuantError(f"{path}: another process is writing this file; wait for it") from None


def _refuse_others(path: Path, elsewhere: str) -> None:
    """Replaces GGUF files only: a slip of the pen must not cost a checkpoint."""
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


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _refusal(path: Path, error: OSError, elsewhere: str) -> QuantError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        advice = f"free some space or choose another disk with {elsewhere}"
    elif error.errno == errno.ENOENT:
        return QuantError(f"{path}: there is no directory {path.parent}; create it first")
    else:
        advice = f"choose another place with {elsewhere}"
    return QuantError(f"{path}: cannot be written: {error.strerror}; {advice}")
