"""Signals while the engine computes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from threading import Thread, get_ident


@contextmanager
def interruptible(interrupt: Callable[[], None]) -> Iterator[None]:
    """Lets every Ctrl-C call interrupt at once."""
    with watching({signal.SIGINT: interrupt}):
        yield


@contextmanager
def watching(actions: Mapping[int, Callable[[], None]]) -> Iterator[None]:
    """Lets each of these signals call its action, once and at once, in a thread: a handler would
    wait until the engine returns, but the byte that every signal leaves in a pipe wakes a thread
    meanwhile. What is ignored, as Ctrl-C is in a background job, stays so; the other signals are
    left to whoever watches farther out."""
    watched = {
        number: action
        for number, action in actions.items()
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    read, write = os.pipe()
    os.set_blocking(write, False)
    unread = True  # nobody reads the pipe yet, or any more

    def handle(number: int, _frame: object) -> None:
        if unread:
            watched[number]()

    def watch() -> None:
        while byte := os.read(read, 1):
            if action := watched.get(byte[0]):
                action()
            elif outer != -1:
                with suppress(OSError):
                    os.write(outer, byte)
        os.close(read)

    outer = -1
    handlers = {number: signal.signal(number, handle) for number in watched}
    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    # Handlers run when a call returns: with nothing between the two, a signal is acted upon once.
    outer = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    unread = False
    try:
        yield
    finally:
        signal.set_wakeup_fd(outer)
        unread = True
        os.close(write)
        watcher.join()
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def stoppable(aside: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Lets Ctrl-Z stop the program inside aside, which clears the screen for the shell. As ever it
    stops nothing where no shell could let it go on."""

    def stop() -> None:
        with aside():
            if os.getsid(os.getppid()) == os.getsid(0):
                signal.pthread_kill(get_ident(), signal.SIGSTOP)  # at once: SIGCONT follows

    with watching({signal.SIGTSTP: stop}):
        yield


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C does nothing: what is begun inside is done as a whole."""
    with watching({signal.SIGINT: lambda: None}):
        yield


class Terminated(SystemExit):
    """SIGTERM or SIGHUP: everything is put back on the way out."""


TERMINATING = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def orderly_termination() -> Iterator[None]:
    """SIGTERM and SIGHUP end what runs inside by an exception, and then the program as they would
    have. What is ignored, as SIGHUP is under nohup, stays so."""

    def leave(number: int, _frame: object) -> None:
        raise Terminated(128 + number)

    handlers = {
        number: signal.signal(number, leave)
        for number in TERMINATING
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    except Terminated as end:
        assert isinstance(end.code, int)
        number = end.code - 128
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
