"""100,000 random streams through what draws thoughts and answers: nothing but its own escapes
reaches the terminal, and the terminal is sane wherever a stream ends."""

from __future__ import annotations

import io
import random
import re
import sys

import pyte
import pytest
from emulator import Emulator

from qwen3cli.screen.panel import Panel
from qwen3cli.screen.sanitize import clean
from qwen3cli.screen.streams import Stream
from qwen3cli.terminal import Terminal

PARTS = 8
EACH = 100_000 // PARTS
TEXT = r"[^\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
# A style begins and ends inside of one line.
ANSWER = re.compile(rf"(?:{TEXT}|\x1b\[(?!0m)[\d;]+m(?:(?!\n){TEXT})+\x1b\[0m)*")
MOVE = r"\r|\r\n|\x1b\[\d+A|\x1b\[[KJ]"
ROW = rf"(?:\x1b\[2m(?:(?!\n){TEXT})+\x1b\[0m|(?:(?!\n){TEXT})+)"
ERASE = r"\r(?:\x1b\[0m)?\x1b\[\?7h\x1b\[\?25h\x1b\[\?2026l\x1b\[J"
FRAME = re.compile(
    rf"(?:{ERASE})?(?:\x1b\[\?2026h\x1b\[\?25l\x1b\[\?7l(?:{MOVE}|{ROW})*"
    r"\x1b\[\?7h\x1b\[\?25h\x1b\[\?2026l)?"
)
PIECES = {
    "escapes": [
        "\x1b[",
        "\x1b]0;t\x07",
        "\x1b[?1049h",
        "\x1b[2J",
        "\x1bc",
        "\x9b31m",
        "\x90",
        "\r",
    ],
    "marks": ["**", "*", "_", "`", "```", "~~", "[", "](", ")", "\n", "- ", "# ", "> ", "|", "---"],
    "lines": ["| a | b |\n", "|---|:-:|\n", "```python\n", "x = 'a'\n", "```\n", "$$\n", "1. "],
    "wide": ["你好", "，", "👩‍💻", "🇰🇷", "e\u0301", "❤\ufe0f", "\u200d", "\u3000", "한", "👍🏽"],
    "words": [
        "some ",
        "words",
        " ",
        "\t",
        "\n\n",
        "a_b*c",
        "x" * 50,
        "\\",
        "$",
        "\u202e",
        "\u2028",
    ],
}


def stream(rng: random.Random) -> str:
    """A short text of one kind or of all."""
    kind = rng.randrange(len(PIECES) + 2)
    size = rng.randrange(1, 10)
    if kind == 0:
        return bytes(rng.getrandbits(8) for _ in range(3 * size)).decode("utf-8", "replace")
    kinds = list(PIECES.values())
    chosen = kinds if kind > len(kinds) else [kinds[kind - 1], PIECES["words"][:3]]
    pieces = [piece for some in chosen for piece in some]
    return "".join(rng.choices(pieces, k=size))


def chunks(text: str, rng: random.Random) -> list[str]:
    cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(4)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


class Memory(io.TextIOWrapper):
    """A stream that claims to be a terminal."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")

    def isatty(self) -> bool:
        return True

    def take(self) -> str:
        raw = self.buffer
        assert isinstance(raw, io.BytesIO)
        text = raw.getvalue().decode()
        raw.seek(0)
        raw.truncate()
        return text


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> tuple[Terminal, Memory]:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    memory = Memory()
    monkeypatch.setattr(sys, "stdout", memory)
    monkeypatch.setattr(sys, "stderr", memory)
    monkeypatch.setattr(Stream, "size", (30, 10))
    return Terminal(), memory


def answered(terminal: tuple[Terminal, Memory], pieces: list[str]) -> str:
    for piece in pieces:
        terminal[0].answer(piece)
    terminal[0].end_answer()
    return terminal[1].take()


@pytest.mark.parametrize("part", range(PARTS))
def test_random_streams_draw_nothing_but_what_we_draw(part: int, terminal, monkeypatch) -> None:
    rng = random.Random(part)
    monkeypatch.setattr(Stream, "size", ([1, 10, 40, 80][part % 4], 10))
    for i in range(EACH):
        text = stream(rng)
        if i % 3 == 0:
            panel = Panel(styled=i % 2 == 0)
            for tokens, piece in enumerate(chunks(text, rng)):
                panel.push(clean(piece), tokens, rng.choice([None, 100]))
                frame = panel.frame(rng.choice([1, 10, 30]), rng.choice([2, 10]))
                assert FRAME.fullmatch(frame), (text, frame)
            continue
        drawn = answered(terminal, chunks(text, rng))
        assert ANSWER.fullmatch(drawn) and drawn.endswith("\n"), (text, drawn)
        if i % 10 == 1:
            assert drawn == answered(terminal, [text]), text


def test_a_sample_of_them_on_an_emulator(terminal) -> None:
    rng = random.Random(99)
    screen = pyte.Screen(30, 10)
    emulator = pyte.Stream(screen)
    default = screen.default_char
    for i in range(1000):
        text = stream(rng)
        if i % 2:
            emulator.feed(answered(terminal, chunks(text, rng)))
        else:
            panel = Panel(styled=True)
            for piece in chunks(text, rng):
                panel.push(clean(piece))
                above = screen.cursor.y
                emulator.feed(panel.frame(30, 10))
                assert screen.cursor.x == 0 and screen.cursor.y <= above
            emulator.feed(panel.erase())
            assert not screen.buffer[screen.cursor.y][0].data.strip()
        assert screen.cursor.attrs == default and not screen.cursor.hidden
        assert pyte.modes.DECAWM in screen.mode and screen.title == ""
        assert not any(mode >> 5 in (47, 1049, 2026) for mode in screen.mode), text


@pytest.mark.parametrize("seed", range(4))
def test_thoughts_and_answers_at_random_on_a_terminal(seed: int, monkeypatch) -> None:
    rng = random.Random(seed)
    with Emulator(rng.choice([10, 40, 80, 200]), 24, monkeypatch) as screen:
        terminal = screen.terminal()
        terminal.route_thoughts(rng.choice(["fold", "dim", "show"]))
        for _ in range(30):
            for tokens, piece in enumerate(chunks(stream(rng), rng)):
                terminal.thought(piece, tokens)
            if rng.random() < 0.3:
                terminal.toggle_fold()
            if rng.random() < 0.3:
                terminal.note(stream(rng))
            screen.resize(rng.randrange(10, 100), rng.randrange(5, 40))
            for piece in chunks(stream(rng), rng):
                terminal.answer(piece)
            terminal.end_answer()
            assert screen.is_sane
            assert screen.screen.title == ""
