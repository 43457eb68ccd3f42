"""What ptxas says of the kernels, and that none of them spills."""

from __future__ import annotations

import importlib.util
import os
import subprocess
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
    assert uses["large"]["75"] == resources.Use(registers=255, shared=1024, stack=40, spills=40)
    assert (uses["small"]["75"].threads, uses["large"]["75"].threads) == (1024, 256)
    assert resources.spilling(uses) == ["large spills 40 bytes on sm_75"]


def test_no_kernel_spills(resources: ModuleType, tmp_path: Path) -> None:
    if "QWEN3_NVCC" not in os.environ:
        pytest.skip("set QWEN3_NVCC to CUDA's compiler: two minutes of work")
    table = tmp_path / "table.md"
    done = subprocess.run([sys.executable, SCRIPT, table], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| rms_norm |" in table.read_text()
