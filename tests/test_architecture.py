"""Data flows one way: no import, and no include, runs back up."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def python_imports(path: Path) -> set[str]:
    """Modules of the project that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("qwen3cli", "quant")}


def python_graph() -> dict[str, set[str]]:
    files = [path for folder in ("qwen3cli", "quant") for path in (ROOT / folder).rglob("*.py")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    return {name: python_imports(path) & set(names) - {name} for name, path in names.items()}


def room(module: str) -> str:
    """The folder of a module below qwen3cli/, or the module itself."""
    return ".".join(module.split(".")[:2])


def room_graph() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for module, imported in python_graph().items():
        here = graph.setdefault(room(module), set())
        here |= {room(each) for each in imported} - {room(module)}
    return graph


def include_graph() -> dict[str, set[str]]:
    """A header and its source are one room; those of the CPU go by their names alone."""
    native = ROOT / "native"

    def name(path: Path) -> str:
        return path.relative_to(native).with_suffix("").as_posix().removeprefix("cpu/")

    graph: dict[str, set[str]] = {}
    for path in native.rglob("*.[ch]"):
        includes = re.findall(r'#include "([\w/.]+)\.h"', path.read_text())
        found = [folder / f"{each}.h" for each in includes for folder in (path.parent, native)]
        rooms = {name(each.resolve()) for each in found if each.exists()}
        graph.setdefault(name(path), set()).update(rooms - {name(path)})
    return graph


def cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """A path that leads back to where it began, if there is one."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        done.add(node)
        for successor in sorted(graph.get(node, ())):
            if found := visit(successor, [*path, node]):
                return found
        return None

    for node in sorted(graph):
        if found := visit(node, []):
            return found
    return None


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        for successor in graph.get(todo.pop(), ()):
            if successor not in seen:
                seen.add(successor)
                todo.append(successor)
    return seen


def test_a_circle_would_be_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}}) is None


def test_no_import_runs_in_a_circle() -> None:
    graph = python_graph()
    assert len(graph) > 100
    assert cycle(graph) is None


def test_no_folder_needs_one_that_needs_it() -> None:
    graph = room_graph()
    assert {"qwen3cli.cli", "qwen3cli.chat", "qwen3cli.hub", "qwen3cli.engine"} <= set(graph)
    assert cycle(graph) is None


def test_no_include_runs_in_a_circle() -> None:
    graph = include_graph()
    assert "graph" in graph and "qwen3" in graph["gguf"]
    assert {"gpu/kernels/blocks", "blocks"} <= reachable(graph, "gpu/kernels/all")
    assert cycle(graph) is None


def test_the_engine_knows_nothing_of_prompts_or_terminals() -> None:
    graph = python_graph()
    below = {room(module) for module in reachable(graph, "qwen3cli.engine")}
    assert below == {"qwen3cli.errors", "qwen3cli.grammar"}
    above = {f"qwen3cli.{each}" for each in ("terminal", "screen", "chat", "cli", "run")}
    for module in ("prompt", "thinking.control", "session"):
        assert not {room(each) for each in reachable(graph, f"qwen3cli.{module}")} & above


def test_the_quantizer_and_the_engine_meet_only_in_the_native_module() -> None:
    graph = python_graph()
    for module in graph:
        if module.startswith("quant."):
            assert not any(m.startswith("qwen3cli") for m in reachable(graph, module))
    assert not any(m.startswith("quant") for m in reachable(graph, "qwen3cli.session"))


def test_only_the_engine_and_the_quantizer_touch_the_native_module() -> None:
    users = {
        str(path.relative_to(ROOT))
        for folder in ("qwen3cli", "quant")
        for path in (ROOT / folder).rglob("*.py")
        if "import qwen3_native" in path.read_text()
    }
    assert {user for user in users if not user.startswith("quant/")} == {"qwen3cli/engine.py"}


def test_backends_know_blocks_and_nothing_of_models() -> None:
    graph = include_graph()
    for backend in ("scalar", "avx2", "avxvnni", "avx512", "neon", "i8mm"):
        assert not reachable(graph, backend) & {"model", "graph", "session", "gguf", "kv"}
