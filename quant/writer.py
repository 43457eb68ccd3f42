"""A GGUF file, or its shards, from tensors that come one after the other.

Every header tells where all tensors of its file lie, so their sizes are known before
the first byte of data. Files appear under their names when all of them are whole.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
import qwen3_native
from numpy.typing import NDArray

from .errors import QuantError, UsageError
from .layout import Tensor
from .output import replacing_all
from .shards import MAX_SHARDS
from .shards import shards as shards_of

_ALIGNMENT = 32
_SPLIT = gguf.Keys.Split


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the header lists it."""

    name: str
    shape: tuple[int, ...]  # fastest dimension last
    type: str  # as GGML names it: Q4_K
    n_bytes: int

    @classmethod
    def of(cls, tensor: Tensor, kind: str) -> TensorInfo:
        """A tensor of a model, in this type."""
        row_bytes = qwen3_native.type_bytes(kind, tensor.row_length)
        return cls(tensor.name, tensor.shape, kind, tensor.n_rows * row_bytes)


class Output:
    """Takes the data of all tensors, in the order of their infos."""

    def __init__(
        self,
        paths: list[Path],
        parts: list[Path],
        metadata: gguf.GGUFWriter,
        shards: list[list[TensorInfo]],
    ) -> None:
        self.paths = paths  # what will be there at the end; the first one opens the model
        self.n_bytes = 0  # of the files that are complete
        self._metadata = metadata
        self._parts = parts
        self._shards = shards
        self._coming = deque(enumerate(parts))
        self._missing: deque[int] = deque()  # bytes of each tensor of the file that is open
        self._file: BinaryIO | None = None

    def write(self, data: NDArray[Any]) -> None:
        """The next bytes of a tensor: all of it, or some rows."""
        if self._file is None:
            self._file = self._next_file()
        if data.nbytes > self._missing[0]:
            raise ValueError("more data than the tensor's info has announced")
        self._file.write(data.data)
        self._missing[0] -= data.nbytes
        if self._missing[0] == 0:
            self._missing.popleft()
            _pad(self._file)
        if not self._missing:
            self.n_bytes += self._file.tell()
            self.close()

    def finish(self) -> None:
        if self._missing or self._coming:
            raise ValueError("less data than the tensors' infos have announced")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _next_file(self) -> BinaryIO:
        number, part = self._coming.popleft()
        self._missing.extend(tensor.n_bytes for tensor in self._shards[number])
        return _begin(part, self._metadata, self._shards, number)


@contextmanager
def gguf_output(
    path: Path,
    metadata: gguf.GGUFWriter,
    tensors: Sequence[TensorInfo],
    *,
    split_size: int = 0,
    elsewhere: str = "-o",
) -> Iterator[Output]:
    """Writes path, or with a split_size the shards of at most so many bytes of tensors
    that it is too large for. metadata: a GGUFWriter without a path that holds all keys.
    The files are there when the block ends well; otherwise nothing has changed. Raises
    UsageError and QuantError, whose advice names elsewhere."""
    shards = _plan(tensors, split_size)
    if len(shards) > MAX_SHARDS:
        raise UsageError(f"{path}: {len(shards)} files are more than a model may be split into")
    files = shards_of(path, len(shards)) if len(shards) > 1 else [path]
    with replacing_all(files, path, elsewhere) as parts:
        _check_space(path, sum(tensor.n_bytes for tensor in tensors), elsewhere)
        output = Output(files, parts, metadata, shards)
        try:
            yield output
            output.finish()
        finally:
            output.close()


def file_sizes(
    metadata: gguf.GGUFWriter, tensors: Sequence[TensorInfo], *, split_size: int = 0
) -> list[int]:
    """The bytes of every file that gguf_output would write."""
    shards = _plan(tensors, split_size)
    sizes = []
    with tempfile.TemporaryDirectory() as folder:
        for number, shard in enumerate(shards):
            with _begin(Path(folder) / "header", metadata, shards, number) as file:
                header = file.tell()
            sizes.append(header + sum(map(_padded, shard)))
    return sizes


def _plan(tensors: Sequence[TensorInfo], split_size: int) -> list[list[TensorInfo]]:
    """The tensors of each shard. One that is larger than split_size has a shard for itself."""
    shards: list[list[TensorInfo]] = [[]]
    size = 0
    for tensor in tensors:
        padded = _padded(tensor)
        if split_size and shards[-1] and size + padded > split_size:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += padded
    return shards


def _begin(
    path: Path, metadata: gguf.GGUFWriter, shards: list[list[TensorInfo]], number: int
) -> BinaryIO:
    """Writes the keys of a shard, the first with all the metadata, and its table of tensors.
    What follows is aligned data."""
    writer = gguf.GGUFWriter(path, metadata.arch)
    writer.kv_data = [dict(metadata.kv_data[0]) if number == 0 else {}]
    if len(shards) > 1:
        writer.add_uint16(_SPLIT.LLM_KV_SPLIT_NO, number)
        writer.add_uint16(_SPLIT.LLM_KV_SPLIT_COUNT, len(shards))
        n_tensors = sum(len(tensors) for tensors in shards)
        writer.add_int32(_SPLIT.LLM_KV_SPLIT_TENSORS_COUNT, n_tensors)
    for tensor in shards[number]:
        raw = gguf.GGMLQuantizationType[tensor.type]
        dtype = np.dtype(np.float32)  # what the rows stand for
        writer.add_tensor_info(tensor.name, tensor.shape, dtype, tensor.n_bytes, raw)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    file = path.open("ab")
    _pad(file)
    return file


def _padded(tensor: TensorInfo) -> int:
    return tensor.n_bytes + -tensor.n_bytes % _ALIGNMENT


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % _ALIGNMENT))


def _check_space(out: Path, needed: int, elsewhere: str) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise QuantError(
            f"{out}: needs {_size(needed)}, but its disk has {_size(free)} free; "
            f"free some space or choose another disk with {elsewhere}"
        )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 10**9 else f"{n_bytes / 1e6:.1f} MB"
