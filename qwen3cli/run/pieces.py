"""What a question is made of: the prompt, files, the text from a pipe.

One piece alone is sent as it is. Of several each but the prompt is named and stands in a fence of
backticks that is longer than any inside it: no text can end its own piece or begin another.

    Which of these two is newer?

    File "a.txt":
    ```
    2024
    ```

    Text from a pipe:
    ```
    2023
    ```
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen3cli.errors import ContextOverflow, Qwen3Error, UsageError

_STDIN = "-"


@dataclass(frozen=True)
class Piece:
    """A part of a question. file: its name, - for stdin; None: the prompt."""

    text: str
    file: str | None = None

    @property
    def sent(self) -> str:
        """As it stands beside others."""
        if self.file is None:
            return self.text
        if self.file == _STDIN:
            return _fenced("Text from a pipe", self.text)
        return delimited(self.file, self.text)

    @property
    def title(self) -> str:
        """What people know it by."""
        return {None: "the prompt", _STDIN: "stdin"}.get(self.file, str(self.file))


def gather(prompt: str | None, files: Sequence[str], note: Callable[[str], None]) -> list[Piece]:
    """The prompt, the files as they were named, and what is piped in; - among the files is its
    place, else it comes last, and an empty pipe is none. note is told of what had to be
    replaced. Raises UsageError, OSError, and Qwen3Error for a file that is no text."""
    if files.count(_STDIN) > 1:
        raise UsageError("stdin can be read once: give -f - once")
    pieces = [Piece(prompt)] if prompt else []
    pieces += [Piece(_piped(note) if file == _STDIN else read(file), file) for file in files]
    if _STDIN not in files and sys.stdin is not None and not sys.stdin.isatty():
        piped = Piece(_piped(note), _STDIN)
        pieces += [piped] * bool(piped.text)
    if not any(piece.text.strip() for piece in pieces):
        raise UsageError("there is no prompt: give one as an argument, with -f or through a pipe")
    return pieces


def joined(pieces: Sequence[Piece]) -> str:
    """The pieces as one message."""
    if len(pieces) == 1:
        return pieces[0].text
    return "\n\n".join(piece.sent for piece in pieces)


def delimited(name: str, text: str) -> str:
    """A file's text as a part of a message, under its name."""
    return _fenced(f"File {json.dumps(name, ensure_ascii=False)}", text)


def read(file: str) -> str:
    """The text of a file, without a byte order mark. Raises OSError, and Qwen3Error for what
    is no UTF-8."""
    data = Path(file).read_bytes()
    _refuse_binary(data, file)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Qwen3Error(
            f"{file}: is no UTF-8 text: byte {error.start + 1:,} is {data[error.start]:#04x}; "
            "convert it, or pipe it in, where such bytes are replaced"
        ) from None


def overflow(
    error: ContextOverflow, pieces: Sequence[Piece], count: Callable[[str], int]
) -> ContextOverflow:
    """The error with the tokens of every piece, as count has them, if there are several."""
    if len(pieces) < 2:
        return error
    sizes = (f"{piece.title} {count(piece.sent):,}" for piece in pieces)
    return ContextOverflow(f"{error}; tokens: {', '.join(sizes)}")


def _piped(note: Callable[[str], None]) -> str:
    """The text from stdin without the line ends behind it. Who writes to a pipe cannot be told
    of one bad byte among thousands of lines: it is replaced, and that is noted."""
    if sys.stdin is None:
        raise UsageError("stdin is closed: -f - has nothing to read")
    data = sys.stdin.buffer.read()
    _refuse_binary(data, "stdin")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        note(f"qwen3: stdin: is no UTF-8 from byte {error.start + 1:,} on: U+FFFD for such bytes")
        text = data.decode("utf-8-sig", "replace")
    return text.rstrip("\r\n")


def _refuse_binary(data: bytes, name: str) -> None:
    if (at := data.find(b"\0")) >= 0:
        raise Qwen3Error(
            f"{name}: is no text: byte {at + 1:,} is 0; UTF-16 would have to be converted to UTF-8"
        )


def _fenced(title: str, text: str) -> str:
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    end = "" if not text or text.endswith("\n") else "\n"
    return f"{title}:\n{fence}\n{text}{end}{fence}"
