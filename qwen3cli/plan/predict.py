"""How fast a model will be: from the bytes of a token and the rates of the machine.

    T_memory = (dense + used share x experts + positions x kv bytes) / rate of memory
    T_disk = miss rate x used share x experts / rate of the disk

One after the other they make the serial floor, 1 / (T_memory + T_disk); at the same time, the
limit of perfect overlap, 1 / max(T_memory, T_disk). What is expected takes into account that the
engine does not read memory at its full rate, and that only a part of the shorter time hides
behind the longer one.

A prompt is bound by products: tokens x products of a token / peak of the int8 units, of which
the engine reaches a part. What of the experts is in the file is read once, beside that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qwen3cli.plan.machine import Peaks, Rates
from qwen3cli.plan.sizes import OVERHEAD, Sizes

REACHED = 0.75  # of the rate of memory, in decode: bench/README.md
PREFILL_REACHED = 0.40  # of the peak of products, in prefill: docs/decisions.md
PREFILL_REACHED_MIXTURE = 0.28
OVERLAP = 0.5  # of the shorter of the two times: docs/decisions.md
_PASS = 2048  # tokens of a prompt that a mixture computes at once


@dataclass(frozen=True)
class Speed:
    """Tokens a second in decode."""

    tok_s: float  # expected
    floor: float  # memory and disk one after the other
    limit: float  # both at the same time


def expected_misses(share: float) -> float:
    """Of the experts that tokens are routed to, how many are not among the held ones, which are
    this share of all: measured on Qwen3-30B-A3B."""
    return 0.0 if share >= 1 else min(1.0, math.exp(-6.8 * max(share, 0.0)) + 0.025)


def predict(
    sizes: Sizes,
    expert_bytes: int,
    rates: Rates,
    *,
    misses: float | None = None,
    positions: float = 0,
    kv: str | None = None,
) -> Speed:
    """expert_bytes: memory for experts; 0: all the model is in memory. misses: their rate, if it
    is known. positions: tokens in the context, whose kv cache of type kv is read for each token."""
    if not expert_bytes:
        misses = 0.0
    elif misses is None:
        misses = expected_misses(expert_bytes / sizes.experts)
    used = sizes.used * sizes.experts
    return speed(sizes.dense + used + sizes.kv_bytes(positions, kv), misses * used, rates)


def at_best(
    sizes: Sizes, ram: int, rates: Rates, *, positions: float = 0, kv: str | None = None
) -> Speed:
    """Of a model that is mapped into too little memory, as if the page cache kept the weights
    that every token reads, then experts, and never let one go for another that is needed later."""
    cache = sizes.kv_bytes(positions, kv)
    room = ram - sizes.dense - OVERHEAD - cache
    used = sizes.used * sizes.experts
    misses = expected_misses(room / sizes.experts) if sizes.experts else 0.0
    return speed(sizes.dense + used + cache, max(0.0, -room) + misses * used, rates)


def prompt_seconds(
    sizes: Sizes, expert_bytes: int, rates: Rates, peaks: Peaks, tokens: int = 1000
) -> float:
    """To read a prompt of so many tokens with nothing before it. Experts that are not in memory
    are read once for each pass."""
    reached = PREFILL_REACHED_MIXTURE if sizes.experts else PREFILL_REACHED
    computing = tokens * (sizes.int8 / peaks.int8 + sizes.f32 / peaks.f32) / reached
    missing = sizes.experts - expert_bytes if expert_bytes else 0
    reading = math.ceil(tokens / _PASS) * missing / rates.disk if missing else 0.0
    return computing + reading - OVERLAP * min(computing, reading)


def speed(from_memory: float, from_disk: float, rates: Rates) -> Speed:
    """Of tokens that read so many bytes from either."""
    memory = from_memory / rates.memory
    disk = from_disk / rates.disk if from_disk else 0.0  # its rate may be nan
    reached = memory / REACHED
    return Speed(
        tok_s=1 / (reached + disk - OVERLAP * min(reached, disk)),
        floor=1 / (memory + disk),
        limit=1 / max(memory, disk),
    )
