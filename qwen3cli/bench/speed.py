"""The command `bench`: tokens a second beside what the machine could do at best.

What that is, limits.py says. A machine drifts, by neighbours and by heat. So its peaks and its
bandwidth, a GPU's too, are probed before and after every single run, with the threads of the run,
and a run is judged by the mean of its own two probes. Reported is the run whose fraction of the
limit is the median: its speed, its limit and its fraction belong together. A ratio to a peer is
the median of the rounds'.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, TypeVar

from quant.shards import files
from qwen3cli.bench import peer
from qwen3cli.bench.limits import Cost, Misses, Rates, Work
from qwen3cli.bench.peer import Peer, PeerFailed
from qwen3cli.engine import Cancelled, Device, Model, ModelFile, Probe, Session, probe_device
from qwen3cli.errors import DoesNotFit, UsageError
from qwen3cli.hub import registry
from qwen3cli.interrupt import interruptible
from qwen3cli.library import obtain
from qwen3cli.opening import Opening, open_model
from qwen3cli.plan.gpu import Card, card
from qwen3cli.plan.memory import amount, available
from qwen3cli.run.statistics import on_gpu
from qwen3cli.terminal import Terminal

PROBE_BYTES = 1 << 30  # to read: many times the largest cache
_PEERS = {  # --against: which layouts of llama.cpp
    "llama.cpp": ("plain", "repacked"),
    "llama.cpp:plain": ("plain",),
    "llama.cpp:repacked": ("repacked",),
}


# ---- what to measure -----------------------------------------------------------------


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
    misses: float = 0  # of the experts that a GPU wanted, the share that was not there

    @property
    def fraction(self) -> float:
        return self.tok_s / self.limit


class Measurement:
    """The runs of all works; a runner that fails is left out from then on."""

    def __init__(
        self, cost: Cost, probe: Callable[[], Rates], misses: Callable[[], float] = lambda: 0
    ) -> None:
        """misses: the share of the experts that a GPU wanted in vain, since it was asked last."""
        self._cost = cost
        self._probe = probe
        self._misses = misses
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
        self._misses()
        before = self._rates()
        for work in plan.works:
            self.samples[work] = {name: [] for name in runners}
            for i in range(plan.rounds):
                names = [name for name in runners if name not in self.failures]
                for name in names if i % 2 == 0 else reversed(names):
                    seconds = self._tried(name, runners[name], work)
                    after, misses = self._rates(), self._misses()
                    if seconds is not None:
                        rates = mean(before, after)
                        limit = self._cost.limit(work, rates, misses)
                        sample = Sample(work.tokens / seconds, limit, rates, misses)
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


def rates_now(model: Model, probe: Probe) -> Rates:
    """Of the threads of a model, and of the GPU in use."""
    host = Rates(probe.read(), probe.int8(), probe.f32())
    return with_gpu(host, model.device) if model.device else host


def with_gpu(host: Rates, device: Device) -> Rates:
    there = probe_device(device.number)
    return replace(
        host,
        gpu_read=there["read"],
        gpu_upload=there["upload"],
        gpu_int8=there["int8"],
        gpu_f16=there["f16"],
    )


def mean(*all: Rates) -> Rates:
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
    gpu: str | None,
    vram: str | None,
    against: str | None,
    as_json: bool,
) -> None:
    """Measures a model, or a synthetic one, and prints the report. Raises UsageError,
    ModelNotFound, DoesNotFit, and Qwen3Error for layers without a GPU."""
    layouts: tuple[str, ...] = ()
    if against is not None:
        if against not in _PEERS:
            raise UsageError(f"--against {against}: takes {', '.join(_PEERS)}")
        peer.require()
        layouts = _PEERS[against]
    path = model_file(name, synthetic, terminal)
    try:
        model = _opened(path, threads, card(gpu, vram), plan, terminal)
        n_layers = model.gpu_stats.n_layers
        cost = Cost.of(model.config, ModelFile(path).tensors(), gpu_layers=n_layers)
        _check_memory(model, cost, plan, terminal)
        with terminal.progress(path.name) as move, ExitStack() as stack:
            report = _measured(model, cost, plan, layouts, stack, move)
    except Cancelled:
        raise KeyboardInterrupt from None
    if as_json:
        terminal.json(report)
    else:
        _show(report, terminal)


def _opened(path: Path, threads: int, card: Card | None, plan: Plan, terminal: Terminal) -> Model:
    """With what fits on a GPU there; else all of it is mapped."""
    if card is None:
        return Model(path, threads=threads)
    opening = Opening(path, card=card, n_ctx=plan.n_ctx, threads=threads)
    return open_model(opening, terminal.note)[0]


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


def _check_memory(model: Model, cost: Cost, plan: Plan, terminal: Terminal) -> None:
    """Refuses a cache that does not fit; says so when the weights do not. What is in the memory
    of a GPU takes none here."""
    free = available()
    if free is None:
        return
    kv_bytes, weights = cost.kv_bytes, _file_bytes(model.path)
    if cost.gpu and model.device and not model.device.unified:
        kv_bytes -= cost.gpu.kv_bytes
        weights -= model.gpu_stats.bytes
    needed = plan.n_ctx * kv_bytes + _probe_bytes(free)
    if needed > free:
        raise DoesNotFit(
            f"a context of {plan.n_ctx} tokens and the probe of the memory take "
            f"{amount(needed, math.ceil)}, but {amount(free, math.floor)} are free: take a smaller "
            "--depth or --prefill"
        )
    if weights > free - needed:
        terminal.note(
            f"qwen3: {model.path.name} does not fit into the {amount(free - needed, math.floor)} "
            "of memory that are left: part of it comes from disk, which the limits do not know"
        )


def _probe_bytes(free: int | None) -> int:
    return PROBE_BYTES if free is None else min(PROBE_BYTES, max(free // 4, 1 << 22))


def probe_of(model: Model) -> Probe:
    """With as much memory as there is for it."""
    return Probe(model, _probe_bytes(available()))


def _measured(
    model: Model,
    cost: Cost,
    plan: Plan,
    layouts: Sequence[str],
    stack: ExitStack,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """The report; what has to be closed is left to stack."""
    probe = probe_of(model)
    measurement = Measurement(cost, lambda: rates_now(model, probe), Misses(model))
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
        **on_gpu(model),
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


def _rates(rates: Rates) -> dict[str, Any]:
    report: dict[str, Any] = {
        "read_gb_s": rounded(rates.read / 1e9),
        "int8_gmac_s": rounded(rates.int8 / 1e9),
        "f32_gmac_s": rounded(rates.f32 / 1e9),
    }
    if rates.gpu_read:
        report["gpu"] = {
            "read_gb_s": rounded(rates.gpu_read / 1e9),
            "upload_gb_s": rounded(rates.gpu_upload / 1e9),
            "int8_gmac_s": rounded(rates.gpu_int8 / 1e9),
            "f16_gmac_s": rounded(rates.gpu_f16 / 1e9),
        }
    return report


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
        *_gpu_lines(report),
    ]
    if peers:
        rows.append(("llama.cpp", f"llama-cpp-python {peers['llama_cpp_python']}"))
        rows += [(f"  {name}", state) for name, state in peers["layouts"].items() if state != "ok"]
    terminal.table(("machine", ""), rows)
    head = ["work", "tok/s", "limit", "of it"]
    if peers:
        head += ["llama.cpp", "layout", "ratio"]
    terminal.table(head, [_line(row, peers) for row in report["by_length"] + report["by_depth"]])


def _gpu_lines(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "gpu" not in report:
        return []
    device, gpu = report["gpu"], report["machine"]["gpu"]
    return [
        ("gpu", f"{device['name']}, {device['layers']} layer{'s' * (device['layers'] > 1)}"),
        ("  memory", f"reads {gpu['read_gb_s']:.1f} GB/s"),
        ("  copies", f"{gpu['upload_gb_s']:.1f} GB/s to it"),
        ("  int8", f"{gpu['int8_gmac_s']:.0f} billion products a second"),
        ("  f16", f"{gpu['f16_gmac_s']:.0f} billion products a second"),
    ]


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
