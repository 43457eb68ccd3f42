"""The command `quantize`: which weights, which file, and a bar while it works."""

from __future__ import annotations

from pathlib import Path

from quant.quantize import default_output
from quant.quantize import quantize as write_gguf
from qwen3cli import registry
from qwen3cli.errors import UsageError
from qwen3cli.terminal import Terminal


def quantize(
    source: str,
    out: str | None,
    recipe: str,
    terminal: Terminal,
    *,
    imatrix: str | None,
    force: bool,
    threads: int,
) -> None:
    """source: a Hugging Face folder, or a family name whose weights are in the cache.
    out: a file, or the folder to write it to; by default a folder's file goes to the
    current folder, a name's where -m finds it."""
    if out == "":
        raise UsageError("-o takes the name of a file or of a folder")
    folder = name = Path(source)
    if not folder.is_dir():
        known, folder = registry.weights(source)
        name = Path(known)
    if out is not None:
        target = Path(out)
    else:
        target = Path() if folder is name else registry.models_folder()
        target.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        target /= default_output(name, recipe)
    if target.exists() and not force:
        raise UsageError(f"{target}: exists already; --force overwrites it")
    with terminal.progress(f"{source} to {target}") as move:
        done = write_gguf(
            folder,
            target,
            recipe,
            imatrix=Path(imatrix) if imatrix else None,
            progress=move,
            threads=threads,
        )
    terminal.note(
        f"{done.paths[0]}: {done.recipe}, {done.n_weights:,} weights, "
        f"{done.file_bytes / 1e6:,.1f} MB ({done.bits_per_weight:.2f} bits per weight), "
        f"{done.seconds:.1f} s"
    )
    if done.unweighed:
        names = ", ".join(done.unweighed[:4]) + (", ..." if len(done.unweighed) > 4 else "")
        terminal.note(f"{imatrix}: knows nothing of {len(done.unweighed)} tensors: {names}")
