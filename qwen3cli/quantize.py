"""The command `quantize`: which weights, which file, and a bar while it works."""

from __future__ import annotations

from pathlib import Path

from quant.quantize import default_output
from quant.quantize import quantize as write_gguf
from qwen3cli import registry
from qwen3cli.errors import UsageError
from qwen3cli.terminal import Terminal


def quantize(
    source: str, out: Path | None, recipe: str, terminal: Terminal, *, force: bool, threads: int
) -> None:
    """source: a Hugging Face folder, or a family name whose weights are in the cache.
    By default a folder's file goes to the current folder, a name's where -m finds it."""
    folder = Path(source)
    if folder.is_dir():
        target = out or default_output(folder, recipe)
    else:
        name, folder = registry.weights(source)
        target = out or registry.models_folder() / default_output(Path(name), recipe)
    if target.exists() and not force:
        raise UsageError(f"{target}: exists already; --force overwrites it")
    if out is None:
        target.parent.mkdir(parents=True, exist_ok=True)
    with terminal.progress(f"{source} to {target}") as move:
        done = write_gguf(
            folder, target, recipe, progress=lambda p: move(p.done, p.total), threads=threads
        )
    terminal.note(
        f"{target}: {done.recipe}, {done.n_weights:,} weights, {done.file_bytes / 1e6:,.1f} MB "
        f"({done.bits_per_weight:.2f} bits per weight), {done.seconds:.1f} s"
    )
