"""Decoding of several sessions together, as ratios to one alone.

python bench/together.py [MODEL.gguf ...] [--depth 512] [--tokens 32] [--threads 2] [--rounds 5]

Prints the tokens a second of 1, 2, 4 and 8 sessions, all in all, with `depth` tokens in each cache:
medians of rounds in turns, and the ratio to one session in the same run. Without a model: random
weights in the shape of 0.6B, Q4_K_M, and nano-moe.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from time import perf_counter

from qwen3cli.bench.synthetic import synthetic
from qwen3cli.engine import Model, extend_together
from qwen3cli.hub.registry import resolve
from qwen3cli.terminal import Terminal

COUNTS = (1, 2, 4, 8)


def measure(path: Path, args: argparse.Namespace) -> None:
    model = Model(path, threads=args.threads)
    n_vocab = model.config["n_vocab"]
    sessions = [model.session(n_ctx=args.depth + args.tokens) for _ in range(max(COUNTS))]
    rates: dict[int, list[float]] = {count: [] for count in COUNTS}
    for _ in range(args.rounds):
        for count in COUNTS:
            for session in sessions[:count]:
                session.fill(args.depth)
            start = perf_counter()
            for step in range(args.tokens):
                tokens = [(977 * step + 31 * i) % n_vocab for i in range(count)]
                extend_together(sessions[:count], tokens)
            rates[count].append(count * args.tokens / (perf_counter() - start))
    print(f"\n{path.name}, depth {args.depth}, {model.threads} threads, {model.isa}\n")
    print("| sessions | tok/s together | ratio to one |\n|---|---|---|")
    for count in COUNTS:
        rate = median(rates[count])
        print(f"| {count} | {rate:.1f} | {rate / median(rates[1]):.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--depth", type=int, default=512, help="tokens in each cache; 512")
    parser.add_argument("--tokens", type=int, default=32, help="steps of a measurement; 32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for path in args.models or [synthetic("0.6b:q4_k_m", Terminal()), resolve("nano-moe")]:
        measure(path, args)


if __name__ == "__main__":
    main()
