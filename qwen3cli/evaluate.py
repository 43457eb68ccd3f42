"""How well a model predicts texts, and how far it is from a reference.

A text is cut into chunks of as many tokens as the context holds, and the second half of each
chunk counts: a token there has half a context before it at least. That is how llama.cpp and the
tables that people publish count; a perplexity depends on it.

Perplexity is exp of the mean negative log-likelihood of the next token. The divergence is
KL(reference || model) of the next-token distributions, in nats. An error is one standard error,
taking positions as independent. kv caches are F32, so that only weights and products differ; with
a GPU, which has none of these, they are F16, those of a reference as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3cli.engine import Cancelled, Model, Session
from qwen3cli.errors import Qwen3Error, UsageError
from qwen3cli.interrupt import interruptible
from qwen3cli.library import obtain
from qwen3cli.options import Measuring, Reading
from qwen3cli.plan.gpu import card
from qwen3cli.run.statistics import on_gpu
from qwen3cli.terminal import Terminal
from qwen3cli.texts import check_context, n_chunks, read_text, reader, text_name

_KV, _KV_GPU = "f32", "f16"
_BLOCK_BYTES = 1 << 26  # of the logits of one model that are held at a time
_QUANTILES = (  # key, name, share of the positions
    ("median", "median", 0.5),
    ("p90", "90 %", 0.9),
    ("p99", "99 %", 0.99),
    ("p99_9", "99.9 %", 0.999),
    ("max", "max", 1.0),
)

Floats = NDArray[np.float64]


# ---- distributions ---------------------------------------------------------------------


def log_softmax(logits: NDArray[np.float32]) -> Floats:
    """The logarithms of the probabilities, along the last axis."""
    logs: Floats = logits.astype(np.float64)
    logs -= logs.max(axis=-1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(axis=-1, keepdims=True))
    return logs


def divergence(p: NDArray[np.floating[Any]], q: NDArray[np.floating[Any]]) -> Floats:
    """KL(p || q) in nats along the last axis, of logarithms of probabilities."""
    exact = p.astype(np.float64, copy=False)
    kl: Floats = (np.exp(exact) * (exact - q)).sum(axis=-1)
    return kl


# ---- measuring -------------------------------------------------------------------------


def chunks_of(ids: Sequence[int], context: int) -> list[Sequence[int]]:
    """The whole chunks of a text, and no shorter rest; a text that fills none is one itself."""
    whole = [ids[i : i + context] for i in range(0, len(ids) - context + 1, context)]
    return whole or [ids]


@dataclass(frozen=True)
class Scores:
    """Of every position that counts, in order."""

    nll: Floats  # [models][positions], in nats; a reference is the second model
    kl: Floats  # [positions], 0 without a reference
    same_top: NDArray[np.bool_]  # likewise: the likeliest token is the reference's; else True


def measure(
    models: Sequence[Model], chunks: Sequence[Sequence[int]], progress: Callable[[int, int], None]
) -> Scores:
    """Scores a model, or a model and its reference, on chunks of at least 3 tokens. progress:
    told how many tokens are computed, and of how many. Raises Qwen3Error for logits that are
    not finite, Cancelled after Ctrl-C."""
    total = len(models) * sum(len(chunk) - 1 for chunk in chunks)
    n_ctx = max(map(len, chunks))
    kv = _KV_GPU if any(model.device for model in models) else _KV
    sessions = [model.session(n_ctx=n_ctx, kv=kv) for model in models]
    rows: list[tuple[Floats, float, bool]] = []
    done = 0

    def interrupt() -> None:
        for session in sessions:
            session.cancel()

    with interruptible(interrupt), ThreadPoolExecutor(models[0].threads) as pool:
        for chunk in chunks:
            half = len(chunk) // 2
            for session in sessions:
                session.sync(chunk[:half])
                done += half
                progress(done, total)
            for logits, targets in _second_half(sessions, chunk):
                rows += pool.map(_score, targets, *logits)
                done += len(models) * len(targets)
                progress(done, total)
    nll, kl, same_top = zip(*rows, strict=True)
    return Scores(np.array(nll).T, np.array(kl), np.array(same_top))


def _second_half(
    sessions: Sequence[Session], chunk: Sequence[int]
) -> Iterator[tuple[list[NDArray[np.float32]], Sequence[int]]]:
    """Block by block the logits [positions][n_vocab] of each session, which holds the first
    half, and the tokens that follow at these positions."""
    n_vocab = sessions[0].model.config["n_vocab"]
    step = max(1, _BLOCK_BYTES // (4 * n_vocab))
    last = len(chunk) - 1
    for start in range(len(chunk) // 2, last, step):
        stop = min(start + step, last)
        logits = [session.extend_logits(chunk[start:stop]) for session in sessions]
        yield logits, chunk[start + 1 : stop + 1]


def _score(target: int, *logits: NDArray[np.float32]) -> tuple[Floats, float, bool]:
    """The entries of Scores for one position. numpy leaves the other threads at work."""
    logs = [log_softmax(row) for row in logits]
    nll = np.array([-row[target] for row in logs])
    if not np.isfinite(nll).all():
        raise Qwen3Error("there are logits that are not finite: `qwen3 verify` checks the files")
    model, reference = logs[0], logs[-1]
    same_top = bool(model.argmax() == reference.argmax())
    return nll, float(divergence(reference, model)) if len(logs) > 1 else 0.0, same_top


# ---- the commands ------------------------------------------------------------------------


def evaluate(
    reading: Measuring, reference: str | None, terminal: Terminal, *, as_json: bool
) -> None:
    """Prints the perplexity of a model; with a reference the divergence from it, and both
    perplexities. Raises UsageError for texts without 3 tokens, chunks that a model has not the
    context for, and models whose tokenizers are not the same."""
    paths = [obtain.resolve(each, terminal) for each in (reading.model, reference) if each]
    share = 1 / len(paths)
    gpu = card(reading.gpu, reading.vram, share)
    models = [reader(path, reading, terminal, kv=_KV, share=share, card=gpu) for path in paths]
    chunks = _chunks(models, reading)
    title = f"{paths[0].name}, {n_chunks(len(chunks))}"
    try:
        with terminal.progress(title, "tok") as move:
            scores = measure(models, chunks, move)
    except Cancelled:
        raise KeyboardInterrupt from None
    report = {
        "model": str(paths[0]),
        "context": reading.ctx,
        "chunks": len(chunks),
        "positions": len(scores.kl),
        **_report(scores, paths[1:]),
        **on_gpu(models[0]),
    }
    if as_json:
        terminal.json(report)
    else:
        _show(report, terminal)


def _chunks(models: Sequence[Model], reading: Reading) -> list[Sequence[int]]:
    chunks: list[Sequence[int]] = []
    if len(models) > 1:
        _same_vocabulary(models)
    for file in reading.files:
        text = read_text(file)
        ids, *others = (model.tokenizer.encode(text, added=reading.added) for model in models)
        if any(other != ids for other in others):
            raise _different(models, f"they cut {text_name(file)} into different tokens")
        if len(ids) < 3:
            raise UsageError(
                f"{text_name(file)}: a text of {len(ids)} tokens is too short to measure on"
            )
        chunks += chunks_of(ids, reading.ctx)
    for model in models:
        check_context(model, chunks)
    return chunks[: reading.chunks]


def _same_vocabulary(models: Sequence[Model]) -> None:
    """Token by token. One that stands for no text, such as padding, may have any name."""
    sizes = [model.config["n_vocab"] for model in models]
    if len(set(sizes)) > 1:
        raise _different(models, f"of {sizes[0]} and {sizes[1]} tokens")
    for token in range(sizes[0]):
        pieces = {model.tokenizer.token_bytes(token) for model in models}
        if len(pieces) > 1:
            raise _different(models, f"token {token} is {' and '.join(map(repr, sorted(pieces)))}")


def _different(models: Sequence[Model], how: str) -> UsageError:
    files = " and ".join(str(model.path) for model in models)
    return UsageError(f"{files} have different tokenizers ({how}): they cannot be compared")


# ---- the report --------------------------------------------------------------------------


def _mean(values: NDArray[Any]) -> tuple[float, float]:
    """The mean and its standard error."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def _perplexity(nll: Floats) -> dict[str, float]:
    """exp of the mean (of as much as a float can hold), and its standard error."""
    mean, error = _mean(nll)
    value = math.exp(min(mean, 700.0))
    return {"value": value, "error": value * error}


def _report(scores: Scores, references: Sequence[Path]) -> dict[str, Any]:
    report: dict[str, Any] = {"perplexity": _perplexity(scores.nll[0])}
    for path in references:
        mean, error = _mean(scores.kl)
        share, share_error = _mean(scores.same_top)
        quantiles = {key: float(np.quantile(scores.kl, q)) for key, _, q in _QUANTILES}
        report |= {
            "reference": str(path),
            "reference_perplexity": _perplexity(scores.nll[1]),
            "perplexity_ratio": _perplexity(scores.nll[0] - scores.nll[1]),
            "kl": {"mean": mean, "error": error, **quantiles},
            "same_top": {"share": share, "error": share_error},
        }
    return report


def _show(report: dict[str, Any], terminal: Terminal) -> None:
    rows = [_row("perplexity", report["perplexity"])]
    if "reference" in report:
        kl, same = report["kl"], report["same_top"]
        rows += [
            _row("perplexity of the reference", report["reference_perplexity"]),
            _row("ratio of the two", report["perplexity_ratio"]),
            ("KL, mean", f"{kl['mean']:.4g}", f"{kl['error']:.2g}"),
            *((f"KL, {name}", f"{kl[key]:.4g}", "") for key, name, _ in _QUANTILES),
            ("same likeliest token", f"{same['share']:.2%}", f"{same['error']:.2%}"),
        ]
    terminal.table(("", "", "±"), rows)
    terminal.note(
        f"{report['positions']:,} positions, the second halves of {n_chunks(report['chunks'])} of "
        f"{report['context']:,} tokens"
    )


def _row(name: str, figure: dict[str, float]) -> tuple[str, str, str]:
    return name, f"{figure['value']:.5g}", f"{figure['error']:.2g}"
