"""A checkpoint of a real shape there and back: quantized, verified, run by both engines.

python bench/round_trip.py [--shape 30b-a3b] [--layers 2] [--type Q4_K_M] [--folder DIR] [--llama]

A random bf16 checkpoint in shards becomes a GGUF file; `qwen3 verify` holds every tensor against
the checkpoint, and our engine computes a prompt. --llama: llama.cpp computes it too, and the
distributions are compared. 235b-a22b with two layers takes 13 GB in DIR.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from kl import divergence, llama, ours

from quant.checkpoint import Hyperparameters
from quant.quantize import quantize
from qwen3cli.bench.synthetic import SHAPES

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]
from checkpoint_synthetic import write_synthetic  # noqa: E402

PROMPT = [list(range(1000, 1032))]


def arguments(description: str | None, *, layers: int) -> argparse.ArgumentParser:
    """Those of a script that quantizes a random checkpoint."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--shape", choices=SHAPES, default="30b-a3b")
    parser.add_argument("--layers", type=int, default=layers, help="0: as many as the model has")
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="default: the system's for temporary files")
    return parser


def shape_of(args: argparse.Namespace) -> Hyperparameters:
    hp = SHAPES[args.shape]
    return replace(hp, n_layers=args.layers) if args.layers else hp


def main() -> None:
    parser = arguments(__doc__, layers=2)
    parser.add_argument("--llama", action="store_true")
    args = parser.parse_args()
    hp = shape_of(args)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        source, out = Path(folder) / "source", Path(folder) / "out.gguf"
        n_bytes = write_synthetic(source, hp)
        done = quantize(source, out, args.type, threads=args.threads)
        print(
            f"{args.shape}, {hp.n_layers} layers: {n_bytes / 1e9:.2f} GB of bf16 to "
            f"{done.file_bytes / 1e9:.2f} GB in {done.seconds:.0f} s",
            flush=True,
        )
        command = [sys.executable, "-m", "qwen3cli", "verify", out, "--source", source]
        subprocess.run(command, check=True)
        mine = ours(args.threads)(out, PROMPT)
        print(f"our engine: {len(mine)} distributions over {mine.shape[1]:,} tokens")
        if args.llama:
            theirs = llama(args.threads)(out, PROMPT)
            same = (mine.argmax(-1) == theirs.argmax(-1)).mean()
            kl = divergence(mine, theirs).mean()
            print(f"llama.cpp: KL {kl:.1e}, the same likeliest token for {same:.0%}")


if __name__ == "__main__":
    main()
