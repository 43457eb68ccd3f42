"""GPUs that are not there, for tests of plans: `devices` says which ones the engine finds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qwen3cli.engine import Device
from qwen3cli.hub.releases import RELEASES
from qwen3cli.plan.machine import GpuRates, Rates
from qwen3cli.plan.sizes import Sizes, sizes_of_release

GB = 10**9
HOST, QUICK = Rates(40e9, 1e9), GpuRates(read=400e9, upload=20e9, f16=50e12, int8=100e12)
Devices = Callable[..., None]


def of(model: str) -> Sizes:
    name, _, quant = model.partition(":")
    return sizes_of_release(RELEASES[name], quant)


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Devices:
    """The GPUs there are, by their free memory in GB; why there is none."""

    def devices(*free: float, why: str = "", unified: bool = False, total: float = 24) -> None:
        found = [
            Device("cuda", f"Quick {i}", int(total * GB), int(n * GB), 30, unified)
            for i, n in enumerate(free)
        ]
        monkeypatch.setattr("qwen3cli.engine.devices", lambda: (found, why))

    return devices
