"""A mixture of experts in less memory than it takes, beside llama.cpp with the file mapped.

python bench/offload.py MODEL [--ram 6G,8G,12G] [--routes uniform] [--decode 16] [--prefill 256]
[--guess | --no-guess] [--confine] [--llama]

Prints the table of bench/README.md: `qwen3 bench --ram`, each memory in a process of its own.
MODEL: a GGUF file, or `30b-a3b:q4_k_m`, which is made of random weights. --routes: own, uniform, or
the csv of a recorded run. --confine: in a control group of the memory's size, so that the page
cache counts (Linux, root). --llama: llama.cpp in the same group, by its own routes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from quant.shards import files
from qwen3cli.bench.peer import Peer
from qwen3cli.bench.synthetic import synthetic
from qwen3cli.hub import registry
from qwen3cli.plan.memory import parse_bytes
from qwen3cli.terminal import Terminal

CGROUPS = Path("/sys/fs/cgroup")


@contextmanager
def confined(n_bytes: int) -> Iterator[None]:
    """This process, and what it starts, in a control group with so much memory."""
    v1 = (CGROUPS / "memory").is_dir()
    root, limit = (CGROUPS / "memory", "limit_in_bytes") if v1 else (CGROUPS, "max")
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    mine = next(path for _, names, path in lines if names.split(",").count("memory" if v1 else ""))
    group = root / f"qwen3-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / f"memory.{limit}").write_text(str(n_bytes))
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        (root / mine.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def forget(path: Path) -> None:
    """What is cached of the file was not charged to the group that will read it."""
    for file in files(path):
        with file.open("rb") as data:
            os.posix_fadvise(data.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ours(path: Path, ram: str, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "qwen3cli", "bench", "-m", str(path), "--ram", ram, "--json"]
    for flag in ("routes", "decode", "prefill", "threads"):
        command += [f"--{flag}", str(getattr(args, flag))]
    if args.guess is not None:
        command.append("--guess" if args.guess else "--no-guess")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"the run with {ram} failed")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def llama(path: Path, args: argparse.Namespace) -> float:
    """Its tokens a second, behind as many that bring in what it needs."""
    n = args.decode
    peer = Peer(path, threads=args.threads, n_ctx=max(2 * n, 512), repack=False)
    try:
        peer.decode(n, 0)
        return n / peer.decode(n, n)
    finally:
        peer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--ram", default="6G,8G,12G")
    parser.add_argument("--routes", default="uniform")
    parser.add_argument("--decode", type=int, default=16)
    parser.add_argument("--prefill", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--guess", action=argparse.BooleanOptionalAction)
    parser.add_argument("--llama", action="store_true")
    parser.add_argument("--confine", action="store_true")
    args = parser.parse_args()
    shape = ":" in args.model and not Path(args.model).exists()
    path = synthetic(args.model, Terminal()) if shape else registry.resolve(args.model)
    print(
        "| memory | experts in it | hits | MB read a token | disk GB/s | waiting | tok/s "
        "| predicted | serial floor | overlapped | of the floor | prefill | hits behind it "
        "| llama.cpp | ratio |\n" + "|---" * 15 + "|"
    )
    for ram in args.ram.split(","):
        n_bytes, theirs = parse_bytes(ram, "--ram"), None
        forget(path)
        with confined(n_bytes) if args.confine else nullcontext():
            row = ours(path, ram, args)["by_ram"][0]
        if args.llama:
            forget(path)
            with confined(n_bytes) if args.confine else nullcontext():
                theirs = llama(path, args)
        experts, decode, prefill = row["experts"], row["decode"], row["prefill"]
        tok_s, floor = decode["tok_s"], decode["floor_tok_s"]
        print(
            f"| {ram} | {row['experts_share']:.0%} | {experts['hit_rate']:.1%} "
            f"| {decode['disk_mb_per_token']:.0f} | {decode['disk_gb_s']:.2f} "
            f"| {decode['waiting']:.0%} | {tok_s:.2f} | {experts['predicted_tok_s']:.2f} "
            f"| {floor:.2f} | {decode['limit_tok_s']:.2f} | {tok_s / floor:.0%} "
            f"| {prefill['tok_s']:.1f} | {prefill['hit_rate_behind']:.1%} "
            + (f"| {theirs:.2f} | {tok_s / theirs:.1f} |" if theirs else "| | |"),
            flush=True,
        )


if __name__ == "__main__":
    main()
