"""Markdown drawn as it comes. What is written never changes: no cursor is moved.

Newlines stay newlines, as in plain text, so every line is what its beginning says. Only that
beginning is held back, then marks whose closing one is missing (inline.py) and words (flow.py), a
line of code until it is complete, and a table until it ends."""

from __future__ import annotations

import re
from collections.abc import Callable

from qwen3cli.screen.cells import TAB
from qwen3cli.screen.flow import Flow, Run, paint
from qwen3cli.screen.highlight import Highlighter
from qwen3cli.screen.inline import Inline
from qwen3cli.screen.tables import Table, is_delimiter

_HELD_ROWS = 64  # of a table; the widths of those that follow are chosen
_RULE = 40  # cells
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_QUOTE = re.compile(r"(?: {0,3}> ?)*")
_UNDECIDED = re.compile(
    r"""[ \t]*(?:
      \#{1,6} | `{1,2} | ~{1,2} | \$ | \\
    | (?P<rule>[-*_])(?:[ \t]*(?P=rule))*[ \t]*   # or what begins an item
    | (?:[-*+]|\d{1,9}[.)])[ \t]+(?:\[(?:[ xX](?:\][ \t]*)?)?)?
    | \+ | \d{1,9}[.)]?
    | (?:`{3,}[^`]*|~{3}.*)                     # a fence tells its language
    | \|.*                                      # perhaps the head of a table
    | (?:\$\$|\\\[).*                            # a formula that ends in this line, or not
    )?""",
    re.VERBOSE | re.DOTALL,
)
_HEADING = re.compile(r" {0,3}(#{1,6}) +")
_RULE_LINE = re.compile(r" {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*")
_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})[ \t]*([\w+#.-]*)")
_ITEM = re.compile(r"([ \t]*)([-*+]|\d{1,9}[.)])([ \t]+)(?:\[([ xX])\][ \t]+)?(?=\S)")
_MATH = re.compile(r"[ \t]*(\$\$|\\\[)")
_CLOSING = {"$$": "$$", "\\[": "\\]"}
_BULLETS = "•◦▪"


class Markdown:
    """One text of Markdown, clean already, in pieces of any size."""

    def __init__(self, width: Callable[[], int], *, styled: bool) -> None:
        """width: cells of a line, now. Without styles no escape codes are written."""
        self._width: Callable[[], int] = lambda: max(width(), 1)
        self._styled = styled
        self._flow = Flow(self._width)
        self._inline = Inline(self._put, styled=styled)
        self._start: str | None = ""  # of the line, while that is undecided
        self._quotes = 0  # around the line
        self._fence: _Fence | None = None
        self._math = ""  # what ends a formula of several lines
        self._head: str | None = None  # of a table, perhaps
        self._table: Table | None = None

    def feed(self, text: str) -> str:
        """What to write now."""
        for line in _LINE.findall(text):
            complete = line.endswith("\n")
            self._more(line.removesuffix("\n"), complete)
        return self._flow.take()

    def finish(self) -> str:
        """What is left to write. The last line may be without its end."""
        if self._start:
            self._decide(final=True)
        self._end_table()
        if self._start is None:
            self._inline.end()
            self._flow.flush()
        return self._flow.take()

    @property
    def in_line(self) -> bool:
        """Whether what was written ends inside of a line."""
        return self._flow.in_line

    def interrupted(self) -> None:
        """Something else has ended the line that was written."""
        self._flow.restart()

    def _put(self, style: str, text: str) -> None:
        self._flow.put(style if self._styled else "", text)

    def _more(self, text: str, complete: bool) -> None:
        if self._start is None:
            self._inline.feed(text)
        else:
            self._start += text
            self._decide(final=complete)
        if complete:
            if self._start is None:
                self._inline.end()
                self._flow.end()
            self._start = ""

    def _decide(self, *, final: bool) -> None:
        """Draws what the beginning of a line tells. With _start None the rest is its text; "":
        the line is done."""
        start = self._start or ""
        if self._fence or self._math:
            if final:
                self._verbatim(start)
            return
        quote = _QUOTE.match(start)
        assert quote is not None
        rest = start[quote.end() :]
        if not final and _UNDECIDED.fullmatch(rest):
            return
        if self._in_table(rest, final, quote[0].count(">")):
            self._start = ""
            return
        self._quotes = quote[0].count(">")
        self._start = None
        self._inline.begin()
        self._block(rest, final)

    def _in_table(self, rest: str, final: bool, quotes: int) -> bool:
        """Takes a line that belongs to a table, or may. Draws a table that ends here."""
        row = final and rest.lstrip().startswith("|") and quotes == self._quotes
        if row and self._table:
            self._table.add(rest)
            if len(self._table) >= _HELD_ROWS:
                self._draw_table(self._table)
            return True
        if row and self._head is not None and is_delimiter(rest):
            self._table = Table(self._head, rest, styled=self._styled)
            self._head = None
            return True
        self._end_table()
        if final and rest.lstrip().startswith("|"):
            self._head, self._quotes = rest, quotes
            return True
        return False

    def _end_table(self) -> None:
        if self._head is not None:  # it was none
            self._line([], [], self._head)
            self._flow.end()
        if self._table:
            self._draw_table(self._table)
        self._head = self._table = None

    def _draw_table(self, table: Table) -> None:
        bars = self._bars()
        for line in table.draw(self._width() - 2 * self._quotes):
            self._flow.write("".join(paint(*run) for run in bars) + line)

    def _block(self, rest: str, final: bool) -> None:
        """Begins the line that is decided."""
        indent = len(rest) - len(rest.lstrip(" \t"))
        if (fence := _FENCE.match(rest)) and "`" not in rest[fence.end() :]:
            code = Highlighter(fence[3] if self._styled else "")
            self._fence = _Fence(fence, self._quotes, code)
            self._verbatim_line(paint("2" if self._styled else "", rest.strip()))
        elif final and _RULE_LINE.fullmatch(rest):
            room = max(self._width() - 2 * self._quotes, 1)
            self._flow.begin(self._bars(), [])
            self._put("2", "─" * min(_RULE, room))
        elif heading := _HEADING.match(rest):
            style = "1;4" if len(heading[1]) == 1 else "1"
            self._inline.begin(style)
            self._line([], [], rest[heading.end() if self._styled else indent :])
        elif item := _ITEM.match(rest):
            self._item(item, rest)
        elif (math := _MATH.match(rest)) and _CLOSING[math[1]] not in rest[math.end() :]:
            self._math = _CLOSING[math[1]]
            self._verbatim_line(rest)
        else:
            space = " " * _cells(rest[:indent])
            self._line([("", space)], [("", space)], rest[indent:])

    def _item(self, item: re.Match[str], rest: str) -> None:
        depth = _cells(item[1])
        mark = item[2] if item[2][0].isdigit() else _BULLETS[min(depth // 2, len(_BULLETS) - 1)]
        if item[4]:
            mark = "☐" if item[4] == " " else "☑"
        first = " " * depth + mark + " "
        self._line([("", first)], [("", " " * len(first))], rest[item.end() :])

    def _line(self, first: list[Run], hang: list[Run], text: str) -> None:
        """Begins a line with words, indented less where the terminal is narrow."""
        most = self._width() // 3
        bars = self._bars()
        first = [(style, run[max(len(run) - most, 0) :]) for style, run in first]
        hang = [(style, run[:most]) for style, run in hang]
        self._flow.begin([*bars, *first], [*bars, *hang])
        self._inline.feed(text)

    def _bars(self) -> list[Run]:
        """What stands before each line of a quotation."""
        shown = min(self._quotes, self._width() // 6)
        return [("2" if self._styled else "", "│ ")] * shown

    def _verbatim(self, line: str) -> None:
        """A line of code or of a formula."""
        if self._fence:
            line = self._fence.unquoted(line)
            if self._fence.is_end(line):
                self._verbatim_line(paint("2" if self._styled else "", line.strip()))
                self._fence = None
            else:
                self._verbatim_line(self._fence.code.line(self._fence.unindented(line)))
        else:
            self._verbatim_line(line)
            if self._math in line or not line.strip():  # a formula has no blank lines
                self._math = ""

    def _verbatim_line(self, line: str) -> None:
        self._flow.write(line)
        self._start = ""


class _Fence:
    """A block of code, opened by a line such as ```python."""

    def __init__(self, opening: re.Match[str], quotes: int, code: Highlighter) -> None:
        self.code = code
        self._indent = len(opening[1])
        self._mark = opening[2]
        self._quotes = quotes

    def unquoted(self, line: str) -> str:
        """The line inside of the quotations that the block is in."""
        for _ in range(self._quotes):
            line = re.sub(r"^ {0,3}> ?", "", line)
        return line

    def is_end(self, line: str) -> bool:
        mark = line.strip()
        return len(mark) >= len(self._mark) and not mark.strip(self._mark[0])

    def unindented(self, line: str) -> str:
        """The line without the spaces that stand before the block as a whole."""
        spaces = len(line) - len(line.lstrip(" \t"))
        return line[min(self._indent, spaces) :]


def _cells(space: str) -> int:
    return len(space.expandtabs(TAB))
