"""What ptxas says of the kernels; `make cuda` asks it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path("native/gpu/resources.py")

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'small' for 'sm_75'
ptxas info    : Function properties for small
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, used 1 barriers, 384 bytes cmem[0]
ptxas info    : Compile time = 12.5 ms
ptxas info    : Compiling entry function 'large' for 'sm_75'
ptxas info    : Function properties for large
    40 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 40 bytes cumulative stack size, 1024 bytes smem
"""


@pytest.fixture(scope="module")
def resources() -> ModuleType:
    spec = importlib.util.spec_from_file_location("resources", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_the_report_is_read(resources: ModuleType) -> None:
    uses = resources.parse(REPORT)
    assert uses["small"]["75"] == resources.Use(registers=24)
    assert uses["large"]["75"] == resources.Use(registers=255, stack=40)
    assert (uses["small"]["75"].threads, uses["large"]["75"].threads) == (1024, 256)


def test_what_a_launch_cannot_have_is_told(
    resources: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    uses = resources.parse(REPORT)
    memory = "large has 40 bytes in memory on sm_75"
    assert resources.excesses(uses) == [memory]
    monkeypatch.setattr(resources, "THREADS", {"small": 1024, "large": 512})
    threads = "large has 512 threads and registers for 256 on sm_75"
    assert resources.excesses(uses) == [memory, threads]


def test_numbers_are_compared_for_one_nvcc_and_kernels_for_any(
    resources: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "ARCHITECTURES", ("75",))
    uses = resources.parse(REPORT)
    other = {"small": uses["small"], "large": {"75": resources.Use(registers=250)}}
    fewer = {"small": uses["small"]}

    def text(version: str, uses: object) -> str:
        return str(resources.HEAD.format(version=f"nvcc {version}") + resources.table(uses))

    written = text("13.0", uses)
    assert not resources.out_of_date(written, text("13.0", uses))
    assert resources.out_of_date(written, text("13.0", other))
    assert not resources.out_of_date(written, text("13.5", other))
    assert resources.out_of_date(written, text("13.5", fewer))
