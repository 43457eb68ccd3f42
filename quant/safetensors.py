"""Safetensors files, read a few rows at a time as float32.

A file is: u64 header length, a JSON header {name: {dtype, shape, data_offsets}},
the data. Everything the header claims is checked against the file's size before
it is used.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import qwen3_native
from numpy.typing import NDArray

from .errors import FormatError
from .jsonfile import MAX_BYTES, parse_json, read_json
from .source_file import SourceFile

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file; offset and end are absolute."""

    name: str
    dtype: str  # F32, F16, BF16 or F8_E4M3
    shape: tuple[int, ...]
    offset: int
    end: int

    @property
    def row_length(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def item_bytes(self) -> int:
        return _ITEM_BYTES[self.dtype]


class SafetensorsFile:
    """One safetensors file, validated when opened. Reads may come from many threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = SourceFile(path)
        self.size = self._file.size
        try:
            self.tensors = self._read_header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._file.close()

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows start..stop of a tensor, seen as a matrix of its last dimension, as
        float32 [stop - start, row_length]."""
        info = self.tensors[name]
        row_bytes = info.row_length * info.item_bytes
        raw = self._file.read(info.offset + start * row_bytes, (stop - start) * row_bytes, name)
        return floats(raw, info.dtype).reshape(stop - start, info.row_length)

    def _read_header(self) -> dict[str, TensorInfo]:
        if self.size < 8:
            raise FormatError(f"{self.path}: {self.size} bytes are no safetensors file")
        (length,) = struct.unpack("<Q", self._file.read(0, 8, "the header length"))
        if length > MAX_BYTES:
            raise FormatError(f"{self.path}: a header of {length:,} bytes; is it safetensors?")
        if length > self.size - 8:
            raise FormatError(
                f"{self.path}: truncated: the header takes {length:,} bytes, "
                f"the file has {self.size:,}; download it again"
            )
        header = parse_json(self._file.read(8, length, "the header"), self.path)
        header.pop("__metadata__", None)
        tensors = {name: self._tensor(name, entry, 8 + length) for name, entry in header.items()}
        self._check_overlap(tensors)
        return tensors

    def _tensor(self, name: str, entry: Any, data: int) -> TensorInfo:
        where = f"{self.path}: tensor {name[:200]!r}"
        if not isinstance(entry, dict):
            raise FormatError(f"{where}: its header entry is not an object")
        dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
            raise FormatError(
                f"{where} has dtype {str(dtype)[:40]}; only {', '.join(_ITEM_BYTES)} can be read"
            )
        if not _counts(shape) or len(shape) > 8:
            raise FormatError(f"{where}: its shape is {str(shape)[:200]}")
        if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise FormatError(f"{where}: its data_offsets are {str(offsets)[:200]}")
        begin, end = offsets
        if end > self.size - data:
            raise FormatError(
                f"{where} ends at byte {data + end:,}, the file has {self.size:,}: "
                "it is truncated; download it again"
            )
        if math.prod(shape) * _ITEM_BYTES[dtype] != end - begin:
            raise FormatError(f"{where}: {dtype} {shape} does not take {end - begin:,} bytes")
        return TensorInfo(name, dtype, tuple(shape), data + begin, data + end)

    def _check_overlap(self, tensors: dict[str, TensorInfo]) -> None:
        end, last = 0, ""
        for info in sorted(tensors.values(), key=lambda info: (info.offset, info.end)):
            if info.offset < end:
                raise FormatError(f"{self.path}: tensors {last!r} and {info.name!r} overlap")
            end, last = info.end, info.name


class Weights:
    """Every tensor of a checkpoint directory: one file, or shards with an index."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[str, SafetensorsFile] = {}
        self._file_of: dict[str, SafetensorsFile] = {}
        try:
            if (directory / SINGLE).is_file():
                file = self._open(directory, SINGLE)
                self._file_of = dict.fromkeys(file.tensors, file)
            elif (directory / INDEX).is_file():
                self._open_shards(directory)
            else:
                raise FormatError(
                    f"{directory}: there is neither {SINGLE} nor {INDEX}; "
                    "only safetensors checkpoints can be read"
                )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    @property
    def names(self) -> set[str]:
        return set(self._file_of)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def info(self, name: str) -> TensorInfo:
        return self._file_of[name].tensors[name]

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """As SafetensorsFile.read_rows."""
        return self._file_of[name].read_rows(name, start, stop)

    def _open(self, directory: Path, name: str) -> SafetensorsFile:
        if name not in self._files:
            self._files[name] = SafetensorsFile(directory / name)
        return self._files[name]

    def _open_shards(self, directory: Path) -> None:
        index = directory / INDEX
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise FormatError(f"{index}: weight_map is missing")
        for name, shard in weight_map.items():
            if not isinstance(shard, str) or not _plain(shard):
                raise FormatError(f"{index}: {str(shard)[:200]!r} is not the name of a file")
            if not (directory / shard).is_file():
                raise FormatError(
                    f"{directory / shard}: the shard of {name!r} is missing; download it"
                )
            file = self._open(directory, shard)
            if name not in file.tensors:
                raise FormatError(f"{file.path}: lacks {name!r}, which the index places there")
            self._file_of[name] = file


def _counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _plain(name: str) -> bool:
    """A file name without any path; a shard lies beside its index."""
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")


def floats(raw: bytes, dtype: str) -> NDArray[np.float32]:
    """The values of F32, F16, BF16 or F8_E4M3 data."""
    if dtype == "F32":
        return np.frombuffer(raw, "<f4").astype(np.float32, copy=False)
    if dtype == "F8_E4M3":
        return _E4M3[np.frombuffer(raw, np.uint8)]
    return qwen3_native.dequantize(dtype, np.frombuffer(raw, np.uint8), len(raw) // 2)


def _e4m3() -> NDArray[np.float32]:
    """The value of each byte: sign, 4 bits of exponent (bias 7), 3 of mantissa. There is
    no infinity; 0x7f and 0xff are NaN."""
    code = np.arange(128)
    exponent, mantissa = code >> 3, code & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    values = np.where(exponent > 0, normal, np.ldexp(mantissa / 8, -6))
    values[127] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


_E4M3 = _e4m3()
