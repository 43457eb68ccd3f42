"""What of a model a GPU takes, from sizes alone; and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from cards import GB, HOST, QUICK, Devices, of
from commandline import ROOT

from qwen3cli.errors import DoesNotFit, Qwen3Error, UsageError
from qwen3cli.plan import machine
from qwen3cli.plan.gpu import Card, Share, card, card_to_fit, share_of, smaller
from qwen3cli.plan.machine import GpuRates, Peaks, gpu_rates
from qwen3cli.plan.placement import place, plan
from qwen3cli.plan.predict import expected_misses, predict, prompt_seconds
from qwen3cli.plan.sizes import Sizes, device_work, sizes_of

DENSE = ROOT / "qwen3cli/models/nano-dense-q8_0.gguf"
NANO_MOE = ROOT / "qwen3cli/models/nano-moe-q8_0.gguf"
BUDGETS = [n * GB // 8 for n in (1, 4, 9, 17, 24, 33, 50, 64, 96, 128, 190, 256, 400, 640, 1200)]
MODELS = ["0.6b:q8_0", "4b:q4_k_m", "8b:q4_k_m", "32b:q6_k", "30b-a3b:q4_k_m", "235b-a22b:q4_k_m"]


def shared(sizes: Sizes, budget: int, **more: Any) -> Share | None:
    return share_of("m", sizes, Card("Quick 5", budget), **more)


def all_experts(sizes: Sizes, share: Share) -> int:
    assert sizes.shape is not None
    slot = max(layer.slot for layer in sizes.layers[-share.layers :])
    return share.layers * slot * sizes.shape.n_experts


# ---- what it takes -------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kv", ["f16", "q8"])
def test_never_more_than_the_budget(model: str, kv: str) -> None:
    sizes = of(model)
    assert sizes.shape is not None
    for budget in BUDGETS:
        for n_ctx in (None, 512, 8192, 40960):
            found = shared(sizes, budget, n_ctx=n_ctx, kv=kv)
            if found is None:
                continue
            there = sizes.above(found.layers)
            experts = found.expert_bytes or all_experts(sizes, found)
            cache = found.n_ctx * sizes.kv_bytes(1, kv) * found.layers / len(sizes.layers)
            assert (
                there.dense + experts + cache + device_work(sizes.shape, found.n_ctx) <= found.bytes
            )
            assert found.bytes <= budget and found.n_ctx <= sizes.n_ctx
            assert n_ctx in (None, found.n_ctx)


@pytest.mark.parametrize("model", MODELS)
def test_more_memory_never_takes_less(model: str) -> None:
    """The last one takes all of it."""
    sizes = of(model)
    before = (0, 0)
    for budget in BUDGETS:
        found = shared(sizes, budget, n_ctx=4096)
        layers = found.layers if found else 0
        experts = (found.expert_bytes or all_experts(sizes, found)) if found else 0
        if layers == before[0]:
            assert experts >= before[1], budget
        assert layers >= before[0], budget
        before = layers, experts
    last = shared(sizes, BUDGETS[-1] + 60 * GB, n_ctx=4096)
    assert last and last.layers == len(sizes.layers) and last.expert_bytes == 0


@pytest.mark.parametrize(
    ("model", "budget", "layers", "experts"),
    [
        ("8b:q4_k_m", 24, 36, None),
        ("8b:q4_k_m", 4, range(20, 30), None),
        ("30b-a3b:q4_k_m", 6, 48, (0.15, 0.3)),
        ("30b-a3b:q4_k_m", 24, 48, None),  # all of them
        ("235b-a22b:q4_k_m", 6, range(20, 50), (0.05, 0.2)),
        ("235b-a22b:q4_k_m", 24, 94, (0.05, 0.2)),
    ],
)
def test_known_models_on_known_cards(
    model: str, budget: int, layers: int | range, experts: tuple[float, float] | None
) -> None:
    sizes = of(model)
    found = shared(sizes, budget * GB)
    assert found is not None
    assert found.layers in (layers if isinstance(layers, range) else [layers])
    if experts is None:
        assert found.expert_bytes == 0
    else:
        low, high = experts
        assert low < found.expert_bytes / sizes.above(found.layers).experts < high


def test_it_is_the_last_layers_that_are_taken() -> None:
    sizes = of("0.6b:q8_0")
    large = replace(sizes.layers[-1], dense=GB, dense_device=GB)
    heavy = replace(sizes, layers=(*sizes.layers[:-1], large))
    card = Card("Quick 5", 9 * GB, layers=1)
    light, last = (share_of("m", each, card, n_ctx=512) for each in (sizes, heavy))
    assert light and last and last.bytes - light.bytes == GB - sizes.layers[-1].dense_device
    assert heavy.above(1).dense - heavy.output == GB
    assert heavy.below(1, experts=False).dense == sizes.dense - sizes.output - (
        sizes.layers[-1].dense
    )


def test_the_context_costs_no_layer() -> None:
    sizes = of("8b:q4_k_m")
    whole = shared(sizes, 24 * GB)
    assert whole and whole.n_ctx == sizes.n_ctx
    part = shared(sizes, 4 * GB)
    assert part and part.n_ctx == 8192
    longer = shared(sizes, 4 * GB, n_ctx=32768)
    assert longer and longer.layers < part.layers
    mixture = shared(of("30b-a3b:q4_k_m"), 16 * GB)  # an eighth of the memory at most
    assert mixture and mixture.n_ctx == 16384


def test_a_number_of_layers_is_taken_exactly_or_refused() -> None:
    sizes, quick = of("8b:q4_k_m"), Card("Quick 5", 4 * GB)
    most = share_of("m", sizes, quick, n_ctx=8192)
    assert most is not None
    for n in (1, 7, most.layers):
        found = share_of("m", sizes, replace(quick, layers=n), n_ctx=8192)
        assert found and found.layers == n
    with pytest.raises(DoesNotFit) as refused:
        share_of("m", sizes, replace(quick, layers=most.layers + 1), n_ctx=8192)
    text = str(refused.value)
    assert f"{most.layers} fit" in text and "8,192 tokens" in text and "4.0 GB" in text
    assert " layers and a context" in text and "(--vram)" in text
    with pytest.raises(DoesNotFit, match=r": 1 layer and a context .* \(--vram\).*; none fit"):
        share_of("m", sizes, replace(quick, layers=1, budget=1000), n_ctx=8192)
    with pytest.raises(UsageError, match="has 36 layers"):
        share_of("m", sizes, replace(quick, layers=37))


def test_an_amount_for_experts_is_taken_exactly_or_refused() -> None:
    sizes = of("30b-a3b:q4_k_m")
    some = Card("Quick 5", 14 * GB, layers=30, expert_bytes=3 * GB)
    found = share_of("m", sizes, some, n_ctx=4096)
    assert found and (found.layers, found.expert_bytes) == (30, 3 * GB)
    assert 3 * GB < found.bytes < 5 * GB
    with pytest.raises(DoesNotFit):
        share_of("m", sizes, some.within(3 * GB), n_ctx=4096)
    every = share_of("m", sizes, replace(some, expert_bytes=0), n_ctx=4096)
    assert every and every.expert_bytes == 0 and every.bytes > 11 * GB


# ---- which card -----------------------------------------------------------------------------


def test_the_card_with_the_most_memory_and_room_for_others(devices: Devices) -> None:
    devices(3, 8, 8)
    found = card("auto", None)
    assert found and (found.index, found.name, found.layers) == (1, "Quick 1", None)
    assert 7 * GB < found.budget < 8 * GB * 0.92 + 1
    limited = card(None, "6G")
    assert limited and limited.budget == 6 * GB
    more = card("4", "9G")  # than is free
    assert more and more.layers == 4 and found.budget <= more.budget < 8 * GB
    half = card(None, "6G", 0.5)
    assert half and half.budget == 3 * GB
    devices(0.1)
    none = card(None, None)
    assert none and none.budget == 0 and share_of("m", of("0.6b:q8_0"), none) is None


def test_no_gpu(devices: Devices, monkeypatch: pytest.MonkeyPatch) -> None:
    devices(why="no driver")
    assert card(None, None) is None and card("auto", "6G") is None
    assert card("off", None) is None and card("0", None) is None
    with pytest.raises(Qwen3Error, match=r"--gpu 2: no driver; --gpu off"):
        card("2", None)
    with pytest.raises(UsageError):
        card("some", None)
    broken = Qwen3Error("the driver does not answer")
    monkeypatch.setattr("qwen3cli.engine.devices", Mock(side_effect=broken))
    assert card(None, None) is None
    with pytest.raises(Qwen3Error, match="the driver does not answer"):
        card("2", None)
    devices(why="no driver")
    assert card_to_fit(None, None) is None and card_to_fit("off", "8G") is None
    supposed = card_to_fit(None, "8G")
    devices(8)
    free = card(None, None)
    assert supposed and supposed.index == -1 and free and free.budget == supposed.budget
    devices(20)
    for vram, there in (("8G", True), ("40G", False)):
        assert (card_to_fit(None, vram).index >= 0) == there  # type: ignore[union-attr]


def test_what_did_not_fit_ends_at_nothing(devices: Devices) -> None:
    """Each plan takes less of the memory than the one before, however much is said to be free."""
    devices(20)
    sizes, found, sharing = of("30b-a3b:q4_k_m"), card(None, None), 0
    assert found is not None
    share = share_of("m", sizes, found, n_ctx=8192)
    while share:
        sharing += 1
        less = share_of("m", sizes, smaller(share), n_ctx=8192)
        assert less is None or less.bytes < share.bytes
        share = less
    assert 5 < sharing < 40
    devices(1)
    first = share_of("m", sizes, found, n_ctx=8192)
    assert first and smaller(first).budget < GB  # what is free now counts, too


# ---- the host beside it -----------------------------------------------------------------------


def test_memory_holds_what_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3cli.plan.placement.available", lambda: 2 * GB)
    sizes = of("8b:q4_k_m")
    assert plan(sizes, 2 * GB).where == "mapped"
    whole = plan(sizes, 2 * GB, card=Card("Quick 5", 24 * GB))
    assert whole.where == "resident" and whole.needed < GB and whole.on_gpu > 0.9
    part = plan(sizes, 4 * GB, card=Card("Quick 5", 3 * GB))
    assert part.where == "resident" and part.gpu and part.host and 0 < part.gpu.layers < 36
    assert part.host.dense + sizes.above(part.gpu.layers).dense == sizes.dense
    assert part.gpu.n_ctx == part.n_ctx == 8192
    mixture = of("30b-a3b:q4_k_m")
    tiers = plan(mixture, 8 * GB, card=Card("Quick 5", 6 * GB))  # VRAM, memory, file
    assert tiers.where == "offloaded" and tiers.gpu and tiers.gpu.expert_bytes and tiers.host
    alone = plan(mixture, 8 * GB)
    assert tiers.expert_bytes > alone.expert_bytes  # what every token reads is not here
    assert tiers.host.dense == 0 and tiers.host.experts == mixture.experts
    assert plan(mixture, GB, card=Card("Quick 5", 24 * GB)).where == "resident"
    found = place(DENSE, None, card=Card("Quick 5", GB))
    assert found.gpu and found.gpu.layers == 4 and found.where == "resident"


def test_one_memory_is_not_counted_twice() -> None:
    fast = Card("M", 20 * GB, unified=True)
    dense = plan(of("8b:q4_k_m"), 12 * GB, card=fast)
    assert dense.where == "resident" and dense.gpu and dense.gpu.layers == 36
    assert dense.host == dense.sizes
    sizes = of("30b-a3b:q4_k_m")
    for ram in (6, 8, 12, 16):
        found = plan(sizes, ram * GB, n_ctx=4096, card=fast)
        assert found.where == "offloaded" and found.gpu is not None
        assert found.gpu.layers == 48 and found.gpu.expert_bytes > 0
        assert found.gpu.bytes + found.expert_bytes < ram * GB
    assert plan(of("32b:q6_k"), 6 * GB, card=fast).gpu is None  # it would read the disk anyway


# ---- how fast ---------------------------------------------------------------------------------


def test_the_formula_of_the_speed() -> None:
    sizes = of("30b-a3b:q4_k_m")
    share = shared(sizes, 6 * GB, n_ctx=8192)
    assert share is not None
    used = sizes.used * sizes.experts
    missed = expected_misses(share.expert_bytes / sizes.experts)
    there = (sizes.dense + (1 - missed) * used) / 400e9
    seconds = there + missed * used / 40e9
    found = predict(sizes, 0, HOST, gpu=(share, QUICK))
    assert found.floor == pytest.approx(1 / seconds) == found.limit
    assert found.tok_s < found.floor
    stored = predict(sizes, sizes.experts, HOST, gpu=(share, QUICK))  # all of them, in slots
    assert stored.floor == pytest.approx(1 / (there + missed * used / (20e9 + 40e9)))
    deep = predict(sizes, 0, HOST, gpu=(share, QUICK), positions=8192)
    assert deep.floor == pytest.approx(1 / (seconds + sizes.kv_bytes(8192) / 400e9))
    assert predict(sizes, 4 * GB, HOST, gpu=(share, QUICK)).tok_s < found.tok_s  # and the disk


@pytest.mark.parametrize("model", ["8b:q4_k_m", "30b-a3b:q4_k_m"])
def test_more_of_a_fast_card_is_never_slower(model: str) -> None:
    sizes = of(model)
    speeds = [predict(sizes, 0, HOST).tok_s]
    prompts = [prompt_seconds(sizes, 0, HOST, Peaks(400e9, 100e9))]
    for budget in BUDGETS:
        if share := shared(sizes, budget, n_ctx=4096):
            speeds.append(predict(sizes, 0, HOST, gpu=(share, QUICK)).tok_s)
            both = (share, QUICK)
            prompts.append(prompt_seconds(sizes, 0, HOST, Peaks(400e9, 100e9), gpu=both))
    assert speeds == sorted(speeds) and speeds[-1] > 5 * speeds[0]
    if not sizes.experts:  # those are copied anew for every pass
        assert prompts == sorted(prompts, reverse=True)
    units = replace(QUICK, f16=0.0, int8=0.0)
    unknown = prompt_seconds(sizes, 0, HOST, Peaks(1, 1), gpu=(share, units))  # type: ignore[arg-type]
    assert unknown != unknown


def test_rates_of_a_gpu_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured: list[int] = []

    def probe(index: int) -> dict[str, float]:
        measured.append(index)
        if index == 7:
            raise DoesNotFit("no memory is left")
        return {"read": 4e11, "upload": 2e10, "download": 2e10, "f16": 0.0, "int8": 1e14}

    monkeypatch.setattr(machine, "probe_device", probe)
    quick = Card("Quick 5", GB, index=1, backend="cuda")
    want = GpuRates(read=4e11, upload=2e10, f16=0.0, int8=1e14)
    assert gpu_rates(quick) == gpu_rates(quick) == want and measured == [1]
    assert gpu_rates(quick, fresh=True) == want and measured == [1, 1]
    assert gpu_rates(replace(quick, index=7, name="Slow")) is None
    assert gpu_rates(replace(quick, index=-1)) is None and len(measured) == 3
    monkeypatch.setattr(machine, "nvidia_driver", lambda: "999.1")
    assert gpu_rates(quick) == want and len(measured) == 4  # another driver, another rate


# ---- what is told -----------------------------------------------------------------------------


def test_a_line_for_what_is_split() -> None:
    sizes = of("8b:q4_k_m")
    part = plan(sizes, 32 * GB, card=Card("Quick 5", 4 * GB))
    assert part.gpu is not None
    speed = predict(sizes, 0, HOST, gpu=(part.gpu, QUICK))
    line, n = part.describe("qwen3-8b", speed), part.gpu.layers
    assert line.startswith(f"qwen3-8b: {n} of 36 layers on Quick 5, the first {36 - n} on the CPU")
    assert line.endswith(f"; 8,192 tokens of context, about {speed.tok_s:.0f} tok/s")
    tiers = plan(of("30b-a3b:q4_k_m"), 8 * GB, card=Card("Quick 5", 6 * GB)).describe("m")
    assert "all 48 layers on Quick 5 with" in tiers and "of experts (" in tiers
    assert "; 8,192 tokens of context; 8.0 GB of memory for" in tiers  # all of it is on the GPU
    assert "every token" not in tiers and tiers.endswith(
        "; the other experts are read from the file"
    )
    some = plan(of("235b-a22b:q4_k_m"), 64 * GB, card=Card("Quick 5", 6 * GB)).describe("m")
    assert "the first" in some and "GB that every token needs" in some
    assert some.count(" tokens") == 1 and " and 8,192 tokens; the other" in some


def test_sizes_of_a_file_are_complete() -> None:
    for path in (DENSE, NANO_MOE):
        sizes = sizes_of(path)
        assert sizes is not None and sizes.shape is not None
        assert sum(layer.dense for layer in sizes.layers) + sizes.output == sizes.dense
        assert sum(layer.experts for layer in sizes.layers) == sizes.experts
        both = [sizes.above(2), sizes.below(2, experts=False)]
        assert sum(each.dense for each in both) == sizes.dense
        assert sum(each.experts for each in both) == sizes.experts
        assert sum(each.kv_token for each in both) == sizes.kv_token
