"""The command `bench --ram`: tokens a second of a mixture of experts against its memory.

A token reads the weights that it uses from memory, and those of them that were not there from the
disk. One after the other that is the serial floor, 1 / (T_memory + T_disk); at the same time, the
limit of perfect overlap, 1 / max(T_memory, T_disk). Both follow from the bytes that were read in
the run, and from the mean of the rates right before and after it. The prediction knows only what
is known before: the rates, and how often experts are missed as a rule.

For every memory a model is opened anew and decodes until its store has filled with what is used.
Then it decodes what is measured, computes a prompt, and decodes once more: how many experts are
there now shows what the prompt has cost.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3cli.bench.chart import Series, line_chart
from qwen3cli.bench.limits import Work
from qwen3cli.bench.routes import guesses_of, misses_of, routes_of
from qwen3cli.bench.speed import (
    Plan,
    about,
    figure,
    heading,
    ids_of,
    median_run,
    model_file,
    rounded,
    timed,
)
from qwen3cli.engine import Cancelled, Model, Session
from qwen3cli.errors import UsageError
from qwen3cli.evaluate import divergence as kl_divergence
from qwen3cli.evaluate import log_softmax
from qwen3cli.plan.machine import Rates, rates
from qwen3cli.plan.memory import available, parse_bytes
from qwen3cli.plan.placement import Placement, place
from qwen3cli.plan.predict import Speed, predict, speed
from qwen3cli.screen.sanitize import one_line
from qwen3cli.terminal import Terminal

WARM_UP = 32  # tokens, four half-lives of the store's memory of what was used
_BEHIND = 16  # at most so many tokens behind the prompt


@dataclass(frozen=True)
class Approximation:
    """What decoding gives up, see Model.approximate; false: nothing."""

    prefer: float = 0.0
    drop: float = 0.0

    def __bool__(self) -> bool:
        return self.prefer > 0 or self.drop > 0


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    rams: tuple[str, ...]
    prefill: Work
    decode: Work
    routes: str
    rounds: int
    plot: Path | None
    guess: bool | None  # experts are read by a guess before they are chosen; None: it is tried
    approximation: Approximation

    @classmethod
    def parse(
        cls,
        rams: str,
        plan: Plan,
        routes: str | None,
        plot: Path | None,
        guess: bool | None = None,
        approximation: Approximation = Approximation(),
    ) -> Request:
        """Raises UsageError."""
        prefills = [work for work in plan.works if work.kind == "prefill"]
        decodes = [work for work in plan.works if work.kind == "decode"]
        if len(prefills) > 1 or len(decodes) > 1 or decodes[0].depth:
            raise UsageError("--ram takes one length of --prefill, and no --depth")
        if plot is not None and plot.suffix != ".svg":
            raise UsageError(f"--plot {plot}: the name of an .svg file is needed")
        if plot is not None and not plot.parent.is_dir():
            raise UsageError(f"--plot {plot}: there is no such folder; create it first")
        unique = tuple(dict.fromkeys(rams.split(",")))
        for ram in unique:
            parse_bytes(ram, "--ram")
        if approximation and routes not in (None, "own"):
            raise UsageError("forced routes leave no choice to --prefer-cached and --drop-misses")
        routes = routes or "own"
        return cls(unique, prefills[0], decodes[0], routes, plan.rounds, plot, guess, approximation)

    @property
    def behind(self) -> int:
        return min(self.decode.tokens, _BEHIND)

    @property
    def n_ctx(self) -> int:
        return WARM_UP + self.decode.tokens + self.prefill.tokens + self.behind


@dataclass(frozen=True)
class Pass:
    """Tokens that were computed, and what became of the experts meanwhile."""

    tokens: int
    seconds: float
    hits: int
    misses: int
    bytes_read: int
    stall_s: float

    @property
    def tok_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def hit_rate(self) -> float:
        """1 without a store: all of them are in memory."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else 1.0


@dataclass(frozen=True)
class Run:
    """What one memory was measured to be worth."""

    decode: Pass
    prefill: Pass
    behind: Pass  # decode after the prompt
    rates: Rates
    bounds: Speed  # by what decode read
    predicted: float  # tokens a second
    guesses: tuple[int, int]  # in decode: experts that were read by a guess, and rightly so
    divergence: tuple[float, float] | None  # of an approximation: mean KL, and same top-1

    @property
    def fraction(self) -> float:
        return self.decode.tok_s / self.bounds.limit


# ---- measuring -------------------------------------------------------------------------


def bench_ram(
    name: str | None,
    synthetic: str | None,
    request: Request,
    terminal: Terminal,
    *,
    threads: int,
    as_json: bool,
) -> None:
    """Measures every memory and prints the report. Raises UsageError, for a dense model too,
    ModelNotFound, DoesNotFit."""
    path = model_file(name, synthetic, terminal)
    placements = [place(path, ram, n_ctx=request.n_ctx) for ram in request.rams]
    report, routes = _begun(path, placements[0], request, threads)
    _check_memory(placements, request, terminal)
    runs: list[list[Run]] = [[] for _ in placements]
    try:
        with terminal.progress(path.name) as move:
            for done in range(request.rounds * len(placements)):
                i = done % len(placements)
                runs[i].append(_run(path, placements[i], request, routes, threads))
                move(done + 1, request.rounds * len(placements))
    except Cancelled:
        raise KeyboardInterrupt from None
    _report(report, placements, runs)
    if as_json:
        terminal.json(report)
    else:
        _show(report, terminal)
    if request.plot is not None:
        request.plot.write_text(_chart(report), encoding="utf-8", errors="replace")


def _check_memory(placements: Sequence[Placement], request: Request, terminal: Terminal) -> None:
    """Says so when there is not as much memory as was asked for."""
    free, needed = available(), max(_held_bytes(each, request.n_ctx) for each in placements)
    if free is not None and needed > free:
        terminal.note(
            f"qwen3: {needed / 1e9:.1f} GB are to be held in memory, but {free / 1e9:.1f} GB are "
            "free: with so much, it is swapping that is measured"
        )


def _held_bytes(placement: Placement, n_ctx: int) -> float:
    sizes = placement.sizes
    assert sizes is not None
    return sizes.dense + (placement.expert_bytes or sizes.experts) + sizes.kv_bytes(n_ctx)


def _begun(
    path: Path, placement: Placement, request: Request, threads: int
) -> tuple[dict[str, Any], NDArray[np.int32] | None]:
    """What the report begins with, and the routes. Opens the model with the least memory: all
    that was asked wrongly is told before anything is measured."""
    if placement.sizes is None or not placement.sizes.experts:
        raise UsageError(f"--ram: {path.name} has no experts that could stay in the file")
    model = Model(path, threads=threads, expert_bytes=placement.sizes.least_experts)
    routes = routes_of(request.routes, model.config, request.n_ctx)
    if routes is not None:
        model.session(n_ctx=1).force_routes(routes)
    report = {
        "model": about(model),
        "machine": {"threads": model.threads, "isa": model.isa},
        "rounds": request.rounds,
        "routes": request.routes,
        "guess": request.guess,
    }
    if request.approximation:
        report["approximation"] = asdict(request.approximation)
    return report, routes


def _run(
    path: Path,
    placement: Placement,
    request: Request,
    routes: NDArray[np.int32] | None,
    threads: int,
) -> Run:
    before = rates(path, threads, fresh=True)
    model = Model(path, threads=threads, expert_bytes=placement.expert_bytes)
    session = model.session(n_ctx=request.n_ctx)
    session.fill(request.n_ctx)  # memory that is touched later would be timed
    session.sync([])
    if routes is not None:
        session.force_routes(routes, guesses_of(routes, model.config["n_experts"]))
    model.guess(request.guess)
    model.approximate(prefer=request.approximation.prefer, drop=request.approximation.drop)
    timed(session, WARM_UP, 1)
    before_decode = model.expert_stats
    decode = _pass(session, request.decode.tokens, 1)
    after_decode = model.expert_stats
    prefill = _pass(session, request.prefill.tokens, request.prefill.tokens)
    behind = _pass(session, request.behind, 1)
    divergence = _divergence(session, request) if request.approximation else None
    n_experts = model.config["n_experts"]
    del session, model  # before the next probe takes memory
    after = rates(path, threads, fresh=True)

    sizes = placement.sizes
    assert sizes is not None
    now = Rates((before.memory + after.memory) / 2, (before.disk + after.disk) / 2)
    positions = Work("decode", request.decode.tokens, WARM_UP).positions
    from_memory = sizes.dense + sizes.used * sizes.experts + sizes.kv_bytes(positions)
    misses = None
    if routes is not None:
        held = int(_share(placement) * routes.shape[1] * n_experts)
        tokens = range(WARM_UP, WARM_UP + request.decode.tokens)
        misses = misses_of(routes, n_experts, held, tokens)
    return Run(
        decode=decode,
        prefill=prefill,
        behind=behind,
        rates=now,
        bounds=speed(from_memory, decode.bytes_read / decode.tokens, now),
        predicted=predict(
            sizes, placement.expert_bytes, before, misses=misses, positions=positions
        ).tok_s,
        guesses=(
            after_decode.guesses - before_decode.guesses,
            after_decode.right_guesses - before_decode.right_guesses,
        ),
        divergence=divergence,
    )


def _divergence(session: Session, request: Request) -> tuple[float, float]:
    """Of the approximation from what is exact, over as many tokens as were decoded: the mean KL
    in nats, and how often the likeliest token is the same."""
    ids = ids_of(session.model, request.decode.tokens)

    def logits(approximation: Approximation) -> NDArray[np.float64]:
        session.model.approximate(prefer=approximation.prefer, drop=approximation.drop)
        session.sync([])
        rows = []
        for token in ids:
            session.extend([token])
            rows.append(log_softmax(session.logits()))
        return np.stack(rows)

    exact, approximate = logits(Approximation()), logits(request.approximation)
    same = exact.argmax(-1) == approximate.argmax(-1)
    return float(kl_divergence(exact, approximate).mean()), float(same.mean())


def _share(placement: Placement) -> float:
    """The share of the experts that there is memory for."""
    assert placement.sizes is not None
    return min(1.0, (placement.expert_bytes or math.inf) / placement.sizes.experts)


def _pass(session: Session, n: int, step: int) -> Pass:
    before = session.model.expert_stats
    seconds = timed(session, n, step)
    after = session.model.expert_stats
    return Pass(
        tokens=n,
        seconds=seconds,
        hits=after.hits - before.hits,
        misses=after.misses - before.misses,
        bytes_read=after.bytes_read - before.bytes_read,
        stall_s=after.stall_s - before.stall_s,
    )


# ---- the report ------------------------------------------------------------------------


def _report(
    report: dict[str, Any], placements: Sequence[Placement], runs: Sequence[Sequence[Run]]
) -> None:
    """Adds the median run of every memory; at the top stands what the first one was worth."""
    rows = [
        _row(placement, median_run(those))
        for placement, those in zip(placements, runs, strict=True)
    ]
    for key in ("read_gb_s", "disk_gb_s"):
        report["machine"][key] = rounded(statistics.median(row["decode"][key] for row in rows))
    report |= {key: rows[0][key] for key in ("experts", "decode", "prefill")}
    report["by_ram"] = rows


def _row(placement: Placement, run: Run) -> dict[str, Any]:
    assert placement.sizes is not None
    decode, prefill = run.decode, run.prefill
    row: dict[str, Any] = {
        "ram_bytes": placement.ram,
        "experts_share": rounded(_share(placement)),
        "experts": {  # in decode
            "budget_bytes": placement.expert_bytes or placement.sizes.experts,
            "hit_rate": rounded(decode.hit_rate),
            "bytes_read": decode.bytes_read,
            "stall_s": rounded(decode.stall_s),
            "predicted_tok_s": rounded(run.predicted),
        },
        "decode": {
            "tok_s": rounded(decode.tok_s),
            "floor_tok_s": rounded(run.bounds.floor),
            "limit_tok_s": rounded(run.bounds.limit),
            "fraction": rounded(run.fraction),
            "tokens": decode.tokens,
            "depth": WARM_UP,
            "disk_mb_per_token": rounded(decode.bytes_read / decode.tokens / 1e6),
            "waiting": rounded(decode.stall_s / decode.seconds),
            "read_gb_s": rounded(run.rates.memory / 1e9),
            "disk_gb_s": rounded(run.rates.disk / 1e9),
        },
        "prefill": {
            "tok_s": rounded(prefill.tok_s),
            "tokens": prefill.tokens,
            "bytes_read": prefill.bytes_read,
            "hit_rate_behind": rounded(run.behind.hit_rate),
            "waiting": rounded(prefill.stall_s / prefill.seconds),
        },
        "guesses": {"read": run.guesses[0], "right": run.guesses[1]},
    }
    if run.divergence:
        kl, same = map(rounded, run.divergence)
        row["divergence"] = {"kl": kl, "same_top": same}
    return row


_GUESS = {None: "", True: ", guessed always", False: ", guessed never"}
_DECODE = (
    "GB", "held", "hits", "MB read", "waits", "tok/s", "predicted", "floor", "limit",
)  # fmt: skip


def _show(report: Mapping[str, Any], terminal: Terminal) -> None:
    """The report as three tables."""
    decode, prefill = report["decode"], report["prefill"]
    rows = [
        *heading(report),
        ("disk", f"reads {report['machine']['disk_gb_s']:.2f} GB/s"),
        ("routes", report["routes"] + _GUESS[report["guess"]]),
        ("decode", f"{decode['tokens']} tokens behind {decode['depth']}"),
    ]
    terminal.table(("machine", ""), rows)
    terminal.table(_DECODE, [_decode_line(row) for row in report["by_ram"]])
    head = ("GB", f"prefill {prefill['tokens']}", "hits in decode before it", "behind it")
    terminal.table(head, [_prefill_line(row) for row in report["by_ram"]])
    if "approximation" in report:
        lines = [
            (
                f"{row['ram_bytes'] / 1e9:g}",
                f"{row['divergence']['kl']:.2e}",
                f"{100 * row['divergence']['same_top']:.1f} %",
            )
            for row in report["by_ram"]
        ]
        terminal.table(("GB", "KL from exact decoding", "same likeliest token"), lines)


def _decode_line(row: Mapping[str, Any]) -> list[str]:
    experts, decode = row["experts"], row["decode"]
    return [
        f"{row['ram_bytes'] / 1e9:g}",
        f"{100 * row['experts_share']:.0f} %",
        f"{100 * experts['hit_rate']:.1f} %",
        figure(decode["disk_mb_per_token"]),
        f"{100 * decode['waiting']:.0f} %",
        figure(decode["tok_s"]),
        figure(experts["predicted_tok_s"]),
        figure(decode["floor_tok_s"]),
        figure(decode["limit_tok_s"]),
    ]


def _prefill_line(row: Mapping[str, Any]) -> list[str]:
    prefill = row["prefill"]
    return [
        f"{row['ram_bytes'] / 1e9:g}",
        figure(prefill["tok_s"]),
        f"{100 * row['experts']['hit_rate']:.1f} %",
        f"{100 * prefill['hit_rate_behind']:.1f} %",
    ]


def _chart(report: Mapping[str, Any]) -> str:
    def series(name: str, part: str, key: str) -> Series:
        return Series(name, [(row["ram_bytes"] / 1e9, row[part][key]) for row in report["by_ram"]])

    return line_chart(
        f"{one_line(Path(report['model']['file']).stem)}: decode against memory, "
        f"{one_line(Path(report['routes']).name)} routes",
        "memory (GB)",
        "decode (tok/s)",
        [
            series("measured", "decode", "tok_s"),
            series("predicted", "experts", "predicted_tok_s"),
            series("serial floor", "decode", "floor_tok_s"),
            series("overlapped limit", "decode", "limit_tok_s"),
        ],
    )
