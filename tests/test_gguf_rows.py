"""Rows of a GGUF tensor as floats, as the quantizer and `verify` read them."""

from __future__ import annotations

from pathlib import Path

import gguf
import gguf_files
import numpy as np
import pytest
import qwen3_native

NANO = Path("qwen3cli/models/nano-dense-q8_0.gguf")


def test_rows_are_those_the_reference_reads() -> None:
    file = qwen3_native.File(bytes(NANO))
    reference = {tensor.name: tensor for tensor in gguf_files.read(NANO).tensors}
    for name, shape, kind, _ in file.tensors():
        raw = reference[name]
        want = gguf.quants.dequantize(raw.data, raw.tensor_type).reshape(-1, shape[-1])
        n = want.shape[0]
        assert np.array_equal(file.read_rows(name, 0, n), want), (name, kind)
        assert np.array_equal(file.read_rows(name, n // 2, n), want[n // 2 :])


def test_what_is_not_there_is_an_error() -> None:
    file = qwen3_native.File(bytes(NANO))
    with pytest.raises(KeyError):
        file.read_rows("no_such.weight", 0, 1)
    with pytest.raises(IndexError):
        file.read_rows("token_embd.weight", 0, 1 << 40)
    assert file.read_rows("token_embd.weight", 5, 5).shape == (0, 256)
