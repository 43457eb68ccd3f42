"""The emulated GPU of the native tests as a backend that the engine finds: for whole commands.

`emulated_gpu` is its path. A process in which QWEN3_GPU_LIBRARY names it has that device:

    def test_something(emulated_gpu: Path, ...) -> None:
        env = {**os.environ, "QWEN3_GPU_LIBRARY": str(emulated_gpu)}
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build/plain"  # that of `make kernels`, too
TARGET = "qwen3_emulated_backend"


def run(*command: str | Path) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}:\n{done.stdout}")


def build() -> Path:
    """Up to date: half a minute once, a moment from then on."""
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # a venv not activated
    cmake = shutil.which("cmake", path=here)
    if cmake is None:
        raise RuntimeError("the emulated GPU takes cmake and a C++ compiler to build")
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "emulated.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of the workers of pytest, one builds
        if not (BUILD / "CMakeCache.txt").exists():
            run(cmake, "-S", ROOT, "-B", BUILD, "-DQWEN3_PYTHON=OFF", "-DQWEN3_TESTS=ON")
        run(cmake, "--build", BUILD, "--target", TARGET)
    return BUILD / f"tests/native/lib{TARGET}.so"


@pytest.fixture(scope="session")
def emulated_gpu() -> Path:
    if sys.platform == "darwin":
        pytest.skip("a Mac's own GPU is the only one there")
    return build()


if __name__ == "__main__":
    build()
