"""A mixture of experts in less memory than it takes: tokens a second against the memory.

python bench/offload.py MODEL [--ram 6G,8G,12G] [--routes uniform] [--tokens 16] [--llama]
[--confine]

MODEL: a GGUF file or `30b-a3b:q4_k_m`, which is made of random weights. --routes: `own` (what the
router says; with random weights nearly always the same experts), `uniform` (the worst case), or a
csv(.gz) with the columns step, layer, slot, expert of a recorded run. --confine: every run in a
control group of the memory's size, so that the page cache counts (Linux, root). --llama: llama.cpp
with the file mapped, by its own routes, in the same group.

Beside each run stands the serial floor, 1 / (T_memory + T_disk): the bytes that a token reads
over the rate at which memory gives them, and the bytes that were missed over the rate of the
disk, both measured in the same process; and the limit of perfect overlap, 1 / max of the two.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import mmap
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import qwen3_native
from numpy.typing import NDArray

from qwen3cli import registry
from qwen3cli.engine import Model
from qwen3cli.memory import parse_bytes
from qwen3cli.peer import Peer
from qwen3cli.placement import place
from qwen3cli.sizes import sizes_of
from qwen3cli.synthetic import synthetic
from qwen3cli.terminal import Terminal

N_CTX, PIECE = 2048, 1 << 20


def disk_rate(path: Path, threads: int = 4, seconds: float = 1.5) -> float:
    """Bytes a second of random reads of 1 MB past the page cache."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    last, done = path.stat().st_size // PIECE - 1, [0] * threads
    end = time.monotonic() + seconds

    def read(i: int) -> None:
        rng, buffer = random.Random(i), mmap.mmap(-1, PIECE)
        while time.monotonic() < end:
            done[i] += os.preadv(fd, [buffer], rng.randrange(last) * PIECE)

    started = time.monotonic()
    workers = [threading.Thread(target=read, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    os.close(fd)
    return sum(done) / (time.monotonic() - started)


def routes_of(kind: str, config: dict[str, Any], n_tokens: int) -> NDArray[np.int32] | None:
    """[tokens, layers, experts used]; a recorded run with fewer experts a token is filled up with
    random ones."""
    rng = np.random.default_rng(1)
    n, used, layers = config["n_experts"], config["n_experts_used"], config["n_layers"]
    if kind == "own":
        return None
    if kind == "uniform":
        chosen = [[rng.permutation(n)[:used] for _ in range(layers)] for _ in range(n_tokens)]
        return np.array(chosen, np.int32)
    with gzip.open(kind, "rt") if kind.endswith(".gz") else Path(kind).open() as file:
        recorded: dict[int, dict[int, list[int]]] = {}
        for row in csv.DictReader(file):
            step = recorded.setdefault(int(row["step"]), {})
            step.setdefault(int(row["layer"]), []).append(int(row["expert"]))
    steps = [step for _, step in sorted(recorded.items()) if len(step) == layers]
    out = np.empty((len(steps), layers, used), np.int32)
    for t, step in enumerate(steps):
        for layer in range(layers):
            known = step[layer][:used]
            others = [e for e in rng.permutation(n) if e not in known]
            out[t, layer] = known + others[: used - len(known)]
    return out


def forget(path: Path) -> None:
    """What is cached of the file was not charged to the group that will read it."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ours(path: Path, ram: str, kind: str, n_tokens: int, threads: int) -> dict[str, Any]:
    placement = place(path, ram, n_ctx=N_CTX)
    disk = disk_rate(path)
    model = Model(path, threads=threads, expert_bytes=placement.expert_bytes)
    session = model._native.session(N_CTX, "f16")
    routes = routes_of(kind, model.config, N_CTX)
    if routes is not None:
        session.force_routes(routes)
    probe = qwen3_native.Probe(model._native, 1 << 28)
    memory = probe.read()
    warm = max(n_tokens, 32)
    for i in range(warm):  # the store fills with what is used
        session.extend([i * 7919 % 100000])
    before, started = model.expert_stats, time.monotonic()
    for i in range(n_tokens):
        session.extend([i * 104729 % 100000])
    seconds = time.monotonic() - started
    after = model.expert_stats
    sizes = sizes_of(path)
    assert sizes is not None
    used = model.config["n_experts_used"] / model.config["n_experts"]
    read = (after.bytes_read - before.bytes_read) / n_tokens
    hits, misses = after.hits - before.hits, after.misses - before.misses
    in_memory, from_disk = (sizes.dense + used * sizes.experts) / memory, read / disk
    status = Path("/proc/self/status").read_text()
    return {
        "tok_s": n_tokens / seconds,
        "floor": 1 / (in_memory + from_disk),
        "limit": 1 / max(in_memory, from_disk),
        "hit_rate": hits / max(1, hits + misses) if placement.expert_bytes else 1.0,
        "share": placement.expert_bytes / sizes.experts if placement.expert_bytes else 1.0,
        "read_gb": read / 1e9,
        "stall": (after.stall_s - before.stall_s) / seconds,
        "disk_gb_s": disk / 1e9,
        "anon_gb": int(status.split("RssAnon:")[1].split()[0]) / 1e6,
    }


def llama(path: Path, n_tokens: int, threads: int) -> dict[str, Any]:
    peer = Peer(path, threads=threads, n_ctx=N_CTX, repack=False)
    try:
        peer.decode(n_tokens, 0)  # what it needs first
        return {"tok_s": n_tokens / peer.decode(n_tokens, n_tokens)}
    finally:
        peer.close()


def confined(ram: str) -> Path:
    """A new control group with this much memory; this process enters it."""
    root = Path("/sys/fs/cgroup")
    v1 = (root / "memory").is_dir()
    group = (root / "memory" if v1 else root) / f"qwen3-bench-{os.getpid()}"
    group.mkdir()
    name = "memory.limit_in_bytes" if v1 else "memory.max"
    (group / name).write_text(str(parse_bytes(ram, "--ram")))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    return group


def child(args: argparse.Namespace) -> None:
    if args.confine:
        confined(args.ram)
    path = Path(args.model)
    if args.llama:
        result = llama(path, args.tokens, args.threads)
    else:
        result = ours(path, args.ram, args.routes, args.tokens, args.threads)
    print(json.dumps(result))


def measured(args: argparse.Namespace, path: Path, ram: str, *, peer: bool) -> dict[str, Any]:
    """A run in a process of its own."""
    forget(path)
    command = [sys.executable, __file__, str(path), "--ram", ram, "--child"]
    command += ["--routes", args.routes, "--tokens", str(args.tokens)]
    command += ["--threads", str(args.threads)]
    command += ["--confine"] * args.confine + ["--llama"] * peer
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    for group in Path("/sys/fs/cgroup").glob("**/qwen3-bench-*"):
        group.rmdir()
    if done.returncode:
        sys.exit(f"the run with {ram} failed")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--ram", default="6G,8G,12G")
    parser.add_argument("--routes", default="uniform")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama", action="store_true")
    parser.add_argument("--confine", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    shape = ":" in args.model and not Path(args.model).exists()
    path = synthetic(args.model, Terminal()) if shape else registry.resolve(args.model)
    print(
        "| memory | experts in it | hits | GB read a token | disk GB/s | waiting | tok/s "
        "| serial floor | overlapped | of the floor | llama.cpp | ratio |\n" + "|---" * 12 + "|"
    )
    for ram in args.ram.split(","):
        r = measured(args, path, ram, peer=False)
        theirs = measured(args, path, ram, peer=True)["tok_s"] if args.llama else None
        peer = f"{theirs:.2f} | {r['tok_s'] / theirs:.1f}" if theirs else " | "
        print(
            f"| {ram} | {r['share']:.0%} | {r['hit_rate']:.1%} | {r['read_gb']:.2f} "
            f"| {r['disk_gb_s']:.2f} | {r['stall']:.0%} | {r['tok_s']:.2f} | {r['floor']:.2f} "
            f"| {r['limit']:.2f} | {r['tok_s'] / r['floor']:.0%} | {peer} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
