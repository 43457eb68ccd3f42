"""The Markdown inside of a line: emphasis, code, links.

An opening mark is held back until its closing one is there, or until it is clear that none comes:
at the end of the line, or some characters later."""

from __future__ import annotations

import re
from collections.abc import Callable

_WINDOW = 200  # characters in which a closing mark is looked for
_PLAIN = re.compile(r"[^\\`*_~\[$]+")
_RUN = re.compile(r"(.)\1*", re.DOTALL)
_INNER = r"(?P<inner>(?!\s)(?:`[^`]*`|\\.|[^`\\])+?)"
_EMPHASIS = {
    mark: (re.compile(f"{re.escape(mark)}{_INNER}(?<![\\s{c}]){re.escape(mark)}(?!{after})"), style)
    for mark, c, after, style in (
        ("*", "*", r"\*", "3"),
        ("**", "*", r"\*", "1"),
        ("***", "*", r"\*", "1;3"),
        ("_", "_", r"\w", "3"),
        ("__", "_", r"\w", "1"),
        ("___", "_", r"\w", "1;3"),
        ("~~", "~", "~", "9"),
    )
}
_LINK = re.compile(r"\[(?P<text>[^\[\]]+)\]\((?P<url>[^()\s]*(?:\([^()\s]*\)[^()\s]*)*)\)")
_LINK_BEGINNING = re.compile(r"\[[^\[\]]*(?:\](?:\([^()\s]*(?:\([^()\s]*\)?[^()\s]*)*)?)?")
_CODE, _LINK_STYLE, _URL = "36", "4", "2"


class Inline:
    """The inside of one line after another, as it comes, in runs of a style."""

    def __init__(self, put: Callable[[str, str], None], *, styled: bool) -> None:
        """Without styles marks stay: they are all that tells emphasis."""
        self._put = put
        self._styled = styled
        self._style = ""  # of the line
        self._held = ""
        self._before = " "
        self._math = ""  # what ends the formula, in which nothing is a mark

    def begin(self, style: str = "") -> None:
        """Begins a line."""
        self._style, self._before, self._math = style, " ", ""

    def feed(self, text: str) -> None:
        """More of the line."""
        if self._styled:
            self._held = self._parse(self._held + text, final=False)
        else:
            self._put("", text)

    def end(self) -> None:
        """The line is complete."""
        self._parse(self._held, final=True)
        self._held = ""

    def _parse(self, text: str, *, final: bool) -> str:
        """Emits what is decided; returns the rest."""
        at = 0
        while at < len(text):
            if self._math:
                end = self._formula(text, at, final)
            elif plain := _PLAIN.match(text, at):
                end = self._emit(plain[0], plain.end())
            else:
                end = self._marked(text, at, final)
            if end == at:
                break
            at = end
        return text[at:]

    def _emit(self, text: str, end: int, style: str = "") -> int:
        """Emits text; what is at end comes next."""
        self._put(_both(self._style, style), text)
        self._before = text[-1:] or self._before
        return end

    def _formula(self, text: str, at: int, final: bool) -> int:
        end = text.find(self._math, at)
        if end >= 0:
            end += len(self._math)
            self._math = ""
        else:
            end = len(text) if final else max(at, len(text) - len(self._math) + 1)
        return self._emit(text[at:end], end) if end > at else at

    def _marked(self, text: str, at: int, final: bool) -> int:
        """What begins with a mark: where it ends; at: undecided."""
        window = text[at : at + _WINDOW]
        closed = final or len(window) == _WINDOW
        run = _RUN.match(window)
        assert run is not None
        mark = run[0]
        after = window[len(mark) : len(mark) + 1]
        if not after and not closed:
            return at
        if mark[0] == "[":
            return self._link(window, at, closed)
        if mark[0] == "\\":
            return self._escape(window, at)
        if mark[0] == "$":
            if mark == "$$" or (
                mark == "$" and not (after or " ").isspace() and not after.isdigit()
            ):
                self._math = mark
            return self._emit(mark, at + len(mark))
        if mark[0] == "`":
            code = re.compile(f"{mark}(?P<inner>.+?)(?<!`){mark}(?!`)").match(window)
            if code and (closed or code.end() < len(window)):
                inner = code["inner"]
                if inner[0] == inner[-1] == " " and inner.strip():
                    inner = inner[1:-1]
                return self._emit(inner, at + code.end(), _CODE)
        elif mark in _EMPHASIS and self._opens(mark, after):
            pattern, style = _EMPHASIS[mark]
            found = pattern.match(window)
            if found and (closed or found.end() < len(window)):
                inside = Inline(self._put, styled=True)
                inside.begin(_both(self._style, style))
                inside.feed(found["inner"])
                inside.end()
                self._before = mark[0]
                return at + found.end()
        else:
            return self._emit(mark, at + len(mark))
        return self._emit(mark, at + len(mark)) if closed else at

    def _opens(self, mark: str, after: str) -> bool:
        """Whether the mark may begin something: never before a space, and inside of a word only
        where words are not told apart by spaces."""
        if not after or after.isspace():
            return False
        inside = self._before.isalnum() and (after.isalnum() or mark[0] == "_")
        return not (inside and self._before.isascii() and after.isascii())

    def _link(self, window: str, at: int, closed: bool) -> int:
        link = _LINK.match(window)
        if link:
            text, url = link["text"], link["url"]
            self._emit(text, at, _LINK_STYLE)
            return self._emit("" if url == text else f" ({url})", at + link.end(), _URL)
        if not closed and _LINK_BEGINNING.fullmatch(window):
            return at
        return self._emit("[", at + 1)

    def _escape(self, window: str, at: int) -> int:
        after = window[1:2]
        if after in ("(", "["):  # a formula of LaTeX
            self._math = "\\)" if after == "(" else "\\]"
        elif after and after in "*_`~#|>":
            return self._emit(after, at + 2)
        return self._emit(window[:2], at + len(window[:2]))


def _both(outer: str, inner: str) -> str:
    return f"{outer};{inner}" if outer and inner else outer or inner
