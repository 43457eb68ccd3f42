"""A Hugging Face checkpoint to one GGUF file, streamed.

The plan of the whole file comes first: every tensor, its type, its place. Then
chunks of rows are read, encoded by a pool of threads and written in order. Memory
holds a few chunks whatever the model, and the bytes do not depend on the threads.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
import qwen3_native
from numpy.typing import NDArray

from . import recipes
from .card import directory_name, model_card
from .checkpoint import read_hyperparameters
from .convert import Tensor, plan
from .errors import FormatError, QuantError, SourceNotFound
from .metadata import add_general, add_hyperparameters
from .output import replacing
from .safetensors import Weights
from .vocab import add_tokenizer

_CHUNK_WEIGHTS = 1 << 18  # 1 MB as float32
_ALIGNMENT = 32


@dataclass(frozen=True)
class Summary:
    """What was written."""

    path: Path
    recipe: str
    n_weights: int
    file_bytes: int
    seconds: float

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.file_bytes / self.n_weights


@dataclass(frozen=True)
class _Chunk:
    """Rows start..stop of a source tensor, to become the next bytes of a tensor."""

    tensor: Tensor
    kind: str
    source: str
    start: int
    stop: int
    last: bool  # of its tensor


def default_output(source: Path, recipe: str) -> Path:
    """The file name for a source and a recipe: nano-dense-q8_0.gguf."""
    return Path(f"{directory_name(source)}-{recipes.recipe(recipe).name.lower()}.gguf")


def quantize(
    source: Path,
    out: Path,
    recipe: str,
    *,
    progress: Callable[[int, int], None] | None = None,
    threads: int = 0,
) -> Summary:
    """Converts the checkpoint directory source to the GGUF file out.

    recipe: a name of recipes.RECIPES, in any case. progress: told after each chunk
    how many bytes of the source are done, and of how many. threads 0: one per CPU. An
    existing GGUF file is replaced when all is done; a failure leaves nothing.
    Raises UsageError, SourceNotFound, FormatError (the source), QuantError (the
    destination).
    """
    chosen = recipes.recipe(recipe)
    if not source.is_dir():
        raise SourceNotFound(f"{source}: there is no such checkpoint directory")
    started = time.monotonic()
    hp = read_hyperparameters(source)
    with Weights(source) as weights:
        tensors = [(tensor, chosen.type_of(tensor, hp)) for tensor in plan(hp, weights)]
        with replacing(out) as part:
            writer = gguf.GGUFWriter(part, hp.architecture)
            add_general(writer, model_card(source), chosen)
            add_hyperparameters(writer, hp)
            add_tokenizer(writer, source, hp.n_vocab)
            _write_header(writer, tensors)
            _check_space(out, sum(_bytes(tensor, kind) for tensor, kind in tensors))
            with part.open("ab") as file:
                _pad(file)
                _write_tensors(file, weights, tensors, threads or _cpus(), progress)
                size = file.tell()
    return Summary(
        path=out,
        recipe=chosen.name,
        n_weights=sum(tensor.n_rows * tensor.row_length for tensor, _ in tensors),
        file_bytes=size,
        seconds=time.monotonic() - started,
    )


def _write_header(writer: gguf.GGUFWriter, tensors: list[tuple[Tensor, str]]) -> None:
    """The metadata and the table of tensors; what follows is aligned data."""
    for tensor, kind in tensors:
        raw = gguf.GGMLQuantizationType[kind]
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), _bytes(tensor, kind), raw
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _write_tensors(
    file: BinaryIO,
    weights: Weights,
    tensors: list[tuple[Tensor, str]],
    threads: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    def item_bytes(source: str) -> int:
        return weights.info(source).item_bytes

    total = sum(
        (run.stop - run.start) * tensor.row_length * item_bytes(run.source)
        for tensor, _ in tensors
        for run in tensor.runs
    )
    done = 0
    with ThreadPoolExecutor(threads) as pool:
        encoded = _in_order(pool, lambda chunk: _encode(weights, chunk), _chunks(tensors), threads)
        for chunk, blocks in encoded:
            file.write(blocks.data)
            if chunk.last:
                _pad(file)
            rows = chunk.stop - chunk.start
            done += rows * chunk.tensor.row_length * item_bytes(chunk.source)
            if progress:
                progress(done, total)


def _chunks(tensors: list[tuple[Tensor, str]]) -> Iterator[_Chunk]:
    for tensor, kind in tensors:
        step = max(1, _CHUNK_WEIGHTS // tensor.row_length)
        for run in tensor.runs:
            for start in range(run.start, run.stop, step):
                stop = min(start + step, run.stop)
                last = run is tensor.runs[-1] and stop == run.stop
                yield _Chunk(tensor, kind, run.source, start, stop, last)


def _in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[_Chunk], NDArray[np.uint8]],
    chunks: Iterable[_Chunk],
    threads: int,
) -> Iterator[tuple[_Chunk, NDArray[np.uint8]]]:
    """work of every chunk, in order, with at most two chunks per thread under way."""
    pending: deque[tuple[_Chunk, Future[NDArray[np.uint8]]]] = deque()
    for chunk in chunks:
        if len(pending) == 2 * threads:
            first, future = pending.popleft()
            yield first, future.result()
        pending.append((chunk, pool.submit(work, chunk)))
    for first, future in pending:
        yield first, future.result()


def _encode(weights: Weights, chunk: _Chunk) -> NDArray[np.uint8]:
    rows = weights.read_rows(chunk.source, chunk.start, chunk.stop)
    try:
        return qwen3_native.quantize(chunk.kind, rows)
    except qwen3_native.NativeError as error:
        if error.args[0] == "format":
            raise _refusal(chunk, rows) from None
        raise QuantError(f"the tensor {chunk.source}: {error.args[1]}") from None


def _refusal(chunk: _Chunk, rows: NDArray[np.float32]) -> FormatError:
    """Why rows cannot be encoded."""
    peak = float(np.abs(rows).max())  # NaN if any weight is
    if not peak < float("inf"):
        return FormatError(
            f"the tensor {chunk.source} holds NaN or infinite weights; download it again"
        )
    return FormatError(
        f"the tensor {chunk.source} holds a weight of {peak:g}, "
        f"more than {chunk.kind} can hold; use BF16"
    )


def _bytes(tensor: Tensor, kind: str) -> int:
    return tensor.n_rows * qwen3_native.type_bytes(kind, tensor.row_length)


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % _ALIGNMENT))


def _check_space(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise QuantError(
            f"{out}: needs {needed / 1e9:.1f} GB, but its disk has {free / 1e9:.1f} GB free; "
            "free some space or choose another disk with -o"
        )


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
