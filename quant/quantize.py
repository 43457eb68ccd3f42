"""A checkpoint, or a GGUF of floats, to GGUF, streamed.

The plan of the whole file comes first: every tensor, its type, its place. Then
chunks of rows are read, encoded by a pool of threads and written in order. Memory
holds a few chunks whatever the model, and the bytes do not depend on the threads.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import qwen3_native
from numpy.typing import NDArray

from . import recipes
from .card import directory_name
from .errors import FormatError, QuantError, UsageError
from .imatrix import Imatrix
from .layout import Tensor
from .parallel import cpus, in_order
from .shards import forms, model_name
from .source import Source, open_source
from .writer import Output, TensorInfo, file_sizes, gguf_output

_CHUNK_WEIGHTS = 1 << 18  # 1 MB as float32


@dataclass(frozen=True)
class Summary:
    """What was written."""

    paths: list[Path]  # the first one opens the model; the others are its shards
    recipe: str
    n_weights: int
    file_bytes: int
    seconds: float
    unweighed: list[str]  # tensors that the importance matrix should know and does not


@dataclass(frozen=True)
class _Chunk:
    """Rows start..stop of a source tensor, to become the next bytes of a tensor."""

    tensor: Tensor
    kind: str
    source: str
    start: int
    stop: int
    expert: int  # whose rows they are; 0 in a dense tensor


@dataclass(frozen=True)
class Share:
    """What the tensors of one type come to."""

    kind: str
    n_tensors: int
    n_weights: int
    n_bytes: int


@dataclass(frozen=True)
class Prediction:
    """What would be written: the types, the largest first, and the bytes of each file."""

    recipe: str
    shares: list[Share]
    file_bytes: list[int]

    @property
    def n_weights(self) -> int:
        return sum(share.n_weights for share in self.shares)


@dataclass(frozen=True)
class _Plan:
    """All of a file but the data."""

    tensors: list[tuple[Tensor, str]]
    metadata: gguf.GGUFWriter
    infos: list[TensorInfo]
    importance: Imatrix | None


def default_output(source: Path, recipe: str) -> Path:
    """The file name for a source and a recipe: nano-dense-q8_0.gguf."""
    name = directory_name(source)
    if source.is_file():
        name = model_name(source)
        known = "|".join(sorted(recipes.RECIPES, key=len, reverse=True))
        name = re.sub(rf"[-.]({known})$", "", name, flags=re.IGNORECASE) or name
    return Path(f"{name}-{recipes.recipe(recipe).name.lower()}.gguf")


def predict(
    source: Path,
    recipe: str,
    *,
    overrides: Sequence[str] = (),
    allow_requantize: bool = False,
    imatrix: Path | None = None,
    split_size: int = 0,
) -> Prediction:
    """What quantize() would write, with the same arguments; the sizes are exact. Raises
    UsageError, SourceNotFound, FormatError."""
    chosen = recipes.recipe(recipe)
    with closing(open_source(source, allow_requantize=allow_requantize)) as opened:
        plan = _plan(opened, chosen, overrides, imatrix)
    of_kind: dict[str, list[TensorInfo]] = {}
    for info in plan.infos:
        of_kind.setdefault(info.type, []).append(info)
    shares = [
        Share(
            kind,
            len(infos),
            sum(math.prod(info.shape) for info in infos),
            sum(info.n_bytes for info in infos),
        )
        for kind, infos in of_kind.items()
    ]
    shares.sort(key=lambda share: -share.n_bytes)
    sizes = file_sizes(plan.metadata, plan.infos, split_size=split_size)
    return Prediction(chosen.name, shares, sizes)


def quantize(
    source: Path,
    out: Path,
    recipe: str,
    *,
    overrides: Sequence[str] = (),
    allow_requantize: bool = False,
    imatrix: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    threads: int = 0,
    split_size: int = 0,
) -> Summary:
    """Converts source, a checkpoint directory or a GGUF file, to the GGUF file out, or to
    shards of it with at most split_size bytes of tensors each.

    recipe: a name of recipes.RECIPES, in any case. overrides: PATTERN=TYPE each, see
    recipes.assign. allow_requantize: source may be a GGUF file of quantized tensors.
    imatrix: an importance matrix, what errors in each column of the weights cost.
    progress: told after each chunk how many bytes of the source are done, and of how many.
    threads 0: one per CPU. An existing GGUF file is replaced when all is done; a failure
    leaves nothing. Raises UsageError, SourceNotFound, FormatError (the source, the
    importance matrix), QuantError (the destination).
    """
    chosen = recipes.recipe(recipe)
    if source.is_file() and any(old.samefile(source) for old in forms(out)):
        raise UsageError(f"{out}: would replace its own source; choose another name with -o")
    started = time.monotonic()
    with closing(open_source(source, allow_requantize=allow_requantize)) as opened:
        plan = _plan(opened, chosen, overrides, imatrix)
        with gguf_output(out, plan.metadata, plan.infos, split_size=split_size) as output:
            _write_tensors(output, opened, plan, threads or cpus(), progress)
    return Summary(
        paths=output.paths,
        recipe=chosen.name,
        n_weights=sum(tensor.n_rows * tensor.row_length for tensor, _ in plan.tensors),
        file_bytes=output.n_bytes,
        seconds=time.monotonic() - started,
        unweighed=plan.importance.unknown(plan.tensors) if plan.importance else [],
    )


def _plan(
    source: Source, chosen: recipes.Recipe, overrides: Sequence[str], imatrix: Path | None
) -> _Plan:
    known = imatrix is not None
    tensors = recipes.assign(chosen, source.tensors, source.hp, overrides, imatrix=known)
    metadata = gguf.GGUFWriter(None, source.hp.architecture)
    source.add_metadata(metadata, chosen)
    importance = Imatrix(imatrix) if imatrix else None
    if importance:
        importance.check(source.tensors)
        importance.add_metadata(metadata)
    infos = [TensorInfo.of(tensor, kind) for tensor, kind in tensors]
    return _Plan(tensors, metadata, infos, importance)


def _write_tensors(
    output: Output,
    source: Source,
    plan: _Plan,
    threads: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    total = sum(
        (run.stop - run.start) * source.row_bytes(run.source)
        for tensor, _ in plan.tensors
        for run in tensor.runs
    )
    done = 0

    def encode(chunk: _Chunk) -> NDArray[np.uint8]:
        return _encode(source, plan.importance, chunk)

    for chunk, blocks in in_order(encode, _chunks(plan.tensors), threads):
        output.write(blocks)
        done += (chunk.stop - chunk.start) * source.row_bytes(chunk.source)
        if progress:
            progress(done, total)


def _chunks(tensors: list[tuple[Tensor, str]]) -> Iterator[_Chunk]:
    for tensor, kind in tensors:
        step = max(1, _CHUNK_WEIGHTS // tensor.row_length)
        of_expert = tensor.n_rows // tensor.n_experts
        row = 0
        for run in tensor.runs:
            start = run.start
            while start < run.stop:
                expert, within = divmod(row, of_expert)
                n = min(step, run.stop - start, of_expert - within)
                yield _Chunk(tensor, kind, run.source, start, start + n, expert)
                start, row = start + n, row + n


def _encode(source: Source, importance: Imatrix | None, chunk: _Chunk) -> NDArray[np.uint8]:
    rows = source.read_rows(chunk.source, chunk.start, chunk.stop)
    weights = importance.weights(chunk.tensor.name, chunk.expert) if importance else None
    try:
        return qwen3_native.quantize(chunk.kind, rows, weights)
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
