"""The command `quantize`: which weights, which file, and a bar while it works."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quant.output import destination, refuse_others
from quant.quantize import default_output, predict
from quant.quantize import quantize as write_gguf
from quant.shards import forms, opens_a_model
from qwen3cli.errors import UsageError
from qwen3cli.hub import registry
from qwen3cli.library import obtain
from qwen3cli.plan.memory import parse_bytes
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
    split_size: str | None,
) -> None:
    """source: a Hugging Face folder, a GGUF file, or a family name whose weights are in the
    cache. out: a file, or the folder to write it to; by default a path's file goes to the
    current folder, a name's where -m finds it. split_size: as parse_bytes has it."""
    most = _split_bytes(split_size)
    path, name = obtain.source(source, terminal)
    if out is None:
        folder = Path() if path is name else registry.models_folder()
        folder.mkdir(parents=True, exist_ok=True)
        out = str(folder)
    target = destination(out, default_output(name, recipe))
    refuse_others(target)
    for old in forms(target):
        if opens_a_model(old) and not force:
            raise UsageError(f"{old}: exists already; --force overwrites it")
    with terminal.progress(f"{source} to {target}", "MB", 10**6) as move:
        done = write_gguf(
            path,
            target,
            recipe,
            overrides=overrides,
            allow_requantize=allow_requantize,
            imatrix=imatrix,
            progress=move,
            threads=threads,
            split_size=most,
        )
    more = f" and {len(done.paths) - 1} more" if len(done.paths) > 1 else ""
    size = _described(done.recipe, done.n_weights, done.file_bytes)
    terminal.note(f"{done.paths[0]}{more}: {size}, {done.seconds:.1f} s")
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
    split_size: str | None,
    imatrix: Path | None,
) -> None:
    """Prints what each type would come to, and the size of each file to the byte."""
    path, _ = obtain.source(source, terminal)
    told = predict(
        path,
        recipe,
        overrides=overrides,
        allow_requantize=allow_requantize,
        imatrix=imatrix,
        split_size=_split_bytes(split_size),
    )
    rows = [
        (share.kind, f"{share.n_tensors:,}", f"{share.n_weights:,}", f"{share.n_bytes:,}")
        for share in told.shares
    ]
    rows += [("file", "", "", f"{size:,}") for size in told.file_bytes]
    terminal.table(("type", "tensors", "weights", "bytes"), rows)
    terminal.note(_described(told.recipe, told.n_weights, sum(told.file_bytes)))


def _described(recipe: str, n_weights: int, n_bytes: int) -> str:
    return (
        f"{recipe}, {n_weights:,} weights, {n_bytes / 1e6:,.1f} MB "
        f"({8 * n_bytes / n_weights:.2f} bits per weight)"
    )


def _split_bytes(split_size: str | None) -> int:
    """0: the file is not split."""
    return 0 if split_size is None else parse_bytes(split_size, "--split-size")
