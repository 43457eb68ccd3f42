"""Importance matrices: GGUF files as llama.cpp writes and reads them since mid 2025.

For every weight tensor NAME there are NAME.in_sum2, the sums of the squares of what entered
each column, and NAME.counts, how many tokens that were: a row for each expert of a MoE
tensor, one row for any other. What a column is worth is its mean square.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gguf
import numpy as np
import qwen3_native
from numpy.typing import NDArray

from .errors import FormatError, QuantError, SourceNotFound
from .layout import Tensor

_SUMS, _COUNTS = ".in_sum2", ".counts"
_TYPE = "imatrix"
_KEYS = gguf.Keys.IMatrix
_PLAIN = ("F32", "F16", "BF16", "Q8_0")  # rounded, with nothing to weigh


class Inputs(Protocol):
    """What entered a weight tensor."""

    @property
    def tensor(self) -> str: ...
    @property
    def sums(self) -> NDArray[np.float64]:
        """[n_experts, n_in]"""

    @property
    def counts(self) -> NDArray[np.int64]:
        """[n_experts]"""


@dataclass(frozen=True)
class Corpus:
    """What was computed: texts by name, and in how many chunks of at most how many tokens."""

    texts: Sequence[str]
    n_chunks: int
    chunk_size: int


# ---- writing ---------------------------------------------------------------


def write_imatrix(path: Path, inputs: Iterable[Inputs], corpus: Corpus) -> None:
    """Writes the file; output.replacing lets it appear whole or not at all. inputs are gone
    through twice: first for the table of tensors. Raises QuantError."""
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()  # there is no architecture
    writer.add_type(_TYPE)
    writer.add_array(_KEYS.DATASETS, list(corpus.texts))
    writer.add_uint32(_KEYS.CHUNK_COUNT, corpus.n_chunks)
    writer.add_uint32(_KEYS.CHUNK_SIZE, corpus.chunk_size)
    try:
        for each in inputs:
            for name, data in _tensors(each):
                writer.add_tensor_info(name, data.shape, data.dtype, data.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for each in inputs:
            for _, data in _tensors(each):
                writer.write_tensor_data(data)
    finally:
        writer.close()


def _tensors(inputs: Inputs) -> list[tuple[str, NDArray[np.float32]]]:
    """A dense matrix has vectors, as GGML drops dimensions of 1."""
    with np.errstate(over="ignore"):
        sums, counts = inputs.sums.astype(np.float32), inputs.counts.astype(np.float32)
    if not np.isfinite(sums).all():
        raise QuantError(f"what entered {inputs.tensor} is not finite: the model is damaged")
    dense = len(counts) == 1
    return [
        (inputs.tensor + _SUMS, sums[0] if dense else sums),
        (inputs.tensor + _COUNTS, counts if dense else counts[:, None]),
    ]


# ---- reading ---------------------------------------------------------------


class Imatrix:
    """An opened file, its values checked; what a tensor needs is read when it is asked for.
    Any thread may ask."""

    def __init__(self, path: Path) -> None:
        """Raises SourceNotFound and FormatError."""
        self.path = path
        _refuse_others(path)
        try:
            self._file = qwen3_native.File(os.fsencode(path))
        except qwen3_native.NativeError as error:
            raise FormatError(f"{path}: {error.args[1]}") from None
        self.corpus = _corpus(path, self._file.metadata())
        self._lengths: dict[str, int] = {}
        self._counts: dict[str, NDArray[np.float32]] = {}
        self._read_table()

    @property
    def n_entries(self) -> int:
        return len(self._counts)

    def check(self, tensors: Iterable[Tensor]) -> None:
        """Raises FormatError when the file was made for another model than these tensors'."""
        known = {tensor.name: tensor for tensor in tensors}
        for name, counts in self._counts.items():
            if name not in known:
                raise self._error(
                    f"holds {name[:200]!r}, which the model lacks: it was made for another"
                )
            theirs = known[name].n_experts, known[name].row_length
            ours = len(counts), self._lengths[name]
            if ours != theirs:
                raise self._error(
                    f"{name} has {ours[0]} x {ours[1]} sums, but the model's has "
                    f"{theirs[0]} x {theirs[1]} columns: it was made for another"
                )

    def unknown(self, tensors: Iterable[tuple[Tensor, str]]) -> list[str]:
        """The layers' tensors that could make use of an importance and have none here."""
        return [
            tensor.name
            for tensor, kind in tensors
            if kind not in _PLAIN and tensor.layer is not None and tensor.name not in self._counts
        ]

    def weights(self, name: str, expert: int) -> NDArray[np.float32] | None:
        """What each column of an expert's matrix (0: of a dense one) is worth; None when the
        file does not know the tensor. Ones for an expert that no token reached, as in
        llama.cpp."""
        if name not in self._counts:
            return None
        count = self._counts[name][expert]
        if count == 0:
            return np.ones(self._lengths[name], np.float32)
        row = self._rows(name + _SUMS, expert, expert + 1)[0]
        return np.asarray(row / count, np.float32)

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        """Tells the readers of a quantized file which importance it was made with."""
        writer.add_string("quantize.imatrix.file", str(self.path))
        writer.add_string("quantize.imatrix.dataset", ", ".join(self.corpus.texts))
        writer.add_uint32("quantize.imatrix.entries_count", self.n_entries)
        writer.add_uint32("quantize.imatrix.chunks_count", self.corpus.n_chunks)

    def _read_table(self) -> None:
        shapes = {}
        for name, shape, kind, _ in self._file.tensors():
            if name.endswith((_SUMS, _COUNTS)):
                if kind != "F32":
                    raise self._error(f"{name} has the type {kind}, not F32")
                shapes[name] = shape
        for name in shapes:
            base, other = _other(name)
            if other not in shapes:
                raise self._error(f"the tensor {other} is missing")
            if name.endswith(_SUMS):
                self._read_tensor(base, shapes)
        if not self._counts:
            raise self._error("holds no importances")

    def _read_tensor(self, name: str, shapes: dict[str, tuple[int, ...]]) -> None:
        n = _size(shapes[name + _COUNTS])
        size = _size(shapes[name + _SUMS])
        if n == 0 or size % n or shapes[name + _SUMS][-1] != size // n:
            raise self._error(f"{name} has {n} counts for {size} sums")
        counts = self._rows(name + _COUNTS, 0, _size(shapes[name + _COUNTS][:-1])).reshape(-1)
        sums = self._rows(name + _SUMS, 0, n)
        for values in (sums, counts):
            if not (np.isfinite(values).all() and values.min() >= 0):
                raise self._error(f"{name} has values that are no sums of squares or no counts")
        self._lengths[name] = size // n
        self._counts[name] = counts

    def _rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        return self._file.read_rows(name, start, stop)

    def _error(self, text: str) -> FormatError:
        return FormatError(f"{self.path}: {text[:300]}")


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _other(name: str) -> tuple[str, str]:
    """The weight tensor that a name belongs to, and the name that must be there beside it."""
    if name.endswith(_SUMS):
        base = name.removesuffix(_SUMS)
        return base, base + _COUNTS
    base = name.removesuffix(_COUNTS)
    return base, base + _SUMS


def _refuse_others(path: Path) -> None:
    """Tells what to do with a file of the format from before GGUF."""
    try:
        with path.open("rb") as file:
            head = file.read(264)
    except FileNotFoundError:
        raise SourceNotFound(f"{path}: there is no such importance matrix") from None
    except OSError as error:
        raise QuantError(f"{path}: cannot be read: {error.strerror}") from None
    if head[:4] == b"GGUF":
        return
    length = int.from_bytes(head[4:8], "little")  # behind the count of entries: a name
    if head[8 : 8 + length].endswith(b".weight"):
        raise FormatError(
            f"{path}: is an importance matrix of the old .dat format; convert it with "
            f"llama.cpp: llama-imatrix --in-file {path} -o {path.stem}.gguf"
        )
    raise FormatError(f"{path}: is no GGUF file")


def _corpus(path: Path, metadata: dict[str, Any]) -> Corpus:
    if metadata.get("general.type") != _TYPE:
        raise FormatError(f"{path}: is a GGUF file, but no importance matrix")
    texts, n_chunks, size = map(metadata.get, (_KEYS.DATASETS, _KEYS.CHUNK_COUNT, _KEYS.CHUNK_SIZE))
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise FormatError(f"{path}: {_KEYS.DATASETS} is missing or no list of names")
    if type(n_chunks) is not int or type(size) is not int:
        raise FormatError(f"{path}: {_KEYS.CHUNK_COUNT} or {_KEYS.CHUNK_SIZE} is no number")
    return Corpus(texts, n_chunks, size)
