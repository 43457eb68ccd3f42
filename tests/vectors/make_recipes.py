"""Records which types llama.cpp gives to every tensor, for the test of our recipes.

Needs llama-cpp-python (0.3.36 was used), which the tests do not:

    python tests/vectors/make_recipes.py

Each model is a GGUF header of the real shape in front of a hole in the file, quantized by
llama.cpp in a dry run, which reports the types. Writes tests/data/recipes.json.gz:
    model: {"shape": hyperparameters, "types": {recipe: {part: type or list of each layer's}}}
where a recipe that ends in "+imatrix" was given an importance matrix.
"""

from __future__ import annotations

import ctypes
import gzip
import json
import re
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from llama_cpp import llama_cpp

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "native")]

from quant.checkpoint import Hyperparameters  # noqa: E402
from quant.layout import layout  # noqa: E402
from quant.metadata import add_hyperparameters  # noqa: E402
from quant.recipes import RECIPES  # noqa: E402
from qwen3cli.bench.synthetic import SHAPES  # noqa: E402

OUT = ROOT / "tests/data/recipes.json.gz"
LINE = re.compile(r"\] (\S+)\s+- \[.*?type =\s+(\w+), size =.*?MiB(?: ->.*\((\w+)\))?")


def shapes() -> dict[str, Hyperparameters]:
    """The family, and what it does not have: eight experts, rows that are not whole blocks."""
    dense, mixture = SHAPES["0.6b"], SHAPES["30b-a3b"]
    assert mixture.experts is not None
    return SHAPES | {
        "eight experts": replace(
            mixture, n_layers=10, experts=replace(mixture.experts, count=8, used=2)
        ),
        "odd rows": replace(dense, n_layers=9, n_embd=992, head_dim=80, n_ff=2912),
        "odd rows, untied": replace(
            dense, n_layers=9, n_embd=992, head_dim=80, n_ff=2912, tied_embedding=False
        ),
        "odd experts": replace(mixture, n_layers=9, experts=replace(mixture.experts, n_ff=96)),
    }


def write_hollow(path: Path, hp: Hyperparameters) -> None:
    writer = gguf.GGUFWriter(path, hp.architecture)
    writer.add_name("hollow")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    add_hyperparameters(writer, hp)
    size = 0
    for tensor in layout(hp):
        f32 = len(tensor.shape) == 1 or tensor.part == "ffn_gate_inp"
        n_bytes = tensor.n_rows * tensor.row_length * (4 if f32 else 2)
        kind = gguf.GGMLQuantizationType.F32 if f32 else gguf.GGMLQuantizationType.F16
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), n_bytes, kind)
        size += n_bytes + -n_bytes % 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 32 + size)


def importances(hp: Hyperparameters, keep: list[Any]) -> Any:
    """Ones for every matrix, as llama.cpp takes them: an array that ends in an empty item."""
    item = llama_cpp.llama_model_imatrix_data
    tensors = [tensor for tensor in layout(hp) if len(tensor.shape) > 1]
    array = (item * (len(tensors) + 1))()
    for entry, tensor in zip(array, tensors, strict=False):
        n = tensor.row_length * (tensor.shape[0] if len(tensor.shape) == 3 else 1)
        ones = (ctypes.c_float * n)(*[1.0] * n)
        keep.append(ones)
        entry.name, entry.data, entry.size = tensor.name.encode(), ones, n
    return ctypes.cast(array, ctypes.POINTER(item))


def types_of(path: Path, file_type: int, imatrix: Any) -> dict[str, str]:
    """The type that llama.cpp would give to each tensor."""
    lines: list[bytes] = []

    @llama_cpp.llama_log_callback
    def log(_level: int, text: bytes, _data: Any) -> None:
        lines.append(text)

    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.dry_run = file_type, 1, True
    if imatrix is not None:
        params.imatrix = imatrix
    out = str(path.with_suffix(".out")).encode()
    status = llama_cpp.llama_model_quantize(str(path).encode(), out, ctypes.byref(params))
    text = b"".join(lines).decode()
    if status:
        raise SystemExit(text)
    return {name: (new or old).upper() for name, old, new in LINE.findall(text)}


def folded(types: dict[str, str], hp: Hyperparameters) -> dict[str, str | list[str]]:
    """The types by part of a layer: one if all layers agree."""
    parts: dict[str, list[str]] = {}
    for tensor in layout(hp):
        parts.setdefault(tensor.part, []).append(types[tensor.name])
    return {part: kinds if len(set(kinds)) > 1 else kinds[0] for part, kinds in parts.items()}


def main() -> None:
    llama_cpp.llama_backend_init()
    models = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, hp in shapes().items():
            path = Path(folder) / "hollow.gguf"
            write_hollow(path, hp)
            keep: list[Any] = []
            imatrix = importances(hp, keep)
            types = {}
            for recipe in RECIPES.values():
                for suffix, given in (("", None), ("+imatrix", imatrix)):
                    found = types_of(path, int(recipe.file_type), given)
                    types[recipe.name + suffix] = folded(found, hp)
            models[name] = {"shape": asdict(hp), "types": types}
            print(name, len(types), flush=True)
            path.unlink()
    OUT.write_bytes(gzip.compress(json.dumps(models).encode(), mtime=0))


if __name__ == "__main__":
    main()
