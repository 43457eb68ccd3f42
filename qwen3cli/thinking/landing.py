"""Where thoughts can be closed without cutting a line or a sentence."""

from __future__ import annotations

import re

_CLOSERS = "\"'”’)]}」』）》*_`"
_GOES_ON = (":", ",", ";", "(", "[", "{", "=", "+", "-", "：", "，", "、", "；", "（")  # a line
_WIDE = ("。", "！", "？")
_ABBREVIATIONS = frozenset(
    {"al", "approx", "cf", "ch", "dept", "dr", "eq", "etc", "ex", "fig", "inc", "jr", "ltd"}
    | {"mr", "mrs", "ms", "pp", "prof", "sec", "sr", "st", "vol", "vs"}
)
_NUMBERING = re.compile(r"(?:^|\n)[\s>*#(-]*(?:\w+ )?\d+\.$")  # "3." or "Step 3.", alone on a line


def ends(before: bytes, after: bytes) -> bool:
    """Whether a line or a sentence of before is over when the token of bytes after comes next.
    In doubt it is not. before: the last text, at least a line of it."""
    text, following = before.decode("utf-8", "replace"), after.decode("utf-8", "replace")
    written = text.rstrip()
    if "\n" in text[len(written) :]:
        return bool(written) and not written.endswith(_GOES_ON)
    sentence, first = text.rstrip(" ").rstrip(_CLOSERS), following.lstrip(" ")[:1]
    if sentence.endswith(_WIDE):
        return first.isalnum()
    apart = text.endswith(" ") or following.startswith(" ")
    if not apart or not first.isalpha() or first.islower():
        return False
    return sentence.endswith(("!", "?")) or (sentence.endswith(".") and _is_full_stop(sentence))


def _is_full_stop(sentence: str) -> bool:
    """Whether the dot at the end is none of a numbering, an initial or an abbreviation."""
    word = re.split(r"[\s(\[\"'“*_]", sentence)[-1][:-1]
    if word.isdecimal():
        return not _NUMBERING.search(sentence)
    return len(word) > 1 and "." not in word and word.lower() not in _ABBREVIATIONS
