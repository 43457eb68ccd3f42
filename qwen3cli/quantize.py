"""The command `quantize`: which weights, which file, and a bar while it works."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quant.quantize import default_output, predict
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
    overrides: Sequence[str],
    allow_requantize: bool,
    imatrix: Path | None,
    force: bool,
    threads: int,
) -> None:
    """source: a Hugging Face folder, a GGUF file, or a family name whose weights are in the
    cache. out: a file, or the folder to write it to; by default a path's file goes to the
    current folder, a name's where -m finds it."""
    if out == "":
        raise UsageError("-o takes the name of a file or of a folder")
    path, name = _found(source)
    if out is not None:
        target = Path(out)
    else:
        target = Path() if path is name else registry.models_folder()
        target.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        target /= default_output(name, recipe)
    if target.exists() and not force:
        raise UsageError(f"{target}: exists already; --force overwrites it")
    title = f"{source} to {target}"
    with terminal.progress(title, lambda speed: f"{speed / 1e6:,.0f} MB/s") as move:
        done = write_gguf(
            path,
            target,
            recipe,
            overrides=overrides,
            allow_requantize=allow_requantize,
            imatrix=imatrix,
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


def dry_run(
    source: str,
    recipe: str,
    terminal: Terminal,
    *,
    overrides: Sequence[str],
    allow_requantize: bool,
    imatrix: Path | None,
) -> None:
    """Prints what each type would come to, and the size of the file to the byte."""
    path, _ = _found(source)
    told = predict(
        path, recipe, overrides=overrides, allow_requantize=allow_requantize, imatrix=imatrix
    )
    rows = [
        (share.kind, f"{share.n_tensors:,}", f"{share.n_weights:,}", f"{share.n_bytes:,}")
        for share in told.shares
    ]
    n_tensors = sum(share.n_tensors for share in told.shares)
    total = sum(told.file_bytes)
    rows.append(("file", f"{n_tensors:,}", f"{told.n_weights:,}", f"{total:,}"))
    terminal.table(("type", "tensors", "weights", "bytes"), rows)


def _found(source: str) -> tuple[Path, Path]:
    """The path of a source, and the path that its file is named after."""
    path = Path(source)
    if path.is_dir() or path.is_file():
        return path, path
    known, folder = registry.weights(source)
    return folder, Path(known)
