"""A file of weights, read with pread: memory stays at what was asked for, and a file
that is cut while it is read is an error instead of a signal."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import FormatError, QuantError


class SourceFile:
    """An open file. Reads may come from many threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDONLY)
            self.size = os.fstat(self._fd).st_size
        except FileNotFoundError:
            raise FormatError(f"{path}: there is no such file; download it again") from None
        except OSError as error:
            self.close()
            raise QuantError(f"{path}: cannot be read: {error.strerror}") from None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, offset: int, count: int, what: str) -> bytes:
        """count bytes at offset; what is named in errors."""
        try:
            raw = os.pread(self._fd, count, offset)
        except OSError as error:
            raise QuantError(f"{self.path}: reading {what} failed: {error.strerror}") from None
        if len(raw) != count:
            raise FormatError(f"{self.path}: ends inside {what}; download it again")
        return raw
