"""Ctrl-C while the engine computes: no moment at which it is lost."""

import signal
from collections.abc import Callable

import pytest

from qwen3cli.interrupt import interruptible


def raise_after(call: Callable[..., object]) -> Callable[..., object]:
    def called(*args: object, **options: object) -> object:
        result = call(*args, **options)
        signal.raise_signal(signal.SIGINT)
        return result

    return called


def test_a_signal_between_handler_and_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupts: list[int] = []
    monkeypatch.setattr(signal, "signal", raise_after(signal.signal))
    with pytest.raises(KeyboardInterrupt), interruptible(lambda: interrupts.append(1)):
        assert interrupts
    # The second came with the old handler back: it is the caller's again.


def test_a_signal_in_the_work_is_passed_on_and_raises_nothing() -> None:
    interrupts: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    with interruptible(lambda: interrupts.append(1)):
        signal.raise_signal(signal.SIGINT)
        assert interrupts
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
