"""The command `imatrix`: what enters the weights of a model while it reads texts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event

import numpy as np

from quant.errors import QuantError
from quant.imatrix import Corpus, Imatrix, write_imatrix
from quant.output import destination, replacing
from quant.shards import model_name
from qwen3cli.engine import Cancelled, Importance, Session, Tokenizer
from qwen3cli.errors import UsageError
from qwen3cli.interrupt import interruptible
from qwen3cli.library import obtain
from qwen3cli.options import Reading
from qwen3cli.terminal import Terminal
from qwen3cli.texts import check_context, n_chunks, read_text, reader, text_name

_RARE = 32  # tokens: the mean square of so few is uncertain by a quarter


def imatrix(reading: Reading, out: str | None, terminal: Terminal, *, force: bool) -> None:
    """Writes out, a file or its folder; by default MODEL-imatrix.gguf in the current folder.
    Ctrl-C writes what was collected until then, if that is a chunk at least, and raises
    KeyboardInterrupt."""
    path = obtain.resolve(reading.model, terminal)
    name = model_name(path)
    target = destination("." if out is None else out, f"{name}-imatrix.gguf")
    _check_free(target, force)
    engine = reader(path, reading, terminal)
    chunks = _chunks(engine.tokenizer, reading)
    check_context(engine, chunks)
    total, tokens, done = sum(map(len, chunks)), 0, 0
    importance = Importance(engine)
    session = engine.session(n_ctx=max(map(len, chunks)))
    session.observe(importance)
    started = time.monotonic()
    with replacing(target) as part:  # a place that cannot be written is known at once
        with terminal.progress(f"{name} to {target}", "tok") as move:
            for n in _computed(session, chunks):
                tokens, done = tokens + n, done + 1
                move(tokens, total)
        if not done:
            terminal.note("interrupted in the first chunk: nothing was written")
            raise KeyboardInterrupt
        names = [text_name(file) for file in reading.files]
        write_imatrix(part, importance, Corpus(names, done, reading.ctx))
    seconds = time.monotonic() - started
    read = n_chunks(done) if tokens == total else f"{done:,} of {n_chunks(len(chunks))}"
    rate = f"{seconds:.1f} s, {tokens / seconds:,.0f} tok/s"
    terminal.note(f"{target}: {tokens:,} tokens in {read}, {rate}")
    if engine.config["n_experts"]:
        terminal.note(_reached(importance))
    if tokens < total:
        terminal.note("interrupted: the file holds what was collected until then")
        raise KeyboardInterrupt


def _check_free(target: Path, force: bool) -> None:
    """Raises UsageError for a file that is there: without force, and if it is anything but an
    importance matrix; the model itself is a GGUF file, too."""
    if not target.exists():
        return
    try:
        Imatrix(target)
    except QuantError:
        raise UsageError(
            f"{target}: exists and is no importance matrix; choose another name with -o"
        ) from None
    if not force:
        raise UsageError(f"{target}: exists already; --force overwrites it")


def _chunks(tokenizer: Tokenizer, reading: Reading) -> list[list[int]]:
    """The chunks of all texts; the last of each may be shorter."""
    chunks = []
    for file in reading.files:
        ids = tokenizer.encode(read_text(file), added=reading.added)
        chunks += [ids[i : i + reading.ctx] for i in range(0, len(ids), reading.ctx)]
    if not chunks:
        raise UsageError("the text is empty")
    return chunks[: reading.chunks]


def _computed(session: Session, chunks: Sequence[Sequence[int]]) -> Iterator[int]:
    """The length of every chunk, computed. Ends early at Ctrl-C."""
    stopped = Event()

    def stop() -> None:
        stopped.set()
        session.cancel()

    with interruptible(stop):
        for ids in chunks:
            session.sync([])  # nothing is reused: it would not be counted
            if stopped.is_set():  # the line above may have swallowed the cancel
                return
            try:
                session.sync(ids)
            except Cancelled:
                return
            yield len(ids)


def _reached(importance: Importance) -> str:
    """How many experts saw enough tokens."""
    counts = np.concatenate(
        [each.counts for each in importance if each.tensor.endswith("ffn_down_exps.weight")]
    )
    never, rarely = int((counts == 0).sum()), int(((counts > 0) & (counts < _RARE)).sum())
    text = f"{len(counts):,} experts in all layers: {never:,} never reached, "
    text += f"{rarely:,} by fewer than {_RARE} tokens"
    return text + ("; more text would help" if never + rarely else "")
