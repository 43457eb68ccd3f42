"""What clang can tell of the kernels as Metal's language, where there is no Metal.

clang compiles them with a shim of metal_stdlib (tests/native/gpu/metal_shim): as C++14, and as
OpenCL's C++, for its address spaces. What Metal refuses and neither does is looked up in the AST.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SHIM = ROOT / "tests/native/gpu/metal_shim"
NAMES = ["clang++", *(f"clang++-{version}" for version in range(22, 13, -1))]
CLANG = next(filter(None, map(shutil.which, NAMES)), "")
FLAGS = [
    "-fms-extensions", "-nostdinc", "-isystem", str(SHIM), "-D__METAL_VERSION__=320",
    "-Wall", "-Wextra", "-Wc++17-extensions", "-Wdouble-promotion", "-Wno-unused",
    "-Wno-unused-parameter", "-Wno-unused-but-set-parameter", "-Wno-uninitialized",
    "-Wno-unknown-attributes", "-Wno-unknown-pragmas", "-Wno-undefined-inline",
    "-Wno-undefined-internal", "-ferror-limit=0", "-fsyntax-only",
]  # fmt: skip
CPP14 = ["-xc++", "-std=c++14", "--target=aarch64-linux-gnu", "-fsigned-char",
         "-fno-exceptions", "-fno-rtti", "-nostdinc++"]  # fmt: skip
OPENCL = ["-xcl", "-cl-std=clc++2021", "--target=spir64", "-cl-no-stdinc"]  # fmt: skip
FUNCTIONS = ("FunctionDecl", "CXXMethodDecl")
NODES = {
    "LambdaExpr": "a lambda",
    "GotoStmt": "goto",
    "CXXNewExpr": "new",
    "CXXDynamicCastExpr": "dynamic_cast",
    "CXXTypeidExpr": "typeid",
    "GCCAsmStmt": "asm",
    "VAArgExpr": "variable arguments",
}
# Of namespace metal, which the kernels use: a function of ours by such a name could be ambiguous.
METAL = re.findall(
    r"\w+",
    """
    abs all any array as_type atomic ceil clamp clz copysign cos cross ctz distance divide dot exp
    exp10 exp2 extract_bits fabs fast fdim floor fma fmax fmin fmod fract frexp insert_bits
    isfinite isinf isnan isnormal isordered ldexp length level log log10 log2 madsat matrix max
    median3 min mix modf mulhi normalize numeric_limits popcount pow powr precise quad reflect
    refract reverse_bits rint rotate round rsqrt sampler saturate select sign signbit sin sincos
    sinh smoothstep sort sqrt step swap tan tanh texture trunc uniform vec""",
)


def embedded(source: Path, folder: Path) -> str:
    """What metal.m hands to Metal's compiler: the source with its includes, from the C array."""
    output = folder / "kernels.metal.inc"
    script = ROOT / "native/gpu/embed.cmake"
    subprocess.run(["cmake", f"-DSOURCE={source}", f"-DOUTPUT={output}", "-P", script], check=True)
    return bytes(int(byte, 16) for byte in output.read_text().split(",")[:-1]).decode("ascii")


def lines(text: str) -> list[str]:
    """Where each line of an embedded source comes from; the first is line 1."""
    places, file, line = [""], "", 0
    for each in text.split("\n"):
        places.append(f"{file}:{line}")
        line += 1
        if found := re.match(r'#line (\d+) "(.*)"', each):
            file, line = found[2], int(found[1])
    return places


def problems(text: str, folder: Path) -> list[str]:
    """What Metal would refuse in the text, as far as clang and its AST tell."""
    assert CLANG
    # A macro of the shim's cannot be an attribute's name, too.
    source = folder / "kernels.cpp"
    source.write_text(text.replace("[[threadgroup(0)]]", ""))
    for language in (CPP14, OPENCL):
        run = subprocess.run(
            [CLANG, *FLAGS, *language, source], capture_output=True, text=True, check=False
        )
        said = [line for line in run.stderr.splitlines() if re.search(r": (error|warning): ", line)]
        # Of C++17, and yet in every clang's C++14.
        found = [line for line in said if "hexadecimal floating literals" not in line]
        if found or run.returncode:
            return list(dict.fromkeys(found)) or [run.stderr]
    dump = [CLANG, *FLAGS, *OPENCL, "-Xclang", "-ast-dump=json", source]
    tree = json.loads(subprocess.run(dump, capture_output=True, check=True).stdout)
    return list(dict.fromkeys(Walk(source, lines(text)).run(tree)))


class Walk:
    """Of the AST: what is found, with its place."""

    def __init__(self, source: Path, places: list[str]) -> None:
        self.source, self.places = str(source), places
        self.file, self.line = "", 0
        self.calls: dict[str, set[str]] = {}  # of each function
        self.names: dict[str, str] = {}

    def run(self, tree: dict[str, Any]) -> Iterator[str]:
        yield from self.visit(tree, None)
        for function in self.calls:
            reached, todo = set(), [function]
            while todo:
                for called in self.calls.get(todo.pop(), ()):
                    if called not in reached:
                        reached.add(called)
                        todo.append(called)
            if function in reached:
                yield f"{self.names[function]} calls itself"

    def move(self, where: dict[str, Any]) -> None:
        """Locations in the dump leave out what has not changed since the last one."""
        for part in ("begin", "end", "spellingLoc", "expansionLoc"):
            if part in where:
                self.move(where[part])
        self.file = where.get("file", self.file)
        self.line = where.get("line", self.line)

    def visit(self, node: dict[str, Any], function: str | None) -> Iterator[str]:
        start = None
        for key in ("loc", "range"):
            if key in node:
                self.move(node[key].get("begin", node[key]) if key == "range" else node[key])
                start = start or (self.file, self.line)
                self.move(node[key])
        kind, name = node.get("kind", ""), node.get("name", "")
        if kind in FUNCTIONS:
            function = node.get("previousDecl", node["id"])
            self.calls.setdefault(function, set())
            self.names.setdefault(function, name)
        if function and "referencedDecl" in node:
            called = node["referencedDecl"]
            if called["kind"] in FUNCTIONS:
                self.calls[function].add(called["id"])
        file, line = start or ("", 0)
        if node.get("isImplicit"):
            self.skip(node)
            return
        if file == self.source:
            for problem in self.judge(node, kind, name, function):
                yield f"{self.places[line]}: {problem}"
        for child in node.get("inner", ()):
            yield from self.visit(child, function)

    def skip(self, node: dict[str, Any]) -> None:
        for child in node.get("inner", ()):
            for key in ("loc", "range"):
                self.move(child.get(key, {}))
            self.skip(child)

    def judge(
        self, node: dict[str, Any], kind: str, name: str, function: str | None
    ) -> Iterator[str]:
        written = node.get("type", {})
        types = [written[key] for key in ("qualType", "desugaredQualType") if key in written]
        if kind in NODES:
            yield NODES[kind]
        for each in types:
            if found := re.search(r"\b(double|long long|__int128)\b", each):
                yield f"{name or kind} is of type {found[0]}"
        if kind.endswith("VarDecl") or kind == "FieldDecl" or kind.endswith("CastExpr"):
            explicit = not kind.startswith("Implicit")
            if explicit and types and lacks_space(types[-1]):
                yield f"no address space: {name} {types[0]}"
        if kind in FUNCTIONS:
            if lacks_space(written.get("qualType", "").partition("(")[0]):
                yield f"no address space: {name} returns {written['qualType']}"
            if node.get("variadic"):
                yield "variable arguments"
            if name in METAL:
                yield f"{name} is a name of Metal's"
        if kind == "VarDecl" and not function and "__constant" not in types[-1]:
            yield f"{name}: a variable outside of functions is CONSTANT"
        if kind == "VarDecl" and function and node.get("storageClass"):
            yield f"{name}: a static variable in a function"
        if (called := node.get("referencedDecl", {}).get("name", "")).startswith("__builtin"):
            yield called


def lacks_space(written: str) -> bool:
    """A pointer or reference in the type says not where it leads."""
    if "__generic" in written or "(*)(" in written:  # nor are there pointers to functions
        return True
    spaces = re.findall("__(?:global|local|constant|private)", written)
    # A pointer to a template's T; a * may stand in the size of an array, too.
    return not spaces and bool(re.search("[*&]", re.sub(r"\[.*?\]", "", written)))
