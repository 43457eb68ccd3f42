"""What can go wrong on the way from a checkpoint to a GGUF file, with the command's exit code.

A message says what was wrong and what to do; nothing is left behind.
"""

from __future__ import annotations


class QuantError(Exception):
    """The base: something failed at run time."""

    exit_code = 1


class FormatError(QuantError):
    """The source contradicts its format, or is not something that can be converted."""


class UsageError(QuantError):
    """The call asks for something that has no meaning."""

    exit_code = 2


class SourceNotFound(QuantError):
    """There is no such checkpoint."""

    exit_code = 3
