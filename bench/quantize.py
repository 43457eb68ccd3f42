"""How fast checkpoints become Q4_K_M, and blocks of every type, beside llama.cpp.

python bench/quantize.py [--layers 4] [--rounds 3] [--threads 2]

A generated bf16 checkpoint in the shape of 4B goes through `qwen3 quantize --q4`; llama.cpp starts
from the same weights in a BF16 GGUF file. Both take turns, file to file, in the page cache. Types
one by one: values in memory, on one thread, without importances and with them. Rates are bytes of
bf16 input a second. `pip install qwen3[llama]` brings the peer.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import qwen3_native
from numpy.typing import NDArray

from quant.quantize import quantize

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from checkpoint_tiny import DENSE, shapes_of, write_checkpoint, write_hollow  # noqa: E402

SHAPE_4B = {
    "head_dim": 128,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
TYPES = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"]
Floats = NDArray[np.float32]


def gaussian(n: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(n, dtype=np.float32) * np.float32(0.02)


def checkpoint(directory: Path, n_layers: int) -> Path:
    config = DENSE | SHAPE_4B | {"num_hidden_layers": n_layers}
    write_checkpoint(directory, config, {})
    path = directory / "model.safetensors"
    write_hollow(path, shapes_of(config))
    data = np.memmap(path, np.uint16, offset=8 + int.from_bytes(path.read_bytes()[:8], "little"))
    values = (gaussian(1 << 24).view(np.uint32) >> 16).astype(np.uint16)
    for start in range(0, len(data), len(values)):
        data[start : start + len(values)] = values[: len(data) - start]
    data.flush()
    return directory


def llama(source: Path, out: Path, threads: int) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    params.nthread = threads
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(out).encode(), ctypes.byref(params)
    )
    if status != 0:
        raise SystemExit(f"llama_model_quantize: status {status}")


def encoder() -> Callable[[str, Floats, Floats | None], object]:
    library = next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*"))
    chunk = ctypes.CDLL(str(library)).ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t

    def encode(name: str, rows: Floats, weights: Floats | None) -> object:
        out = np.empty((rows.shape[0], qwen3_native.type_bytes(name, rows.shape[1])), np.uint8)
        return chunk(
            ctypes.c_int(gguf.GGMLQuantizationType[name]),
            ctypes.c_void_p(rows.ctypes.data),
            ctypes.c_void_p(out.ctypes.data),
            *(ctypes.c_int64(n) for n in (0, *rows.shape)),
            ctypes.c_void_p(None if weights is None else weights.ctypes.data),
        )

    return encode


def versus(size: int, rounds: int, ours: Callable[[], object], theirs: Callable[[], object]) -> str:
    """Median rates of taking turns, and the median of the rounds' ratios."""
    seconds: list[tuple[float, float]] = []
    for _ in range(rounds):
        marks = [time.perf_counter()]
        for run in (ours, theirs):
            run()
            marks.append(time.perf_counter())
        seconds.append((marks[1] - marks[0], marks[2] - marks[1]))
    mine, other = (size / statistics.median(column) / 1e6 for column in zip(*seconds, strict=True))
    ratio = statistics.median(b / a for a, b in seconds)
    return f"{mine:6.0f} | {other:6.0f} | {ratio:5.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    llama_cpp.llama_log_set(_quiet, ctypes.c_void_p())
    print("| MB/s of bf16 | ours | llama.cpp | ratio |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        source, plain = checkpoint(directory / "model", args.layers), directory / "bf16.gguf"
        quantize(source, plain, "BF16")
        rates = versus(
            (source / "model.safetensors").stat().st_size,
            args.rounds,
            lambda: quantize(source, directory / "ours.gguf", "Q4_K_M", threads=args.threads),
            lambda: llama(plain, directory / "theirs.gguf", args.threads),
        )
        print(f"| a checkpoint to Q4_K_M, {args.threads} threads | {rates} |", flush=True)
    rows, weights, chunk = gaussian(1 << 18).reshape(-1, 1024), np.abs(gaussian(1024, 1)), encoder()
    for kind in TYPES:
        for label, importance in ((kind, None), (f"{kind}, importances", weights)):
            rates = versus(
                2 * rows.size,
                args.rounds,
                lambda k=kind, w=importance: qwen3_native.quantize(k, rows, w),  # type: ignore[misc]
                lambda k=kind, w=importance: chunk(k, rows, w),  # type: ignore[misc]
            )
            print(f"| {label} | {rates} |", flush=True)


@llama_cpp.llama_log_callback
def _quiet(_level: int, _text: bytes, _data: object) -> None:
    pass


if __name__ == "__main__":
    main()
