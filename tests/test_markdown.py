"""Markdown as it streams to a terminal."""

from __future__ import annotations

import random
import re

import pytest
from emulator import Emulator

from qwen3cli.screen.cells import text_cells
from qwen3cli.screen.markdown import Markdown

WIDTHS = [10, 40, 80, 200]
LETTER = """\
# A title with `code`

Some **bold words**, *italic*, ~~gone~~, `x = 1`, a [link](http://x.y/z); 5*3=15, snake_case_name.
- one
- two, with a text that is far longer than the forty columns of a narrow terminal
  - nested
  - [x] done
  1. first
> quoted **text** that is long enough to be wrapped
> > deeper

***
| Name | Value |
|:---|---:|
| a | 1 |
| 🇰🇷 and 你好 | **22** |

```python
def f(x):
    \"\"\"Two
    lines.\"\"\"
    return x + 1  # **not bold**
```
$$
a_1 * b_2 * c
$$
The end: 这是**重点**内容，没有空格的长句子也要换行。
"""


def draw(text: str, width: int = 80, *, styled: bool = True, size: int | None = None) -> str:
    page = Markdown(lambda: width, styled=styled)
    pieces = [text[i : i + size] for i in range(0, len(text), size)] if size else [text]
    return "".join(map(page.feed, pieces)) + page.finish()


def plain(drawn: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", drawn)


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("**a b**", "\x1b[1ma\x1b[0m\x1b[1m b\x1b[0m"),
        (
            "*a* __b__ _c_ ***d***",
            "\x1b[3ma\x1b[0m \x1b[1mb\x1b[0m \x1b[3mc\x1b[0m \x1b[1;3md\x1b[0m",
        ),
        ("~~a~~ ~b~", "\x1b[9ma\x1b[0m ~b~"),
        ("`a*b*` ``c`d``", "\x1b[36ma*b*\x1b[0m \x1b[36mc`d\x1b[0m"),
        ("**a *b***", "**a *b***"),  # runs of marks are not taken apart
        ("**a `b**` c**", "\x1b[1ma\x1b[0m \x1b[1;36mb**\x1b[0m \x1b[1mc\x1b[0m"),
        ("[a](b) [b](b)", "\x1b[4ma\x1b[0m\x1b[2m (b)\x1b[0m \x1b[4mb\x1b[0m"),
        ("[1], [a](b c) and [", "[1], [a](b c) and ["),
        (r"\*a\* \n \`", "*a* \\n `"),
        ("## a *b*", "\x1b[1ma\x1b[0m\x1b[1m \x1b[0m\x1b[1;3mb\x1b[0m"),
        ("#no 1. # no", "#no 1. # no"),
        ("- a", "• a"),
        ("* a\n  + b\n    - c", "• a\n  ◦ b\n    ▪ c"),
        ("- [ ] a\n- [X] b\n- [c]", "☐ a\n☑ b\n• [c]"),
        ("3) a\n12. b\n2024 c", "3) a\n12. b\n2024 c"),
        ("> a\n>> b", "\x1b[2m│ \x1b[0ma\n\x1b[2m│ \x1b[0m\x1b[2m│ \x1b[0mb"),
        ("a\n---\nb", f"a\n\x1b[2m{'─' * 40}\x1b[0m\nb"),
        ("<b>&amp;</b>", "<b>&amp;</b>"),
    ],
)
def test_what_marks_become(text: str, drawn: str) -> None:
    # Spaces are in the style of their words or plain: nobody sees which.
    def joined(line: str) -> str:
        return re.sub(r"\x1b\[[\d;]*m( *)\x1b\[0m", r"\1", re.sub(r"m( +)", r"m\1", line))

    assert plain(draw(text)) == plain(drawn)
    words = re.findall(r"\x1b\[([\d;]+)m *([^\x1b ]+)", joined(draw(text)))
    assert words == re.findall(r"\x1b\[([\d;]+)m *([^\x1b ]+)", joined(drawn))


@pytest.mark.parametrize(
    "text",
    [
        "5*3=15 and 2 * 4, 2**3, a*b*c",
        "snake_case_name and __init",
        "call(**kwargs) or *args",
        "$a_1 * b_2$ and $$x*y*z$$ and \\(p_1*q*r\\)",
        "it costs $5, not $6",
        "**never closed",
        "an `open span",
        "| no table",
        "|",
        "-",
        "1.",
        "a - b\n+1 up",
    ],
)
def test_what_is_no_mark_stays(text: str) -> None:
    assert draw(text).removesuffix("\n") == text


@pytest.mark.parametrize("styled", [True, False])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_pieces_of_a_stream_make_no_difference(width: int, styled: bool) -> None:
    whole = draw(LETTER, width, styled=styled)
    for size in (1, 2, 3, 7, 50):
        assert draw(LETTER, width, styled=styled, size=size) == whole


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    text = re.sub(r"```.*?```|\$\$.*?\$\$", "", LETTER, flags=re.DOTALL)
    for line in plain(draw(text, width)).splitlines():
        assert text_cells(line) <= width, line


def test_without_styles_the_layout_stays() -> None:
    drawn = draw(LETTER, 40, styled=False)
    assert "\x1b" not in drawn
    assert "# A title with `code`" in drawn and "**bold words**" in drawn  # all that tells them
    assert "• two, with a text that is far longer\n  than the forty" in drawn
    assert "│ quoted" in drawn and "Name        │  Value" in drawn


def test_words_wrap_and_hang_below_their_item() -> None:
    assert draw("- aaa bbb ccc", 8) == "• aaa\n  bbb\n  ccc"
    assert plain(draw("> aaa bbb", 7)) == "│ aaa\n│ bbb"
    assert draw("a 0123456789abcdef", 8) == "a\n01234567\n89abcdef"
    assert draw("你好，世界。再见", 6) == "你好，\n世界。\n再见"
    assert draw("x" * 21, 10, size=1) == "xxxxxxxxxx\nxxxxxxxxxx\nx"
    assert draw("e\u0301" * 5, 4, size=1) == "e\u0301" * 4 + "\ne\u0301"
    assert draw("👩‍💻" * 3, 4, size=1) == "👩‍💻👩‍💻\n👩‍💻"


@pytest.mark.parametrize("fence", ["```", "~~~~"])
@pytest.mark.parametrize("language", ["", "python", "c++", "no-such-language"])
def test_code_is_the_exact_text(fence: str, language: str) -> None:
    code = (
        'def f():\n\tx = """a\n\n  b"""  \n    # ``` **x**\n\nint main() { /*\n */ }\n' + "y" * 300
    )
    drawn = plain(draw(f"{fence}{language}\n{code}\n{fence}\nafter", 40, size=3))
    assert drawn == f"{fence}{language}\n{code}\n{fence}\nafter"


def test_code_in_an_item_begins_at_the_left_edge() -> None:
    text = "- item\n  ```py\n  a\n    b\n c\n  ```\n"
    assert plain(draw(text)) == "• item\n```py\na\n  b\nc\n```\n"


def test_a_string_of_several_lines_has_one_colour() -> None:
    drawn = draw('```python\nx = """a\nreturn b\n"""\nreturn c\n```')
    assert "\x1b[32mreturn b\x1b[0m" in drawn
    assert "\x1b[35mreturn\x1b[0m" in drawn


def test_a_table_is_aligned_and_fits() -> None:
    text = "| a | b | c |\n|---|:-:|--:|\n| **x** | y | `1|2` |\n| long text here | z |\n"
    assert [line.rstrip() for line in plain(draw(text, 80)).splitlines()] == [
        "a              │ b │   c",
        "───────────────┼───┼────",
        "x              │ y │ 1|2",
        "long text here │ z │",
    ]
    assert [line.rstrip() for line in plain(draw(text, 20)).splitlines()] == [
        "a          │ b │   c",
        "───────────┼───┼────",
        "x          │ y │ 1|2",
        "long text  │ z │",
        "here       │   │",
    ]
    assert plain(draw(text, 10)) == text  # there is no room for three columns


def test_a_table_without_end_is_drawn_on_the_way() -> None:
    page = Markdown(lambda: 40, styled=False)
    shown = page.feed("| n |\n|---|\n" + "| 1 |\n" * 100)
    assert shown.count("1") > 50
    assert (shown + page.finish()).count("1") == 100


def test_words_appear_as_soon_as_they_are_decided() -> None:
    page = Markdown(lambda: 80, styled=True)
    assert page.feed("some words ") == "some words"
    assert page.feed("and **bo") == " and"
    assert plain(page.feed("ld** ")) == " bold"
    assert page.feed("- no item and 5") == " - no item and"
    assert page.feed("\n- item ") == " 5\n• item"
    assert page.feed("\n``") == "\n"


@pytest.mark.parametrize("columns", WIDTHS[1:])
def test_on_a_terminal_with_a_resize_in_mid_stream(columns: int, monkeypatch) -> None:
    with Emulator(columns, 24, monkeypatch) as screen:
        terminal = screen.terminal()
        half = len(LETTER) // 2
        for i in range(0, half, 5):
            terminal.answer(LETTER[i : min(i + 5, half)])
        assert screen.is_sane
        screen.resize(columns * 2, 30)
        for i in range(half, len(LETTER), 5):
            terminal.answer(LETTER[i : i + 5])
        terminal.end_answer()
        assert screen.is_sane
        assert screen.screen.cursor.x == 0
        text = re.sub(r"\s", "", "".join(screen.everything))
        assert "Atitlewithcode" in text and "defmainreturn" not in text
        for words in ("boldwords", "farlongerthantheforty", "returnx+1#**notbold**", "这是重点"):
            assert text.count(words) == 1


def test_after_the_panel_comes_the_answer(monkeypatch) -> None:
    with Emulator(40, 24, monkeypatch) as screen:
        terminal = screen.terminal()
        terminal.route_thoughts(None)
        terminal.thought("so\nmany\nthoughts", 9, 64)
        screen.wait_to_see("many")
        terminal.answer("- **six")
        terminal.answer("ty**")
        terminal.note("a note in between")
        terminal.answer(" more")
        terminal.end_answer()
        terminal.note("statistics")
        told, *lines = screen.lines
        assert re.fullmatch("▸ thought for 9 of 64 tokens, [0-9]+ s", told)
        assert lines == ["•", "a note in between", "sixty more", "statistics"]


@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_dumb_terminal_gets_the_text(no_color: str, monkeypatch) -> None:
    with Emulator(80, 24, monkeypatch) as screen:
        monkeypatch.setenv("TERM", "dumb")
        monkeypatch.setenv("NO_COLOR", no_color)
        terminal = screen.terminal()
        terminal.answer("- **a**\n\x1b[1mb")
        terminal.end_answer()
        assert screen.lines == ["- **a**", "[1mb"]


def test_words_at_random_lose_nothing_but_spaces() -> None:
    rng = random.Random(3)
    letters = "abcXYZ019.,;:!?()你好，한국é👍"
    for _ in range(300):
        words = ["".join(rng.choices(letters, k=rng.randrange(1, 20))) for _ in range(20)]
        text = "".join(word + rng.choice([" ", "  ", "\n", "\n\n"]) for word in words)
        width = rng.choice(WIDTHS)
        drawn = draw(text, width, size=rng.randrange(1, 9))
        assert re.sub(r"\s", "", drawn) == re.sub(r"\s", "", text)
        assert all(text_cells(line) <= width for line in drawn.splitlines())
