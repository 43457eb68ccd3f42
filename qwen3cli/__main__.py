"""python -m qwen3cli, and the console script: the command qwen3."""

import _thread
import signal
import sys
import threading


def main() -> None:
    """Runs the command line and exits with its code. While it is still being imported,
    Ctrl-C ends the process at once: there would be nobody to catch a KeyboardInterrupt."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # not in a background job, which ignores it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from qwen3cli.cli import commands

    sys.unraisablehook = _unraisable
    signal.signal(signal.SIGINT, handler)
    sys.exit(commands.main())


def _unraisable(lost: "sys.UnraisableHookArgs") -> None:
    """A KeyboardInterrupt inside a callback of the interpreter, such as one of every import,
    would be lost: it comes again, when the callback is over."""
    if lost.exc_type is KeyboardInterrupt:
        threading.Timer(0.01, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(lost)


if __name__ == "__main__":
    main()
