"""qwen3 session: the stored chats, as their owner sees them."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commandline import Command, TerminalCommand
from conftest import COMMAND
from pulling import Outcome

from qwen3cli.chat.transcripts import Transcript
from qwen3cli.cli import commands

DRIVING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
STYLES = re.compile(r"\x1b\[[\d;]*m|\r")
HOSTILE = "\x1b]0;owned\x07 \x9b31m \u202e \x7f"


Run = Callable[..., Outcome]
OnTerminal = Callable[..., TerminalCommand]


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnTerminal:
    """The command on a terminal."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))  # as Command has it
    return Command(tmp_path).terminal


@pytest.fixture
def qwen3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """The command in this process: most of the time is that of a start."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "app", COMMAND)

    def run(*args: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["qwen3", *args])
        code = commands.main()
        return Outcome(code, *capsys.readouterr())

    return run


def store(*turns: tuple[str, str, str], system: str | None = None, days: float = 0) -> Path:
    """A session of (question, thoughts, answer), used some days ago."""
    with Transcript.create("nano", system) as transcript:
        for question, thoughts, answer in turns:
            transcript.turn(
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer, "reasoning_content": thoughts},
                {"answer_tokens": 2},
            )
    at = time.time() - days * 86400
    os.utime(transcript.path, (at, at))
    return transcript.path


SUM = ("What is\n17 + 48?", "17 + 48 = 65", "65")
PYTHON = ("And in Python?", "use ``` print", "```python\nprint(17 + 48)")  # it was cut


def listed(qwen3: Run) -> list[dict[str, Any]]:
    done = qwen3("session", "ls", "--json")
    assert (done.code, done.err) == (0, "")
    found: list[dict[str, Any]] = json.loads(done.out)
    return found


def test_ls_before_the_first_chat(qwen3: Run) -> None:
    assert listed(qwen3) == []
    assert not Path("state").exists()


def test_ls(qwen3: Run) -> None:
    old = store(("x" * 100, "", "y"), days=40)
    new = store(SUM, PYTHON, system="Be brief.")
    new.with_suffix(".kv").write_bytes(b"0" * 3_000_000)
    done = qwen3("session", "ls")
    assert (done.code, done.err) == (0, "")
    first, second = (line.split("\t") for line in done.out.splitlines())
    assert re.fullmatch(r"\d\d:\d\d|\d{4}-\d\d-\d\d", first[1])  # midnight may be near
    assert [first[0], *first[2:]] == [new.stem, "nano", "2", "3 MB", "What is 17 + 48?"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", second[1])
    assert [second[0], *second[2:]] == [old.stem, "nano", "1", "-", "x" * 45 + "..."]
    told = listed(qwen3)[0]
    assert (told["id"], told["turns"], told["kv_bytes"]) == (new.stem, 2, 3_000_000)
    assert told["used"].endswith("+00:00") and told["error"] is None


def test_ls_lists_what_is_damaged_too(qwen3: Run) -> None:
    good = store(SUM)
    bad, newer = good.with_name("bad.jsonl"), good.with_name("newer.jsonl")
    bad.write_bytes(good.read_bytes().replace(b'"event"', b'"evil"'))
    newer.write_bytes(good.read_bytes().replace(b'"version": 1', b'"version": 2'))
    done = qwen3("session", "ls")
    assert done.code == 0
    titles = {line.split("\t")[0]: line.split("\t")[-1] for line in done.out.splitlines()}
    assert titles == {"bad": "damaged", "newer": "cannot be read", good.stem: "What is 17 + 48?"}
    assert re.search(rf"{bad}: line 2 is damaged: .*`qwen3 session rm bad`\n", done.err)
    assert {each["id"]: each["damaged"] for each in listed(qwen3)} == {
        "bad": True,
        "newer": False,
        good.stem: False,
    }
    for command in ("show", "export"):
        assert qwen3("session", command, "bad").code == 7
        assert qwen3("session", command, "newer").code == 1
    assert qwen3("session", "rm", "bad", "newer", "--yes").code == 0
    assert [each["id"] for each in listed(qwen3)] == [good.stem]


def test_ids_are_whole_on_a_terminal_of_80_columns(
    terminal: OnTerminal,
) -> None:
    path = store(("What is the plan for the house that we build this year?", "", "y"))
    child = terminal("session", "ls", COLUMNS="80")
    assert child.finish() == 0
    assert path.stem in child.text


def test_ls_says_that_there_are_no_chats(terminal: OnTerminal) -> None:
    child = terminal("session", "ls")
    assert child.finish() == 0
    assert child.text == "there are no chats yet; `qwen3 chat` begins one\n"


def test_show(qwen3: Run) -> None:
    path = store(SUM, PYTHON, system="Be brief.")
    done = qwen3("session", "show", path.stem[:-2])
    assert done.code == 0
    assert done.out == (
        "system: Be brief.\n\n> What is\n> 17 + 48?\n\n65\n\n"
        "> And in Python?\n\n```python\nprint(17 + 48)\n"
    )
    assert re.fullmatch(rf"{path.stem}, nano, \d{{4}}-.*, 2 turns\n", done.err)
    assert (
        "<think>\n17 + 48 = 65\n</think>\n\n65\n"
        in qwen3("session", "show", path.stem, "--thoughts").out
    )
    told = json.loads(qwen3("session", "show", path.stem, "--json").out)
    assert (told["model"], told["system"], len(told["turns"])) == ("nano", "Be brief.", 2)
    assert told["turns"][0]["assistant"]["reasoning_content"] == SUM[1]


def test_show_on_a_terminal(terminal: OnTerminal) -> None:
    path = store(SUM)
    child = terminal("session", "show", path.stem)
    assert child.finish() == 0
    for text in ("> What is", "> 17 + 48?", "65"):
        assert text in child.screen


def test_nothing_in_a_file_drives_a_terminal(qwen3: Run, terminal: OnTerminal) -> None:
    path = store((HOSTILE, HOSTILE, HOSTILE), system=HOSTILE)
    with Transcript.open(path.stem) as transcript:
        transcript.set_model(HOSTILE)
    raw = path.with_name("raw.jsonl")  # written by no qwen3
    raw.write_text(path.read_text().replace(r"\u009b", "\x9b").replace(r"\u202e", "\u202e"))
    for id in (path.stem, "raw"):
        for command in (
            ["ls"],
            ["ls", "--json"],
            ["show", id, "--thoughts"],
            ["show", id, "--json"],
            *(["export", id, "--thoughts", "--format", form] for form in FORMATS),
        ):
            done = qwen3("session", *command)
            assert done.code == 0
            assert not DRIVING.search(done.out + done.err), command
    child = terminal("session", "show", "raw", "--thoughts")
    child.finish()
    assert not DRIVING.search(STYLES.sub("", child.raw))


FORMATS = ("markdown", "json", "jsonl", "text")


def export(qwen3: Run, *args: str) -> str:
    done = qwen3("session", "export", *args)
    assert (done.code, done.err) == (0, "")
    return done.out


def test_export_as_messages(qwen3: Run) -> None:
    path = store(SUM, PYTHON, system="Be brief.")
    messages = json.loads(export(qwen3, path.stem, "--format", "json"))
    assert messages[:3] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": SUM[0]},
        {"role": "assistant", "content": SUM[2]},
    ]
    with_thoughts = json.loads(export(qwen3, path.stem, "--format", "json", "--thoughts"))
    assert with_thoughts[2]["reasoning_content"] == SUM[1]


def test_export_as_markdown(qwen3: Run) -> None:
    path = store(SUM, PYTHON)
    text = export(qwen3, path.stem, "--thoughts")
    assert text.startswith("# What is 17 + 48?\n\n*")
    assert "\n\n> What is\n> 17 + 48?\n\n<details>" in text
    # A fence that the thoughts do not close; and the block of the answer that was cut is closed.
    assert "````text\nuse ``` print\n````\n\n</details>" in text
    assert text.endswith("```python\nprint(17 + 48)\n```\n")
    assert "details" not in export(qwen3, path.stem)


def test_what_is_exported_as_jsonl_is_a_session(qwen3: Run) -> None:
    path = store(SUM, ("\udc80 你好 \u2028", "", "y"))
    copy = path.with_name("copy.jsonl")
    export(qwen3, path.stem, "--format", "jsonl", "-o", str(copy))
    shown = [qwen3("session", "show", each, "--json").out for each in (path.stem, "copy")]
    first, second = (json.loads(each)["turns"] for each in shown)
    assert first == second and len(first) == 2


def test_export_to_a_file(qwen3: Run) -> None:
    path = store(SUM)
    for name, form in (("a.md", "markdown"), ("a.json", "json"), ("a.txt", "text"), ("a", "text")):
        flags = ["--format", form] if name == "a" else []
        assert export(qwen3, path.stem, "-o", name, *flags) == ""
        assert Path(name).read_text() == export(qwen3, path.stem, "--format", form)
    done = qwen3("session", "export", path.stem, "-o", "a.md", "--format", "json")
    assert done.code == 2 and "--force" in done.err
    export(qwen3, path.stem, "-o", "a.md", "--format", "json", "--force")
    assert json.loads(Path("a.md").read_text())
    assert qwen3("session", "export", path.stem, "-o", "no/where.md").code == 1
    assert qwen3("session", "export", path.stem, "--format", "pdf").code == 2


def test_an_unknown_session(qwen3: Run) -> None:
    path = store(SUM)
    for command in ("show", "export", "rm"):
        done = qwen3("session", command, "nothing")
        assert (done.code, done.out) == (2, "")
        assert "there is no such session; `qwen3 session ls` lists them" in done.err
        done = qwen3("session", command, f"../sessions/{path.stem}")
        assert done.code == 2 and f"did you mean {path.stem}?" in done.err
    assert path.exists()


def test_rm(qwen3: Run) -> None:
    path, other = store(SUM, PYTHON), store(SUM)
    path.with_suffix(".kv").write_bytes(b"0" * 3_000_000)
    done = qwen3("session", "rm", path.stem)
    assert (done.code, path.exists()) == (2, True)
    assert f"{path.stem}, 2 turns, kv cache of 3 MB: What is 17 + 48?\n" in done.err
    assert "--yes" in done.err
    done = qwen3("session", "rm", path.stem, path.stem, "--yes", "--json")
    told = json.loads(done.out)
    assert (done.code, told["removed"]) == (0, [path.stem])
    assert told["freed_bytes"] > 3_000_000
    assert [*path.parent.iterdir()] == [other]


def test_rm_asks_on_a_terminal(terminal: OnTerminal) -> None:
    path = store(SUM)
    child = terminal("session", "rm", path.stem)
    child.wait_for(r"Remove this session\? \[y/N\] ")
    child.type("\n")
    assert (child.finish(), path.exists()) == (0, True)
    child = terminal("session", "rm", path.stem)
    child.wait_for(r"\[y/N\] ")
    child.press("c")
    assert (child.finish(), path.exists()) == (130, True)
    child = terminal("session", "rm", path.stem)
    child.wait_for(r"\[y/N\] ")
    child.type("y\n")
    assert (child.finish(), path.exists()) == (0, False)


def test_rm_spares_a_session_that_is_open(qwen3: Run) -> None:
    path, other = store(SUM, days=40), store(PYTHON, days=40)
    with Transcript.open(path.stem):
        done = qwen3("session", "rm", path.stem, other.stem, "--yes")
        assert done.code == 1 and "in use by another qwen3" in done.err
        assert path.exists() and other.exists()
        done = qwen3("session", "rm", "--older-than", "30d", "--yes")
        assert done.code == 0 and f"{path.stem} is in use" in done.err
        assert path.exists() and not other.exists()


def test_rm_of_what_is_old(qwen3: Run) -> None:
    ages = {1: store(SUM, days=1), 10: store(SUM, days=10), 40: store(SUM, days=40)}
    assert qwen3("session", "rm", "--older-than", "30d", "--yes").code == 0
    assert [age for age, path in ages.items() if path.exists()] == [1, 10]
    assert qwen3("session", "rm", "--older-than", "1w", "--yes").code == 0
    assert [age for age, path in ages.items() if path.exists()] == [1]
    done = qwen3("session", "rm", "--older-than", "48h")
    assert (done.code, done.err) == (0, "there is nothing to remove\n")
    for args in ([], ["x", "--older-than", "1d"], ["--older-than", "30"], ["--older-than", "-1d"]):
        assert qwen3("session", "rm", *args, "--yes").code == 2
    assert ages[1].exists()


def test_ids_are_completed(qwen3: Run, tmp_path: Path) -> None:
    path = store(SUM)
    words = f"qwen3 session show {path.stem[:6]}"
    done = Command(tmp_path)(_QWEN3_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD="3")
    assert (done.stdout.split(), done.stderr) == ([path.stem], "")
