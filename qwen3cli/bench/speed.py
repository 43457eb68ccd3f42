"""The command `bench`: tokens a second beside what the machine could do at best.

Decoding reads every weight that a token uses, and the keys and values of all positions
before it, from memory once:

    limit = read bandwidth / (weight bytes + positions x kv bytes of a position)
    weight bytes = dense tensors + used / count of the experts + one row of the embedding
                   + the whole output matrix (which a tied embedding is)

with the mean of the positions over the tokens that are decoded. Prefill multiplies:

    limit = n / (sum over the kinds of weights of products / peak of that kind)
    products = n x (matrices of the layers, used / count of the experts) + output matrix, once

Quantized weights multiply as int8; F32, F16 and BF16 weights (a mixture's router always) as
f32, at the peak of its fused multiply-add. Attention is not in it, nor is anything else.

A machine drifts, by neighbours and by heat. So its peaks and its bandwidth are probed before
and after every single run, with the threads of the run, and a run is judged by the mean of
its own two probes. Reported is the run whose fraction of the limit is the median: its speed,
its limit and its fraction belong together. A ratio to a peer is the median of the rounds'.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, TypeVar

from quant.shards import files
from qwen3cli.bench import peer
from qwen3cli.bench.peer import Peer, PeerFailed
from qwen3cli.engine import Cancelled, Model, ModelFile, Probe, Session
from qwen3cli.errors import DoesNotFit, UsageError
from qwen3cli.hub import registry
from qwen3cli.interrupt import interruptible
from qwen3cli.library import obtain
from qwen3cli.plan.memory import available
from qwen3cli.terminal import Terminal

PROBE_BYTES = 1 << 30  # to read: many times the largest cache
_PEERS = {  # --against: which layouts of llama.cpp
    "llama.cpp": ("plain", "repacked"),
    "llama.cpp:plain": ("plain",),
    "llama.cpp:repacked": ("repacked",),
}
_FLOAT = ("F32", "F16", "BF16")
_KV_BYTES = {"f16": 2, "f32": 4, "q8": 34 / 32}


# ---- what to measure -----------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """A prompt of so many tokens, or tokens decoded one by one behind depth others."""

    kind: str  # prefill or decode
    tokens: int
    depth: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.tokens}" + (f" at {self.depth}" if self.depth else "")

    @property
    def positions(self) -> float:
        """How many positions a decoded token attends to, on average."""
        return self.depth + (self.tokens + 1) / 2


@dataclass(frozen=True)
class Plan:
    """All that is measured, in order: prompts, then decoding from shallow to deep."""

    works: tuple[Work, ...]
    rounds: int

    @classmethod
    def parse(cls, prefill: str, decode: int, depth: str, rounds: int) -> Plan:
        """From the command line's lists. Raises UsageError."""
        prompts = [Work("prefill", n) for n in _numbers("--prefill", prefill, 1)]
        depths = [Work("decode", decode, n) for n in sorted(_numbers("--depth", depth, 0))]
        return cls((*prompts, *depths), rounds)

    @property
    def n_ctx(self) -> int:
        return max(work.tokens + work.depth for work in self.works)


def _numbers(flag: str, text: str, least: int) -> list[int]:
    """A list such as 512,2048, without repetitions."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{flag} {text}: takes whole numbers, such as 512,2048") from None
    if bad := [n for n in numbers if not least <= n <= 1 << 22]:
        raise UsageError(f"{flag} {text}: {bad[0]} is not in the range from {least} to {1 << 22}")
    return list(dict.fromkeys(numbers))


# ---- the limits ----------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """What the machine does in a second: bytes read, products of int8 and of f32."""

    read: float
    int8: float
    f32: float


@dataclass
class Cost:
    """What a token costs a model."""

    weight_bytes: float = 0  # read for a decoded token
    kv_bytes: int = 0  # read for each position before it
    products: dict[str, float] = field(default_factory=lambda: {"int8": 0.0, "f32": 0.0})
    output_products: dict[str, float] = field(default_factory=lambda: {"int8": 0.0, "f32": 0.0})

    @classmethod
    def of(
        cls, config: Mapping[str, Any], tensors: Iterable[tuple[str, tuple[int, ...], str, int]]
    ) -> Cost:
        """config: as Model has it; tensors: as ModelFile lists them."""
        cost = cls()
        cost.kv_bytes = (
            2 * config["n_layers"] * config["n_kv_heads"] * config["head_dim"]
            * _KV_BYTES[config["kv"]]
        )  # fmt: skip
        for name, shape, kind, size in tensors:
            part = name.split(".")[-2]
            unit = "f32" if kind in _FLOAT else "int8"
            if part == "token_embd":
                cost.weight_bytes += size / shape[0]
            if part == "output" or (part == "token_embd" and config["tied_embedding"]):
                cost.weight_bytes += size
                cost.output_products[unit] += math.prod(shape)
            elif part != "token_embd":
                used = part.endswith("_exps")
                share = config["n_experts_used"] / config["n_experts"] if used else 1.0
                cost.weight_bytes += size * share
                if len(shape) > 1:
                    cost.products[unit] += math.prod(shape) * share
        return cost

    def bytes_of(self, work: Work) -> float:
        """Read for one token, decoded."""
        return self.weight_bytes + work.positions * self.kv_bytes

    def products_of(self, work: Work) -> dict[str, float]:
        """For one token of the prompt."""
        output = self.output_products
        return {unit: n + output[unit] / work.tokens for unit, n in self.products.items()}

    def limit(self, work: Work, rates: Rates) -> float:
        """Tokens a second at best."""
        if work.kind == "decode":
            return rates.read / self.bytes_of(work)
        products = self.products_of(work)
        return 1 / (products["int8"] / rates.int8 + products["f32"] / rates.f32)


# ---- measuring -----------------------------------------------------------------------


class Runner(Protocol):
    """Something that computes; both give the seconds it took."""

    def prefill(self, n: int) -> float: ...
    def decode(self, n: int, depth: int) -> float: ...


class Ours:
    """This engine."""

    def __init__(self, model: Model, n_ctx: int) -> None:
        self._session = model.session(n_ctx=n_ctx)
        self._session.fill(n_ctx)  # memory that is touched later would be timed

    def prefill(self, n: int) -> float:
        self._session.sync([])
        return timed(self._session, n, n)

    def decode(self, n: int, depth: int) -> float:
        self._session.sync([])
        self._session.fill(depth)
        return timed(self._session, n, 1)


def ids_of(model: Model, n: int, first: int = 0) -> list[int]:
    """n tokens of a text that stands for any other, from position first on."""
    return [i * 7919 % model.config["n_vocab"] for i in range(first, first + n)]


def timed(session: Session, n: int, step: int) -> float:
    """The seconds in which a session computes n tokens more, step by step. Ctrl-C: Cancelled."""
    ids = ids_of(session.model, n, len(session))
    with interruptible(session.cancel):
        start = perf_counter()
        for i in range(0, n, step):
            session.extend(ids[i : i + step])
        return perf_counter() - start


def _run(runner: Runner, work: Work) -> float:
    if work.kind == "prefill":
        return runner.prefill(work.tokens)
    return runner.decode(work.tokens, work.depth)


@dataclass(frozen=True)
class Sample:
    """One run, and what the machine could do meanwhile."""

    tok_s: float
    limit: float
    rates: Rates

    @property
    def fraction(self) -> float:
        return self.tok_s / self.limit


class Measurement:
    """The runs of all works; a runner that fails is left out from then on."""

    def __init__(self, cost: Cost, probe: Callable[[], Rates]) -> None:
        self._cost = cost
        self._probe = probe
        self.probes: list[Rates] = []
        self.samples: dict[Work, dict[str, list[Sample]]] = {}
        self.failures: dict[str, str] = {}

    def measure(
        self, plan: Plan, runners: dict[str, Runner], progress: Callable[[int, int], None]
    ) -> None:
        """Work by work, so that a peer fills its context to every depth only once; in each
        round the runners take turns, the first one last in the next."""
        total, done = len(plan.works) * plan.rounds * len(runners), 0
        self._warm_up(plan, runners)
        before = self._rates()
        for work in plan.works:
            self.samples[work] = {name: [] for name in runners}
            for i in range(plan.rounds):
                names = [name for name in runners if name not in self.failures]
                for name in names if i % 2 == 0 else reversed(names):
                    seconds = self._tried(name, runners[name], work)
                    after = self._rates()
                    if seconds is not None:
                        rates = _mean(before, after)
                        sample = Sample(work.tokens / seconds, self._cost.limit(work, rates), rates)
                        self.samples[work][name].append(sample)
                    before = after
                    done += 1
                    progress(done, total)

    def _warm_up(self, plan: Plan, runners: dict[str, Runner]) -> None:
        """Brings the file into memory, and the runners' memory too."""
        for work in (plan.works[0], Work("decode", min(plan.works[-1].tokens, 4))):
            for name in [name for name in runners if name not in self.failures]:
                self._tried(name, runners[name], work)

    def _tried(self, name: str, runner: Runner, work: Work) -> float | None:
        try:
            return _run(runner, work)
        except PeerFailed as error:
            self.failures[name] = str(error)
            return None

    def _rates(self) -> Rates:
        self.probes.append(self._probe())
        return self.probes[-1]


def _mean(*all: Rates) -> Rates:
    return Rates(*(statistics.fmean(column) for column in zip(*map(astuple, all), strict=True)))


def _median(all: Sequence[Rates]) -> Rates:
    return Rates(*(statistics.median(column) for column in zip(*map(astuple, all), strict=True)))


class _Judged(Protocol):
    @property
    def fraction(self) -> float: ...


_Run = TypeVar("_Run", bound=_Judged)


def median_run(samples: Sequence[_Run]) -> _Run:
    """The run with the median fraction (of an even number, the lower)."""
    return sorted(samples, key=lambda sample: sample.fraction)[(len(samples) - 1) // 2]


# ---- the command ---------------------------------------------------------------------


def bench(
    name: str | None,
    synthetic: str | None,
    plan: Plan,
    terminal: Terminal,
    *,
    threads: int,
    against: str | None,
    as_json: bool,
) -> None:
    """Measures a model, or a synthetic one, and prints the report. Raises UsageError,
    ModelNotFound, DoesNotFit."""
    layouts: tuple[str, ...] = ()
    if against is not None:
        if against not in _PEERS:
            raise UsageError(f"--against {against}: takes {', '.join(_PEERS)}")
        peer.require()
        layouts = _PEERS[against]
    path = model_file(name, synthetic, terminal)
    try:
        model = Model(path, threads=threads)
        cost = Cost.of(model.config, ModelFile(path).tensors())
        _check_memory(path, cost, plan, terminal)
        with terminal.progress(path.name) as move, ExitStack() as stack:
            report = _measured(model, cost, plan, layouts, stack, move)
    except Cancelled:
        raise KeyboardInterrupt from None
    if as_json:
        terminal.json(report)
    else:
        _show(report, terminal)


def model_file(name: str | None, synthetic: str | None, terminal: Terminal) -> Path:
    """The file that -m or --synthetic names; a synthetic one is made first."""
    name = name or (None if synthetic else registry.default())
    if name and synthetic:
        raise UsageError("choose one of -m and --synthetic")
    if name:
        return obtain.resolve(name, terminal)
    if not synthetic:
        raise UsageError(
            "there is nothing to measure: name a model with -m, or a shape to fill with random "
            "weights with --synthetic, such as 0.6b:q4_k_m"
        )
    from qwen3cli.bench.synthetic import synthetic as synthetic_file

    return synthetic_file(synthetic, terminal)


def _file_bytes(path: Path) -> int:
    """Of all files of a model."""
    return sum(file.stat().st_size for file in files(path))


def _check_memory(path: Path, cost: Cost, plan: Plan, terminal: Terminal) -> None:
    """Refuses a cache that does not fit; says so when the weights do not."""
    free = available()
    if free is None:
        return
    needed = plan.n_ctx * cost.kv_bytes + _probe_bytes(free)
    if needed > free:
        raise DoesNotFit(
            f"a context of {plan.n_ctx} tokens and the probe of the memory take "
            f"{needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free: take a smaller --depth "
            "or --prefill"
        )
    if _file_bytes(path) > free - needed:
        terminal.note(
            f"qwen3: {path.name} does not fit into the {(free - needed) / 1e9:.1f} GB of memory "
            "that are left: part of it comes from disk, which the limits do not know"
        )


def _probe_bytes(free: int | None) -> int:
    return PROBE_BYTES if free is None else min(PROBE_BYTES, max(free // 4, 1 << 22))


def _measured(
    model: Model,
    cost: Cost,
    plan: Plan,
    layouts: Sequence[str],
    stack: ExitStack,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """The report; what has to be closed is left to stack."""
    probe = Probe(model, _probe_bytes(available()))
    measurement = Measurement(cost, lambda: Rates(probe.read(), probe.int8(), probe.f32()))
    runners: dict[str, Runner] = {"qwen3": Ours(model, plan.n_ctx)}
    version = None
    for layout in layouts:
        try:
            runner = Peer(
                model.path, threads=model.threads, n_ctx=plan.n_ctx, repack=layout == "repacked"
            )
        except PeerFailed as error:
            measurement.failures[layout] = str(error)
            continue
        stack.callback(runner.close)
        runners[layout] = runner
        version = runner.version
    measurement.measure(plan, runners, progress)
    return _report(model, cost, plan, measurement, layouts, version)


# ---- the report ----------------------------------------------------------------------


def about(model: Model) -> dict[str, Any]:
    """What was measured."""
    path = model.path
    return {"file": str(path), "bytes": _file_bytes(path), "arch": model.config["arch"]}


def _report(
    model: Model,
    cost: Cost,
    plan: Plan,
    measured: Measurement,
    layouts: Sequence[str],
    version: str | None,
) -> dict[str, Any]:
    rows = [_row(work, cost, measured.samples[work]) for work in plan.works]
    prefills = [row for row, work in zip(rows, plan.works, strict=True) if work.kind == "prefill"]
    decodes = [row for row, work in zip(rows, plan.works, strict=True) if work.kind == "decode"]
    report: dict[str, Any] = {
        "model": about(model),
        "machine": {"threads": model.threads, "isa": model.isa, **_rates(_median(measured.probes))},
        "rounds": plan.rounds,
        "decode": decodes[0],
        "prefill": prefills[0],
        "by_depth": decodes,
        "by_length": prefills,
    }
    if layouts:
        report["peer"] = {
            "name": "llama.cpp",
            "llama_cpp_python": version,
            "layouts": {name: measured.failures.get(name) or "ok" for name in layouts},
        }
    return report


def _row(work: Work, cost: Cost, samples: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    """One work: our median run, what it was judged by, and the peers."""
    ours = median_run(samples["qwen3"])
    row: dict[str, Any] = {
        "tok_s": rounded(ours.tok_s),
        "limit_tok_s": rounded(ours.limit),
        "fraction": rounded(ours.fraction),
        "tokens": work.tokens,
    }
    if work.kind == "decode":
        gigabytes = cost.bytes_of(work) / 1e9
        row |= {"depth": work.depth, "gb_per_token": rounded(gigabytes)}
    else:
        products = sum(cost.products_of(work).values())
        row["gmac_per_token"] = rounded(products / 1e9)
    row |= _rates(ours.rates)
    # A peer that failed half-way has no part in this row.
    peers = {
        name: {
            "tok_s": rounded(statistics.median(sample.tok_s for sample in theirs)),
            "ratio": rounded(
                statistics.median(
                    a.tok_s / b.tok_s for a, b in zip(samples["qwen3"], theirs, strict=True)
                )
            ),
        }
        for name, theirs in samples.items()
        if name != "qwen3" and len(theirs) == len(samples["qwen3"])
    }
    if len(samples) > 1:
        row["peer"] = peers
        row["better"] = max(peers, key=lambda name: peers[name]["tok_s"], default=None)
    return row


def _rates(rates: Rates) -> dict[str, float]:
    return {
        "read_gb_s": rounded(rates.read / 1e9),
        "int8_gmac_s": rounded(rates.int8 / 1e9),
        "f32_gmac_s": rounded(rates.f32 / 1e9),
    }


def rounded(value: float) -> float:
    """To five digits."""
    return float(f"{value:.5g}")


def heading(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What every report begins with."""
    model, machine = report["model"], report["machine"]
    return [
        ("model", f"{model['file']} ({model['bytes'] / 1e6:,.0f} MB)"),
        ("engine", f"{machine['isa']}, {machine['threads']} threads"),
        ("memory", f"reads {machine['read_gb_s']:.1f} GB/s"),
    ]


def _show(report: Mapping[str, Any], terminal: Terminal) -> None:
    """The report as two tables."""
    machine, peers = report["machine"], report.get("peer")
    rows = [
        *heading(report),
        ("int8", f"{machine['int8_gmac_s']:.0f} billion products a second"),
        ("f32", f"{machine['f32_gmac_s']:.0f} billion products a second"),
    ]
    if peers:
        rows.append(("llama.cpp", f"llama-cpp-python {peers['llama_cpp_python']}"))
        rows += [(f"  {name}", state) for name, state in peers["layouts"].items() if state != "ok"]
    terminal.table(("machine", ""), rows)
    head = ["work", "tok/s", "limit", "of it"]
    if peers:
        head += ["llama.cpp", "layout", "ratio"]
    terminal.table(head, [_line(row, peers) for row in report["by_length"] + report["by_depth"]])


def _line(row: Mapping[str, Any], peers: object) -> list[str]:
    kind = "decode" if "depth" in row else "prefill"
    line = [
        str(Work(kind, row["tokens"], row.get("depth", 0))),
        figure(row["tok_s"]),
        figure(row["limit_tok_s"]),
        f"{100 * row['fraction']:.0f} %",
    ]
    if not peers:
        return line
    better = row.get("better")
    if better is None:
        return [*line, "-", "-", "-"]
    theirs = row["peer"][better]
    return [*line, figure(theirs["tok_s"]), better, f"{theirs['ratio']:.2f}"]


def figure(tok_s: float) -> str:
    """Tokens a second in a table."""
    return f"{tok_s:,.0f}" if tok_s >= 100 else f"{tok_s:.1f}" if tok_s >= 10 else f"{tok_s:.2f}"
