"""Ctrl-C while the engine computes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread


@contextmanager
def interruptible(interrupt: Callable[[], None]) -> Iterator[None]:
    """Lets Ctrl-C call interrupt at once, perhaps twice. A handler alone would wait until the
    engine returns; the byte that every signal leaves in a pipe wakes a thread meanwhile."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a background job
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)

    def watch() -> None:
        while byte := os.read(read, 1):
            if byte[0] == signal.SIGINT:
                interrupt()
        os.close(read)

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    handler = signal.signal(signal.SIGINT, lambda *_: interrupt())
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        os.close(write)
        watcher.join()
        signal.signal(signal.SIGINT, handler)
