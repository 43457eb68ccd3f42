"""Ctrl-C while the engine computes: no moment at which it is lost."""

import signal
from collections.abc import Callable
from queue import Queue

import pytest

from qwen3cli.interrupt import (
    TERMINATING,
    Terminated,
    interruptible,
    orderly_termination,
    watching,
)


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


def test_a_signal_in_the_work_is_passed_on_once_and_raises_nothing() -> None:
    interrupts: Queue[int] = Queue()
    before = signal.getsignal(signal.SIGINT)
    with interruptible(lambda: interrupts.put(1)):
        signal.raise_signal(signal.SIGINT)
        assert interrupts.get(timeout=10)
    assert interrupts.empty()
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_is_not_watched_reaches_who_watches_farther_out() -> None:
    outer: Queue[int] = Queue()
    inner: Queue[int] = Queue()
    with (
        watching({signal.SIGUSR1: lambda: outer.put(1)}),
        watching({signal.SIGINT: lambda: inner.put(1)}),
    ):
        signal.raise_signal(signal.SIGUSR1)
        assert outer.get(timeout=10)
        signal.raise_signal(signal.SIGINT)
        assert inner.get(timeout=10)
    assert outer.empty() and inner.empty()


def test_what_is_ignored_stays_ignored() -> None:
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with watching({signal.SIGINT: lambda: pytest.fail("it was to be ignored")}):
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("number", TERMINATING)
def test_what_terminates_unwinds_before_it_ends_the_program(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    monkeypatch.setattr("os.kill", lambda _pid, number: sent.append(number))
    unwound = []
    with orderly_termination():
        try:
            signal.raise_signal(number)
        except Terminated:
            unwound.append(1)
            raise
    assert (unwound, sent) == ([1], [number])
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with orderly_termination():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, handler)
