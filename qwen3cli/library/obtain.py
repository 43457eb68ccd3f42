"""MODEL, fetched first if it is not here and whoever sits at the terminal wants it."""

from __future__ import annotations

from pathlib import Path

from qwen3cli.errors import ModelNotFound, Qwen3Error
from qwen3cli.hub import journal, registry
from qwen3cli.terminal import Terminal


def choose(model: str | None, terminal: Terminal) -> Path:
    """registry.choose, with an offer to pull what is missing."""
    if model := model or registry.default():
        return resolve(model, terminal)
    return registry.choose(None, terminal.note)


def resolve(model: str, terminal: Terminal) -> Path:
    """registry.resolve, with an offer to pull what is missing."""
    try:
        return registry.resolve(model)
    except ModelNotFound as missing:
        _offer(model, missing, terminal, weights=False)
    return registry.resolve(model)


def source(model: str, terminal: Terminal) -> tuple[Path, Path]:
    """registry.source, with an offer to pull missing weights."""
    try:
        return registry.source(model)
    except ModelNotFound as missing:
        _offer(model, missing, terminal, weights=True)
    return registry.source(model)


def _offer(model: str, missing: ModelNotFound, terminal: Terminal, *, weights: bool) -> None:
    """Raises missing where nobody can be asked, there is nothing to fetch, or it is not wanted."""
    if not terminal.can_ask or model.endswith(".gguf"):  # a file here, nobody else's business
        raise missing
    try:
        wish = registry.wanted(model, weights=weights)
    except Qwen3Error:
        raise missing from None
    from huggingface_hub import constants

    from qwen3cli.hub.remote import Hub, Unreachable
    from qwen3cli.library.pull import Order, size

    if constants.HF_HUB_OFFLINE:
        raise missing
    with Hub(terminal.note) as hub:
        try:
            order = Order(model, wish, hub, "main", terminal.note)
        except Unreachable as error:
            terminal.note(str(error))
            raise missing from None
        rate = journal.rate()
        about = f", about {_duration(order.needed / rate)}" if rate else ""
        what = f"the weights of {wish.name} are" if weights else f"{wish.name} is"
        question = (
            f"{what} not installed: {size(order.needed)} from {wish.repository}{about}, "
            f"{size(order.free)} of disk free. Pull {'them' if weights else 'it'}?"
        )
        if not terminal.ask(question, default=True):
            raise missing
        order.fetch(terminal)


def _duration(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60):,} min"
