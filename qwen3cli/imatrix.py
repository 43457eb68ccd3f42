"""The command `imatrix`: what enters the weights of a model while it reads texts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np

from quant.imatrix import Corpus, write_imatrix
from quant.output import replacing
from qwen3cli import registry
from qwen3cli.engine import Cancelled, Importance, Model, Session, Tokenizer
from qwen3cli.errors import UsageError
from qwen3cli.interrupt import interruptible
from qwen3cli.terminal import Terminal
from qwen3cli.texts import read_text

_RARE = 32  # tokens: the mean square of so few is uncertain by a quarter


@dataclass(frozen=True)
class Reading:
    """What a model reads: texts are files, - for stdin; added: spelled-out added tokens count
    as such; chunk: tokens that are read with nothing before them. The last of a text may be
    fewer."""

    texts: Sequence[str]
    added: bool = False
    chunk: int = 512

    def chunks(self, tokenizer: Tokenizer) -> list[list[int]]:
        """Raises UsageError when there is nothing to read."""
        texts = (tokenizer.encode(read_text(text), added=self.added) for text in self.texts)
        chunks = [
            ids[at : at + self.chunk] for ids in texts for at in range(0, len(ids), self.chunk)
        ]
        if not chunks:
            raise UsageError("the text is empty")
        return chunks


def imatrix(
    model: str, reading: Reading, out: str | None, terminal: Terminal, *, force: bool, threads: int
) -> None:
    """Writes out, by default MODEL-imatrix.gguf in the current folder. Ctrl-C writes what was
    collected until then, if that is a chunk at least, and raises KeyboardInterrupt."""
    path = registry.resolve(model)
    target = Path(out) if out else Path(f"{path.stem}-imatrix.gguf")
    if target.exists() and not force:
        raise UsageError(f"{target}: exists already; --force overwrites it")
    engine = Model(path, threads=threads)
    if reading.chunk > engine.config["n_ctx_train"]:
        raise UsageError(f"--chunk: the model has a context of {engine.config['n_ctx_train']}")
    chunks = reading.chunks(engine.tokenizer)
    total, tokens, n_chunks = sum(map(len, chunks)), 0, 0
    importance = Importance(engine)
    session = engine.session(n_ctx=max(map(len, chunks)))
    session.observe(importance)
    started = time.monotonic()
    title = f"{path.stem} to {target}"
    with replacing(target) as part:  # a place that cannot be written is known at once
        with terminal.progress(title, lambda speed: f"{speed:,.0f} tok/s") as move:
            for n in _computed(session, chunks):
                tokens, n_chunks = tokens + n, n_chunks + 1
                move(tokens, total)
        if not n_chunks:
            terminal.note("interrupted in the first chunk: nothing was written")
            raise KeyboardInterrupt
        names = ["stdin" if text == "-" else text for text in reading.texts]
        write_imatrix(part, importance, Corpus(names, n_chunks, reading.chunk))
    seconds = time.monotonic() - started
    done = f"{n_chunks:,}" if tokens == total else f"{n_chunks:,} of {len(chunks):,}"
    rate = f"{seconds:.1f} s, {tokens / seconds:.0f} tok/s"
    terminal.note(f"{target}: {tokens:,} tokens in {done} chunks, {rate}")
    if engine.config["n_experts"]:
        terminal.note(_reached(importance))
    if tokens < total:
        terminal.note("interrupted: the file holds what was collected until then")
        raise KeyboardInterrupt


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
