"""The command `imatrix`: what enters the weights of a model while it reads texts."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event

import numpy as np

from quant.imatrix import Corpus, write_imatrix
from qwen3cli import registry
from qwen3cli.engine import Cancelled, Importance, Model, Session
from qwen3cli.errors import UsageError
from qwen3cli.interrupt import interruptible
from qwen3cli.terminal import Terminal

_RARE = 32  # tokens: the mean square of so few is uncertain by a quarter


def imatrix(
    model: str,
    texts: Sequence[str],
    out: str | None,
    terminal: Terminal,
    *,
    chunk: int,
    added: bool = False,
    force: bool = False,
    threads: int = 0,
) -> None:
    """texts: files, - for stdin. chunk: tokens that are read with nothing before them; the last
    of a text may be fewer. added: spelled-out added tokens count as such. Ctrl-C writes what was
    collected until then, if that is anything, and raises KeyboardInterrupt."""
    path = registry.resolve(model)
    target = Path(out) if out else Path(f"{path.stem}-imatrix.gguf")
    if target.exists() and not force:
        raise UsageError(f"{target}: exists already; --force overwrites it")
    engine = Model(path, threads=threads)
    if chunk > engine.config["n_ctx_train"]:
        raise UsageError(f"--chunk: the model has a context of {engine.config['n_ctx_train']}")
    chunks = [
        ids[at : at + chunk]
        for ids in (engine.tokenizer.encode(_read(text), added=added) for text in texts)
        for at in range(0, len(ids), chunk)
    ]
    if not chunks:
        raise UsageError("the text is empty")
    total, tokens, n_chunks = sum(map(len, chunks)), 0, 0
    importance = Importance(engine)
    session = engine.session(n_ctx=min(chunk, total))
    session.observe(importance)
    started = time.monotonic()
    with terminal.progress(f"{path.stem} to {target}", "tok") as move:
        for n in _computed(session, chunks):
            tokens, n_chunks = tokens + n, n_chunks + 1
            move(tokens, total)
    seconds = time.monotonic() - started
    if not n_chunks:
        terminal.note("interrupted in the first chunk: nothing was written")
        raise KeyboardInterrupt
    names = ["stdin" if text == "-" else text for text in texts]
    write_imatrix(target, importance, Corpus(names, n_chunks, chunk))
    done = f"{n_chunks:,}" if tokens == total else f"{n_chunks:,} of {len(chunks):,}"
    rate = f"{seconds:.1f} s, {tokens / seconds:.0f} tok/s"
    terminal.note(f"{target}: {tokens:,} tokens in {done} chunks, {rate}")
    if engine.config["n_experts"]:
        terminal.note(_reached(importance))
    if tokens < total:
        terminal.note("interrupted: the file holds what was collected until then")
        raise KeyboardInterrupt


def _read(text: str) -> str:
    if text != "-":
        return Path(text).read_text("utf-8", "replace")
    if sys.stdin is None:
        raise UsageError("stdin is closed; name a TEXT")
    return sys.stdin.buffer.read().decode("utf-8", "replace")


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
