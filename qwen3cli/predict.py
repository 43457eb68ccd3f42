"""How fast a model will decode: from the bytes of a token and the rates of the machine.

    T_memory = (dense + used share x experts + positions x kv bytes) / rate of memory
    T_disk = miss rate x used share x experts / rate of the disk

One after the other they make the serial floor, 1 / (T_memory + T_disk); at the same time, the
limit of perfect overlap, 1 / max(T_memory, T_disk). What is expected takes into account that the
engine does not read memory at its full rate, and that only a part of the shorter time hides
behind the longer one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qwen3cli.machine import Rates
from qwen3cli.sizes import Sizes

REACHED = 0.75  # of the rate of memory, in decode: bench/README.md
OVERLAP = 0.5  # of the shorter of the two times: docs/decisions.md


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


def speed(from_memory: float, from_disk: float, rates: Rates) -> Speed:
    """Of tokens that read so many bytes from either."""
    memory, disk = from_memory / rates.memory, from_disk / rates.disk
    reached = memory / REACHED
    return Speed(
        tok_s=1 / (reached + disk - OVERLAP * min(reached, disk)),
        floor=1 / (memory + disk),
        limit=1 / max(memory, disk),
    )
