"""Prefill and decode of a model file, and the same through llama.cpp if it is installed.

python bench/speed.py MODEL.gguf [--prefill 256] [--decode 48] [--rounds 5]

The two take turns in one process; printed are medians and the ratio. `pip install qwen3[llama]`
brings the peer.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

from qwen3cli.engine import Model

Measure = Callable[[], tuple[float, float]]  # tokens a second: prefill, decode


def ours(model: Model, ids: list[int], n_decode: int) -> Measure:
    session = model.session(n_ctx=len(ids) + n_decode + 8)

    def measure() -> tuple[float, float]:
        session.sync([])
        start = perf_counter()
        session.sync(ids)
        middle = perf_counter()
        for _ in session.generate(max_tokens=n_decode):
            pass
        return len(ids) / (middle - start), n_decode / (perf_counter() - middle)

    return measure


def peer(path: str, ids: list[int], n_decode: int, threads: int) -> Measure | None:
    try:
        import llama_cpp  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    defaults = llama_cpp.llama_cpp.llama_model_default_params

    def without_repacking() -> Any:  # which crashes where the CPU has AMX and the system hides it
        params = defaults()
        params.use_extra_bufts = False
        return params

    llama_cpp.llama_cpp.llama_model_default_params = without_repacking
    model: Any = llama_cpp.Llama(
        path, n_ctx=len(ids) + n_decode + 8, n_threads=threads, n_threads_batch=threads,
        n_batch=512, verbose=False,
    )  # fmt: skip

    def measure() -> tuple[float, float]:
        model.reset()
        start = perf_counter()
        model.eval(ids)
        middle = perf_counter()
        for _ in range(n_decode):
            model.eval([model.sample(temp=0.0)])
        return len(ids) / (middle - start), n_decode / (perf_counter() - middle)

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--prefill", type=int, default=256)
    parser.add_argument("--decode", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    model = Model(args.model, threads=args.threads)
    ids = [1 + i * 7919 % 4000 for i in range(args.prefill)]
    runs = {"qwen3": ours(model, ids, args.decode)}
    if llama := peer(args.model, ids, args.decode, model.threads):
        runs["llama.cpp"] = llama
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, measure in runs.items():
            figures[name].append(measure())
    print(f"{args.model}: {model.isa}, {model.threads} threads, medians of {args.rounds}")
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in figures.items()
    }
    for name, (prefill, decode) in medians.items():
        print(f"{name:10} prefill {prefill:8.1f} tok/s   decode {decode:8.1f} tok/s")
    if llama:
        ratios = [a / b for a, b in zip(*medians.values(), strict=True)]
        print(f"{'ratio':10} prefill {ratios[0]:8.2f}         decode {ratios[1]:8.2f}")


if __name__ == "__main__":
    main()
