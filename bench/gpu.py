"""What a GPU reaches of what it could: the section "On a GPU" of bench/README.md, in one command.

python bench/gpu.py [--sanitize] [--logits nano,FILE] [--vram 6G] [--only decode,prefill] [--json]

Models of the real shapes are made of random weights and kept, 32 GB for the default ones. They are
judged by the GPU's own rates and the host's, right before and after each run, as `qwen3 bench`
does it; the goals are those of the project. What a GPU has no memory for is said, and left out.
--sanitize: some logits under NVIDIA's compute-sanitizer, too. --logits: the models whose logits
are compared with the CPU's. --json: the report as one object.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from math import inf
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from kl import conversations
from numpy.typing import NDArray

from quant.errors import QuantError
from qwen3cli import __version__
from qwen3cli.bench.limits import Cost, Misses, Rates, Tensor, Work
from qwen3cli.bench.speed import (
    Measurement,
    Ours,
    Plan,
    Sample,
    figure,
    ids_of,
    median_run,
    probe_of,
    rates_now,
    with_gpu,
)
from qwen3cli.bench.synthetic import synthetic
from qwen3cli.engine import (
    Cancelled,
    Device,
    Model,
    ModelFile,
    Session,
    devices,
    extend_together,
    probe_device,
)
from qwen3cli.errors import Qwen3Error
from qwen3cli.evaluate import divergence, log_softmax
from qwen3cli.hub import registry
from qwen3cli.plan import system
from qwen3cli.plan.gpu import Card, share_of
from qwen3cli.plan.memory import amount, parse_bytes
from qwen3cli.plan.sizes import sizes_of
from qwen3cli.terminal import Terminal

SHAPES = "8b:q4_k_m,8b:q8_0,30b-a3b:q4_k_m"
BATCH = 4


@dataclass(frozen=True)
class Row:
    """A goal, and how far it is reached. None: it could not be measured."""

    what: str
    goal: str
    figure: str
    reached: bool | None
    values: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        verdict = {True: "reached", False: "missed", None: "-"}[self.reached]
        return f"| {self.what} | {self.goal} | {self.figure} | {verdict} |"


class Bench:
    """What all measurements have in common."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.terminal = Terminal()

    def path(self, name: str) -> Path:
        """Of a file, a model that is installed, or NAME:TYPE, made of random weights."""
        if ":" in name and not Path(name).exists():
            return synthetic(name, self.terminal)
        return registry.resolve(name)

    def model(self, path: Path, expert_bytes: int = 0, stored: int = 0) -> Model:
        """With all its layers on the GPU, which has expert_bytes for experts, 0: all of them; those
        in RAM are mapped, or in a store of so many bytes, out of which copies run by themselves."""
        model = Model(path, threads=self.args.threads, expert_bytes=stored)
        model.use_gpu(self.args.device, model.config["n_layers"], expert_bytes=expert_bytes)
        return model

    def measure(self, model: Model, work: Work) -> Sample:
        """The median of the rounds."""
        device = model.device
        assert device is not None
        cost = Cost.of(model.config, tensors_of(model), gpu_layers=model.config["n_layers"])
        nothing = Rates(inf, inf, inf)  # is left to the host, but for experts that are missed
        probe = probe_of(model) if model.gpu_stats.n_slots < n_experts(model) else None

        def rates() -> Rates:
            return rates_now(model, probe) if probe else with_gpu(nothing, device)

        measurement = Measurement(cost, rates, Misses(model))
        with self.terminal.progress(f"{model.path.name}: {work}") as move:
            plan = Plan((work,), self.args.rounds)
            measurement.measure(plan, {"qwen3": Ours(model, work.tokens + work.depth)}, move)
        return median_run(measurement.samples[work]["qwen3"])


def n_experts(model: Model) -> int:
    """Of all layers."""
    return int(model.config["n_experts"] * model.config["n_layers"])


def title(name: str) -> str:
    """Of a file its name."""
    return Path(name).name.removesuffix(".gguf")


def tensors_of(model: Model) -> list[Tensor]:
    return ModelFile(model.path).tensors()


def is_mixture(path: Path) -> bool:
    return any("_exps." in name for name, *_ in ModelFile(path).tensors())


# ---- logits ------------------------------------------------------------------------------


def logs_of(session: Session, texts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """The logarithms of the probabilities behind each token: half of a text is computed at once,
    as a prompt, the other half one by one."""
    rows = []
    for ids in texts:
        half = len(ids) // 2
        session.sync([])
        if half:
            rows.append(log_softmax(session.extend_logits(ids[:half])))
        for token in ids[half:]:
            session.extend([token])
            rows.append(log_softmax(session.logits())[None])
    return np.concatenate(rows)


def logits(bench: Bench, name: str) -> Iterator[Row]:
    path, n = bench.path(name), bench.args.tokens
    cpu = Model(path, threads=bench.args.threads)
    ids = [token for text in conversations(cpu.tokenizer, n) for token in text][:n]
    texts = [ids[i : i + 512] for i in range(0, len(ids), 512)]

    def logs(model: Model) -> NDArray[np.float64]:
        return logs_of(model.session(n_ctx=512, kv="f16"), texts)

    exact, ours = logs(cpu), logs(bench.model(path))
    kl = float(divergence(exact, ours).mean())
    same = float((exact.argmax(-1) == ours.argmax(-1)).mean())
    text = f"KL {kl:.1e}, top-1 {same:.2%}, {len(ids):,} tokens"
    yield Row(
        f"logits of {title(name)}",
        "KL to the CPU ≤ 1e-4, top-1 ≥ 99.5 %",
        text,
        kl <= 1e-4 and same >= 0.995,
        {"kl": kl, "same_top": same, "tokens": len(ids)},
    )


def sanitized(args: argparse.Namespace) -> Row:
    """Some of this script's logits, in a process that compute-sanitizer watches."""
    tool = shutil.which("compute-sanitizer")
    row = ("compute-sanitizer, logits", "0 errors")
    if tool is None:
        return Row(*row, "not measured: compute-sanitizer is not on PATH", None)
    command = [
        *(tool, sys.executable, __file__, "--only=logits", f"--logits={args.logits}"),
        *(f"--tokens={min(args.tokens, 32)}", f"--device={args.device}"),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    found = re.search(r"ERROR SUMMARY: (\d+) errors?", done.stdout)
    errors = int(found[1]) if found else 0
    if not errors and (not found or done.returncode or "not measured" in done.stdout):
        tail = done.stdout.strip().splitlines()[-1:] or ["it said nothing"]
        return Row(*row, f"not measured: {tail[0]}", None)
    return Row(*row, f"{errors} errors", errors == 0, {"errors": errors})


# ---- speed -------------------------------------------------------------------------------


def speeds(sample: Sample) -> dict[str, float]:
    return {"tok_s": sample.tok_s, "limit_tok_s": sample.limit, "fraction": sample.fraction}


def judged(what: str, goal: str, sample: Sample, least: float, more: str = "") -> Row:
    text = f"{sample.fraction:.0%}: {figure(sample.tok_s)} of {figure(sample.limit)} tok/s{more}"
    return Row(what, goal, text, sample.fraction >= least, speeds(sample))


def decode(bench: Bench, name: str) -> Iterator[Row]:
    work = Work("decode", bench.args.decode)
    sample = bench.measure(bench.model(bench.path(name)), work)
    yield judged(f"{title(name)}: {work}", "≥ 80 % of the memory's rate", sample, 0.8)


def prefill(bench: Bench, name: str) -> Iterator[Row]:
    work = Work("prefill", bench.args.prefill)
    sample = bench.measure(bench.model(bench.path(name)), work)
    yield judged(f"{title(name)}: {work}", "≥ 50 % of the matrix units' rate", sample, 0.5)


def batch(bench: Bench, name: str) -> Iterator[Row]:
    """Of a dense model: the columns of a mixture want different experts."""
    path, n = bench.path(name), bench.args.decode
    if is_mixture(path):
        return
    model = bench.model(path)
    sessions = [model.session(n_ctx=n) for _ in range(BATCH)]
    ids = ids_of(model, n)

    def seconds(count: int) -> float:
        for session in sessions:
            session.sync([])
        start = perf_counter()
        for token in ids:
            extend_together(sessions[:count], [token] * count)
        return perf_counter() - start

    seconds(BATCH)
    ratio = median(seconds(BATCH) / seconds(1) for _ in range(bench.args.rounds))
    goal = "≤ 1.2 x the time of one"
    yield Row(
        f"{title(name)}: {BATCH} sessions", goal, f"{ratio:.2f} x", ratio <= 1.2, {"ratio": ratio}
    )


def context(bench: Bench, name: str) -> Iterator[Row]:
    work = Work("decode", bench.args.decode, bench.args.depth)
    sample = bench.measure(bench.model(bench.path(name)), work)
    times = 1 / sample.fraction
    text = f"{times:.2f} x: {figure(sample.tok_s)} of {figure(sample.limit)} tok/s"
    goal = "≤ 1.5 x the time of its bytes"
    yield Row(f"{title(name)}: {work}", goal, text, times <= 1.5, speeds(sample) | {"times": times})


def offload(bench: Bench, name: str) -> Iterator[Row]:
    """Of a mixture: the experts that --vram leaves room for are on the GPU, all are in RAM."""
    path, work = bench.path(name), Work("decode", bench.args.decode)
    if not is_mixture(path):
        return
    sizes, vram = sizes_of(path), parse_bytes(bench.args.vram, "--vram")
    assert sizes is not None
    card = Card("the GPU", vram, bench.args.device, layers=len(sizes.layers))
    share = share_of(path.name, sizes, card, n_ctx=work.tokens)
    assert share is not None
    stored = sizes.experts * 5 // 4  # all slots are as large as the largest
    model = bench.model(path, share.expert_bytes, stored)
    sample, stats = bench.measure(model, work), model.gpu_stats
    more = f"; m = {sample.misses:.1%}, {amount(stats.expert_bytes)} of experts on the GPU"
    row = judged(
        f"{title(name)}, --vram {bench.args.vram}", "≥ 60 % of the limit", sample, 0.6, more
    )
    row.values.update(
        misses=sample.misses,
        expert_bytes=stats.expert_bytes,
        copied=stats.copied,
        computed=stats.computed,
        stall_s=stats.stall_s,
    )
    yield row


# ---- the report --------------------------------------------------------------------------

PARTS: dict[str, Callable[[Bench, str], Iterator[Row]]] = {
    "logits": logits,
    "decode": decode,
    "prefill": prefill,
    "batch": batch,
    "context": context,
    "offload": offload,
}


def attempted(bench: Bench, part: str, name: str) -> list[Row]:
    """The rows of a part, or one that says why there is none."""
    bench.terminal.note(f"{part}, {name}", dim=True)
    try:
        return list(PARTS[part](bench, name))
    except Cancelled:
        raise KeyboardInterrupt from None
    except (Qwen3Error, QuantError) as error:
        return [Row(f"{title(name)}: {part}", "", f"not measured: {error}", None)]


def driver(device: Device) -> str:
    version = system.nvidia_driver() if device.backend == "cuda" else None
    return f"{device.backend}, driver {version}" if version else device.backend


def about(device: Device) -> dict[str, object]:
    return {
        "device": device._asdict(),
        "driver": driver(device),
        "host": f"{system.cpu_name()}, {system.system_name()}",
        "qwen3": __version__,
        "date": date.today().isoformat(),
        "rates": probe_device(device.number),
    }


def heading(report: dict[str, object]) -> str:
    device, rates = report["device"], report["rates"]
    assert isinstance(device, dict) and isinstance(rates, dict)
    return (
        f"### {device['name']}\n\n"
        f"`{' '.join(['python', *sys.argv])}`, {report['driver']}, "
        f"{amount(device['total_bytes'])}, {report['host']}, qwen3 {report['qwen3']}, "
        f"{report['date']}. The device reads {rates['read'] / 1e9:,.0f} GB/s, is filled at "
        f"{rates['upload'] / 1e9:.1f} and read back at {rates['download'] / 1e9:.1f} GB/s, and "
        f"does {rates['int8'] / 1e12:,.1f} trillion products of int8 a second, of f16 (summed in "
        f"f32) {rates['f16'] / 1e12:,.1f}.\n\n"
        "| | goal | figure | |\n|---|---|---|---|"
    )


def rows(bench: Bench, parts: Sequence[str]) -> Iterator[Row]:
    args = bench.args
    if args.sanitize:
        yield sanitized(args)
    for part in parts:
        for name in (args.logits if part == "logits" else args.shapes).split(","):
            yield from attempted(bench, part, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument(
        "--shapes", default=SHAPES, help="to be made, or names of models; %(default)s"
    )
    parser.add_argument("--logits", default="nano,nano-moe", help="whose; %(default)s")
    parser.add_argument("--only", default=",".join(PARTS), help="of %(default)s")
    parser.add_argument("--vram", default="6G", help="for the offloaded mixture; %(default)s")
    parser.add_argument("--tokens", type=int, default=1000, help="whose logits are compared")
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--prefill", type=int, default=2048)
    parser.add_argument("--depth", type=int, default=32768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--sanitize", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    parts = args.only.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--only {unknown[0]}: it is one of {', '.join(PARTS)}")
    try:
        found, why = devices()
        if not 0 <= args.device < len(found):
            sys.exit(f"there is no GPU {args.device} to measure{': ' + why if why else ''}")
        report, all_rows = about(found[args.device]), []
    except Qwen3Error as error:
        sys.exit(str(error))
    if not args.json:
        print(heading(report), flush=True)
    for row in rows(Bench(args), parts):
        all_rows.append(row)
        if not args.json:
            print(row, flush=True)
    if args.json:
        print(json.dumps(report | {"rows": [asdict(row) for row in all_rows]}, indent=2))


if __name__ == "__main__":
    main()
