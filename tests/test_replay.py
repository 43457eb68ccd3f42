"""Which experts stay in memory, on the recorded routes of a real model: the store hits as often as
the best policy that can be had, and a prompt between does not change that.

The model is Qwen3-30B-A3B in layers and experts, its matrices are of 32 x 32.
"""

from __future__ import annotations

import heapq
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commandline import ROOT
from numpy.typing import NDArray

from quant.checkpoint import Experts
from quant.recipes import recipe
from qwen3cli.bench.synthetic import SHAPES, write
from qwen3cli.engine import Model
from qwen3cli.plan.placement import sizes_of

ROUTES: NDArray[np.uint8] = np.load(ROOT / "tests/data/routes.npz")["routes"]
TOKENS, LAYERS, USED = ROUTES.shape
EXPERTS = 128
WARM = 32  # tokens that fill the memory and count no hits
SHARES = (0.06, 0.10, 0.15, 0.20, 0.30, 0.40, 0.50)

Groups = list[list[int]]  # the experts of every token and layer, as layer * EXPERTS + expert
Worth = Callable[[int, int], float]  # of an expert that is used by a group, from then on


@pytest.fixture(scope="module")
def mixture() -> Iterator[Path]:
    """In memory, where a file can be: it is read in many thousands of small pieces."""
    shape = replace(
        SHAPES["30b-a3b"],
        n_embd=32,
        n_heads=1,
        n_kv_heads=1,
        head_dim=32,
        n_ff=32,
        n_vocab=512,
        experts=Experts(count=EXPERTS, used=USED, n_ff=32, norm_topk=True),
    )
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        path = Path(folder) / "model.gguf"
        write(path, "tiny mixture", shape, recipe("q4_0"))
        yield path


# ---- what can be had ----------------------------------------------------------------


def groups_of(routes: NDArray[np.uint8]) -> Groups:
    keys = routes.astype(int) + EXPERTS * np.arange(LAYERS)[:, None]
    groups: Groups = keys.reshape(-1, USED).tolist()
    return groups


def simulated(groups: Groups, n_slots: int, worth: Worth) -> float:
    """The hit rate behind WARM tokens when the least worth leaves, none of those in use."""
    there: dict[int, float] = {}
    heap: list[tuple[float, int]] = []  # of all that are there, and of worths gone by
    hits = 0
    for now, group in enumerate(groups):
        missing = [key for key in group if key not in there]
        in_use = []
        for key in missing:
            while len(there) >= n_slots:
                value, victim = heapq.heappop(heap)
                if there.get(victim) != value:
                    continue
                if victim in group:
                    in_use.append((value, victim))
                else:
                    del there[victim]
            there[key] = math.inf
        for key in group:
            there[key] = worth(key, now)
            heapq.heappush(heap, (there[key], key))
        if now >= WARM * LAYERS:
            hits += USED - len(missing)
    return hits / (USED * (len(groups) - WARM * LAYERS))


def lru() -> Worth:
    return lambda _, now: now


def lfu(half_life: float) -> Worth:
    """A use counts half after so many tokens."""
    heat: dict[int, tuple[float, int]] = {}

    def worth(key: int, now: int) -> float:
        token = now // LAYERS
        old, then = heat.get(key, (0.0, 0))
        heat[key] = 1 + old * 2 ** ((then - token) / half_life), token
        return math.log2(heat[key][0]) + token / half_life

    return worth


def belady(groups: Groups) -> Worth:
    """Who is needed last leaves: knows what comes, so no policy is better."""
    following: dict[tuple[int, int], int] = {}
    coming: dict[int, int] = {}
    for now in range(len(groups) - 1, -1, -1):
        for key in groups[now]:
            following[key, now] = coming.get(key, len(groups) + key)
            coming[key] = now
    return lambda key, now: -following[key, now]


# ---- what the store does --------------------------------------------------------------


def opened(path: Path, share: float) -> tuple[Model, int]:
    """With room for this share of the experts, and how many they are."""
    sizes = sizes_of(path)
    assert sizes is not None
    n_slots = round(share * LAYERS * EXPERTS)
    slot = sizes.least_experts // (LAYERS * USED)
    return Model(path, threads=1, expert_bytes=n_slots * slot), n_slots


class Decoding:
    """Token after token along forced routes."""

    def __init__(self, model: Model, routes: NDArray[np.uint8] = ROUTES) -> None:
        self.model = model
        self.session = model._native.session(len(routes), "f16")
        self.session.force_routes(routes.astype(np.int32))

    def hit_rate(self, n_tokens: int) -> float:
        before = self.model.expert_stats
        for i in range(n_tokens):
            self.session.extend([i])
        after = self.model.expert_stats
        hits, misses = after.hits - before.hits, after.misses - before.misses
        assert hits + misses == n_tokens * LAYERS * USED
        return hits / (hits + misses)


@pytest.mark.parametrize("share", SHARES)
def test_hits_are_within_two_points_of_the_best_policy(mixture: Path, share: float) -> None:
    model, n_slots = opened(mixture, share)
    decoding = Decoding(model)
    decoding.hit_rate(WARM)
    measured = decoding.hit_rate(TOKENS - WARM)
    groups = groups_of(ROUTES)
    recent = simulated(groups, n_slots, lru())
    best = max(recent, *(simulated(groups, n_slots, lfu(tokens)) for tokens in (4, 8, 16)))
    bound = simulated(groups, n_slots, belady(groups))
    assert best - 0.02 <= measured <= bound, f"{measured:.1%} of {best:.1%} to {bound:.1%}"
    assert measured > recent - 0.001, f"{measured:.1%}, LRU {recent:.1%}"


@pytest.mark.parametrize("share", [0.10, 0.30])
def test_a_prompt_leaves_what_decoding_needs(mixture: Path, share: float) -> None:
    rng = np.random.default_rng(0)
    prompt = np.array([[rng.permutation(EXPERTS)[:USED]] * LAYERS for _ in range(100)], np.uint8)
    rates = []
    for n_prompt in (0, len(prompt)):
        model, _ = opened(mixture, share)
        decoding = Decoding(model)
        decoding.hit_rate(TOKENS // 2)
        if n_prompt:
            Decoding(model, prompt).session.extend([0] * n_prompt)
        rates.append(decoding.hit_rate(TOKENS // 4))
    undisturbed, disturbed = rates
    assert abs(disturbed - undisturbed) < 0.03
