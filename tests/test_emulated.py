"""The emulated GPU, as other tests use it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CODE = "from qwen3cli.engine import devices; print(devices())"


def devices(**env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_process_finds_the_emulated_device(emulated_gpu: Path) -> None:
    found = devices(QWEN3_GPU_LIBRARY=str(emulated_gpu))
    assert "backend='emulated', name='emulation'" in found


def test_a_library_that_is_missing_is_named() -> None:
    found = devices(QWEN3_GPU_LIBRARY="/nowhere/backend.so")
    assert found.startswith("([], ") and "/nowhere/backend.so" in found
