"""What an importance matrix is worth: divergence from F32 with and without it.

python bench/importance.py [--llama] [--tokens 4000] [--calibration 20000] [--threads 2]

The matrix is collected by the F32 model over conversations of the kind that the nano models were
trained on, and judged on others, as bench/kl.py does it. --llama: llama.cpp quantizes, too, with
the matrix from our file.
"""

from __future__ import annotations

import argparse
import ctypes
import random
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from kl import ROOT, SEED, conversations, divergence, ours, paired, sample

from quant import recipes
from quant.imatrix import Corpus, write_imatrix
from quant.quantize import quantize
from qwen3cli.engine import Importance, Model

RECIPES = "Q6_K,Q5_K,Q4_K_M,Q4_0"


def collect(source: Path, out: Path, n_tokens: int, threads: int) -> str:
    """Writes the importance of a model; says how many experts it reached."""
    model = Model(source, threads=threads)
    importance = Importance(model)
    session = model.session(n_ctx=4096)
    session.observe(importance)
    rng = random.Random(SEED + 1)
    done = 0
    while done < n_tokens:
        ids, _ = sample(rng, lambda text: model.tokenizer.encode(text, added=True))
        session.sync([])
        session.sync(ids)
        done += len(ids)
    write_imatrix(out, importance, Corpus(["conversations"], 1, done))
    experts = [n for each in importance if "down_exps" in each.tensor for n in each.counts]
    reached = f", {sum(n > 0 for n in experts)} of {len(experts)} experts" if experts else ""
    return f"{done} tokens{reached}"


def worth(path: Path) -> dict[str, Any]:
    """float32 of each tensor, as llama.cpp computes it from a file: the mean squares of each
    expert, ones for one that was not reached."""
    tensors = {t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors}
    out = {}
    for name, sums in tensors.items():
        if name.endswith(".in_sum2"):
            base = name.removesuffix(".in_sum2")
            counts = tensors[base + ".counts"].reshape(-1, 1)
            sums = sums.reshape(len(counts), -1)
            out[base] = np.where(counts > 0, sums / np.maximum(counts, 1), 1).astype(np.float32)
    return out


def llama_quantize(source: Path, out: Path, recipe: str, imatrix: Path | None) -> None:
    import llama_cpp.llama_cpp as llama  # type: ignore[import-not-found,unused-ignore]

    entries = worth(imatrix) if imatrix else {}
    data = (llama.llama_model_imatrix_data * (len(entries) + 1))()  # ends with a NULL
    for slot, (name, values) in zip(data, entries.items(), strict=False):
        pointer = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        slot.name, slot.data, slot.size = name.encode(), pointer, values.size
    silent = llama.llama_log_callback(lambda _level, _text, _data: None)
    llama.llama_log_set(silent, None)
    params = llama.llama_model_quantize_default_params()
    params.ftype = recipes.recipe(recipe).file_type
    if entries:
        params.imatrix = ctypes.cast(data, ctypes.POINTER(llama.llama_model_imatrix_data))
    if llama.llama_model_quantize(bytes(source), bytes(out), ctypes.byref(params)):
        raise RuntimeError("llama.cpp refused")


def compare(name: str, directory: Path, args: argparse.Namespace) -> None:
    source = ROOT / "tests/data" / name
    plain, path, imatrix = (directory / f"{x}.gguf" for x in ("plain", "quantized", "imatrix"))
    quantize(source, plain, "F32")
    print(f"\n{name}: {collect(plain, imatrix, args.calibration, args.threads)}\n")
    run = ours(args.threads)
    texts = conversations(Model(plain).tokenizer, args.tokens)
    reference = run(plain, texts)
    print("| file | KL | with importance | ratio | difference | same top-1 |\n" + "|---" * 6 + "|")
    peers = (False, True) if args.llama else (False,)
    for recipe, peer in product(args.recipes.split(","), peers):
        kl, top = [], []
        for importance in (None, imatrix):
            if peer:
                llama_quantize(plain, path, recipe, importance)
            else:
                quantize(source, path, recipe, imatrix=importance)
            logs = run(path, texts)
            kl.append(divergence(reference, logs))
            top.append(100 * (reference.argmax(-1) == logs.argmax(-1)).mean())
        without, with_ = (each.mean() for each in kl)
        file = f"{recipe}, by llama.cpp" if peer else recipe
        print(
            f"| {file} | {without:.2e} | {with_:.2e} | {with_ / without:.2f} "
            f"| {paired(kl[1], kl[0])} | {top[0]:.2f} %, {top[1]:.2f} % |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama", action="store_true", help="its quantizer, too")
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--calibration", type=int, default=20000)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    for name in ("nano-dense", "nano-moe"):
        with tempfile.TemporaryDirectory() as folder:
            compare(name, Path(folder), args)


if __name__ == "__main__":
    main()
