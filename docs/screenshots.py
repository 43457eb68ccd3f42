"""The screenshots of the README: python docs/screenshots.py [FOLDER]

Real commands on a pseudo-terminal, whose output a terminal emulator keeps; what it shows is written
as SVG. Only the Markdown is not of a model: nano cannot write any, so `session show` prints a chat
whose text stands below. Needs pexpect and pyte, which the tests need, too.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from html import escape
from itertools import groupby
from pathlib import Path

import pexpect
import pyte
from pyte.screens import Char

from qwen3cli.chat.transcripts import Transcript
from qwen3cli.prompt import Message

ROOT = Path(__file__).resolve().parent.parent
QUESTION = "What is 17 + 48 - 5 + 23 - 41?"
TEA = """\
**Tea**, hot or iced, needs three things:

1. water just *below* its boiling point,
2. a timer, as `sleep` is one,
3. patience.

| tea | 茶 | water | minutes |
|---|---|---:|---:|
| green | 緑茶 | 70 °C | 2 |
| oolong | 烏龍茶 | 90 °C | 3 |
| black | 紅茶 | 95 °C | 4 |

```python
def brew(tea: str, minutes: float) -> str:
    time.sleep(60 * minutes)  # patience
    return f"{tea} is ready"
```
"""


class Screen(pyte.Screen):
    """A screen that knows the faint style, which pyte does not: as grey."""

    def select_graphic_rendition(self, *attrs: int, **more: bool) -> None:
        if not {38, 48} & {*attrs}:
            attrs = tuple(90 if attr == 2 else attr for attr in attrs)
        super().select_graphic_rendition(*attrs, **more)


class Unseen(Exception):
    """What was waited for was never on the screen."""


class Shot:
    """A command on a terminal of its own."""

    _FRAME_ENDS = "\x1b[?25h"  # what is drawn in place is whole when the cursor is shown again

    def __init__(self, home: Path, *args: str, rows: int = 24, columns: int = 92, **env: str):
        self._screen = Screen(columns, rows)
        self._stream = pyte.Stream(self._screen)
        self._stream.feed(f"$ {shlex.join(['qwen3', *args])}\r\n")
        self._unseen = ""
        self._process = pexpect.spawn(
            sys.executable,
            ["-m", "qwen3cli", *args],
            cwd=str(home),
            env=_environment(home) | env,
            dimensions=(rows, columns),
            encoding="utf-8",
        )

    def see(self, pattern: str) -> None:
        """Goes on until the screen shows this, and no further than the frame that does."""
        end = time.monotonic() + 60
        while not re.search(pattern, self.text):
            if time.monotonic() > end or not self._advance():
                raise Unseen(f"{pattern!r} was never seen:\n{self.text}")

    def finish(self) -> None:
        while self._advance():
            pass

    def type(self, text: str) -> None:
        self._process.send(text)

    def stop(self) -> None:
        self._process.close(force=True)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def svg(self) -> str:
        rows = range(len(self.text.split("\n")))
        buffer, columns = self._screen.buffer, self._screen.columns
        return drawn([[buffer[y][x] for x in range(columns)] for y in rows], self.text)

    def _advance(self) -> bool:
        """Shows the next frame, or what there is when nothing follows soon; False: the end."""
        ended = False
        while self._FRAME_ENDS not in self._unseen:
            try:
                self._unseen += self._process.read_nonblocking(4096, timeout=0.3)
            except pexpect.TIMEOUT:
                break
            except pexpect.EOF:
                ended = True
                break
        frame, ends, self._unseen = self._unseen.partition(self._FRAME_ENDS)
        self._stream.feed(frame + ends)
        return not ended


def _environment(home: Path) -> dict[str, str]:
    """One in which nothing is installed, stored or set."""
    folders = {f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("DATA", "CONFIG", "CACHE")}
    return folders | {
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(":"),
        "LANG": "C.UTF-8",
        "TERM": "xterm-256color",
        "PROMPT_TOOLKIT_NO_CPR": "1",  # nobody tells where the cursor is
    }


# ---- SVG -----------------------------------------------------------------------------

_WIDTH, _HEIGHT, _SIZE, _MARGIN = 8.4, 19, 14, 14  # of a cell, of the font, around all
_GROUND, _TEXT = "#16181d", "#d7dae0"
_COLORS = {
    "black": "#3a3f4b", "red": "#e06c75", "green": "#98c379", "brown": "#e5c07b",
    "blue": "#61afef", "magenta": "#c678dd", "cyan": "#56b6c2", "white": "#d7dae0",
    "brightblack": "#7f8694", "brightred": "#f0868f", "brightgreen": "#b0d994",
    "brightbrown": "#f2d299", "brightblue": "#84c3f7", "brightmagenta": "#d898eb",
    "brightcyan": "#7bced9", "brightwhite": "#ffffff",
}  # fmt: skip


def drawn(rows: list[list[Char]], title: str) -> str:
    """The cells of a screen as SVG. Every run of text is as wide as its cells, in any font."""
    width = len(rows[0]) * _WIDTH + 2 * _MARGIN
    height = len(rows) * _HEIGHT + 2 * _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="100%" height="100%" rx="8" fill="{_GROUND}"/>',
        f"<g font-family=\"ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', "
        f'monospace" font-size="{_SIZE}" fill="{_TEXT}" xml:space="preserve">',
    ]
    for y, row in enumerate(rows):
        for x, cells, text in _runs(row):
            parts += _run(text, row[x], _MARGIN + x * _WIDTH, _MARGIN + y * _HEIGHT, cells)
    return "\n".join([*parts, "</g>", "</svg>", ""])


def _runs(row: list[Char]) -> Iterator[tuple[int, int, str]]:
    """Cells of one style, as (first, number, text). A wide character, in whose second cell
    nothing is, is a run of its own."""

    def kind(x: int) -> tuple[object, ...]:
        wide = x + 1 < len(row) and row[x + 1].data == ""
        return (*row[x][1:], x if wide else x - 1 if row[x].data == "" else -1)

    for _, run in groupby(range(len(row)), kind):
        cells = list(run)
        yield cells[0], len(cells), "".join(row[x].data for x in cells)


def _run(text: str, style: Char, x: float, y: float, cells: int) -> Iterator[str]:
    front, back = _color(style.fg, _TEXT), _color(style.bg, _GROUND)
    if style.reverse:
        front, back = back, front
    if back != _GROUND:
        width = cells * _WIDTH
        yield f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{_HEIGHT}" fill="{back}"/>'
    if back == _GROUND and not style.underscore:
        cells -= len(text) - len(text.rstrip(" "))
        text = text.rstrip(" ")
    if not text.strip():
        return
    faces = {
        'font-weight="bold"': style.bold,
        'font-style="italic"': style.italics,
        'text-decoration="underline"': style.underscore,
        'text-decoration="line-through"': style.strikethrough,
        f'fill="{front}"': front != _TEXT,
    }
    shown = "".join(f" {face}" for face, is_set in faces.items() if is_set)
    yield (
        f'<text x="{x:g}" y="{y + _SIZE:g}" textLength="{cells * _WIDTH:g}"{shown}>'
        f"{escape(text, quote=False)}</text>"
    )


def _color(name: str, default: str) -> str:
    """A colour as pyte has it: a name, or the six digits of another."""
    return default if name == "default" else _COLORS.get(name, f"#{name}")


# ---- what is shown -------------------------------------------------------------------


def thinking(home: Path) -> Iterator[tuple[str, str]]:
    """With the slow backend, and again when the moment was missed: nano thinks for half a second,
    and a busy machine may show its thoughts only when they are over."""
    flags = ("--temp", "0", "--budget", "192")
    for attempts_left in reversed(range(20)):
        shot = Shot(home, "run", "-m", "nano", *flags, QUESTION, QWEN3_ISA="scalar")
        try:
            shot.see(r"(?s)thinking [4-9]\d/192 tokens.*17 \+ 48: 7")
            break
        except Unseen:
            if not attempts_left:
                raise
    yield "thinking", shot.svg()
    shot.finish()
    yield "folded", shot.svg()


def chat(home: Path) -> Iterator[tuple[str, str]]:
    ready = r"\n>\Z"
    shot = Shot(home, "chat", "-m", "nano", "--temp", "0", "--budget", "16", rows=20)
    shot.see(ready)
    shot.type("What is 17 + 48 - 5?\r")
    shot.see(r"seed \d+\n>\Z")
    shot.type("/more 64\r")
    shot.see(r"(?s)/more.*seed \d+\n>\Z")
    shot.type("/")
    shot.see("/landing")
    yield "chat", shot.svg()
    shot.stop()


def markdown(home: Path) -> Iterator[tuple[str, str]]:
    os.environ["XDG_STATE_HOME"] = str(home / "state")
    with Transcript.create("nano", None) as stored:
        question: Message = {"role": "user", "content": "How is tea made?"}
        stored.turn(question, {"role": "assistant", "content": TEA}, {})
    shot = Shot(home, "session", "show", stored.id.rpartition("-")[2], rows=40)
    shot.finish()
    yield "markdown", shot.svg()


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for make in (thinking, chat, markdown):
        with tempfile.TemporaryDirectory() as home:
            for name, svg in make(Path(home)):
                (folder / f"{name}.svg").write_text(svg, "utf-8")
                print(folder / f"{name}.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "screenshots")
