"""The emulated GPU, as other tests use it."""

from __future__ import annotations

import ctypes
from pathlib import Path


class Backend(ctypes.Structure):
    """The beginning of gpu_api in native/gpu/gpu.h."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("count", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)),
    )


def test_the_library_is_a_backend_with_a_device(emulated_gpu: Path) -> None:
    library = ctypes.CDLL(str(emulated_gpu))
    library.qwen3_gpu.restype = ctypes.POINTER(Backend)
    backend = library.qwen3_gpu().contents
    assert (backend.name, backend.count(None)) == (b"emulated", 1)
