"""What a model, a repository of the Hugging Face Hub and a file in it may be called.

Whatever becomes a part of a path or of an address passes through here first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from qwen3cli.errors import UsageError

# ASCII, beginning and ending with a letter or a digit: no hidden file, no flag, no end of a
# sentence that was pasted too.
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?\Z")
_FILE = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9 ._+()-]*[A-Za-z0-9_)])?\Z")
_MAX_NAME, _MAX_PATH = 96, 255  # 96 as on the hub


def check_name(text: str) -> str:
    """The name of a model, as it is. Raises UsageError."""
    return _checked(text, "a model's name", _NAME, 1, _MAX_NAME)


def check_repository(text: str) -> str:
    """OWNER/NAME, as it is. Raises UsageError."""
    return _checked(text, "a repository, OWNER/NAME", _NAME, 2, _MAX_NAME)


def check_quant(text: str) -> str:
    """A quantization such as q4_k_m, as it is. Raises UsageError."""
    return _checked(text, "a quantization", _NAME, 1, _MAX_NAME)


def check_file(text: str) -> str:
    """The path of a file in a repository, as it is. Raises UsageError."""
    return _checked(text, "a file of a repository", _FILE, text.count("/") + 1, _MAX_PATH)


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about a name that is not known."""
    from difflib import get_close_matches

    known = list(known)
    holding = [each for each in known if name in each] if name else []
    begun = [each for each in holding if each.startswith(name)]  # 30b-a3b for 30b, not 32b
    close = begun or get_close_matches(name, known, 1) or holding
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"


def _checked(text: str, what: str, allowed: re.Pattern[str], n_parts: int, most: int) -> str:
    parts = text.split("/")
    # The hub's rule for names, and the cache's folders join owner and name by "--".
    doubled = ".." in text or (allowed is _NAME and "--" in text)
    if len(parts) != n_parts or len(text) > most or doubled or not all(map(allowed.match, parts)):
        shown = text if len(text) <= most else f"{text[:most]}..."
        raise UsageError(f"{shown!r} cannot be {what}")
    return text
