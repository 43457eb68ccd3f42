"""What somebody sees who sits at the terminal: every key and every command, at three widths."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import Command, TerminalCommand
from emulator import WIDTHLESS
from scripted import PAUSE

from qwen3cli.chat.commands import COMMANDS

WIDTHS = [40, 80, 200]
WIDE = "你好，世界 👩‍💻 ✅ 한국어 é"
GARBAGE = re.compile(r"\x1b|\[\?|\[\d+[;~mABCDHJKR]|\^[A-Z\[]|▾")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Talker:
    """Somebody who talks to a model that says what he wants, and looks at the screen."""

    def __init__(self, home: Path, *args: str, columns: int, lines: int = 24, **env: str) -> None:
        self.home = home
        env = {"PROMPT_TOOLKIT_NO_CPR": "0"} | env
        start = Command(home).terminal
        command = (*(args or ("chat",)), "-m", "nano")
        self.at: TerminalCommand = start(
            *command, columns=columns, lines=lines, scripted=True, **env
        )

    def step(self) -> None:
        """The model goes on behind its pause."""
        with (self.home / "steps").open("a") as file:
            file.write(".")

    def see(self, condition: Callable[[], bool], what: str) -> None:
        self.at.wait_until_it_shows(condition, what)

    def see_prompt(self) -> None:
        """Waits for an empty prompt, on a screen with nothing that is out of place."""
        self.see(lambda: self.at.lines[-1] == ">", "the prompt")
        for line in self.at.lines:
            assert not GARBAGE.search(line), self.at.screen

    def type(self, text: str) -> None:
        self.at.type(text)

    def press(self, key: str) -> None:
        self.at.press(key)

    def below(self, line: str) -> list[str]:
        """The lines under the last prompt with this line."""
        lines = self.at.everything
        found = [i for i, shown in enumerate(lines) if shown == f"> {line}"]
        return lines[found[-1] + 1 :] if found else []

    def command(self, line: str, *expected: str) -> None:
        """Types a command, and sees its notes and the next prompt under it."""
        self.type(f"{line}\r")
        for text in (*expected, ">"):
            self.see(lambda text=text: text in words(self.below(line)), f"{text} under {line}")
        self.see_prompt()

    def leave(self) -> None:
        self.press("d")
        assert self.at.finish() == 0
        assert self.at.is_sane and self.at.echoes


def words(lines: list[str]) -> str:
    """The lines without what their breaks add."""
    return " ".join(" ".join(lines).split())


def solid(text: str) -> str:
    """A text without spaces and line breaks, and without what has no width."""
    return WIDTHLESS.sub("", re.sub(r"\s", "", text))


def script(home: Path, **replies: tuple[str, str]) -> None:
    (home / "script.json").write_text(json.dumps(replies))


# ---- chat: commands --------------------------------------------------------------------------


@pytest.mark.parametrize("columns", WIDTHS)
def test_every_command(columns: int, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("red\n")
    talker = Talker(tmp_path, columns=columns)
    talker.see_prompt()
    assert "Ctrl-D leaves" in words(talker.at.lines)
    told: list[tuple[str, ...]] = [
        ("/system Be kind.", "system message: Be kind."),
        ("/budget 500", "thinking on, budget 500"),
        ("/landing hard", "landing hard"),
        ("/file a.txt", "a.txt: 14 tokens, goes with the next message"),
        ("/file none", "no file goes with the next message"),
        ("/no_think", "thinking off, budget 500"),
        ("hello", "hello thinking off, answer"),
        ("/think", "thinking on, budget 500"),
        ("/more 5", "qwen3: the thoughts cannot go on"),
        ("/regen", "▸ thought for ", " (natural)", "hello thinking ", "(end)"),
        ("/fold", "They say: hello"),
        ("/edit why", "They say: why", "why thinking"),
        ("/fold", "the next thoughts are folded"),
        ("/stats", "1 turn, ", "thinking on, budget 500", "last reply: thinking ", "session "),
        ("/ctx", "system ", "Be kind.", "you ", "answer ", "of 4,096 tokens are used"),
        ("/set temp 0.5", "temp 0.5"),
        ("/set", "landing hard", "temp 0.5", "overflow error"),
        ("/save out.json", "saved as out.json"),
        ("/undo", "taken back: why"),
        ("/load out.json", "1 turn loaded from out.json"),
        ("/model", "nano-dense-q8_0: hybrid, ", "a context of 4,096 tokens"),
        ("/clear", "conversation forgotten"),
        ("/edit", "qwen3: there is no message to change"),
        ("/bugdet", "qwen3: unknown command /bugdet; did you mean /budget?"),
        ("/help", "/think think before the answers", "Ctrl-C: drops the line;"),
    ]
    for line, *expected in told:
        talker.command(line, *expected)
        assert max(map(len, talker.below(line))) <= columns
    assert {line.split()[0] for line, *_ in told} | {"/exit", "/quit"} >= set(COMMANDS)
    assert solid("".join(talker.at.everything)).count(solid("the next thoughts are folded")) == 1
    talker.type("/exit\r" if columns == 40 else "/quit\r")
    assert talker.at.finish() == 0
    assert talker.at.is_sane and talker.at.echoes


# ---- chat: keys ------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", WIDTHS)
def test_every_key(columns: int, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "%s edited\\n" "$(cat "$1")" > "$1"\n')
    editor.chmod(0o755)
    script(
        tmp_path,
        stop=(f"one, 想一想 {PAUSE}", f"The answer is {PAUSE} not complete."),
        fold=(f"first {PAUSE}second {PAUSE}third", "done"),
        ahead=("hm", f"begun {PAUSE} and done"),
    )
    talker = Talker(tmp_path, columns=columns, VISUAL=str(editor))
    at = talker.at
    talker.see_prompt()

    # Wide characters typed, taken back and answered; lines in a message; a paste.
    talker.type(f"{WIDE}xyz\x7f\x7f\x7f")
    at.wait_to_see(f"> {WIDTHLESS.sub('', WIDE)}")
    talker.type("\x1b\rtwo\\\rthree\x1b[200~\rfour\r\x1b[201~")
    talker.see(lambda: at.lines[-3:] == ["  two", "  three", "  four"], "four lines")
    talker.type("\r")
    at.wait_to_see("seed")
    talker.see_prompt()
    everything = solid("".join(at.everything))
    assert everything.count(solid(f"{WIDE} two three four")) == 2  # typed and answered
    assert "▸thoughtfor" in everything

    # Completion, the editor, the history and its search; Ctrl-C drops the line.
    talker.type("/sta")
    at.wait_to_see(" /stats")  # in the menu
    talker.type("\t")
    at.wait_to_see("> /stats")
    talker.type("\r")
    talker.see(lambda: "1 turn" in words(talker.below("/stats")), "the statistics")
    talker.see_prompt()
    talker.type("some text")
    talker.press("g")
    talker.see(lambda: at.lines[-1] == "> some text edited", "what was edited")
    talker.press("c")
    talker.see_prompt()
    talker.type("\x1b[A")
    talker.see(lambda: at.lines[-1] == "> /stats", "the line before")
    talker.press("c")
    talker.see_prompt()
    talker.press("r")
    talker.type("two")
    talker.see(lambda: "three" in "".join(at.lines[-6:]), "what was searched")
    talker.type("\x03\x03")
    talker.see_prompt()

    # Ctrl-Z where no shell would take it up again (while it answers: test_chat_keys.py).
    talker.type("kept")
    at.wait_to_see("> kept")
    talker.press("z")
    talker.type("!")
    at.wait_to_see("> kept!")
    talker.press("c")
    talker.see_prompt()

    # Ctrl-C: answer now, then stop.
    talker.type("stop\r")
    at.wait_to_see("one, 想一想")
    assert any(line.startswith("▾ thinking") for line in at.lines)
    talker.press("c")
    at.wait_to_see("The answer is")
    talker.press("c")
    talker.see(lambda: "seed" in words(talker.below("stop")), "the statistics")
    talker.see_prompt()
    below = words(talker.below("stop"))
    assert re.match(r"▸ thought for \d+ tokens, \d+ s \(user\)", below), below
    assert re.search(r"The answer is( not)? thinking .*\(user\), answer .*\(user\), ", below)
    assert "想" not in below

    # Ctrl-T while it thinks: the thoughts unfold; and fold.
    talker.type("fold\r")
    at.wait_to_see("first")
    talker.press("t")
    talker.see(lambda: talker.below("fold") == ["first"], "the thoughts")
    talker.step()
    talker.see(lambda: talker.below("fold") == ["first second"], "more of them")
    talker.press("t")
    talker.see(lambda: "▾" in at.screen, "the panel")
    talker.step()
    talker.see(lambda: "seed" in words(talker.below("fold")), "the statistics")
    talker.see_prompt()
    below = talker.below("fold")
    assert below[0] == "first second" and below[1].startswith("▸ thought for ")
    assert ("· Ctrl-T unfolds" in below[1]) == (columns > 40) and below[2] == "done"

    # What is typed while it answers comes behind it.
    talker.type("ahead\r")
    at.wait_to_see("begun")
    talker.type(f"/stats\r{WIDE}")
    talker.step()
    talker.see(lambda: "4 turns, " in words(talker.below("/stats")), "the statistics")
    talker.see(lambda: at.lines[-1] == f"> {WIDTHLESS.sub('', WIDE)}", "what was typed")
    assert words(talker.below("ahead")).count("begun and done") == 1
    talker.press("c")
    talker.see_prompt()
    talker.leave()


# ---- resized in mid-stream -------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [(40, 200), (200, 40), (80, 20)])
def test_resized_while_it_thinks_and_answers(first: int, second: int, tmp_path: Path) -> None:
    def part(name: str) -> str:
        return " ".join(f"{name}{i} 想一想，" for i in range(15)) + f" {name}-end"

    thoughts = [part("a"), part("b"), part("c")]
    answers = [part("x"), part("y"), part("z")]
    script(tmp_path, go=(f" {PAUSE}".join(thoughts) + PAUSE, f" {PAUSE}".join(answers)))
    talker = Talker(tmp_path, columns=first)
    at = talker.at
    talker.see_prompt()
    talker.type("go\r")
    for text, columns in (("a-end", first), ("b-end", second), ("c-end", first)):
        at.resize(columns)
        at.wait_to_see(text)
        talker.see(lambda width=columns: panel_is_whole(at, width), "the panel")
        assert "> go" in at.lines
        talker.step()
    for text, columns in (("x-end", first), ("y-end", second), ("z-end", first)):
        if text != "x-end":
            at.resize(columns)
            talker.step()
        at.wait_to_see(text)
    at.wait_to_see("seed")
    talker.see_prompt()
    assert "> go" in at.everything
    assert sum(line.startswith("▸ thought for") for line in at.everything) == 1
    written = ESCAPES.sub("", at.raw.rpartition("▸ thought for")[2])
    assert solid(" ".join(answers)) in solid(written)  # once, in one piece, as it was said
    typed = "after"
    talker.type(typed)
    talker.see(lambda: at.lines[-1] == "> after", "what is typed")
    at.resize(second)
    talker.see(lambda: at.lines[-1] == "> after", "what was typed")
    talker.press("c")
    talker.see_prompt()
    talker.leave()


def panel_is_whole(at: TerminalCommand, columns: int) -> bool:
    """One live line with rows of this width under it, and nothing else."""
    lines = at.lines
    live = [i for i, line in enumerate(lines) if line.startswith("▾ ")]
    if len(live) != 1:
        return False
    rows = lines[live[0] + 1 :]
    return 0 < len(rows) <= 8 and max(map(len, rows)) <= columns and "-end" in rows[-1]


@pytest.mark.parametrize(("columns", "lines"), [(10, 24), (20, 6), (40, 3)])
def test_a_small_terminal(columns: int, lines: int, tmp_path: Path) -> None:
    answer = f"{WIDE} and a_long_word_that_fits_nowhere"
    script(tmp_path, go=("thoughts " * 5 + PAUSE, answer))
    talker = Talker(tmp_path, columns=columns, lines=lines)
    talker.see_prompt()
    talker.type("go\r")
    talker.at.wait_to_see("▾")
    talker.step()
    talker.see(lambda: "seed" in solid("".join(talker.at.everything)), "the statistics")
    talker.see_prompt()
    assert solid(answer) in solid("".join(talker.at.everything))
    assert "▾" not in "".join(talker.at.everything)
    talker.leave()


# ---- run ---------------------------------------------------------------------------------------

TABLE = "Some **bold** text:\n\n| a | 你好 |\n|---|---|\n| 1 | 2 |\n\n```\ncode\n```"


@pytest.mark.parametrize(
    ("where", "columns"), [("show", 40), ("dim", 80), ("fold", 40), ("fold", 200), ("hide", 80)]
)
def test_the_thoughts_of_run(where: str, columns: int, tmp_path: Path) -> None:
    script(tmp_path, go=("Some thoughts,\n想一想.", TABLE))
    at = Talker(tmp_path, "run", "go", "--thoughts", where, columns=columns).at
    assert at.finish() == 0
    assert at.is_sane
    before, _, rest = at.screen.partition("Some bold text:\n\n")
    thoughts = "Some thoughts,\n想一想.\n"
    if where == "fold":
        assert re.fullmatch(r"▸ thought for \d+ tokens, \d+ s \(natural\)\n", before)
    else:
        shown = {"hide": "", "dim": thoughts + "\n", "show": f"<think>\n{thoughts}</think>\n\n"}
        assert before == shown[where]
    if where != "fold":  # a slow machine shows the panel before
        assert ("\x1b[2mS" in at.raw) == (where == "dim")
    drawn, _, told = rest.partition("thinking ")
    assert drawn == "a │ 你好\n──┼─────\n1 │ 2\n\n```\ncode\n```\n"
    assert re.fullmatch(
        r"\d+ tokens \(natural\), answer \d+ tokens \(end\), [\d,.]+ tok/s, seed \d+",
        words([told]),
    )


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_without_colours(env: dict[str, str], tmp_path: Path) -> None:
    script(tmp_path, go=("Some thoughts.", TABLE))
    at = Talker(tmp_path, "run", "go", columns=40, **env).at
    assert at.finish() == 0
    assert at.is_sane and not re.search(r"\x1b\[[\d;]*m", at.raw)
    if "TERM" in env:
        assert "\x1b" not in at.raw
        assert at.screen.startswith(f"<think>\nSome thoughts.\n</think>\n\n{TABLE}\nthinking ")
    else:
        assert at.lines[0].startswith("▸ thought for ") and "a │ 你好" in at.lines
