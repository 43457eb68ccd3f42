"""python -m qwen3cli, and the console script: the command qwen3."""

import signal
import sys


def main() -> None:
    """Runs the command line and exits with its code. While it is still being imported,
    Ctrl-C ends the process at once: there would be nobody to catch a KeyboardInterrupt."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # not in a background job, which ignores it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from qwen3cli import cli

    signal.signal(signal.SIGINT, handler)
    sys.exit(cli.main())


if __name__ == "__main__":
    main()
