"""Receipts: all that decided what a run said, in a file from which `replay` repeats it.

A receipt is a JSON object, one key a line: the model by the sha256 of its files; ids of the prompt
and of all that was generated; sampling, budget, context and kv cache. Versions, instruction set,
GPU and template are in it to explain a difference. An interrupted reply leaves none.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from quant.output import sync
from quant.shards import files
from qwen3cli import __version__
from qwen3cli.engine import Grammar, Model, Sampling
from qwen3cli.errors import FormatError, Qwen3Error, UsageError
from qwen3cli.library.checksums import checksums
from qwen3cli.options import Options
from qwen3cli.prompt import Generation, template_text
from qwen3cli.reply import Reply, Request, Settings
from qwen3cli.screen.streams import reason
from qwen3cli.session import Conversation
from qwen3cli.terminal import Terminal
from qwen3cli.thinking.control import Landing

if TYPE_CHECKING:
    from qwen3cli.grammar.schema import Schema

FORMAT = 1  # of receipts
_BEGINS = b'{"receipt":'
_LARGEST = 1 << 28  # bytes
_LARGEST_INT = 2**31 - 1


@dataclass(frozen=True)
class Sample:
    """One reply. Its stop reasons are those of ThinkingStop and AnswerStop."""

    seed: int
    thinking_tokens: int
    thinking_stop: str
    inserted_tokens: int
    answer_tokens: int
    answer_stop: str
    output: list[int]  # all ids behind the prompt
    answer: str
    answer_sha256: str

    @classmethod
    def of(cls, reply: Reply) -> Sample:
        named: dict[str, Any] = {
            field.name: getattr(reply, field.name, None) for field in fields(cls)
        }
        named |= {"output": list(reply.output), "answer_sha256": digest(reply.answer)}
        return cls(**named)


@dataclass(frozen=True)
class Receipt:
    """Of a run."""

    model: str  # as it was asked for
    path: str  # where that was
    files: dict[str, str]  # sha256 by name
    versions: dict[str, str]  # of qwen3, isa, python, platform; gpu, where one computed
    template: str  # sha256
    generation: str
    messages: list[dict[str, Any]]  # the system prompt and the question
    thinking: bool  # the effective mode
    n_ctx: int
    kv: str
    prefer_cached: float
    drop_misses: float
    expert_bytes: int  # what decides where these are not 0
    budget: int | None
    seconds: float | None
    landing: str
    max_tokens: int | None
    stop: list[str]
    overflow: str
    schema: dict[str, Any] | bool | None  # that the answers keep to
    sampling: dict[str, Any]  # without the seed
    prompt: list[int]
    samples: list[Sample]
    gpu_layers: int  # the last so many, computed by a GPU
    gpu_expert_bytes: int  # of its memory for the experts of these layers; 0: for all of them

    def settings(self, sample: Sample, grammar: Grammar | None) -> Settings:
        """Settings that repeat a sample. What a clock, the user or a loop ended comes to the
        same by a budget of just as many tokens. grammar: of the schema."""
        settings = Settings(
            budget=self.budget,
            landing="soft" if self.landing == "soft" else "hard",
            max_tokens=self.max_tokens,
            stop=self.stop,
            grammar=grammar,
            seed=sample.seed,
            **self.sampling,
        )
        ended = sample.thinking_stop
        if ended in ("user", "loop") or (ended == "budget" and self.seconds is not None):
            settings = replace(settings, budget=sample.thinking_tokens, landing="hard")
        elif self.seconds is not None:
            settings = replace(settings, budget=None)
        return settings

    def request(self) -> Request:
        return Request(
            prompt=self.prompt,
            thinking=self.thinking,
            prefilled=self.generation == Generation.THINKING.value,
            coder=False,  # the sampling is known
        )


def digest(text: str) -> str:
    """The sha256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def versions(model: Model) -> dict[str, str]:
    """What computes, and may compute other bits than another."""
    found = {
        "qwen3": __version__,
        "isa": model.isa,
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
    }
    if model.device:
        stats = model.gpu_stats
        of = f"{stats.n_layers} of {model.config['n_layers']} layers"
        if _lacks_experts(model):  # the CPU may compute those
            of += f", {stats.n_slots} of {stats.n_layers * model.config['n_experts']} experts"
        found["gpu"] = f"{model.device.name} ({model.device.backend}, {of})"
    return found


def _lacks_experts(model: Model) -> bool:
    """Whether the GPU has not all experts of its layers."""
    stats = model.gpu_stats
    return bool(stats.n_slots < stats.n_layers * model.config["n_experts"])


def model_files(path: Path, terminal: Terminal) -> dict[str, str]:
    """The sha256 of the files of a model by their names."""
    return {file.name: found for file, found in checksums(files(path), terminal).items()}


def template(generation: Generation) -> str:
    """The sha256 of the template of a generation."""
    return digest(template_text(generation))


def of(
    conversation: Conversation,
    options: Options,
    settings: Settings,
    schema: Schema | None,
    replies: Sequence[Reply],
    terminal: Terminal,
) -> Receipt:
    """Of a run that gave at least one reply. schema: that of the grammar in the settings."""
    session, model, first = conversation.session, conversation.session.model, replies[0]
    sampling = asdict(first.sampling)
    del sampling["seed"]
    messages = [dict(m) for m in conversation.messages if m["role"] != "assistant"]
    if conversation.system is not None:
        messages.insert(0, {"role": "system", "content": conversation.system})
    return Receipt(
        model=options.model or "",
        path=str(model.path.absolute()),
        files=model_files(model.path, terminal),
        versions=versions(model),
        template=template(conversation.generation),
        generation=conversation.generation.value,
        messages=messages,
        thinking=conversation.thinks(settings),
        n_ctx=session.n_ctx,
        kv=options.kv or model.kv,
        prefer_cached=options.prefer_cached,
        drop_misses=options.drop_misses,
        expert_bytes=model.expert_stats.budget_bytes,
        budget=settings.budget,
        seconds=settings.seconds,
        landing=settings.landing,
        max_tokens=settings.max_tokens,
        stop=list(settings.stop),
        overflow=settings.overflow,
        schema=schema,
        sampling=sampling,
        prompt=list(first.prompt),
        samples=[Sample.of(reply) for reply in replies],
        gpu_layers=model.gpu_stats.n_layers,
        gpu_expert_bytes=model.gpu_stats.expert_bytes if _lacks_experts(model) else 0,
    )


# ---- the file ------------------------------------------------------------------------


def check_name(file: str) -> Path:
    """Where the receipt goes. Raises UsageError for what would be lost there, and Qwen3Error
    where nothing can be written: before anything is generated."""
    path = Path(os.path.realpath(file))
    try:
        if path.is_dir() or file.endswith("/"):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not (path.is_file() and _is_ours(path)):
            raise UsageError(f"{file}: is there, and no receipt; choose another name")
        if not os.access(path.parent, os.W_OK):
            code = errno.EACCES if path.parent.is_dir() else errno.ENOENT
            raise OSError(code, os.strerror(code))
    except OSError as error:
        raise _unwritable(file, error) from None
    return path


def write(receipt: Receipt, file: str) -> None:
    """Writes it at once or not at all. Raises as check_name."""
    path = check_name(file)
    lines = {"receipt": FORMAT} | asdict(receipt)
    text = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in lines.items())
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            with new.open("x", encoding="utf-8") as out:
                out.write(f"{{{text}}}\n")
                out.flush()
                os.fsync(out.fileno())
            new.replace(path)
            sync(path.parent)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(file, error) from None


def read(file: str) -> Receipt:
    """The receipt in a file. Raises OSError, and FormatError for what is none."""
    path = Path(file)
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("it is too large")
        told = json.loads(path.read_text("utf-8"))
        if not isinstance(told, dict) or "receipt" not in told:
            raise ValueError("it has no key receipt")
        if told.pop("receipt") != FORMAT:
            raise ValueError("it is of another version of qwen3")
        for name in ("gpu_layers", "gpu_expert_bytes"):  # as before a GPU computed any
            told.setdefault(name, 0)
        told["samples"] = [_made(Sample, sample) for sample in told["samples"]]
        receipt: Receipt = _made(Receipt, told)
        _check(receipt)
        return receipt
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"{file}: is no receipt of `qwen3 run --receipt`: {error}") from None


def _check(receipt: Receipt) -> None:
    """Raises ValueError for what the types do not say."""
    Generation(receipt.generation)
    if "seed" in receipt.sampling:
        raise ValueError("its sampling has a seed, as each sample has")
    sampling = _made(Sampling, receipt.sampling | {"seed": 0})
    if receipt.kv not in ("f16", "f32", "q8"):
        raise ValueError(f"its kv is {receipt.kv!r}")
    if receipt.landing not in get_args(Landing):
        raise ValueError(f"its landing is {receipt.landing!r}")
    if not receipt.samples or not receipt.prompt:
        raise ValueError("it has no samples or no prompt")
    ids = [*receipt.prompt, *(token for sample in receipt.samples for token in sample.output)]
    if max(*ids, sampling.top_k) > _LARGEST_INT or not 0 < receipt.n_ctx <= 1 << 24:
        raise ValueError("a number in it is too large")


def _made(kind: type[Any], table: Any) -> Any:
    """A dataclass of what a table holds. Raises ValueError and TypeError."""
    hints = get_type_hints(kind)
    if not isinstance(table, dict):
        raise ValueError(f"no {kind.__name__.lower()} is {table!r:.40}")
    for name in [*hints, *table]:
        if name not in table:
            raise ValueError(f"it has no {name}")
        if name not in hints or not _fits(table[name], hints[name]):
            raise ValueError(f"its {name} is {table[name]!r:.40}")
    return kind(**table)


def _fits(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, parts[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, parts[1]) for item in value.values())
    if parts:  # a union
        return any(_fits(value, part) for part in parts)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind is int:
        return type(value) is int and 0 <= value < 2**64
    return kind is Any or type(value) is kind


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_BEGINS)) in (_BEGINS, b"")


def _unwritable(file: str, error: OSError) -> Qwen3Error:
    return Qwen3Error(f"cannot write the receipt to {file}: {reason(error)}")
