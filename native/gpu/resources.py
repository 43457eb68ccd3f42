"""Writes docs/gpu-resources.md: the registers and the memory that nvcc gives every kernel.

    python native/gpu/resources.py [--check]

Fails when a kernel spills; with --check, which writes nothing, also when the file is out of date.
nvcc is that of QWEN3_NVCC, or of PATH.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

NATIVE = Path(__file__).resolve().parents[1]
TABLE = NATIVE.parent / "docs/gpu-resources.md"
ARCHITECTURES = ("75", "89")  # the oldest, with the least of everything, and a common one

ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
VERSION = re.compile(r"\(nvcc (.*)\)")
KERNEL = re.compile(r"^\| (\w+) \|", re.MULTILINE)

HEAD = """# Resources of the GPU kernels

Written by `python native/gpu/resources.py`, from what ptxas says of every kernel ({version}).
Stack and spills are bytes of a thread in memory instead of registers; threads are the most of a
block that the registers leave room for. Shared memory that a launch asks for is not in here.

"""


@dataclass
class Use:
    """What a kernel needs on one architecture."""

    registers: int = 0
    shared: int = 0
    stack: int = 0
    spills: int = 0

    @property
    def threads(self) -> int:
        """Registers are 65,536, given in eights to each thread of a warp."""
        eights = -(-self.registers // 8)
        return min(1024, 65536 // (8 * eights) // 32 * 32)


Uses = dict[str, dict[str, Use]]  # by kernel and architecture


def find_nvcc() -> str | None:
    return shutil.which(os.environ.get("QWEN3_NVCC", "nvcc"))


def compile_kernels(nvcc: str) -> str:
    """What ptxas says of them."""
    codes = [f"-gencode=arch=compute_{each},code=sm_{each}" for each in ARCHITECTURES]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *(nvcc, "-std=c++17", "-fmad=false", "--threads=0", *codes, "-Xptxas=-v"),
                *("-fatbin", f"-I{NATIVE}", str(NATIVE / "gpu/kernels.cu")),
                *("-o", f"{folder}/kernels.fatbin"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    if done.returncode:
        raise SystemExit(done.stdout)
    return done.stdout


def parse(report: str) -> Uses:
    uses: Uses = {}
    use = Use()
    for line in report.splitlines():
        if entry := ENTRY.search(line):
            use = uses.setdefault(entry[1], {}).setdefault(entry[2], Use())
        elif stack := STACK.search(line):
            use.stack, use.spills = int(stack[1]), int(stack[2]) + int(stack[3])
        elif used := USED.search(line):
            use.registers = int(used[1])
            shared = SHARED.search(line)
            use.shared = int(shared[1]) if shared else 0
    return uses


def spilling(uses: Uses) -> list[str]:
    return [
        f"{kernel} spills {use.spills} bytes on sm_{architecture}"
        for kernel, by_architecture in uses.items()
        for architecture, use in by_architecture.items()
        if use.spills
    ]


def table(uses: Uses) -> str:
    columns = ("registers", "threads", "shared", "stack", "spills")
    lines = [
        ["kernel", *(f"sm_{each} {column}" for each in ARCHITECTURES for column in columns)],
        ["---", *("--:" for _ in ARCHITECTURES for _ in columns)],
    ]
    for kernel, by_architecture in sorted(uses.items()):
        values = [getattr(by_architecture[a], c) for a in ARCHITECTURES for c in columns]
        lines.append([kernel, *map(str, values)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def out_of_date(written: str, text: str) -> bool:
    """Another nvcc counts registers otherwise: then only the kernels are compared."""
    if VERSION.findall(written) == VERSION.findall(text):
        return written != text
    return KERNEL.findall(written) != KERNEL.findall(text)


def main(check: bool) -> int:
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit("nvcc is not found: set QWEN3_NVCC or PATH")
    said = subprocess.run([nvcc, "--version"], stdout=subprocess.PIPE, text=True).stdout
    version = re.search(r"V[\d.]+", said)
    uses = parse(compile_kernels(nvcc))
    if not uses:
        raise SystemExit("ptxas said nothing of any kernel")
    text = HEAD.format(version="nvcc " + version[0][1:] if version else "nvcc") + table(uses)
    problems = spilling(uses)
    if not check:
        TABLE.write_text(text)
    elif out_of_date(TABLE.read_text(), text):
        problems.append(f"{TABLE} is out of date: run python native/gpu/resources.py")
    for sentence in problems:
        print(sentence, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
