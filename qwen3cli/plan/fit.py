"""The command `fit` for one model: where it would lie, and how fast it would be, without loading
it. It need not be there: a release is judged by its shape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant.shards import files
from qwen3cli.errors import FormatError, ModelNotFound
from qwen3cli.hub import local, registry
from qwen3cli.plan.advice import Candidate, candidate_of
from qwen3cli.plan.gpu import Card, Share, card_to_fit
from qwen3cli.plan.machine import (
    GpuRates,
    Peaks,
    Rates,
    gpu_rates,
    peaks,
    rates,
    rates_of_folder,
)
from qwen3cli.plan.memory import amount, part
from qwen3cli.plan.placement import Placement, place_sizes, plan
from qwen3cli.plan.predict import at_best, expected_misses, predict, prompt_seconds
from qwen3cli.plan.sizes import Sizes, sizes_of
from qwen3cli.terminal import Terminal

_WHERE = {
    "resident": "fits, all of it in memory",
    "offloaded": "fits with {share:.0%} of its experts in memory, the others in the file",
    "mapped": "does not fit: {least:.2f} GB are needed, so the page cache makes do",
    "unknown": "needs {needed:.2f} GB; how much is available is not known here (--ram)",
}


CLEARLY = 1.2  # times as fast, where speeds are predicted


@dataclass(frozen=True)
class _Subject:
    """What is judged."""

    name: str
    n_bytes: int
    sizes: Sizes
    path: Path | None  # None: it is not here
    candidate: Candidate | None = None


@dataclass(frozen=True)
class Memory:
    """Of the command line: what there is to fit a model into."""

    ram: str | None = None
    gpu: str | None = None
    vram: str | None = None

    @property
    def card(self) -> Card | None:
        """Raises UsageError, and Qwen3Error for layers without a GPU."""
        return card_to_fit(self.gpu, self.vram)


@dataclass(frozen=True)
class Machine:
    """How fast it is."""

    rates: Rates
    peaks: Peaks
    gpu: GpuRates | None  # None: not known

    def known(self, placement: Placement) -> tuple[Share, GpuRates] | None:
        """What a GPU computes, and how fast; None if either is not known."""
        return (placement.gpu, self.gpu) if placement.gpu and self.gpu else None


def fit(
    model: str,
    terminal: Terminal,
    *,
    memory: Memory,
    n_ctx: int | None,
    kv: str | None,
    threads: int,
    as_json: bool,
) -> None:
    """Prints the plan for a model in this memory. Raises UsageError, ModelNotFound, FormatError,
    and for a ram or layers that were asked for DoesNotFit, of a dense model as well."""
    subject = _subject(model)
    card = memory.card
    placement = place_sizes(subject.name, subject.sizes, memory.ram, n_ctx=n_ctx, kv=kv, card=card)
    if subject.path:
        machine = rates(subject.path, threads, fresh=True)
    else:
        machine = rates_of_folder(local.cache(), threads, fresh=True)
    products = peaks(threads, fresh=True)
    there = gpu_rates(placement.gpu.card, fresh=True) if placement.gpu else None
    kv = kv or subject.sizes.kv
    report = _report(subject, placement, kv, Machine(machine, products, there))
    if card and not placement.gpu:
        report["gpu"] = _nothing_on(card, subject.sizes)
    if as_json:
        terminal.json(report)
    else:
        _show(report, terminal)


def _subject(model: str) -> _Subject:
    try:
        path = registry.resolve(model)
    except ModelNotFound:
        candidate = candidate_of(model)
        if candidate is None:
            raise
        n_bytes = candidate.release.file_bytes(candidate.quant)
        return _Subject(candidate.name, n_bytes, candidate.sizes, None, candidate)
    sizes = sizes_of(path)
    if sizes is None:
        raise FormatError(f"{path}: not a qwen3 or qwen3moe model, or a damaged one")
    return _Subject(path.name, sum(file.stat().st_size for file in files(path)), sizes, path)


def _report(subject: _Subject, placement: Placement, kv: str, machine: Machine) -> dict[str, Any]:
    sizes = subject.sizes
    n_ctx = placement.n_ctx or sizes.n_ctx
    mapped = placement.where == "mapped"
    seconds = None
    gpu = machine.known(placement)
    if not mapped and (gpu or not placement.gpu):
        seconds = prompt_seconds(
            sizes, placement.expert_bytes, machine.rates, machine.peaks, gpu=gpu
        )
    report: dict[str, Any] = {
        "model": str(subject.path or subject.name),
        "installed": subject.path is not None,
        "bytes": subject.n_bytes,
        "where": placement.where,
        "ram_bytes": placement.ram,
        "needed_bytes": placement.needed,
        "least_bytes": placement.least,
        "dense_bytes": sizes.dense,
        "n_ctx": n_ctx,
        "kv": kv,
        "kv_bytes": int(sizes.kv_bytes(n_ctx, kv)),
        "decode": [_decode(sizes, placement, kv, machine, depth) for depth in (0, n_ctx)],
        "prompt_1000_s": known(seconds),
        "machine": describe(machine.rates, machine.peaks),
    }
    if placement.gpu:
        report["gpu"] = _gpu(sizes, placement.gpu, machine.gpu)
        alone = plan(sizes, placement.ram, n_ctx=n_ctx, kv=kv)
        for row in report["decode"]:
            row["cpu_tok_s"] = _decode(sizes, alone, kv, machine, row["depth"])["tok_s"]
    if subject.candidate:
        report["get"] = list(subject.candidate.commands)
    if sizes.experts:
        host = placement.host
        held = placement.expert_bytes or (host.experts if host else 0)
        share = placement.expert_bytes / host.experts if placement.expert_bytes and host else 1.0
        report["experts"] = {
            "bytes": sizes.experts,
            "token_bytes": int(sizes.used * sizes.experts),
            "held_bytes": None if mapped else held,
            "hit_rate": None if mapped else round(1 - expected_misses(share), 4),
        }
    return report


def _gpu(sizes: Sizes, gpu: Share, rates: GpuRates | None) -> dict[str, Any]:
    report: dict[str, Any] = {
        "name": gpu.card.name,
        "budget_bytes": gpu.card.budget,
        "needed_bytes": gpu.bytes,
        "weight_bytes": gpu.bytes - gpu.work,
        "layers": gpu.layers,
        "of_layers": len(sizes.layers),
        **describe_gpu(rates),
    }
    if sizes.experts:
        experts = sizes.above(gpu.layers).experts
        report["expert_bytes"] = gpu.expert_bytes or experts
        share = (gpu.expert_bytes or experts) / experts
        report["hit_rate"] = round(1 - expected_misses(share), 4)
    return report


def _nothing_on(card: Card, sizes: Sizes) -> dict[str, Any]:
    """As _gpu, of a card with too little memory."""
    none = dict.fromkeys(("needed_bytes", "weight_bytes", "layers"), 0)
    of_layers = len(sizes.layers)
    return {"name": card.name, "budget_bytes": card.budget, **none, "of_layers": of_layers}


def describe(machine: Rates, products: Peaks) -> dict[str, float | None]:
    """The rates of a machine as reports have them."""
    return {
        "read_gb_s": known(machine.memory / 1e9),
        "disk_gb_s": known(machine.disk / 1e9),
        "int8_gmac_s": known(products.int8 / 1e9),
        "f32_gmac_s": known(products.f32 / 1e9),
    }


def describe_gpu(rates: GpuRates | None) -> dict[str, float | None]:
    """As describe, of a GPU."""
    per_s = (rates.read, rates.upload, rates.f16, rates.int8) if rates else (None,) * 4
    names = ("read_gb_s", "upload_gb_s", "f16_gmac_s", "int8_gmac_s")
    return {
        name: None if rate is None else known(rate / 1e9)
        for name, rate in zip(names, per_s, strict=True)
    }


def known(value: float | None, digits: int = 4) -> float | None:
    """A rounded figure; None for one that nobody knows."""
    return None if value is None or math.isnan(value) else round(value, digits)


def _decode(
    sizes: Sizes, placement: Placement, kv: str, machine: Machine, depth: int
) -> dict[str, float | None]:
    """Tokens a second behind so many others; where the page cache decides, only the limit; none
    for a GPU that nothing is known of."""
    mapped, gpu = placement.where == "mapped", machine.known(placement)
    if placement.gpu and not gpu:
        return {"depth": depth, "tok_s": None, "floor_tok_s": None, "limit_tok_s": None}
    if mapped:
        host, ram = placement.host or sizes, placement.ram or 0
        found = at_best(host, ram, machine.rates, positions=depth, kv=kv)
    else:
        found = predict(
            sizes, placement.expert_bytes, machine.rates, positions=depth, kv=kv, gpu=gpu
        )
    return {
        "depth": depth,
        "tok_s": None if mapped else known(found.tok_s, 2),
        "floor_tok_s": None if mapped else known(found.floor, 2),
        "limit_tok_s": known(found.limit, 2),
    }


def _show(report: dict[str, Any], terminal: Terminal) -> None:
    ram, experts = report["ram_bytes"], report.get("experts", {})
    held = experts.get("held_bytes") or 0  # nobody knows what the page cache holds
    share = held / experts["bytes"] if held else 0.0
    needed, least = report["needed_bytes"] / 1e9, report["least_bytes"] / 1e9
    where = _WHERE[report["where"]].format(share=share, needed=needed, least=least)
    card = report.get("gpu")
    gpu = card if card and card["layers"] else None
    if gpu:
        where = _split(report, gpu, where)
    rows = [
        ("model", f"{report['model']} ({amount(report['bytes'])})"),
        ("plan", where),
        ("memory", "not known" if ram is None else amount(ram)),
        ("every token", f"{amount(report['dense_bytes'])} of weights"),
    ]
    if experts:
        line = f"{amount(experts['bytes'])}, {amount(experts['token_bytes'])} for a token"
        if report["where"] == "offloaded":
            line += f"; {amount(held)} held, {experts['hit_rate']:.1%} of uses hit"
        rows.append(("experts", line))
    if card:
        taken = f"{part(card['needed_bytes'], card['budget_bytes'])} taken"
        if not gpu:
            taken = (
                f"computes nothing of it; {amount(card['budget_bytes'])} of its memory may be taken"
            )
        rows.insert(3, ("gpu", f"{card['name']}: {taken}"))
    if "get" in report:
        rows.insert(1, ("not here", " and ".join(f"`{line}`" for line in report["get"])))
    machine = report["machine"]
    disk, seconds = machine["disk_gb_s"], report["prompt_1000_s"]
    reads = f"memory {machine['read_gb_s']:.1f} GB/s, disk "
    reads += "unknown" if disk is None else f"{_number(disk)} GB/s"
    if gpu and gpu["read_gb_s"]:
        reads += f", GPU {_number(gpu['read_gb_s'])} GB/s"
        reads += f", uploads {_number(gpu['upload_gb_s'])} GB/s"
    rows += [
        ("context", f"{report['n_ctx']:,} tokens, {amount(report['kv_bytes'])} in {report['kv']}"),
        ("reads", reads),
        ("prompt", "-" if seconds is None else f"{_two_digits(seconds)} s for 1,000 tokens"),
    ]
    terminal.table(("fit", ""), rows)
    if gpu and not gpu["read_gb_s"]:
        terminal.note("how fast that GPU is, is not known here")
        return
    columns = {"tok_s": "tok/s", "floor_tok_s": "serial floor", "limit_tok_s": "limit"}
    if gpu:
        columns["cpu_tok_s"] = "CPU alone"
    terminal.table(
        ("decode", *columns.values()),
        [
            (
                f"behind {row['depth']:,} tokens" if row["depth"] else "at the start",
                *(_number(row[key]) for key in columns),
            )
            for row in report["decode"]
        ],
    )
    if gpu and all(_cpu_is_faster(row) for row in report["decode"]):
        terminal.note("the CPU alone is expected to decode faster: --gpu off")


def _cpu_is_faster(row: dict[str, float | None]) -> bool:
    """Clearly, where both speeds are known."""
    both, alone = row["tok_s"], row["cpu_tok_s"]
    return both is not None and alone is not None and alone > CLEARLY * both


def _split(report: dict[str, Any], gpu: dict[str, Any], where: str) -> str:
    """The plan of a model that a GPU computes, or a part of it."""
    layers, every, experts = gpu["layers"], gpu["of_layers"], report.get("experts")
    there = gpu.get("expert_bytes", 0) / experts["bytes"] if experts else 1.0
    if layers == every and there == 1:
        return "fits, all of it on the GPU"
    text = f"{layers} of {every} layers on the GPU" if layers < every else "all layers on the GPU"
    if experts:
        text += f"; experts: {there:.0%} there"
    if report["where"] == "mapped":
        return f"{text}; the rest {where}"
    if not experts:
        return f"{text}, the others on the CPU"
    # a tier above others holds again what is in them
    others = "all" if gpu["hit_rate"] < 1 else "the others"
    if report["where"] == "offloaded":
        here = (experts["held_bytes"] or 0) / experts["bytes"]
        return f"{text}, {here:.0%} in memory, {others} in the file"
    return f"{text}, {others} in memory"


def _two_digits(value: float) -> str:
    """As exact as a prediction is: 0.034, 2.8, 37, 303."""
    return f"{value:,.0f}" if value >= 9.95 else f"{value:#.2g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.{0 if value >= 100 else 2}f}"
