"""The command `fit`: where a model would lie, and how fast it would decode, without loading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quant.shards import files
from qwen3cli import registry
from qwen3cli.errors import FormatError
from qwen3cli.machine import Rates, rates
from qwen3cli.memory import amount
from qwen3cli.placement import OVERHEAD, Placement, place_sizes
from qwen3cli.predict import Speed, expected_misses, predict, speed
from qwen3cli.sizes import Sizes, sizes_of
from qwen3cli.terminal import Terminal

_WHERE = {
    "resident": "fits, all of it in memory",
    "offloaded": "fits with {share:.0%} of its experts in memory, the others in the file",
    "mapped": "does not fit: {least:.2f} GB are needed, so the page cache makes do",
    "unknown": "needs {needed:.2f} GB; how much is available is not known here (--ram)",
}


def fit(
    model: str,
    terminal: Terminal,
    *,
    ram: str | None,
    n_ctx: int | None,
    kv: str | None,
    threads: int,
    as_json: bool,
) -> None:
    """Prints the plan for a model in this memory. Raises UsageError, ModelNotFound, FormatError,
    and for a ram that was asked for DoesNotFit, of a dense model as well."""
    path = registry.resolve(model)
    sizes = sizes_of(path)
    if sizes is None:
        raise FormatError(f"{path}: not a qwen3 or qwen3moe model, or a damaged one")
    placement = place_sizes(path.name, sizes, ram, n_ctx=n_ctx, kv=kv)
    report = _report(path, sizes, placement, kv or sizes.kv, rates(path, threads, fresh=True))
    if as_json:
        terminal.json(report)
    else:
        _show(report, terminal)


def _report(
    path: Path, sizes: Sizes, placement: Placement, kv: str, machine: Rates
) -> dict[str, Any]:
    n_ctx = placement.n_ctx or sizes.n_ctx
    report: dict[str, Any] = {
        "model": str(path),
        "bytes": sum(file.stat().st_size for file in files(path)),
        "where": placement.where,
        "ram_bytes": placement.ram,
        "needed_bytes": placement.needed,
        "least_bytes": placement.least,
        "dense_bytes": sizes.dense,
        "n_ctx": n_ctx,
        "kv": kv,
        "kv_bytes": int(sizes.kv_bytes(n_ctx, kv)),
        "decode": [_decode(sizes, placement, kv, machine, depth) for depth in (0, n_ctx)],
        "machine": {"read_gb_s": machine.memory / 1e9, "disk_gb_s": machine.disk / 1e9},
    }
    if sizes.experts:
        mapped = placement.where == "mapped"
        held = placement.expert_bytes or sizes.experts
        report["experts"] = {
            "bytes": sizes.experts,
            "token_bytes": int(sizes.used * sizes.experts),
            "held_bytes": None if mapped else held,
            "hit_rate": None if mapped else round(1 - expected_misses(held / sizes.experts), 4),
        }
    return report


def _decode(
    sizes: Sizes, placement: Placement, kv: str, machine: Rates, depth: int
) -> dict[str, float | None]:
    """Tokens a second behind so many others; where the page cache decides, only the limit."""
    mapped = placement.where == "mapped"
    if mapped:
        found = _at_best(sizes, placement, kv, machine, depth)
    else:
        found = predict(sizes, placement.expert_bytes, machine, positions=depth, kv=kv)
    return {
        "depth": depth,
        "tok_s": None if mapped else round(found.tok_s, 2),
        "floor_tok_s": None if mapped else round(found.floor, 2),
        "limit_tok_s": round(found.limit, 2),
    }


def _at_best(sizes: Sizes, placement: Placement, kv: str, machine: Rates, depth: int) -> Speed:
    """As if the page cache kept the weights that every token reads, then experts, and never let
    one go for another that is needed later."""
    cache = sizes.kv_bytes(depth, kv)
    room = (placement.ram or 0) - sizes.dense - OVERHEAD - cache
    used = sizes.used * sizes.experts
    misses = expected_misses(room / sizes.experts) if sizes.experts else 0.0
    return speed(sizes.dense + used + cache, max(0.0, -room) + misses * used, machine)


def _show(report: dict[str, Any], terminal: Terminal) -> None:
    ram, experts = report["ram_bytes"], report.get("experts", {})
    held = experts.get("held_bytes") or 0  # nobody knows what the page cache holds
    share = held / experts["bytes"] if held else 0.0
    needed, least = report["needed_bytes"] / 1e9, report["least_bytes"] / 1e9
    where = _WHERE[report["where"]].format(share=share, needed=needed, least=least)
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
    machine = report["machine"]
    rows += [
        ("context", f"{report['n_ctx']:,} tokens, {amount(report['kv_bytes'])} in {report['kv']}"),
        ("reads", f"memory {machine['read_gb_s']:.1f} GB/s, disk {machine['disk_gb_s']:.2f} GB/s"),
    ]
    terminal.table(("fit", ""), rows)
    terminal.table(
        ("decode", "tok/s", "serial floor", "limit"),
        [
            (
                f"behind {row['depth']:,} tokens" if row["depth"] else "at the start",
                *(_number(row[key]) for key in ("tok_s", "floor_tok_s", "limit_tok_s")),
            )
            for row in report["decode"]
        ],
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.{0 if value >= 100 else 2}f}"
