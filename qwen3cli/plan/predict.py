"""How fast a model will be: from the bytes of a token and the rates of the machine.

    T_memory = (dense + used share x experts + positions x kv bytes) / rate of memory
    T_disk = miss rate x used share x experts / rate of the disk

One after the other they make the serial floor, 1 / (T_memory + T_disk); at the same time, the
limit of perfect overlap, 1 / max(T_memory, T_disk). What is expected takes into account that the
engine does not read memory at its full rate, and that only a part of the shorter time hides
behind the longer one.

What a GPU computes of a token comes before or behind that:

    T_gpu = (dense + hits x used share x experts + positions x kv bytes) / rate of its memory
            + misses x used share x experts / (rate of uploads + rate of memory)

as an expert that is missing there is computed here, or, out of a store, copied to it meanwhile.

A prompt is bound by products: tokens x products of a token / peak of the int8 units, of which
the engine reaches a part. What of the experts is in the file is read once, beside that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qwen3cli.plan.gpu import Share
from qwen3cli.plan.machine import GpuRates, Peaks, Rates
from qwen3cli.plan.sizes import OVERHEAD, Sizes, pass_tokens

REACHED = 0.75  # of the rate of memory, in decode: bench/README.md. Of a GPU nothing was measured
PREFILL_REACHED = 0.40  # of the peak of products, in prefill: docs/decisions.md
PREFILL_REACHED_MIXTURE = 0.28
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
    gpu: tuple[Share, GpuRates] | None = None,
) -> Speed:
    """expert_bytes: memory for experts; 0: all the model is in memory. misses: their rate, if it
    is known. positions: tokens in the context, whose kv cache of type kv is read for each token.
    gpu: what of it a GPU computes, and how fast that is."""
    if gpu:
        return _with_gpu(sizes, expert_bytes, rates, *gpu, positions, kv)
    if not expert_bytes:
        misses = 0.0
    elif misses is None:
        misses = expected_misses(expert_bytes / sizes.experts)
    used = sizes.used * sizes.experts
    return speed(sizes.dense + used + sizes.kv_bytes(positions, kv), misses * used, rates)


def _with_gpu(
    sizes: Sizes,
    expert_bytes: int,
    rates: Rates,
    gpu: Share,
    card: GpuRates,
    positions: float,
    kv: str | None,
) -> Speed:
    host, there = sizes.below(gpu.layers, experts=False), sizes.above(gpu.layers)
    here, used = host.used * host.experts, there.used * there.experts
    missed = expected_misses(gpu.expert_bytes / there.experts) if gpu.expert_bytes else 0.0
    in_file = 0.0  # of the experts, whichever side wants them
    copying = card.upload if expert_bytes else 0.0
    if expert_bytes:
        all_experts = host.experts + (there.experts if gpu.expert_bytes else 0)
        in_file = expected_misses(expert_bytes / all_experts)
    seconds = (host.dense + here + host.kv_bytes(positions, kv)) / rates.memory
    read = there.dense + (1 - missed) * used + there.kv_bytes(positions, kv)
    seconds += read / card.read + missed * used / (copying + rates.memory)
    return _speed(seconds, in_file * here + min(in_file, missed) * used, rates)


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
    sizes: Sizes,
    expert_bytes: int,
    rates: Rates,
    peaks: Peaks,
    tokens: int = 1000,
    gpu: tuple[Share, GpuRates] | None = None,
) -> float:
    """To read a prompt of so many tokens with nothing before it. Experts that are not in memory
    are read once for each pass. nan for a GPU without matrix units."""
    if gpu:
        share, card = gpu
        host = sizes.below(share.layers, experts=share.expert_bytes > 0)
        there = sizes.above(share.layers)
        seconds = prompt_seconds(host, expert_bytes, rates, peaks, tokens)
        return seconds + _prompt_on_gpu(there, share, card, tokens)
    reached = PREFILL_REACHED_MIXTURE if sizes.experts else PREFILL_REACHED
    computing = tokens * (sizes.int8 / peaks.int8 + sizes.f32 / peaks.f32) / reached
    missing = max(0, sizes.experts - expert_bytes) if expert_bytes else 0
    reading = math.ceil(tokens / pass_tokens(True)) * missing / rates.disk if missing else 0.0
    return computing + reading - OVERLAP * min(computing, reading)


def _prompt_on_gpu(sizes: Sizes, gpu: Share, card: GpuRates, tokens: int) -> float:
    """Of the layers there."""
    units = card.int8 or card.f16
    if not units:
        return math.nan
    reached = PREFILL_REACHED_MIXTURE if sizes.experts else PREFILL_REACHED
    computing = tokens * (sizes.int8 / units + sizes.f32 / (card.f16 or units)) / reached
    missing = max(0, sizes.experts - gpu.expert_bytes) if gpu.expert_bytes else 0
    copying = math.ceil(tokens / pass_tokens(True)) * missing / card.upload if missing else 0.0
    return computing + copying


def speed(from_memory: float, from_disk: float, rates: Rates) -> Speed:
    """Of tokens that read so many bytes from either."""
    return _speed(from_memory / rates.memory, from_disk, rates)


def _speed(memory: float, from_disk: float, rates: Rates) -> Speed:
    """memory: seconds."""
    disk = from_disk / rates.disk if from_disk else 0.0  # its rate may be nan
    reached = memory / REACHED
    return Speed(
        tok_s=1 / (reached + disk - OVERLAP * min(reached, disk)),
        floor=1 / (memory + disk),
        limit=1 / max(memory, disk),
    )
