"""The command `fit` without a model: every release in this memory, and the one to take.

Sizes are exact, from shapes and recipes; speeds are expected, from rates measured now. Nothing
has to be installed, and no network is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from qwen3cli.errors import ModelNotFound
from qwen3cli.hub import local
from qwen3cli.hub.registry import resolve
from qwen3cli.hub.releases import RELEASES
from qwen3cli.plan.advice import QUANTS, Candidate, hybrids
from qwen3cli.plan.fit import Machine, Memory, describe, describe_gpu, known
from qwen3cli.plan.machine import gpu_rates, peaks, rates_of_folder
from qwen3cli.plan.memory import amount
from qwen3cli.plan.placement import Placement, budget, plan
from qwen3cli.plan.predict import predict, prompt_seconds
from qwen3cli.terminal import Terminal

_CONTEXT = 8192  # a question, thoughts and an answer
ENOUGH = 8.0  # tokens a second, about as fast as people read


def overview(
    terminal: Terminal,
    *,
    memory: Memory,
    n_ctx: int | None,
    kv: str | None,
    threads: int,
    everything: bool,
    as_json: bool,
) -> None:
    """Prints a line for every hybrid in the quantization to take; everything: for every release
    in every quantization. And what to take. A GPU that cannot be measured is left out, unless
    it is one that --vram supposes. Raises as Memory.card."""
    most, context = budget(memory.ram), n_ctx or _CONTEXT
    machine = rates_of_folder(local.cache(), threads, fresh=True)
    products = peaks(threads, fresh=True)
    card = memory.card
    there = gpu_rates(card, fresh=True) if card else None
    measured = card is None or card.index < 0 or there is not None
    used = replace(card, layers=None) if card and measured else None  # a number is for one model

    def judged(each: Candidate) -> dict[str, Any]:
        within = min(context, each.sizes.n_ctx)
        placement = plan(each.sizes, most, n_ctx=within, kv=kv, card=used, name=each.name)
        return _row(each, placement, kv, Machine(machine, products, there))

    of_model = [[judged(Candidate(each, quant)) for quant in QUANTS] for each in hybrids()]
    rows = [_best(quants) for quants in of_model]
    found = recommended(rows)
    if everything:
        every = (Candidate(each, quant) for each in RELEASES.values() for quant in QUANTS)
        rows = [judged(each) for each in every]
    report = {
        "ram_bytes": most,
        "n_ctx": context,
        "machine": describe(machine, products),
        "models": rows,
        "recommended": found,
    }
    if card:
        report["gpu"] = {
            "name": card.name,
            "budget_bytes": card.budget,
            "used": measured,
            **describe_gpu(there),
        }
    if as_json:
        terminal.json(report)
    else:
        _show(report, terminal)


def recommended(rows: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Of one row for each model, the largest first: the first that is fast enough, else the
    fastest of those that fit. None where none does."""
    fitting = [row for row in rows if row["tok_s"] is not None]
    enough = next((row for row in fitting if row["tok_s"] >= ENOUGH), None)
    found = enough or max(fitting, key=lambda row: row["tok_s"], default=None)
    if found is None:
        return None
    if enough:
        why = f"the largest that is expected to reach {ENOUGH:g} tok/s here"
    else:
        why = f"the fastest here; none is expected to reach {ENOUGH:g} tok/s"
    return {"model": found["model"], "why": why, "get": found["get"], "bytes": found["bytes"]}


def _best(quants: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the quantizations of a model, the best first: the first that is fast enough, else the
    fastest; of unknown speed the first that is all on the GPU, else the smallest."""
    fitting = [row for row in quants if row["tok_s"] is not None]
    enough = (row for row in fitting if row["tok_s"] >= ENOUGH)
    on_gpu = (row for row in quants if row.get("gpu") == 1)
    last = next(on_gpu, quants[-1])
    return next(enough, None) or max(fitting, key=lambda row: row["tok_s"], default=last)


def _row(each: Candidate, placement: Placement, kv: str | None, machine: Machine) -> dict[str, Any]:
    sizes, held, gpu = each.sizes, placement.expert_bytes, machine.known(placement)
    tok_s = seconds = None
    if placement.where in ("resident", "offloaded") and (gpu or not placement.gpu):
        half = (placement.n_ctx or 0) / 2
        rates, peaks = machine.rates, machine.peaks
        tok_s = known(predict(sizes, held, rates, positions=half, kv=kv, gpu=gpu).tok_s, 2)
        seconds = known(prompt_seconds(sizes, held, rates, peaks, gpu=gpu), 2)
    here = _is_here(each)
    on_gpu = {"gpu": round(placement.on_gpu, 4)} if placement.gpu else {}
    return on_gpu | {
        "model": each.name,
        "installed": here,
        "bytes": each.release.file_bytes(each.quant),
        "where": placement.where,
        "needed_bytes": placement.needed,
        "least_bytes": placement.least,
        "held": round(held / _experts(placement), 4) if held else None,  # the share of the experts
        "tok_s": tok_s,
        "prompt_1000_s": seconds,
        "get": [] if here else list(each.commands),
    }


def _experts(placement: Placement) -> int:
    """Bytes of those that memory would hold."""
    assert placement.host is not None
    return placement.host.experts


def _is_here(each: Candidate) -> bool:
    try:
        resolve(each.name)
    except ModelNotFound:
        return False
    return True


def _show(report: dict[str, Any], terminal: Terminal) -> None:
    ram, machine = report["ram_bytes"], report["machine"]
    memory = "an unknown amount" if ram is None else amount(ram)
    disk = machine["disk_gb_s"]
    terminal.note(
        f"{memory} of memory, read at {machine['read_gb_s']:.1f} GB/s; disk "
        f"{'unknown' if disk is None else f'{disk:.2f} GB/s'}; int8 "
        f"{machine['int8_gmac_s']:.0f} billion products a second"
    )
    gpu = report.get("gpu")
    if gpu:
        terminal.note(_gpu_line(gpu))
    head = ["model", "here", "file", "memory", "fits", "tok/s", "s/1,000"]
    lines = [list(_line(row)) for row in report["models"]]
    if gpu and gpu["used"]:
        for cells, row in zip([head, *lines], [None, *report["models"]], strict=True):
            cells.insert(5, "gpu" if row is None else f"{row['gpu']:.0%}" if "gpu" in row else "-")
    terminal.table(head, lines)
    text = (
        f"file and memory in GB, with a context of {report['n_ctx']:,} tokens; tok/s with half of "
        "it filled; s/1,000: seconds to read 1,000 tokens of a prompt; fits 35%: of the experts"
    )
    if gpu and gpu["used"]:
        text += "; gpu: of the weights, with memory for the others"
    terminal.note(text)
    found = report["recommended"]
    if found is None and ram is None:
        terminal.note("how much memory there is, is not known here: say it with --ram")
    elif found is None and gpu and not gpu["read_gb_s"]:
        terminal.note("nothing is recommended for a GPU of unknown speed; --gpu off does without")
    elif found is None:
        terminal.note("nothing fits; close other programs, or take a smaller --ctx")
    if found is None:
        return
    get = " and ".join(f"`{line}`" for line in found["get"] or [f"qwen3 run -m {found['model']}"])
    terminal.note(f"take {found['model']}, {found['why']}: {get}")


def _gpu_line(gpu: dict[str, Any]) -> str:
    text = f"{gpu['name']}: {amount(gpu['budget_bytes'])} for a model"
    if gpu["read_gb_s"]:
        return f"{text}, read at {gpu['read_gb_s']:.0f} GB/s, filled at {gpu['upload_gb_s']:.1f}"
    if gpu["used"]:
        return f"{text}; how fast it is, is not known"
    return f"{gpu['name']}: how fast it is, cannot be measured; the figures are those of the CPU"


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    fits = {"resident": "yes", "mapped": "no", "unknown": "?"}
    return (
        row["model"],
        "*" if row["installed"] else "",
        f"{row['bytes'] / 1e9:.1f}",
        f"{(row['least_bytes'] if row['where'] == 'mapped' else row['needed_bytes']) / 1e9:.1f}",
        fits.get(row["where"]) or f"{row['held']:.0%}",
        _short(row["tok_s"]),
        _short(row["prompt_1000_s"]),
    )


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:,.{0 if value >= 10 else 1}f}"
