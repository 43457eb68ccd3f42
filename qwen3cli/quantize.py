"""The command `quantize`: which weights, which file, and a bar while it works."""

from __future__ import annotations

import re
from pathlib import Path

from quant.quantize import default_output
from quant.quantize import quantize as write_gguf
from quant.shards import forms, opens_a_model
from qwen3cli import registry
from qwen3cli.errors import UsageError
from qwen3cli.terminal import Terminal


def quantize(
    source: str,
    out: str | None,
    recipe: str,
    terminal: Terminal,
    *,
    force: bool,
    threads: int,
    split_size: str | None,
) -> None:
    """source: a Hugging Face folder, or a family name whose weights are in the cache.
    out: a file, or the folder to write it to; by default a folder's file goes to the
    current folder, a name's where -m finds it. split_size: as parse_size has it."""
    most = parse_size(split_size) if split_size else 0
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
    for old in forms(target):
        if opens_a_model(old) and not force:
            raise UsageError(f"{old}: exists already; --force overwrites it")
    with terminal.progress(f"{source} to {target}") as move:
        done = write_gguf(folder, target, recipe, progress=move, threads=threads, split_size=most)
    count = f" and {len(done.paths) - 1} more" if len(done.paths) > 1 else ""
    terminal.note(
        f"{done.paths[0]}{count}: {done.recipe}, {done.n_weights:,} weights, "
        f"{done.file_bytes / 1e6:,.1f} MB ({done.bits_per_weight:.2f} bits per weight), "
        f"{done.seconds:.1f} s"
    )


def parse_size(text: str) -> int:
    """Bytes of a number with K, M or G, which are powers of 1000 as in gguf-split."""
    found = re.fullmatch(r"([1-9]\d{0,17})([KMG]?)", text.upper())
    if not found:
        raise UsageError(f"--split-size {text}: a number of bytes is needed, such as 4G or 500M")
    return int(found[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[found[2]]
