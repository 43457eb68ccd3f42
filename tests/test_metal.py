"""The kernels of the GPU are Metal's language, as far as clang can tell (see metal_dialect.py)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from metal_dialect import CLANG, ROOT, embedded, problems

pytestmark = pytest.mark.skipif(not CLANG, reason="clang, which knows address spaces, is missing")

KERNELS = ROOT / "native/gpu/kernels.metal"


def test_kernels_are_metal(tmp_path: Path) -> None:
    assert problems(embedded(KERNELS, tmp_path), tmp_path) == []


REFUSED = [
    # address spaces
    ("void f(GLOBAL float *x, SHARED float *y) { y = x; }", "changes address space"),
    ("void f(GLOBAL float *x, LOCAL float *y) { y = x; }", "changes address space"),
    ("void f(LOCAL float &x) {} void g(SHARED float *y) { f(*y); }", "no matching|cannot bind"),
    ("void f(CONSTANT int &n, GLOBAL const int *x) { x = &n; }", "changes address space"),
    (
        "void f(GLOBAL float *x) { SHARED float *y = (SHARED float *)x; }",
        "mismatching address spaces",
    ),
    ("float f(GLOBAL float *x) { return *(SHARED float *)x; }", "mismatching address spaces"),
    ("float f(float *x) { return *x; }", "no address space: x"),
    ("float f(const float &x) { return x; }", "no address space: x"),
    ("float f(GLOBAL float *x) { return *(float *)x; }", "mismatching|no address space"),
    ("struct s { float *x; };", "no address space: x"),
    ("float f() { float x[2] = {1, 2}; const float *y = x; return y[0]; }", "no address space: y"),
    ("template <typename T> T f(T *x) { return *x; }", "no address space: x"),
    ("GLOBAL float *f(GLOBAL float *x) { return x; } float *g() { return nullptr; }", "g returns"),
    # the language
    ("float f(float x) { return x * 0.5; }", "double"),
    ("double f(float x) { return x; }", "poisoned"),
    ("long long f(int x) { return x; }", "long long"),
    ("int f(int n) { return n ? f(n - 1) : 0; }", "f calls itself"),
    ("int g(int n); int f(int n) { return g(n); } int g(int n) { return f(n); }", "calls itself"),
    ("int f(int n) { return [&] { return n; }(); }", "lambda|no address space"),
    ("int f(int n) { again: if (n--) goto again; return n; }", "poisoned"),
    ("int f() { static int n = 0; return n++; }", "static variable"),
    ("const int n = 3;", "n: a variable outside of functions"),
    ("int f(int n) { if (int m = n; m) return m; return n; }", "C..17"),
    ("int f(int n) { return __builtin_popcount((uint)n); }", "__builtin_popcount"),
    # words
    ("struct s { int thread, threads; };", "expected"),
    ("int f(int device) { return device; }", "expected|error"),
    ("float f(float sampler) { return sampler; }", "poisoned"),
    ("float clamp(float x) { return x; }", "clamp is a name of Metal's"),
    ("float f(float x) { return std::exp(x); }", "std"),
    ("float f(float x) { return expf(x); }", "expf"),
]


@pytest.mark.parametrize(("snippet", "why"), REFUSED, ids=[s for s, _ in REFUSED])
def test_what_metal_refuses_is_found(tmp_path: Path, snippet: str, why: str) -> None:
    source = tmp_path / "kernels.metal"
    source.write_text(f'#include "{ROOT}/native/gpu/dialect.h"\n{snippet}\n')
    found = problems(embedded(source, tmp_path), tmp_path)
    assert any(re.search(why, problem) for problem in found), found


def test_what_metal_takes_is_taken(tmp_path: Path) -> None:
    source = tmp_path / "kernels.metal"
    source.write_text(f'#include "{ROOT}/native/gpu/dialect.h"\n' + TAKEN)
    assert problems(embedded(source, tmp_path), tmp_path) == []


@pytest.mark.parametrize("file", ["metal.m", "metal_memory.m", "metal_graph.m"])
def test_the_host_parses(tmp_path: Path, file: str) -> None:
    """Against stubs of ours (metal_stubs), not Apple's headers: syntax and selectors, no more."""
    embedded(KERNELS, tmp_path)
    source = ROOT / "native/gpu" / file
    assert parse(source, tmp_path) == ""
    wrong = tmp_path / file
    text = source.read_text()
    spoiled = {"offset:from_offset": "at:from_offset", "endEnc": "end", "d->records": "d->record"}
    for right, no in spoiled.items():
        text = text.replace(right, no)
    wrong.write_text(text)
    assert re.search("not found|no known instance method|not have a member", parse(wrong, tmp_path))


def parse(source: Path, embedded: Path) -> str:
    flags = "-xobjective-c -std=gnu17 -fobjc-runtime=macosx-14 -fobjc-arc -fblocks -Wall -Wextra"
    folders = (ROOT / "native", ROOT / "native/gpu", embedded)
    return subprocess.run(
        [CLANG.replace("clang++", "clang"), "-fsyntax-only", "-Werror", *flags.split(), source,
         "-isystem", ROOT / "tests/native/gpu/metal_stubs", *(f"-I{each}" for each in folders)],
        capture_output=True, text=True, check=False,
    ).stderr  # fmt: skip


TAKEN = """
typedef struct { GLOBAL const float *x; GLOBAL float *y; int n; } sum_args;
struct sums { float sum[4]; };
CONSTANT int table[2] = {1, 2};
template <typename T> DEVICE T load(GLOBAL const T *x, int i) { return x[i]; }
DEVICE void add(LOCAL sums &to, float x) { to.sum[0] += x; }
DEVICE float read(LOCAL const float *x) { return x[0] + 0x1p-3f; }
KERNEL(sum, sum_args) {
    SHARED float *parts = (SHARED float *)shared;
    sums s = {};
    for (int i = at.tid; i < a.n; i += at.threads) add(s, load(a.x, i) * 2 + (float)table[i & 1]);
    sums copy = s;
    parts[at.tid] = lane_sum(read(copy.sum));
    barrier();
    if (at.tid == 0) a.y[at.x] = exp(parts[0]);
}
"""
