"""The flags and arguments that commands share. Those of `run` and `chat`, and of the commands that
read texts, are a dataclass each."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from qwen3cli.config import Setting, lookup
from qwen3cli.errors import UsageError

Check = Callable[[Any], Any]
_CHECKS: dict[str, Check] = {}  # of the flags that are settings, by key


def _within(low: float, high: float) -> Check:
    """A check that says what is wrong; NaN is in no range."""

    def check(value: float | None) -> float | None:
        if value is not None and not low <= value <= high:
            raise typer.BadParameter(f"{value} is not in the range from {low} to {high}.")
        return value

    return check


def _one_of(*values: str) -> Check:
    def check(value: str | None) -> str | None:
        if value is not None and value not in values:
            raise typer.BadParameter(f"{value!r} is not {' or '.join(values)}.")
        return value

    return check


def _memory(flag: str) -> Check:
    def check(value: str | None) -> str | None:
        if value not in (None, "auto"):
            from qwen3cli.plan.memory import parse_bytes

            parse_bytes(str(value), flag)
        return value

    return check


def _gpu(value: str | int | None) -> str | None:
    if value is None:
        return None
    if value not in ("auto", "off"):
        from qwen3cli.plan.gpu import layers_wanted

        try:
            layers_wanted(str(value))
        except UsageError as error:
            raise typer.BadParameter(f"{error}.") from None
    return str(value)


def _budget(value: str | int | None) -> str | None:
    if value is None:
        return None
    from qwen3cli.thinking.budgets import parse_budget

    try:
        parse_budget(str(value))
    except UsageError as error:
        raise typer.BadParameter(f"{error}.") from None
    return str(value)


def _anything(value: Any) -> Any:
    return value


def _option(name: str, help: str, metavar: str | None = "N", **more: Any) -> Any:
    return typer.Option(name, help=help, metavar=metavar, show_default=False, **more)


def _flag(name: str, help: str, metavar: str | None = "N", check: Check = _anything) -> Any:
    """A flag that is a setting: where it is not given, the environment and config.toml say."""
    key = name.partition("/")[0].removeprefix("--")
    _CHECKS[key] = check

    def callback(context: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
        source = context.get_parameter_source(str(param.name))
        if context.resilient_parsing or (source and source.name == "COMMANDLINE"):
            return check(value)
        setting = lookup(key)
        return check_setting(key, setting) if setting else value

    return _option(name, help, metavar, callback=callback)


def check_setting(key: str, setting: Setting) -> Any:
    """The value of a setting. Raises UsageError that names it and its origin."""
    try:
        return _CHECKS.get(key, _anything)(setting.value)
    except (typer.BadParameter, UsageError) as error:
        where = f"{setting.origin}: " if setting.origin else ""
        raise UsageError(f"{where}{key}: {getattr(error, 'message', error)}") from None


def _number(name: str, help: str, low: float, high: float) -> Any:
    return _flag(name, help, "F", _within(low, high))


def _count(name: str, help: str, low: int, high: int) -> Any:
    return _flag(name, help, check=_within(low, high))


def _choice(name: str, help: str, *values: str) -> Any:
    return _flag(name, help, "|".join(values), _one_of(*values))


def _threads(default: str) -> Any:
    return _count("--threads", f"Threads (default: one per {default}).", 0, 1024)


_MOST = 2**31 - 1  # of what fits into a native int


def complete_models(incomplete: str) -> list[str]:
    """Names of models that begin so. None: the shell completes a path."""
    from qwen3cli.hub.registry import known

    return [name for name in known(quants=":" in incomplete) if name.startswith(incomplete.lower())]


ModelName = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--model",
        metavar="MODEL",
        help="A GGUF file or a name, such as 0.6b.",
        autocompletion=complete_models,
    ),
]
Threads = Annotated[int, _threads("physical core")]
QuantizerThreads = Annotated[int, _threads("CPU")]
ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A GGUF file or a name.", autocompletion=complete_models),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Added = Annotated[bool, typer.Option("--added", help="Read <|im_end|> and its like as tokens.")]
Ram = Annotated[
    str | None,
    _flag(
        "--ram",
        "Memory for a mixture of experts; the rest stays in the file.",
        "8G|auto",
        _memory("--ram"),
    ),
]
Gpu = Annotated[
    str | None, _flag("--gpu", "Layers for the GPU: what fits, or so many.", "auto|off|N", _gpu)
]
Vram = Annotated[
    str | None,
    _flag("--vram", "At most so much of the GPU's memory.", "6G|auto", _memory("--vram")),
]
PreferCached = Annotated[
    float,
    _number(
        "--prefer-cached", "Lean to experts in memory: so much on their router logits (0).", 0, 100
    ),
]
DropMisses = Annotated[
    float,
    _number("--drop-misses", "Leave out experts in the file that weigh less than this (0).", 0, 1),
]
Context = Annotated[int | None, _count("--ctx", "Tokens the context holds.", 1, 2**24)]
KvType = Annotated[
    str | None, _choice("--kv", "Type of the kv cache: q8 takes half the memory.", "f16", "q8")
]


@dataclass(frozen=True)
class Options:
    """None: as the model and its mode have it."""

    model: ModelName = None
    system: Annotated[str | None, _flag("--system", "The system message.", "TEXT")] = None
    think: Annotated[
        bool | None, _flag("--think/--no-think", "Think before the answer, or not.", None)
    ] = None
    budget: Annotated[
        str | None, _flag("--budget", "Most tokens or time of thinking.", "N|30s|none", _budget)
    ] = None
    landing: Annotated[
        str | None,
        _choice("--landing", "Near the budget where a line ends, or at it.", "soft", "hard"),
    ] = None
    max_tokens: Annotated[
        int | None, _count("--max-tokens", "Most tokens of the answer.", 1, _MOST)
    ] = None
    temp: Annotated[float | None, _number("--temp", "Temperature (0: greedy).", 0, 100)] = None
    top_k: Annotated[int | None, _count("--top-k", "Draw from the N best (0: all).", 0, _MOST)] = (
        None
    )
    top_p: Annotated[
        float | None, _number("--top-p", "Draw from the best that hold this share.", 1e-6, 1)
    ] = None
    min_p: Annotated[
        float | None, _number("--min-p", "Leave out below this share of the best.", 0, 1)
    ] = None
    presence_penalty: Annotated[
        float | None,
        _number("--presence-penalty", "Against what was generated (0: off).", -100, 100),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        _number("--repetition-penalty", "Against what the context holds (1: off).", 0.01, 100),
    ] = None
    seed: Annotated[int | None, _count("--seed", "The same seed, the same text.", 0, 2**64 - 1)] = (
        None
    )
    stop: Annotated[
        list[str] | None, _option("--stop", "End the answer before TEXT; may be repeated.", "TEXT")
    ] = None
    overflow: Annotated[
        str | None,
        _choice(
            "--overflow",
            "More than the context holds is an error, or the oldest turns are dropped.",
            "error",
            "drop-oldest",
        ),
    ] = None
    ctx: Context = None
    kv: KvType = None
    ram: Ram = None
    gpu: Gpu = None
    vram: Vram = None
    prefer_cached: PreferCached = 0.0
    drop_misses: DropMisses = 0.0
    threads: Threads = 0
    thoughts: Annotated[
        str | None, _flag("--thoughts", "Where the thoughts go.", "show|dim|fold|hide|FILE")
    ] = None


@dataclass(frozen=True)
class Reading:
    """A model, and the texts that it reads. A chunk is read with nothing before it."""

    model: ModelArgument
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT...", help="Text files; -: stdin, the default.", show_default=False
        ),
    ] = None
    ctx: Annotated[
        int, _option("--ctx", "Tokens of a chunk (default: 512).", callback=_within(4, 2**24))
    ] = 512
    chunks: Annotated[
        int | None,
        _option("--chunks", "At most N chunks (default: all).", callback=_within(1, _MOST)),
    ] = None
    added: Added = False  # spelled-out added tokens, such as <|im_end|>, are these tokens
    ram: Ram = None
    threads: Threads = 0

    @property
    def files(self) -> list[str]:
        """- for stdin."""
        return self.texts or ["-"]


@dataclass(frozen=True)
class Measuring(Reading):
    """As Reading, where a GPU may compute."""

    gpu: Gpu = None
    vram: Vram = None


def shared(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command every flag of a dataclass, as which it takes them in its last parameter."""
    # Not get_type_hints: before Python 3.11 it hides what is annotated behind an Optional.
    *own, last = inspect.signature(command, eval_str=True).parameters.values()
    flags = get_type_hints(last.annotation, include_extras=True)
    defaults = {field.name: field.default for field in fields(last.annotation)}

    @wraps(command)
    def with_flags(**given: Any) -> Any:
        options = last.annotation(**{name: given.pop(name) for name in defaults})
        return command(**given, **{last.name: options})

    kind = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.Signature(
        [
            inspect.Parameter(
                name,
                kind,
                default=inspect.Parameter.empty if default is MISSING else default,
                annotation=flags[name],
            )
            for name, default in defaults.items()
        ]
        + [parameter.replace(kind=kind) for parameter in own]
    )
    with_flags.__signature__ = signature  # type: ignore[attr-defined]
    with_flags.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return with_flags
