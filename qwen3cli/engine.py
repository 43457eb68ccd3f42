"""The engine as Python sees it: models, sessions, tokenizers. Knows token ids only.

>>> from qwen3cli.engine import Model, Sampling
>>> model = Model("qwen3cli/models/nano-dense-q8_0.gguf")
>>> session = model.session()
>>> ids = model.tokenizer.encode("<|im_start|>user\\n2 + 2 = ?<|im_end|>\\n", added=True)
>>> session.sync(ids)             # computes only what the session does not hold yet
0
>>> session.logits().shape        # float32[n_vocab], of the last position
(4224,)
>>> for token in session.generate(Sampling(temperature=0), stop={4098}, max_tokens=64): ...

This is the sole importer of the native module.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import qwen3_native

from qwen3cli.errors import (
    ContextOverflow,
    DoesNotFit,
    FormatError,
    ModelNotFound,
    Qwen3Error,
    UsageError,
)

if TYPE_CHECKING:  # importing it takes longer than an answer of the smallest model
    import numpy as np
    from numpy.typing import NDArray

DEFAULT_CONTEXT = 40960  # the most a session takes when the caller names no size
TOGETHER: int = qwen3_native.TOGETHER  # the most sessions of a call of extend_together

_ERRORS: dict[str, type[Qwen3Error]] = {
    "arg": UsageError,
    "io": Qwen3Error,
    "format": FormatError,
    "unsupported": FormatError,
    "memory": DoesNotFit,
    "context": ContextOverflow,
}


class Cancelled(Qwen3Error):
    """Session.cancel() stopped the computation; what was computed is kept."""

    exit_code = 130


def _raise(error: qwen3_native.NativeError, path: str = "") -> Qwen3Error:
    """path: the file that the error is about; one of the operating system names it already."""
    status, text = error.args
    if path and status != "io":
        text = f"{path}: {text}"
    return (Cancelled if status == "cancelled" else _ERRORS.get(status, Qwen3Error))(text)


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The defaults are greedy."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0


class Tokenizer:
    """Text to ids and back, from the vocabulary inside a GGUF file."""

    def __init__(self, source: str | os.PathLike[str] | qwen3_native.Tokenizer) -> None:
        if isinstance(source, qwen3_native.Tokenizer):
            self._native = source
            return
        path = _existing(source)
        try:
            self._native = qwen3_native.Tokenizer(os.fsencode(path))
        except qwen3_native.NativeError as error:
            raise _raise(error, path) from None

    def __len__(self) -> int:
        return self._native.n_tokens

    def encode(self, text: str, *, added: bool = False) -> list[int]:
        """Ids of text. added: spelled-out added tokens such as <|im_end|> become
        their ids; by default they are plain text, so no text can forge control."""
        return self._native.encode(text.encode("utf-8", "replace"), added)

    def decode(self, ids: Sequence[int], *, skip_control: bool = False) -> str:
        """Text of ids; bytes that are not UTF-8 read as U+FFFD."""
        return self._native.join(ids, skip_control).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token, possibly a part of a character."""
        return self._native.token_bytes(token)

    @cached_property
    def _trie(self) -> qwen3_native.Trie:
        """Made for the first grammar: it takes as long as some tokens."""
        return qwen3_native.Trie(self._native)

    @cached_property
    def added(self) -> dict[str, int]:
        """The added tokens, such as <think> and <|im_end|>, by text."""
        return self._native.added()


class TextStream:
    """Turns a stream of tokens into text, holding back unfinished characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this token completes, possibly none."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character never completed."""
        return self._decoder.decode(b"", final=True)


class Grammar:
    """The texts that an answer may be: JSON that keeps to a schema. Never changes, so matchers on
    many threads share one."""

    def __init__(
        self, tokenizer: Tokenizer, schema: dict[str, Any] | bool | str, end: Collection[int]
    ) -> None:
        """schema: of the JSON Schema language, or its text. end: the tokens that end an answer,
        allowed where the value is complete. Raises UsageError, which names a keyword that is not
        supported and its place."""
        from qwen3cli.grammar.schema import compiled  # few answers keep to one

        self.schema = schema
        program = compiled(schema)
        try:
            self._native = qwen3_native.Grammar(
                tokenizer._trie, program.code, program.sets, program.start, sorted(end)
            )
        except qwen3_native.NativeError as error:
            raise UsageError(f"no answer can keep to the schema: {_raise(error)}") from None

    def matcher(self) -> Matcher:
        """For a new answer."""
        try:
            return Matcher(qwen3_native.Matcher(self._native))
        except qwen3_native.NativeError as error:
            raise _raise(error) from None


class Matcher:
    """One answer on its way through a grammar. Not for two threads at once."""

    def __init__(self, native: qwen3_native.Matcher) -> None:
        self._native = native

    def accept(self, token: int) -> None:
        """Moves on by the token that was drawn; UsageError for one that is not allowed here."""
        try:
            self._native.accept(token)
        except qwen3_native.NativeError as error:
            raise _raise(error) from None

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        return self._native.complete

    @property
    def finished(self) -> bool:
        """Whether nothing but an end token can follow, or one was accepted."""
        return self._native.finished

    def mask(self) -> NDArray[np.bool_]:
        """The tokens that are allowed here: bool[n_tokens]."""
        try:
            return self._native.mask()
        except qwen3_native.NativeError as error:
            raise _raise(error) from None


def _existing(path: str | os.PathLike[str]) -> str:
    if not Path(path).is_file():
        what = "is not a regular file" if Path(path).exists() else "there is no such model file"
        raise ModelNotFound(f"{os.fspath(path)}: {what}")
    return os.fspath(path)


@dataclass(frozen=True)
class ExpertStats:
    """What a store of experts did."""

    budget_bytes: int
    used_bytes: int
    hits: int  # experts that a layer wanted and that were in memory
    misses: int  # and that were in the file
    guesses: int  # read before a layer wanted them
    right_guesses: int  # and then wanted: misses that were read early
    bytes_read: int
    stall_s: float  # in which a thread waited for a read
    direct: bool  # reads go past the page cache

    @property
    def hit_rate(self) -> float:
        return self.hits / max(1, self.hits + self.misses)


class Device(NamedTuple):
    """A GPU."""

    backend: str  # cuda or metal; emulated in tests
    name: str
    total_bytes: int
    free_bytes: int  # when it was asked
    n_units: int  # multiprocessors, cores
    unified: bool  # its memory is the host's
    number: int = 0  # for Model.use_gpu


def devices() -> tuple[list[Device], str]:
    """The GPUs, and why there is none ("" otherwise). Raises Qwen3Error for one, or a backend,
    that is there and cannot be used."""
    try:
        found, why = qwen3_native.devices()
    except qwen3_native.NativeError as error:
        raise _raise(error) from None
    return [Device(**each, number=i) for i, each in enumerate(found)], why


@dataclass(frozen=True)
class GpuStats:
    """What a GPU has of a model, and what became of the experts that it wanted."""

    n_layers: int
    bytes: int  # of weights and slots on the device
    expert_bytes: int  # thereof of slots
    n_slots: int  # an expert each
    hits: int  # experts that a layer wanted and that were on the device
    misses: int  # and that were not:
    copied: int  # copied there,
    computed: int  # or computed by the CPU
    bytes_copied: int
    stall_s: float  # in which the device waited for a copy or the CPU

    @property
    def hit_rate(self) -> float:
        return self.hits / max(1, self.hits + self.misses)


def probe_device(index: int) -> dict[str, float]:
    """What a GPU can do now, measured: read, upload and download, bytes a second; f16 and int8,
    products a second, each added up (0: it has no units for them)."""
    try:
        return qwen3_native.probe_device(index)
    except qwen3_native.NativeError as error:
        raise _raise(error) from None


class Model:
    """A GGUF model, mapped and validated. Sessions share its weights."""

    def __init__(
        self, path: str | os.PathLike[str], *, threads: int = 0, expert_bytes: int = 0
    ) -> None:
        """threads 0: one per physical core. expert_bytes: memory for the experts of late use,
        the others are read from the file when they are needed; 0: all are used in the mapping.
        Raises ModelNotFound, FormatError, and UsageError for too few expert_bytes."""
        self.path = Path(_existing(path))
        self.device: Device | None = None  # the GPU in use
        try:
            self._native = qwen3_native.Model(os.fsencode(self.path), threads, expert_bytes)
            self.tokenizer = Tokenizer(self._native.tokenizer())
        except qwen3_native.NativeError as error:
            raise _raise(error, str(self.path)) from None

    @property
    def config(self) -> dict[str, Any]:
        """Hyperparameters: n_layers, n_embd, n_heads, n_vocab, n_ctx_train, ..."""
        return self._native.config

    @property
    def threads(self) -> int:
        return self._native.threads

    @property
    def isa(self) -> str:
        """The instruction set in use: scalar, avx2, avxvnni, avx512, neon or i8mm."""
        return self._native.isa

    @property
    def expert_stats(self) -> ExpertStats:
        """Since the model was opened; all 0 without expert_bytes."""
        return ExpertStats(**self._native.expert_stats)

    def approximate(self, *, prefer: float = 0, drop: float = 0) -> None:
        """What decoding may give up to wait less for the experts in the file; 0: nothing. prefer:
        an expert in memory is chosen as if its router logit were higher by this, but for the
        likeliest quarter; drop: one in the file whose weight is below this is left out. Prompts
        are computed as ever. Raises UsageError for numbers that mean nothing."""
        try:
            self._native.approximate(prefer, drop)
        except qwen3_native.NativeError as error:
            raise _raise(error) from None

    def guess(self, on: bool | None) -> None:
        """Whether experts in the file are read a layer before they are chosen, by a guess, while
        nobody waits for the disk. None, the default: it is tried, and done where it is faster. The
        answers are the same."""
        self._native.guess(on)

    def use_gpu(self, device: int, layers: int, *, expert_bytes: int = 0) -> None:
        """Before the first session: the last `layers` layers and the output are computed by a GPU
        of devices(), the embedding, too, when these are all. expert_bytes: memory there for the
        experts of these layers; 0: for all of them. The kv cache of these layers is there as well,
        f16 or q8. Raises DoesNotFit for too little memory there and UsageError; the model is the
        CPU's as before then."""
        try:
            self._native.use_gpu(device, layers, expert_bytes)
        except qwen3_native.NativeError as error:
            raise _raise(error) from None
        self.device = devices()[0][device]

    @property
    def gpu_stats(self) -> GpuStats:
        """Since use_gpu(); all 0 without it."""
        return GpuStats(**self._native.gpu_stats)

    def metadata(self) -> dict[str, Any]:
        """The file's metadata, without its long arrays."""
        return self._native.metadata(64)

    @property
    def kv(self) -> str:
        """The type of a session's kv cache when nobody names one."""
        return "f16" if self.device else str(self.config["kv"])

    def session(self, *, n_ctx: int | None = None, kv: str | None = None) -> Session:
        """A new, empty session of n_ctx tokens (default: the model's context, at
        most 40,960). kv: "f16", "f32" or "q8" (default: f16; f32 for F32 weights on the CPU)."""
        size = n_ctx if n_ctx is not None else min(self.config["n_ctx_train"], DEFAULT_CONTEXT)
        try:
            return Session(self, self._native.session(size, kv or self.kv))
        except qwen3_native.NativeError as error:
            raise _raise(error) from None


class Session:
    """One token sequence with its kv cache. Not for two threads at once."""

    def __init__(self, model: Model, native: qwen3_native.Session) -> None:
        self.model = model
        self._native = native

    def __len__(self) -> int:
        return len(self._native)

    @property
    def n_ctx(self) -> int:
        return self._native.n_ctx

    @property
    def kv_bytes(self) -> int:
        """What the kv cache takes when the context is full; memory is taken as it fills."""
        return self._native.kv_bytes

    @property
    def ids(self) -> list[int]:
        return self._native.ids()

    def sync(self, ids: Sequence[int]) -> int:
        """Makes ids the session's tokens, computing only what it does not hold;
        returns how many tokens were reused. Raises ContextOverflow, Cancelled."""
        try:
            return self._native.sync(ids)
        except qwen3_native.NativeError as error:
            raise _raise(error) from None

    def extend(self, ids: Sequence[int]) -> None:
        """Appends ids to the sequence and computes them."""
        try:
            self._native.extend(ids)
        except qwen3_native.NativeError as error:
            raise _raise(error) from None

    def extend_logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """As extend; returns the logits of each of ids, float32[len(ids), n_vocab]. That is
        600 KB a token: hand long texts over in parts."""
        try:
            return self._native.extend_logits(ids)
        except qwen3_native.NativeError as error:
            raise _raise(error) from None

    def logits(self) -> NDArray[np.float32]:
        """float32[n_vocab]: a copy of the logits of the last position."""
        try:
            return self._native.logits()
        except qwen3_native.NativeError as error:
            raise _raise(error) from None

    def sample(
        self,
        sampling: Sampling = Sampling(),
        *,
        generated_from: int | None = None,
        matcher: Matcher | None = None,
    ) -> int:
        """Draws the next token from the logits, without appending it. The draw
        depends on the seed and the position alone. Tokens from generated_from on
        count for the presence penalty (default: none). matcher: only what it allows is
        drawn, as if there were no other tokens; it is not moved."""
        s = sampling
        start = len(self) if generated_from is None else generated_from
        try:
            return self._native.sample(
                s.temperature,
                s.top_k,
                s.top_p,
                s.min_p,
                s.presence_penalty,
                s.repetition_penalty,
                s.seed,
                start,
                matcher._native if matcher else None,
            )
        except qwen3_native.NativeError as error:
            raise _raise(error) from None

    def generate(
        self, sampling: Sampling = Sampling(), *, stop: Collection[int] = (), max_tokens: int = -1
    ) -> Iterator[int]:
        """Draws and appends tokens until one of stop (which is not yielded and not
        appended), max_tokens, or the end of the context."""
        start = len(self)
        while max_tokens < 0 or len(self) - start < max_tokens:
            token = self.sample(sampling, generated_from=start)
            if token in stop or len(self) >= self.n_ctx:
                return
            self.extend([token])
            yield token

    def observe(self, importance: Importance | None) -> None:
        """From now on every token that the session computes is added to importance (None: to
        nothing), also the part of a computation that was cancelled. What sync reuses is not."""
        try:
            self._native.observe(importance._native if importance else None)
        except qwen3_native.NativeError as error:
            raise _raise(error) from None

    def fill(self, n: int) -> None:
        """Makes the session n arbitrary tokens whose kv cache holds arbitrary values, as if
        they had been computed: for timing what follows at that depth."""
        try:
            self._native.fill(n)
        except qwen3_native.NativeError as error:
            raise _raise(error) from None

    def snapshot(self, start: int = 0) -> Snapshot:
        """Copies tokens, logits, and keys and values from position start on into memory, to
        restore() them. Raises UsageError for a start beyond the end, DoesNotFit."""
        try:
            return Snapshot(self.model, self._native.snapshot(start))
        except qwen3_native.NativeError as error:
            raise _raise(error) from None

    def restore(self, snapshot: Snapshot) -> None:
        """Makes the session what it was at the snapshot, bit by bit, without computing. Its first
        snapshot.start tokens must still be those of the snapshot: UsageError otherwise, as for one
        of another model or type of kv cache; ContextOverflow. The session is unchanged then."""
        try:
            self._native.restore(snapshot._native)
        except qwen3_native.NativeError as error:
            raise _raise(error) from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes tokens, kv cache and logits to a file, of which only the user may read the
        conversation in it. A file that was there is replaced when all of it is on the disk, and is
        as it was after a Qwen3Error."""
        try:
            self._native.save(os.fsencode(path))
        except qwen3_native.NativeError as error:
            raise _raise(error, os.fspath(path)) from None

    def load(self, path: str | os.PathLike[str]) -> None:
        """Makes the session what was saved; n_ctx may differ. Raises UsageError for a file of
        another model or type of kv cache, ContextOverflow, FormatError for a damaged one, and
        Qwen3Error where it cannot be read. The session is unchanged then, or empty where the damage
        lay deep in the file: sync() computes what it needs."""
        try:
            self._native.load(os.fsencode(path))
        except qwen3_native.NativeError as error:
            raise _raise(error, os.fspath(path)) from None

    def force_routes(
        self, routes: NDArray[np.int32], guesses: NDArray[np.int32] | None = None
    ) -> None:
        """routes: int32[tokens, n_layers, n_experts_used]. From now on the token at position p
        takes the experts routes[p % tokens], all with the same weight, whatever the router says: to
        replay a trace, or the worst case. guesses, of the same shape: what they are taken for a
        layer before; None: nothing is guessed. Raises UsageError for a dense model and for experts
        that are not there or not distinct, ValueError for another shape."""
        try:
            self._native.force_routes(routes, guesses)
        except qwen3_native.NativeError as error:
            raise _raise(error) from None

    def cancel(self) -> None:
        """Makes the running sync or extend, or else the next one, return early (Cancelled);
        any thread may call."""
        self._native.cancel()


class Snapshot:
    """What Session.snapshot() copied; the memory is free when nobody holds it any more."""

    def __init__(self, model: Model, native: qwen3_native.Snapshot) -> None:
        self.model = model  # kept as long as its snapshots
        self._native = native

    def __len__(self) -> int:
        """Tokens of the session, those before start included."""
        return len(self._native)

    @property
    def start(self) -> int:
        """How many tokens a session must share to be restored."""
        return self._native.start

    @property
    def ids(self) -> list[int]:
        return self._native.ids()

    @property
    def n_bytes(self) -> int:
        """The memory it takes."""
        return self._native.n_bytes


def extend_together(sessions: Sequence[Session], tokens: Sequence[int]) -> None:
    """Appends tokens[i] to sessions[i], as each one's extend would, the same bits, but reads the
    weights once for all of them. They are at most TOGETHER different sessions of one model. All get
    their token or none does: ContextOverflow names the session by its index, and Cancelled is
    raised when any of them was cancelled."""
    try:
        qwen3_native.extend_together([s._native for s in sessions], tokens)
    except qwen3_native.NativeError as error:
        raise _raise(error) from None


class Inputs(NamedTuple):
    """What entered a weight tensor: for each expert (a dense matrix is one) the sums of the
    squares in each column, and the tokens that it met."""

    tensor: str
    sums: NDArray[np.float64]  # [n_experts, n_in]
    counts: NDArray[np.int64]  # [n_experts]


class Importance:
    """What observed sessions met, for every matrix in the layers but the router. The bits depend
    neither on threads nor on how a text was cut into calls. One session at a time adds to it."""

    def __init__(self, model: Model) -> None:
        try:
            self._native = qwen3_native.Importance(model._native)
        except qwen3_native.NativeError as error:
            raise _raise(error) from None

    def __iter__(self) -> Iterator[Inputs]:
        """Matrix by matrix, in the order of the layers, as it is at that moment."""
        for index in range(len(self._native)):
            yield Inputs(*self._native.inputs(index))


class Probe:
    """What the machine can do at this moment, measured with the threads of a model: the
    limits of decoding and of prefill."""

    def __init__(self, model: Model, size: int) -> None:
        """size: bytes of memory it takes to read them, many times the largest cache."""
        try:
            self._native = qwen3_native.Probe(model._native, size)
        except qwen3_native.NativeError as error:
            raise _raise(error) from None

    def read(self) -> float:
        """Bytes of memory read a second."""
        return self._native.read()

    def int8(self) -> float:
        """Products of 8-bit integers a second, each added up."""
        return self._native.int8()

    def f32(self) -> float:
        """Products of f32 a second, each added up."""
        return self._native.f32()


def backends() -> list[str]:
    """The instruction sets that can run here; QWEN3_ISA forces one."""
    return qwen3_native.isas()


class ModelFile:
    """A GGUF file's, or a split model's, metadata and tensor table, for inspection."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            self._native = qwen3_native.File(os.fsencode(_existing(path)))
        except qwen3_native.NativeError as error:
            raise _raise(error, os.fspath(path)) from None

    @property
    def version(self) -> int:
        return self._native.version

    def metadata(self, max_items: int = -1) -> dict[str, Any]:
        """Values by key; an array longer than max_items comes as ("array", type, count)."""
        return self._native.metadata(max_items)

    def tensors(self) -> list[tuple[str, tuple[int, ...], str, int]]:
        """(name, shape, type, bytes) in file order, the fastest dimension last."""
        return self._native.tensors()

    def shards(self) -> list[int]:
        """For each tensor which file of a split model holds it, counted from 1."""
        return [number + 1 for number in self._native.shards()]
