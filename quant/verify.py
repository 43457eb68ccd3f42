"""Is a GGUF file whole, and as close to its source as its types allow?

A file can be wrong in four ways, and each is looked for by itself: its extents (whoever opens
it checks them), metadata and tensors that do not make up a model, weights that are not finite,
and weights that are further from the source than rounding to their type explains.

The file is read once, chunk by chunk on some threads; memory holds a few chunks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import qwen3_native
from numpy.typing import NDArray

from .checkpoint import ARCHITECTURES
from .errors import FormatError, QuantError, SourceNotFound, UsageError
from .gguf_file import GgufFile
from .parallel import cpus, in_order
from .source import Source, open_source

_CHECKED, _COMPARED = 1 << 22, 1 << 18  # weights of a chunk, without a source and with one


# ---- what a type explains ----------------------------------------------------------------


@dataclass(frozen=True)
class Limit:
    """The largest errors that rounding to a type leaves behind."""

    block: int  # weights whose largest magnitude is what an error is measured by
    rmse: float  # of a tensor, relative to the RMS of the source
    worst: float  # of a weight, relative to the largest of its block


# What the reference quantizer of llama.cpp and ours reached at most, and a quarter more: over
# normal, Laplace, uniform, sparse and Student's t weights (of 4 and of 2 degrees of freedom),
# rows and columns of log-normal scale, columns 20 times as large, and the nano models; rmse
# with random importances too. The figures are in docs/decisions.md.
LIMITS = {
    "F32": Limit(1, 0, 0),
    "F16": Limit(1, 2**-11, 2**-11),
    "BF16": Limit(1, 2**-8, 2**-8),
    "Q8_0": Limit(32, 0.015, 0.005),
    "Q6_K": Limit(256, 0.06, 0.04),
    "Q5_K": Limit(256, 0.08, 0.08),
    "Q5_1": Limit(32, 0.08, 0.045),
    "Q5_0": Limit(32, 0.12, 0.08),
    "Q4_K": Limit(256, 0.16, 0.14),
    "Q4_1": Limit(32, 0.15, 0.09),
    "Q4_0": Limit(32, 0.18, 0.16),
    "IQ4_NL": Limit(32, 0.25, 0.17),
    "IQ4_XS": Limit(256, 0.18, 0.18),
    "Q3_K": Limit(256, 0.25, 0.33),
    "Q2_K": Limit(256, 0.5, 0.6),
}
# With an importance matrix an encoder may give up a weight that hardly ever counts: replace it
# by 0 or a little more. Q8_0 and floats have no choice to make.
_GIVEN_UP = 1.1
_NO_CHOICE = ("F32", "F16", "BF16", "Q8_0")
# Added to what errors are measured by: of magnitudes below that, the f16 scales of blocks have
# few digits left.
_SMALL = {"F32": 0.0, "BF16": 0.0, "F16": 2.0**-14, "Q6_K": 2.0**-8}
_SMALL_SCALES = 2.0**-10


# ---- the report --------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Of a tensor from its source."""

    rmse: float  # relative to the RMS of the source
    worst: float  # the largest error, relative to the largest weight of its block
    row: int  # where that is


@dataclass(frozen=True)
class TensorReport:
    name: str
    shape: tuple[int, ...]  # the fastest dimension last
    kind: str
    n_bytes: int
    difference: Difference | None
    problem: str  # empty: it is as it should be


@dataclass
class Report:
    """What was found. A file without problems is one that can be relied on."""

    tensors: list[TensorReport] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # the tensors' are among them
    remarks: list[str] = field(default_factory=list)  # what is unusual and not wrong


def verify(
    path: Path,
    source: Path | None = None,
    *,
    threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Checks the file path; against source, a Hugging Face directory or a GGUF file of floats,
    if there is one.

    threads 0: one per CPU. progress: told how many bytes of the file are done, and of how many.
    Raises SourceNotFound, FormatError (the source, or an architecture that is not Qwen3),
    QuantError (what the system refused), UsageError (a quantized source).
    """
    if not path.is_file():
        raise SourceNotFound(f"{path}: there is no such model file")
    try:
        file = qwen3_native.File(os.fsencode(path))
    except qwen3_native.NativeError as error:
        status, text = error.args
        if status != "format":
            raise QuantError(text) from None
        return Report(problems=[text])
    report = _check_metadata(path, file.metadata())
    with nullcontext() if source is None else closing(_opened(source)) as opened:
        scan = _Scan(file, opened)
        scan.run(threads or cpus(), progress or (lambda _done, _total: None))
        scan.complete(report)
    return report


def _opened(source: Path) -> Source:
    try:
        return open_source(source)
    except UsageError:
        raise UsageError(
            f"{source}: is quantized itself; errors are measured against F32, F16 or BF16"
        ) from None


# ---- metadata ----------------------------------------------------------------------------

# What engines do not agree on when it is missing is needed, too.
_NEEDED = (
    "block_count", "context_length", "embedding_length", "feed_forward_length",
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.value_length", "attention.layer_norm_rms_epsilon", "rope.freq_base",
)  # fmt: skip
_NEEDED_BY_EXPERTS = ("expert_count", "expert_used_count", "expert_feed_forward_length")
_NEEDED_BY_YARN = ("rope.scaling.factor", "rope.scaling.original_context_length")
_TOKENIZER = ("model", "pre", "tokens", "token_type", "merges", "eos_token_id")
_USUAL = (
    "general.name", "general.file_type", "general.quantization_version", "tokenizer.chat_template",
)  # fmt: skip


def _check_metadata(path: Path, metadata: dict[str, Any]) -> Report:
    """The keys, the tensors that they call for, the tokenizer."""
    architecture = metadata.get("general.architecture")
    if metadata.get("general.type", "model") != "model":
        raise FormatError(f"{path}: is no model, but of the type {metadata['general.type']}")
    if architecture is None:
        return Report(problems=["the metadata lacks general.architecture"])
    if architecture not in ARCHITECTURES.values():
        raise FormatError(
            f"{path}: its architecture is {str(architecture)[:200]}; only "
            f"{' and '.join(ARCHITECTURES.values())} can be verified"
        )
    needed = list(_NEEDED)
    if architecture == "qwen3moe":
        needed += _NEEDED_BY_EXPERTS
    if metadata.get(f"{architecture}.rope.scaling.type", "none") != "none":
        needed += _NEEDED_BY_YARN
    keys = [f"{architecture}.{key}" for key in needed]
    keys += [f"tokenizer.ggml.{key}" for key in _TOKENIZER]
    report = Report(
        problems=[f"the metadata lacks {key}" for key in keys if key not in metadata],
        remarks=[f"the metadata lacks {key}" for key in _USUAL if key not in metadata],
    )
    if not report.problems:
        try:
            GgufFile(path, allow_requantize=True).close()
        except FormatError as error:
            report.problems.append(str(error).removeprefix(f"{path}: "))
    try:
        qwen3_native.Tokenizer(os.fsencode(path))
    except qwen3_native.NativeError as error:
        report.problems.append(f"the tokenizer: {error.args[1]}")
    return report


# ---- weights -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chunk:
    """Rows start..stop of a tensor of the file, and where the same rows are in the source."""

    tensor: str
    start: int
    stop: int
    source: str | None = None
    source_start: int = 0


@dataclass
class _Findings:
    """Of one tensor, or of a chunk of it."""

    bad_row: int | None = None  # the first that holds a NaN or an infinity
    error: float = 0  # sum of squares
    source: float = 0  # likewise
    worst: float = 0
    worst_row: int = 0

    def add(self, other: _Findings) -> None:
        """The findings of a chunk behind the ones so far."""
        if self.bad_row is None:
            self.bad_row = other.bad_row
        self.error += other.error
        self.source += other.source
        if other.worst > self.worst:
            self.worst, self.worst_row = other.worst, other.worst_row


class _Scan:
    """One pass over all weights of a file."""

    def __init__(self, file: qwen3_native.File, source: Source | None) -> None:
        self._file = file
        self._source = source
        self._table = {name: (shape, kind, size) for name, shape, kind, size in file.tensors()}
        self._wanted = {tensor.name: tensor for tensor in source.tensors} if source else {}
        self._findings = {name: _Findings() for name in self._table}
        # One of these keys tells that the encoder weighed the weights.
        self._weighed = any(key.startswith("quantize.imatrix.") for key in file.metadata(0))

    def run(self, threads: int, progress: Callable[[int, int], None]) -> None:
        done, total = 0, sum(size for _, _, size in self._table.values())
        for chunk, found in in_order(self._look_at, self._chunks(), threads):
            self._findings[chunk.tensor].add(found)
            shape, _, size = self._table[chunk.tensor]
            done += (chunk.stop - chunk.start) * size // math.prod(shape[:-1])
            progress(done, total)

    def complete(self, report: Report) -> None:
        """Adds the tensors and what is wrong with them."""
        for name, (shape, kind, size) in self._table.items():
            difference, problem = self._difference(name), self._problem(name)
            report.tensors.append(TensorReport(name, shape, kind, size, difference, problem))
            if problem:
                report.problems.append(f"{name}: {problem}")
        missing = [name for name in self._wanted if name not in self._table]
        report.problems += [f"{name}: is in the source and not in the file" for name in missing]

    def _chunks(self) -> Iterator[_Chunk]:
        for name, (shape, kind, _) in self._table.items():
            n_rows, row_length = math.prod(shape[:-1]), shape[-1]
            if not _readable(kind):
                continue
            if not self._compared(name):
                step = max(1, _CHECKED // row_length)
                for start in range(0, n_rows, step):
                    yield _Chunk(name, start, min(start + step, n_rows))
                continue
            first, step = 0, max(1, _COMPARED // row_length)
            for run in self._wanted[name].runs:
                for start in range(run.start, run.stop, step):
                    n = min(step, run.stop - start)
                    yield _Chunk(name, first, first + n, run.source, start)
                    first += n

    def _look_at(self, chunk: _Chunk) -> _Findings:
        bad_row = self._file.find_row_not_finite(chunk.tensor, chunk.start, chunk.stop)
        if self._source is None or chunk.source is None or bad_row is not None:
            return _Findings(bad_row)
        n = chunk.stop - chunk.start
        theirs = self._source.read_rows(chunk.source, chunk.source_start, chunk.source_start + n)
        if not np.isfinite(theirs).all():
            raise FormatError(f"the source: {chunk.source} holds NaN or infinite weights")
        with np.errstate(over="ignore"):  # of damaged exponents: an infinite error
            error = self._file.read_rows(chunk.tensor, chunk.start, chunk.stop) - theirs
        kind = self._table[chunk.tensor][1]
        block = LIMITS[kind].block
        largest = _largest(theirs, block) + _SMALL.get(kind, _SMALL_SCALES)
        relative = _largest(error, block) / np.maximum(largest, np.finfo(np.float32).tiny)
        at = int(relative.argmax())
        return _Findings(
            error=float(np.square(error, dtype=np.float64).sum()),
            source=float(np.square(theirs, dtype=np.float64).sum()),
            worst=float(relative[at]),
            worst_row=chunk.start + at * block // error.shape[1],
        )

    def _compared(self, name: str) -> bool:
        return name in self._wanted and self._wanted[name].shape == self._table[name][0]

    def _difference(self, name: str) -> Difference | None:
        found = self._findings[name]
        if not self._compared(name) or found.bad_row is not None:
            return None
        rmse = math.sqrt(found.error / found.source) if found.source else 0.0
        return Difference(rmse, found.worst, found.worst_row)

    def _problem(self, name: str) -> str:
        """What is wrong with a tensor, empty if nothing is."""
        shape, kind, _ = self._table[name]
        found, difference = self._findings[name], self._difference(name)
        if not _readable(kind):
            return f"has {kind}, which cannot be read"
        if found.bad_row is not None:
            return f"holds a NaN or an infinity in row {found.bad_row}"
        if self._source is not None and name not in self._wanted:
            return "is not in the source"
        if self._source is not None and difference is None:
            return f"has shape {list(shape)}, in the source {list(self._wanted[name].shape)}"
        return self._unexplained(kind, difference, found, shape) if difference else ""

    def _unexplained(
        self, kind: str, difference: Difference, found: _Findings, shape: tuple[int, ...]
    ) -> str:
        limit = LIMITS[kind]
        worst = _GIVEN_UP if self._weighed and kind not in _NO_CHOICE else limit.worst
        if difference.worst > worst:
            return (
                f"a weight in row {difference.row} is off by {difference.worst:.1%} of the largest "
                f"in its block; {kind} explains {worst:.1%}"
            )
        rms = math.sqrt(found.source / math.prod(shape))
        if difference.rmse * rms > limit.rmse * (rms + _SMALL.get(kind, _SMALL_SCALES)):
            return f"its RMSE is {difference.rmse:.1%} of its RMS; {kind} explains {limit.rmse:.1%}"
        return ""


def _largest(values: NDArray[np.float32], block: int) -> NDArray[np.float64]:
    """Of the magnitudes in every block. numpy's own maximum of short rows is 5 times slower."""
    halves = np.abs(values).reshape(-1, block)
    while (n := halves.shape[1]) > 1:
        halves = np.maximum(halves[:, : n // 2], halves[:, n // 2 :])
    return halves[:, 0].astype(np.float64)


def _readable(kind: str) -> bool:
    return kind in LIMITS
