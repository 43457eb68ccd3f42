"""The emulated GPU, as other tests use it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = "from qwen3cli.engine import devices; print(devices())"


def devices(**env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_process_finds_the_emulated_device(emulated_gpu: Path) -> None:
    found = devices(QWEN3_GPU_LIBRARY=str(emulated_gpu))
    assert "backend='emulated', name='emulation'" in found


def test_a_library_that_is_missing_is_named() -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        devices(QWEN3_GPU_LIBRARY="/nowhere/backend.so")
    assert "Qwen3Error: " in failed.value.stderr and "/nowhere/backend.so" in failed.value.stderr
