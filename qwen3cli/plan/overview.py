"""The command `fit` without a model: every release in this memory, and the one to take.

Sizes are exact, from shapes and recipes; speeds are expected, from rates measured now. Nothing
has to be installed, and no network is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qwen3cli.errors import ModelNotFound
from qwen3cli.hub import local
from qwen3cli.hub.registry import resolve
from qwen3cli.hub.releases import RELEASES
from qwen3cli.plan.advice import QUANTS, Candidate, hybrids
from qwen3cli.plan.fit import describe, known
from qwen3cli.plan.machine import Peaks, Rates, peaks, rates_of_folder
from qwen3cli.plan.memory import amount
from qwen3cli.plan.placement import Placement, budget, plan
from qwen3cli.plan.predict import predict, prompt_seconds
from qwen3cli.terminal import Terminal

_CONTEXT = 8192  # a question, thoughts and an answer
ENOUGH = 8.0  # tokens a second, about as fast as people read


def overview(
    terminal: Terminal,
    *,
    ram: str | None,
    n_ctx: int | None,
    kv: str | None,
    threads: int,
    everything: bool,
    as_json: bool,
) -> None:
    """Prints a line for every hybrid in the quantization to take; everything: for every release
    in every quantization. And what to take. Raises UsageError."""
    most, context = budget(ram), n_ctx or _CONTEXT
    machine = rates_of_folder(local.cache(), threads, fresh=True)
    products = peaks(threads, fresh=True)

    def judged(each: Candidate) -> dict[str, Any]:
        placement = plan(each.sizes, most, n_ctx=min(context, each.sizes.n_ctx), kv=kv)
        return _row(each, placement, kv, machine, products)

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
    fastest, else the smallest."""
    fitting = [row for row in quants if row["tok_s"] is not None]
    enough = (row for row in fitting if row["tok_s"] >= ENOUGH)
    return next(enough, None) or max(fitting, key=lambda row: row["tok_s"], default=quants[-1])


def _row(
    each: Candidate, placement: Placement, kv: str | None, machine: Rates, products: Peaks
) -> dict[str, Any]:
    sizes, held = each.sizes, placement.expert_bytes
    tok_s = seconds = None
    if placement.where in ("resident", "offloaded"):
        half = (placement.n_ctx or 0) / 2
        tok_s = known(predict(sizes, held, machine, positions=half, kv=kv).tok_s, 2)
        seconds = known(prompt_seconds(sizes, held, machine, products), 2)
    here = _is_here(each)
    return {
        "model": each.name,
        "installed": here,
        "bytes": each.release.file_bytes(each.quant),
        "where": placement.where,
        "needed_bytes": placement.needed,
        "least_bytes": placement.least,
        "held": round(held / sizes.experts, 4) if held else None,  # the share of the experts
        "tok_s": tok_s,
        "prompt_1000_s": seconds,
        "get": [] if here else list(each.commands),
    }


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
    terminal.table(
        ("model", "here", "file", "memory", "fits", "tok/s", "s/1,000"),
        [_line(row) for row in report["models"]],
    )
    terminal.note(
        f"file and memory in GB, with a context of {report['n_ctx']:,} tokens; tok/s with half of "
        "it filled; s/1,000: seconds to read 1,000 tokens of a prompt; fits 35%: of the experts"
    )
    found = report["recommended"]
    if found is None and ram is None:
        terminal.note("how much memory there is, is not known here: say it with --ram")
    elif found is None:
        terminal.note("nothing fits; close other programs, or take a smaller --ctx")
    if found is None:
        return
    get = " and ".join(f"`{line}`" for line in found["get"] or [f"qwen3 run -m {found['model']}"])
    terminal.note(f"take {found['model']}, {found['why']}: {get}")


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
