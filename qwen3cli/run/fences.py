"""Code out of an answer: the fenced blocks of Markdown, as CommonMark defines them.

A block may also begin behind the mark of a list, and be indented as deeply as lists are. What a
model did not close goes on to the end. A block of Markdown holds the blocks that are inside it,
whatever the length of their fences: models rarely write the outer one longer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FENCE = re.compile(
    r"(?P<indent>[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*)"
    r"(?P<fence>`{3,}|~{3,})(?P<info>.*)\Z"
)
_MARKDOWN = ("markdown", "md")


@dataclass
class _Block:
    indent: int
    fence: str
    info: str
    lines: list[str]
    inside: int = 0  # blocks of a Markdown block that are open

    def ends_with(self, line: str) -> bool:
        """Whether the line closes the block, of which it is no part then."""
        found = _FENCE.match(line)
        if not found or not found["fence"].startswith(self.fence):
            return False
        if found["info"].strip():
            self.inside += self.info in _MARKDOWN
            return False
        indent = found["indent"]
        if indent.strip() or (self.inside == 0 and _width(indent) > self.indent + 3):
            return False
        self.inside -= 1
        return self.inside < 0


def last_block(text: str) -> str | None:
    """The code of the last fenced block, without the fences and their indentation; every line
    of it ends. None: there is no block. A fence at the end with nothing behind it is none."""
    last: list[str] | None = None
    block: _Block | None = None
    for line in re.split(r"\r\n|\n|\r", text):
        if block is None:
            block = _opened(line)
        elif block.ends_with(line):
            last, block = block.lines, None
        else:
            block.lines.append(_dedented(line, block.indent))
    if block and any(line.strip() for line in block.lines):
        last = block.lines
        while not last[-1].strip():  # what a model wrote before it was cut
            last.pop()
    return None if last is None else "".join(f"{line}\n" for line in last)


def _opened(line: str) -> _Block | None:
    found = _FENCE.match(line)
    if not found or (found["fence"][0] == "`" and "`" in found["info"]):
        return None  # no fence, or code within a line
    info = "".join(found["info"].split()[:1]).lower()
    return _Block(_width(found["indent"]), found["fence"], info, [])


def _width(indent: str) -> int:
    """In columns; a tab ends at every fourth."""
    return len(indent.expandtabs(4))


def _dedented(line: str, columns: int) -> str:
    """The line without as many columns of white space, or as it has of them."""
    white = line[: len(line) - len(line.lstrip(" \t"))]
    if columns == 0 or not white:
        return line
    left = max(0, _width(white) - columns)
    return (" " * left if "\t" in white else white[columns:]) + line[len(white) :]
