"""Every error a user can meet, with its exit code.

A message says what was wrong and what to do; it never needs a traceback.
"""

from __future__ import annotations


class Qwen3Error(Exception):
    """The base: something failed at run time."""

    exit_code = 1


class UsageError(Qwen3Error):
    """The command line asks for something that has no meaning."""

    exit_code = 2


class ModelNotFound(Qwen3Error):
    """The model is not on this machine."""

    exit_code = 3


class DoesNotFit(Qwen3Error):
    """The model or its context needs more memory than there is."""

    exit_code = 4


class ContextOverflow(Qwen3Error):
    """More tokens than the context holds."""

    exit_code = 5

    def __init__(self, text: str, *, droppable: bool = False) -> None:
        super().__init__(text)
        self.droppable = droppable  # some are of older turns, which need not be sent


ANSWER_CUT = 6  # exit code: the answer was cut at its limit
DAMAGED = 7  # exit code: a file is not what it should be
INTERRUPTED = 130  # exit code: Ctrl-C


class DamagedFile(Qwen3Error):
    """A file is not what it should be."""

    exit_code = DAMAGED


class FormatError(Qwen3Error):
    """A file contradicts its format or is not something this program runs."""
