"""Writes docs/gpu-resources.md: the registers that nvcc gives every kernel.

    python native/gpu/resources.py [--check]

Fails when a kernel keeps variables in memory, or takes more registers than a block of it has; with
--check, which writes nothing, also when the file is out of date. nvcc is that of QWEN3_NVCC, or of
PATH.
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
# Of those that cuda.cmake has; 86 is compiled as 89 is, and 100 as 120.
ARCHITECTURES = ("75", "80", "89", "90", "120")
THREADS = {"embed_rows": 1024, "rms_norm": 1024}  # most of a block, where that is not 256

ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame")
USED = re.compile(r"Used (\d+) registers")
VERSION = re.compile(r"\(nvcc (.*)\)")
KERNEL = re.compile(r"^\| (\w+) \|", re.MULTILINE)

HEAD = """# Resources of the GPU kernels

Written by `python native/gpu/resources.py`: the registers of a thread, as ptxas tells them of every
kernel ({version}). None of them keeps variables in memory instead (a stack, spills), and a
multiprocessor has registers for at least one block of each.

"""


@dataclass
class Use:
    """What a kernel needs on one architecture."""

    registers: int = 0
    stack: int = 0  # bytes of a thread, of what was spilled or is indexed

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
            use.stack = int(stack[1])
        elif used := USED.search(line):
            use.registers = int(used[1])
    return uses


def excesses(uses: Uses) -> list[str]:
    found = []
    for kernel, by_architecture in uses.items():
        needed = THREADS.get(kernel, 256)
        for architecture, use in by_architecture.items():
            if use.stack:
                found.append(f"{kernel} has {use.stack} bytes in memory on sm_{architecture}")
            if use.threads < needed:
                found.append(
                    f"{kernel} has {needed} threads and registers for {use.threads} on "
                    f"sm_{architecture}"
                )
    return found


def table(uses: Uses) -> str:
    lines = [
        ["kernel", *(f"sm_{each}" for each in ARCHITECTURES)],
        ["---", *("--:" for _ in ARCHITECTURES)],
    ]
    for kernel, by_architecture in sorted(uses.items()):
        lines.append([kernel, *(str(by_architecture[a].registers) for a in ARCHITECTURES)])
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
    problems = excesses(uses)
    if not check:
        TABLE.write_text(text)
    elif out_of_date(TABLE.read_text(), text):
        problems.append(f"{TABLE} is out of date: run python native/gpu/resources.py")
    for sentence in problems:
        print(sentence, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
