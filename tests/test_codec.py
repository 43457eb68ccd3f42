"""The block codecs against the gguf package, and the promises the quantizer relies on."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import qwen3_native
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as gguf_dequantize
from gguf.quants import quantize as gguf_quantize
from numpy.typing import NDArray

NANO = Path(__file__).parent / "data" / "nano-dense" / "model.safetensors"

# Weights in a block, its bytes, and where its f16 scales lie.
BLOCKS = {
    "Q8_0": (32, 34, [0]),
    "Q4_0": (32, 18, [0]),
    "Q4_1": (32, 20, [0, 2]),
    "Q5_0": (32, 22, [0]),
    "Q5_1": (32, 24, [0, 2]),
    "IQ4_NL": (32, 18, [0]),
    "Q2_K": (256, 84, [80, 82]),
    "Q3_K": (256, 110, [108]),
    "Q4_K": (256, 144, [0, 2]),
    "Q5_K": (256, 176, [0, 2]),
    "Q6_K": (256, 210, [208]),
    "IQ4_XS": (256, 136, [0]),
}
READ_ONLY = {"Q2_K", "Q3_K"}
WRITTEN = [t for t in BLOCKS if t not in READ_ONLY]
PLAIN = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]  # no search: the same bits as other writers
SEARCHED = [t for t in WRITTEN if t not in PLAIN]

# Relative RMSE on gaussian(). ggml 0.25 has 0.0718, 0.0362, 0.0179, 0.0762 and 0.0768 for the
# searched types, from Q4_K to IQ4_XS below, and the same as ours for the plain ones.
RMSE = {
    "Q8_0": 0.0054,
    "Q4_0": 0.0862,
    "Q4_1": 0.0784,
    "Q5_0": 0.0429,
    "Q5_1": 0.0380,
    "Q4_K": 0.0705,
    "Q5_K": 0.0347,
    "Q6_K": 0.0168,
    "IQ4_NL": 0.0740,
    "IQ4_XS": 0.0746,
}

Floats = NDArray[np.float32]
Values = Callable[[], Floats]


def gguf_type(name: str) -> GGMLQuantizationType:
    return GGMLQuantizationType[name]


def blocks_with_scales(name: str, scales: Floats) -> NDArray[np.uint8]:
    """One block of random bits for each scale, the second scale a shuffle of the first."""
    rng = np.random.default_rng(7)
    _, size, offsets = BLOCKS[name]
    blocks = rng.integers(0, 256, (len(scales), size), dtype=np.uint8)
    for offset in offsets:
        blocks[:, offset : offset + 2] = scales.astype("<f2").view(np.uint8).reshape(-1, 2)
        scales = rng.permutation(scales)
    return blocks


def decoded(name: str, blocks: NDArray[np.uint8]) -> Floats:
    n = blocks.shape[0] * BLOCKS[name][0]
    return qwen3_native.dequantize(name, blocks.reshape(-1), n)


def round_trip(name: str, x: Floats, weights: Floats | None = None) -> Floats:
    data = qwen3_native.quantize(name, x, weights)
    assert data.shape == (x.shape[0], qwen3_native.type_bytes(name, x.shape[1]))
    return qwen3_native.dequantize(name, data.reshape(-1), x.size).reshape(x.shape)


def relative_rmse(x: Floats, y: Floats, weights: Floats | float = 1.0) -> float:
    error = (x.astype(np.float64) - y) ** 2 * weights
    return float(np.sqrt(error.sum() / (x.astype(np.float64) ** 2 * weights).sum()))


def gaussian(rows: int = 96, columns: int = 1024) -> Floats:
    return np.asarray(np.random.default_rng(1).normal(0, 0.02, (rows, columns)), np.float32)


def heavy_tailed(rows: int = 96, columns: int = 1024) -> Floats:
    x = np.random.default_rng(2).standard_t(3, (rows, columns)) * 0.02
    return np.asarray(x, np.float32)


def steps() -> Floats:
    """Values between the levels: ties everywhere."""
    return np.asarray(np.random.default_rng(5).integers(-16, 17, (64, 256)) / 8, np.float32)


def half_zeros() -> Floats:
    x = gaussian(64, 256)
    x[::2] = 0
    x[:, ::3] = 0
    return x


def importances(n: int, shape: float = 0.5) -> Floats:
    return np.asarray(np.random.default_rng(6).standard_gamma(shape, n), np.float32)


def nano_weights(rows: int = 96) -> Floats:
    """The first large matrix of the trained checkpoint, as rows of 1024."""
    raw = NANO.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    tensors = json.loads(raw[8:start])
    tensors.pop("__metadata__", None)
    first = min(
        (t["data_offsets"] for t in tensors.values() if np.prod(t["shape"]) >= rows * 1024),
        key=lambda offsets: offsets[0],
    )
    bits = np.frombuffer(raw, "<u2", rows * 1024, start + first[0]).astype(np.uint32) << 16
    return bits.view(np.float32).reshape(rows, 1024)


# ---- decoding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BLOCKS)
def test_decodes_to_the_bits_of_the_gguf_package(name: str) -> None:
    rng = np.random.default_rng(3)
    sizes = np.concatenate(
        [
            rng.normal(0, 0.01, 400),
            rng.normal(0, 1, 100) * 10.0 ** rng.uniform(-8, 4, 100),
            [0.0, -0.0, 2**-24, -(2**-24), 2**-14, 65504, -65504],
        ]
    ).astype(np.float32)
    blocks = blocks_with_scales(name, sizes)
    ours, theirs = decoded(name, blocks), gguf_dequantize(blocks, gguf_type(name)).reshape(-1)
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("name", BLOCKS)
def test_decodes_zero_blocks_and_single_bits(name: str) -> None:
    """Every bit of a block reaches the values it belongs to, and no other."""
    size = BLOCKS[name][1]
    bits = np.unpackbits(np.zeros((1, size), np.uint8), axis=1)
    bits = np.repeat(bits, size * 8 + 1, axis=0)
    bits[np.arange(1, size * 8 + 1), np.arange(size * 8)] = 1
    blocks = np.packbits(bits, axis=1)
    assert not decoded(name, blocks[:1]).any()
    for offset in BLOCKS[name][2]:  # scales of 1, so that the other bits show
        blocks[:, offset : offset + 2] = np.array([1], "<f2").view(np.uint8)
    ours, theirs = decoded(name, blocks), gguf_dequantize(blocks, gguf_type(name)).reshape(-1)
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_decodes_every_half(name: str) -> None:
    halves = np.arange(0x10000, dtype="<u2").view(np.uint8)
    ours = qwen3_native.dequantize(name, halves, 0x10000)
    theirs = gguf_dequantize(halves.reshape(1, -1), gguf_type(name)).reshape(-1)
    numbers = ~np.isnan(theirs)
    np.testing.assert_array_equal(ours.view(np.uint32)[numbers], theirs.view(np.uint32)[numbers])
    assert np.isnan(ours[~numbers]).all()


# ---- encoding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_floats_round_to_the_nearest(name: str) -> None:
    rng = np.random.default_rng(4)
    x = np.concatenate(
        [
            rng.normal(0, 1, 20_000) * 10.0 ** rng.uniform(-12, 4, 20_000),
            np.arange(0, 0x7C00, 7, dtype=np.uint16).view(np.float16),
            np.arange(1, 2048) * 2.0**-25,  # ties of the smallest halves
            2048 + np.arange(2048) / 2,  # ties of larger ones
            [0.0, -0.0, 65504, -65504, 1e-45],
        ]
    ).astype(np.float32)
    x = x[np.abs(x) <= 65504].reshape(1, -1)
    ours = qwen3_native.quantize(name, x)
    theirs = gguf_quantize(x, gguf_type(name)).view(np.uint8)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("values", [gaussian, heavy_tailed, nano_weights, steps, half_zeros])
def test_plain_types_have_the_bits_of_the_gguf_package(name: str, values: Values) -> None:
    x = values()
    np.testing.assert_array_equal(qwen3_native.quantize(name, x), gguf_quantize(x, gguf_type(name)))


@pytest.mark.parametrize("name", WRITTEN)
def test_error_is_no_worse_than_other_writers(name: str) -> None:
    x = gaussian()
    assert relative_rmse(x, round_trip(name, x)) <= RMSE[name]


@pytest.mark.parametrize("name", WRITTEN)
def test_importances_lower_the_error_where_they_say(name: str) -> None:
    x = nano_weights(64)
    weights = importances(x.shape[1], 0.3)
    without = relative_rmse(x, round_trip(name, x), weights)
    with_them = relative_rmse(x, round_trip(name, x, weights), weights)
    if name == "Q8_0":
        assert with_them == without
    else:
        assert with_them < 0.95 * without


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("size", [0, 1e-40, 1e30])
def test_importances_of_any_size(name: str, size: float) -> None:
    x = gaussian(4, 256)
    weights = np.full(256, size, np.float32)
    assert relative_rmse(x, round_trip(name, x, weights)) <= 1.05 * RMSE[name]


@pytest.mark.parametrize("name", SEARCHED)
def test_finds_values_that_a_block_can_hold(name: str) -> None:
    blocks = blocks_with_scales(name, np.full(64, 0.01, np.float32))
    x = decoded(name, blocks).reshape(64, -1)
    assert relative_rmse(x, round_trip(name, x)) < 0.3 * RMSE[name]


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("weighted", [False, True])
def test_special_values(name: str, weighted: bool) -> None:
    weights = importances(256) if weighted else None
    sign = np.where(np.arange(256) % 2, 1, -1)
    spike = np.zeros(256)
    spike[77] = -3
    rows = [
        np.zeros(256),
        np.full(256, 0.7),
        np.full(256, -0.7),
        np.full(256, 1e-42),
        sign * 1e-5,
        sign * 65504.0,
        np.full(256, 65504.0),
        spike,
        spike + 1e-4,
        np.where(np.arange(256) < 32, 100, 0.01),
    ]
    x = np.array(rows, np.float32)
    y = round_trip(name, x, weights)
    assert np.isfinite(y).all()
    assert not y[0].any()
    largest = np.abs(x).max(axis=1)
    smallest_scale = 127 * 2**-25  # what rounding a tiny f16 scale costs Q8_0
    assert (np.abs(x - y).max(axis=1) <= 0.13 * largest + smallest_scale).all()


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "Q6_K", "IQ4_XS"])
def test_rows_are_independent(name: str) -> None:
    x, weights = gaussian(5, 1536), np.linspace(0, 2, 1536, dtype=np.float32)
    together = qwen3_native.quantize(name, x, weights)
    alone = np.concatenate([qwen3_native.quantize(name, x[i : i + 1], weights) for i in range(5)])
    np.testing.assert_array_equal(together, alone)


# ---- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", *WRITTEN])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_a_number_is_refused_with_its_place(name: str, bad: float) -> None:
    x = gaussian(4, 256)
    x[2, 9] = bad
    with pytest.raises(qwen3_native.NativeError, match="index 521") as caught:
        qwen3_native.quantize(name, x)
    assert caught.value.args[0] == "format"


@pytest.mark.parametrize("name", ["F16", *WRITTEN])
def test_values_beyond_the_scales_are_refused(name: str) -> None:
    x = np.full((1, 256), 70000, np.float32)
    with pytest.raises(qwen3_native.NativeError, match=f"70000 at index 0 .*{name}"):
        qwen3_native.quantize(name, x)


def test_wide_types_take_what_they_hold() -> None:
    largest = float(np.finfo(np.float32).max)
    x = np.full((1, 2), largest, np.float32)
    assert round_trip("F32", x).tolist() == x.tolist()
    with pytest.raises(qwen3_native.NativeError, match="BF16"):  # would round to infinity
        qwen3_native.quantize("BF16", x)
    x = np.full((1, 2), 2.0**127 * (2 - 2**-7), np.float32)
    assert round_trip("BF16", x).tolist() == x.tolist()


@pytest.mark.parametrize("bad", [-1, np.nan, np.inf])
def test_importances_must_be_numbers(bad: float) -> None:
    weights = np.ones(256, np.float32)
    weights[3] = bad
    with pytest.raises(qwen3_native.NativeError, match=r"importance .* index 3") as caught:
        qwen3_native.quantize("Q4_K", gaussian(1, 256), weights)
    assert caught.value.args[0] == "arg"


@pytest.mark.parametrize("name", sorted(READ_ONLY))
def test_read_only_types_say_so(name: str) -> None:
    with pytest.raises(qwen3_native.NativeError, match=f"{name} can be read") as caught:
        qwen3_native.quantize(name, gaussian(1, 256))
    assert caught.value.args[0] == "unsupported"


@pytest.mark.parametrize("name", BLOCKS)
def test_sizes(name: str) -> None:
    block, size, _ = BLOCKS[name]
    assert qwen3_native.type_bytes(name, 3 * block) == 3 * size
    assert qwen3_native.type_bytes(name, 3 * block - 1) == 0
    with pytest.raises(ValueError):
        qwen3_native.quantize(name, np.zeros((2, block + 16), np.float32))
    with pytest.raises(ValueError):
        qwen3_native.dequantize(name, np.zeros(size, np.uint8), block - 1)
    with pytest.raises(ValueError):
        qwen3_native.dequantize(name, np.zeros(2 * size - 1, np.uint8), 2 * block)


def test_unknown_type() -> None:
    with pytest.raises(ValueError):
        qwen3_native.type_bytes("Q9_X", 32)


# ---- against ggml itself ----------------------------------------------------------------------


@pytest.mark.llama
@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("values", [gaussian, heavy_tailed, nano_weights])
@pytest.mark.parametrize("weighted", [False, True])
def test_error_against_ggml(name: str, values: Values, weighted: bool) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    library = next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*"))
    chunk = ctypes.CDLL(str(library)).ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    x = values()
    weights = importances(x.shape[1])
    theirs = np.zeros((x.shape[0], qwen3_native.type_bytes(name, x.shape[1])), np.uint8)
    chunk(
        ctypes.c_int(gguf_type(name).value),
        ctypes.c_void_p(x.ctypes.data),
        ctypes.c_void_p(theirs.ctypes.data),
        *(ctypes.c_int64(n) for n in (0, *x.shape)),
        ctypes.c_void_p(weights.ctypes.data if weighted else None),
    )
    y = round_trip(name, x, weights if weighted else None)
    metric = weights if weighted else 1.0
    their_y = qwen3_native.dequantize(name, theirs.reshape(-1), x.size).reshape(x.shape)
    assert relative_rmse(x, y, metric) <= relative_rmse(x, their_y, metric)
