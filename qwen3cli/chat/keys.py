"""The keyboard while a reply streams: what is typed is not echoed into it, and not lost."""

from __future__ import annotations

import os
import select
import signal
import termios
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from threading import RLock, Thread, get_ident

from qwen3cli.interrupt import watching

_IFLAG, _LFLAG, _CC = 0, 3, 6  # of what tcgetattr returns


@contextmanager
def quiet(
    fd: int,
    take: Callable[[bytes], None],
    enter: Callable[[bool], None] = lambda _on: None,
    aside: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[None]:
    """Until it ends, the terminal fd echoes nothing, and what is typed goes to take as it comes,
    in a thread. Ctrl-C and Ctrl-Z are signals as ever. The terminal is as it was at the end,
    whatever ends it, and while the program is stopped, which is inside aside; enter(on) is told of
    each change."""
    before = termios.tcgetattr(fd)
    silent = termios.tcgetattr(fd)
    silent[_LFLAG] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN)
    silent[_LFLAG] |= termios.NOFLSH  # Ctrl-C drops nothing of what was typed before it
    silent[_IFLAG] &= ~termios.ICRNL  # Enter, as the line editor knows it
    silent[_CC] = [*silent[_CC]]
    silent[_CC][termios.VMIN], silent[_CC][termios.VTIME] = 1, 0

    def ours() -> bool:
        """Whether the program is in the foreground. Elsewhere it would be stopped."""
        try:
            return os.tcgetpgrp(fd) == os.getpgrp()
        except OSError:  # the terminal is gone
            return False

    lock, over = RLock(), False

    def change(on: bool) -> None:
        with lock:
            if ours() and not (on and over):  # a late SIGCONT finds it over
                enter(on)
                with suppress(termios.error):
                    termios.tcsetattr(fd, termios.TCSANOW, silent if on else before)

    def stop() -> None:
        change(False)
        with aside():
            signal.pthread_kill(get_ident(), signal.SIGSTOP)  # at once: SIGCONT follows

    ended, end = os.pipe()

    def read() -> None:
        while True:
            ready, _, _ = select.select([fd, ended], [], [])
            if ended in ready:
                return
            if not ours():
                select.select([ended], [], [], 0.1)
                continue
            try:
                data = os.read(fd, 1024)
            except OSError:
                return
            if not data:
                return
            take(data)

    reader = Thread(target=read, daemon=True)
    with watching({signal.SIGTSTP: stop, signal.SIGCONT: lambda: change(True)}):
        reader.start()
        try:
            change(True)
            yield
        finally:
            over = True
            os.close(end)
            reader.join()
            os.close(ended)
            change(False)
