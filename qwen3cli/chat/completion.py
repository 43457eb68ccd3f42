"""How a line that is being typed may go on: words and paths."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_MOST = 200  # paths that are offered at once
_SPECIAL = re.compile(r"""([\s\\'"])""")  # what shlex would not take as it is
_LAST_WORD = re.compile(r"(?:[^\s\\]|\\.)*\Z", re.DOTALL)


@dataclass(frozen=True)
class Choice:
    """A text in place of the last characters."""

    text: str
    replaces: int  # how many
    about: str = ""


Choices = Callable[[str], Iterable[Choice]]  # of an argument typed so far


def nothing(_typed: str) -> Iterable[Choice]:
    return ()


def words(known: Iterable[tuple[str, str]], typed: str, end: str = "") -> Iterator[Choice]:
    """The words, and what is said about them, that begin with what was typed. end: what follows
    a word."""
    for word, about in known:
        if word.startswith(typed):
            yield Choice(word + end, len(typed), about)


def paths(typed: str) -> Iterator[Choice]:
    """Files and folders for the last of the words typed; spaces in it are escaped. Hidden ones
    where their dot was typed."""
    found = _LAST_WORD.search(typed)
    last = found[0] if found else ""
    start = re.sub(r"\\(.)", r"\1", last)
    folder, slash, name = start.rpartition("/")
    try:
        entries = sorted(os.scandir(Path(folder + slash).expanduser()), key=lambda each: each.name)
    except (OSError, RuntimeError):  # no such folder, or no home
        return
    hidden = name.startswith(".")
    fitting = [
        each
        for each in entries
        if each.name.startswith(name) and each.name.startswith(".") == hidden
    ]
    for entry in fitting[:_MOST]:
        path = _SPECIAL.sub(r"\\\1", folder + slash + entry.name)
        yield Choice(path + "/" * entry.is_dir(), len(last))
