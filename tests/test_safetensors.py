"""The safetensors reader: exact values, and nothing believed that the file cannot hold."""

from __future__ import annotations

import json
import os
import random
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from checkpoint_tiny import write_raw, write_safetensors

from quant.errors import FormatError, QuantError
from quant.safetensors import SafetensorsFile, Weights

A = np.arange(-12, 12, dtype=np.float32).reshape(4, 6)
B = np.array([1.5, -0.0, 3.0], np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_rows_come_as_the_floats_they_stand_for(path: Path, dtype: str) -> None:
    write_safetensors(path, {"a": A, "b": B, "c": A.reshape(2, 2, 6)}, dtype)
    file = SafetensorsFile(path)
    assert (file.tensors["a"].shape, file.tensors["a"].dtype) == ((4, 6), dtype)
    for name in ("a", "c"):  # more dimensions are rows of the last one
        assert np.array_equal(file.read_rows(name, 0, 4), A)
        assert np.array_equal(file.read_rows(name, 1, 3), A[1:3])
    vector = file.read_rows("b", 0, 1)
    assert vector.dtype == np.float32 and vector.tolist() == [[1.5, 0.0, 3.0]]
    assert np.signbit(vector[0, 1])
    file.close()


def test_bf16_keeps_what_f16_cannot(path: Path) -> None:
    values = np.array([1e30, 1e-30, np.inf, np.nan], np.float32)
    write_safetensors(path, {"a": values}, "BF16")
    read = SafetensorsFile(path).read_rows("a", 0, 1)[0]
    assert np.allclose(read[:2], values[:2], rtol=2**-7)
    assert np.isposinf(read[2]) and np.isnan(read[3])


def entry(
    dtype: object = "F32", shape: object = (2, 3), offsets: object = (0, 24)
) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"a": entry(dtype="F8_E5M2")}, "'a' has dtype F8_E5M2"),
        ({"a": entry(dtype=["F32"])}, "'a' has dtype"),
        ({"a": entry(shape=[2, 4])}, "'a': F32 .2, 4. does not take 24 bytes"),
        ({"a": entry(shape=[-2, -3])}, "'a': its shape"),
        ({"a": entry(shape=[2.0, 3])}, "'a': its shape"),
        ({"a": entry(shape=[True, 6])}, "'a': its shape"),
        ({"a": entry(shape=[1] * 9)}, "'a': its shape"),
        ({"a": entry(shape=None)}, "'a': its shape"),
        ({"a": entry(shape=[2**62, 2**62])}, "does not take 24 bytes"),
        ({"a": entry(offsets=[0, 2**63])}, "'a' ends at byte"),
        ({"a": entry(offsets=[8, 32])}, "'a' ends at byte .* truncated"),
        ({"a": entry(offsets=[24, 0])}, "'a': its data_offsets"),
        ({"a": entry(offsets=[-24, 0])}, "'a': its data_offsets"),
        ({"a": entry(offsets=[24])}, "'a': its data_offsets"),
        ({"a": entry(), "b": entry(shape=[3], offsets=[12, 24])}, "'a' and 'b' overlap"),
        ({"a": 3}, "'a': its header entry is not an object"),
        ([1, 2], "a JSON object was expected"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"a": ' + b"[" * 100_000, "not valid JSON"),
        (b'{"\\ud800": {}}', "not valid JSON"),
        (b'{"a": {}, "a": {}}', "'a' appears twice"),
    ],
)
def test_a_wrong_header_is_named(path: Path, header: object, says: str) -> None:
    write_raw(path, header, bytes(24))
    with pytest.raises(FormatError, match=says) as error:
        SafetensorsFile(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("length", [25, 10**8 + 1, 2**63])
def test_a_header_longer_than_the_file_is_not_allocated(path: Path, length: int) -> None:
    path.write_bytes(struct.pack("<Q", length) + bytes(24))
    tracemalloc.start()
    with pytest.raises(FormatError, match="header"):
        SafetensorsFile(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_truncated_anywhere(path: Path) -> None:
    write_safetensors(path, {"a": A, "b": B})
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError):
            SafetensorsFile(path)


def test_a_file_cut_while_it_is_read_is_an_error(path: Path) -> None:
    write_safetensors(path, {"a": A})
    file = SafetensorsFile(path)
    os.truncate(path, path.stat().st_size - 1)
    assert file.read_rows("a", 0, 3).shape == (3, 6)
    with pytest.raises(FormatError, match="ends inside a"):
        file.read_rows("a", 3, 4)


def test_fuzzed_headers(path: Path) -> None:
    """Random edits: an error of ours, or a file whose every tensor can be read."""
    write_safetensors(path, {"a": A, "b": B, "c.d": A[:, :2].copy()})
    whole = path.read_bytes()
    header = 8 + struct.unpack_from("<Q", whole)[0]
    pieces = [b"-1", b"1e9", b"9" * 30, b"null", b"[", b"]", b"{", b"}", b'"', b"F64", b"\\u0000"]
    rng = random.Random(1)
    accepted = 0
    tracemalloc.start()
    for i in range(3000):
        fuzzed = bytearray(whole)
        for _ in range(rng.choice([1, 1, 1, 2, 8])):
            at = rng.randrange(header)
            edit = rng.randrange(4)
            if edit == 0:
                fuzzed[at] = rng.randrange(256)
            elif edit == 1:
                del fuzzed[at : at + rng.randrange(1, 9)]
            elif edit == 2:
                fuzzed[at:at] = rng.choice(pieces)
            else:
                digits = [at for at in range(8, len(fuzzed)) if chr(fuzzed[at]).isdigit()]
                fuzzed[rng.choice(digits)] = rng.choice(b"0123456789")
        if rng.random() < 0.5:  # keep the announced length right, to reach the JSON
            fuzzed[:8] = struct.pack("<Q", header - 8 + len(fuzzed) - len(whole))
        edited = path.with_name(str(i))  # a new file: overwriting one is slow
        edited.write_bytes(fuzzed)
        try:
            file = SafetensorsFile(edited)
        except QuantError:
            continue
        accepted += 1
        for name, info in file.tensors.items():
            assert file.read_rows(name, 0, info.n_rows).nbytes <= 2 * len(fuzzed)
        file.close()
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    assert 0 < accepted < 1500


class TestShards:
    FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        write_safetensors(tmp_path / self.FIRST, {"a": A})
        write_safetensors(tmp_path / self.SECOND, {"b": B})
        self.index(tmp_path, {"a": self.FIRST, "b": self.SECOND})
        return tmp_path

    def index(self, directory: Path, weight_map: object) -> None:
        text = json.dumps({"weight_map": weight_map})
        (directory / "model.safetensors.index.json").write_text(text)

    def test_tensors_of_all_shards(self, directory: Path) -> None:
        with Weights(directory) as weights:
            assert weights.names == {"a", "b"}
            assert np.array_equal(weights.read_rows("a", 2, 4), A[2:])
            assert np.array_equal(weights.read_rows("b", 0, 1)[0], B)

    def test_a_missing_shard(self, directory: Path) -> None:
        (directory / self.SECOND).unlink()
        with pytest.raises(FormatError, match=f"{self.SECOND}: the shard of 'b' is missing"):
            Weights(directory)

    def test_a_tensor_absent_from_its_shard(self, directory: Path) -> None:
        self.index(directory, {"a": self.FIRST, "b": self.FIRST})
        with pytest.raises(FormatError, match=f"{self.FIRST}: lacks 'b'"):
            Weights(directory)

    @pytest.mark.parametrize(
        "name", ["../x.safetensors", "/etc/passwd", "..", "", "a\\b", "a\0", 7]
    )
    def test_a_shard_lies_beside_its_index(self, directory: Path, name: object) -> None:
        self.index(directory, {"a": name})
        with pytest.raises(FormatError, match="is not the name of a file"):
            Weights(directory)

    def test_an_index_without_its_map(self, directory: Path) -> None:
        self.index(directory, ["a"])
        with pytest.raises(FormatError, match="weight_map is missing"):
            Weights(directory)

    def test_no_weights_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(FormatError, match="only safetensors"):
            Weights(tmp_path)
