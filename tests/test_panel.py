"""The thoughts on a terminal: the panel, and what folding leaves of it."""

from __future__ import annotations

import random
import re
import time

import pyte
import pytest
from commandline import Command
from emulator import Emulator

from qwen3cli.screen.cells import rows, text_cells
from qwen3cli.screen.panel import Panel
from qwen3cli.terminal import Terminal

WIDTHS = [10, 40, 80, 200]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def drawn(panel: Panel, columns: int, lines: int) -> list[str]:
    """The rows of a panel's first frame."""
    panel.erase()
    return re.sub(r"\x1b\[[?0-9]*[a-zA-Z]|\r", "", panel.frame(columns, lines)).split("\n")


def test_the_live_line_tells_what_fits() -> None:
    clock = Clock()
    panel = Panel(styled=True, clock=clock)
    panel.push("one")
    assert drawn(panel, 80, 24) == ["▾ thinking", "one"]
    panel.push(" two", 20, 2048)
    clock.now = 8
    panel.push(" three", 132, 2048)
    assert drawn(panel, 80, 24)[0] == "▾ thinking 132/2,048 tokens · 14 tok/s"
    assert drawn(panel, 30, 24)[0] == "▾ 132/2,048 · 14 tok/s"
    assert drawn(panel, 14, 24)[0] == "▾ 132/2,048"
    assert drawn(panel, 10, 24)[0] == "▾ thinkin"
    panel.push("", 1132, None)
    assert drawn(panel, 80, 24)[0] == "▾ thinking 1,132 tokens · 139 tok/s"
    assert panel.summary == "thought for 1,132 tokens, 8 s"


def test_nothing_is_written_when_nothing_changed_and_only_what_changed() -> None:
    panel = Panel(styled=False)
    panel.push("one\ntwo\nthr")
    assert "one" in panel.frame(80, 24)
    assert panel.frame(80, 24) == ""
    panel.push("ee")
    frame = panel.frame(80, 24)
    assert "three" in frame and "one" not in frame and "\x1b[J" not in frame


@pytest.mark.parametrize("lines", range(1, 40, 3))
@pytest.mark.parametrize("columns", [1, 2, 10, 80])
def test_the_panel_is_never_larger_than_the_screen(columns: int, lines: int) -> None:
    panel = Panel(styled=True)
    panel.push("thoughts 你好 👩‍💻 " * 100)
    assert len(drawn(panel, columns, lines)) <= max(1, min(9, lines - 1))


def test_rows_are_the_text_and_fit() -> None:
    rng = random.Random(5)
    for _ in range(3000):
        text = "".join(rng.choices(["word", " ", "  ", "你", "，", "\n", "x" * 15, "é"], k=12))
        width = rng.randrange(1, 20)
        plain = rows(text.replace("你", "b").replace("é", "c").replace("，", "d"), width)
        assert "".join(rows(text, width)) == text
        assert all(text_cells(row.rstrip(" \n")) <= max(width, 2) for row in rows(text, width))
        wide = rows("".join(plain).replace("b", "é"), width)  # the same, cell by cell
        assert [len(row) for row in wide] == [len(row) for row in plain]


@pytest.mark.parametrize("columns", WIDTHS)
def test_a_panel_comes_and_goes_and_leaves_one_line(columns: int, monkeypatch) -> None:
    with Emulator(columns, 24, monkeypatch) as screen:
        terminal = screen.terminal()
        terminal.route_thoughts(None)
        terminal.note("before")
        for i in range(100):
            terminal.thought(f"thought {i}\n", i + 1, 200)
        screen.wait_to_see("99")
        assert screen.lines[0] == "before" and screen.lines[1].startswith("▾ ")
        assert len(screen.lines) == 2 + 8
        assert screen.is_sane
        terminal.end_thoughts("thought for 100 of 200 tokens, 1 s (natural)")
        terminal.answer("60")
        terminal.end_answer()
        text = "before▸ thought for 100 of 200 tokens, 1 s (natural)60"
        assert re.sub(r"\s", "", "".join(screen.everything)) == text.replace(" ", "")
        assert screen.is_sane


def test_without_a_summary_the_terminal_says_what_it_counted(monkeypatch) -> None:
    with Emulator(80, 24, monkeypatch) as screen:
        terminal = screen.terminal()
        terminal.announce_fold_key("Ctrl-T")
        terminal.route_thoughts("fold")
        terminal.thought("hm", 53, 64)
        terminal.answer("60")
        terminal.end_answer()
        told, answer = screen.lines
        assert re.fullmatch("▸ thought for 53 of 64 tokens, [0-9]+ s · Ctrl-T unfolds", told)
        assert answer == "60"


def test_a_panel_at_the_bottom_scrolls_and_eats_nothing(monkeypatch) -> None:
    with Emulator(40, 12, monkeypatch) as screen:
        terminal = screen.terminal()
        terminal.route_thoughts("fold")
        for i in range(30):
            terminal.note(f"line {i}")
        for i in range(50):
            terminal.thought(f"a thought that is longer than one row of the screen {i}. ", i)
            if i % 10 == 0:
                screen.wait_to_see(f"screen {i}")
        terminal.end_thoughts("thought")
        assert screen.everything == [f"line {i}" for i in range(30)] + ["▸ thought"]


@pytest.mark.parametrize("seed", range(6))
def test_resized_while_it_thinks_nothing_foreign_is_lost(seed: int, monkeypatch) -> None:
    rng = random.Random(seed)
    with Emulator(60, 20, monkeypatch) as screen:
        terminal = screen.terminal()
        terminal.route_thoughts("fold")
        for i in range(10):
            terminal.note(f"line {i}")
        for step in range(12):
            terminal.thought("thoughts, 想一想 " * rng.randrange(1, 9) + f"({step})", step, 100)
            screen.wait_to_see("▾")
            # pyte cuts rows at the right and drops lines from the top, as xterm does.
            screen.resize(rng.randrange(12, 120), rng.randrange(14, 40))
            assert screen.is_sane
        terminal.end_thoughts("end")
        seen = screen.everything
        kept = [line for line in seen if line.startswith("line ")]
        assert kept == [f"line {i}" for i in range(10 - len(kept), 10)]
        assert seen[-1] == "▸ end"


def test_unfolded_while_it_thinks_and_folded_again(monkeypatch) -> None:
    with Emulator(80, 24, monkeypatch) as screen:
        terminal = screen.terminal()
        terminal.route_thoughts("fold")
        terminal.thought("one ", 1)
        screen.wait_to_see("▾")
        terminal.toggle_fold()
        assert not terminal.fold
        terminal.thought("two", 2)
        assert screen.lines == ["one two"]
        terminal.toggle_fold()
        assert terminal.fold
        terminal.thought(" three", 3)
        screen.wait_to_see("▾ thinking 3 tokens")
        told, live, last = screen.lines
        assert (told, live[:19], last) == ("one two", "▾ thinking 3 tokens", " three")
        terminal.end_thoughts("done")
        terminal.answer("four")
        terminal.end_answer()
        assert screen.lines == ["one two", "▸ done", "four"]


@pytest.mark.parametrize("no_color", ["", "1"])
def test_the_last_thoughts_are_shown_whole(no_color: str, monkeypatch) -> None:
    with Emulator(80, 24, monkeypatch) as screen:
        monkeypatch.setenv("NO_COLOR", no_color)
        terminal = screen.terminal()
        terminal.route_thoughts("fold")
        told = ["the next thoughts are shown as they come", "the next thoughts are folded"]
        for i in range(2):  # nothing was thought: nothing to show
            terminal.toggle_fold()
            assert screen.lines[-1] == told[i]
        terminal.thought("one\ntwo", 1)
        terminal.end_thoughts("thought")
        terminal.toggle_fold()
        whole = ["<think>", "one", "two", "</think>"] if no_color else ["one", "two"]
        assert screen.lines == [*told, "▸ thought", *whole]
        assert bool(re.search(rb"\x1b\[\d*m", screen.raw)) != bool(no_color)
        terminal.thought("three", 1)  # is streamed
        terminal.end_thoughts("unseen")
        assert "three" in screen.lines and "unseen" not in "".join(screen.lines)
        terminal.toggle_fold()
        assert screen.lines[-1] == told[1]
        terminal.thought("four", 1)
        terminal.end_thoughts("folded")
        assert screen.lines[-1] == "▸ folded"
        terminal.thought("", 1, before="fo\x1bur")  # goes on
        terminal.thought(", five", 2)
        terminal.end_thoughts("more")
        terminal.toggle_fold()
        assert [line for line in screen.lines if "four, five" in line]


def test_empty_thoughts_unfold_to_a_note(monkeypatch) -> None:
    with Emulator(80, 24, monkeypatch) as screen:
        terminal = screen.terminal()
        terminal.route_thoughts("fold")
        terminal.thought("\n", 1)
        terminal.end_thoughts("thought")
        terminal.toggle_fold()
        assert screen.lines == ["▸ thought", "the next thoughts are shown as they come"]


def test_notes_bars_and_json_are_written_above_the_panel(monkeypatch) -> None:
    with Emulator(80, 24, monkeypatch) as screen:
        terminal = screen.terminal()
        terminal.route_thoughts("fold")
        terminal.thought("hm", 1)
        screen.wait_to_see("▾")
        terminal.note("a note")
        terminal.json({"event": 1})
        terminal.print("text")
        screen.wait_to_see("▾")
        assert screen.lines == ["a note", '{"event": 1}', "text", "▾ thinking 1 token", "hm"]
        with terminal.progress("loading") as move:
            move(1, 2)
            screen.wait_to_see("loading")
            assert "▾" not in "".join(screen.lines)
        screen.wait_to_see("▾")
        terminal.end_thoughts("thought")
        assert screen.lines == ["a note", '{"event": 1}', "text", "▸ thought"]
        assert screen.is_sane


def test_ctrl_c_in_mid_thought_leaves_a_sane_screen(monkeypatch) -> None:
    with Emulator(80, 24, monkeypatch) as screen:
        terminal = screen.terminal()
        terminal.route_thoughts("fold")
        terminal.thought("hm\nso", 9)
        screen.wait_to_see("so")
        print("^C", end="", flush=True)  # as a terminal does
        terminal.interrupted()
        terminal.end_thoughts("thought for 9 tokens")
        terminal.note("statistics")
        assert screen.lines == ["▸ thought for 9 tokens", "statistics"]
        assert screen.is_sane


def test_a_panel_is_no_place_for_escapes(monkeypatch) -> None:
    with Emulator(80, 24, monkeypatch) as screen:
        terminal = screen.terminal()
        terminal.route_thoughts("fold")
        terminal.thought("\x1b[31m\x1b[2J\x9b1m\x1b]0;title\x07 red", 1)
        screen.wait_to_see("red")
        assert screen.lines[1] == "[31m[2J1m]0;title red"
        terminal.end_thoughts("\x1b[2Jdone")
        assert screen.lines == ["▸ [2Jdone"]


def test_a_terminal_that_cannot_fold_shows_the_thoughts(monkeypatch) -> None:
    with Emulator(80, 24, monkeypatch) as screen:
        monkeypatch.setenv("TERM", "dumb")
        terminal: Terminal = screen.terminal()
        terminal.route_thoughts("fold")
        terminal.thought("one")
        terminal.answer("two")
        assert screen.lines == ["<think>", "one", "</think>", "", "two"]
        assert b"\x1b" not in screen.raw


@pytest.mark.parametrize("seed", range(2))
def test_ctrl_c_at_random_moments_leaves_the_terminal_sane(seed: int, tmp_path) -> None:
    # Greedy, and every token makes itself likelier: an answer without an end, and thoughts that
    # are noticed to be a loop after 512 tokens, which scalar code makes some seconds of.
    endless = ["-m", "nano", "--temp", "0", "--presence-penalty", "-100"]
    command = Command(tmp_path).terminal("run", *endless, "hello", QWEN3_ISA="scalar")
    command.wait_for("▾ thinking")
    time.sleep(random.Random(seed).random() / 4)
    command.press("c")  # the answer, which has no end either
    command.wait_for("▸ thought for")
    command.press("c")
    assert command.finish() == 130
    screen = pyte.Screen(120, 24)
    pyte.Stream(screen).feed(command.raw)
    assert not screen.cursor.hidden and screen.cursor.attrs == screen.default_char
    assert pyte.modes.DECAWM in screen.mode
    assert "▾" not in command.screen and command.screen.startswith("▸ thought for")
