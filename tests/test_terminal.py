"""What reaches a terminal, and what reaches a pipe."""

from __future__ import annotations

import codecs
import io
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3cli.errors import Qwen3Error, UsageError
from qwen3cli.screen.sanitize import clean, one_line
from qwen3cli.screen.streams import OutputClosed
from qwen3cli.terminal import Terminal


class Stream(io.TextIOWrapper):
    """A text stream over memory that may claim to be a terminal."""

    def __init__(self, tty: bool) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty

    @property
    def text(self) -> str:
        raw = self.buffer
        assert isinstance(raw, io.BytesIO)
        return raw.getvalue().decode()


@pytest.fixture
def open_terminal(monkeypatch: pytest.MonkeyPatch):
    def open_terminal(*, out: bool, err: bool, **env: str) -> tuple[Terminal, Stream, Stream]:
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm")
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        stdout, stderr = Stream(out), Stream(err)
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", stderr)
        return Terminal(), stdout, stderr

    return open_terminal


def test_clean_keeps_text_and_drops_what_drives_a_terminal() -> None:
    assert clean("tab\tnew\nline 안녕 你好 é 👩‍💻") == "tab\tnew\nline 안녕 你好 é 👩‍💻"
    assert clean("\x1b[31mred\x1b]0;title\x07\x9b1m\x7f\r\x00") == "[31mred]0;title1m"
    assert clean("abc\u202edef\u2066\u2069") == "abcdef"
    assert one_line("a\r\nb\x1bc") == "a bc"


def test_random_bytes_in_any_pieces_never_drive_a_terminal(open_terminal) -> None:
    rng = random.Random(1)
    lead = [0x1B, 0x9B, 0x90, 0x0D, 0x07, 0x7F, 0xC2, 0xE2, 0x80, 0xAE]
    for _ in range(200):
        data = bytes(rng.choice([rng.randrange(256), rng.choice(lead)]) for _ in range(400))
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        terminal, stdout, stderr = open_terminal(out=True, err=True, NO_COLOR="1")
        terminal.route_thoughts("show")
        write = terminal.thought
        while data:
            size = rng.randrange(1, 9)
            write(decoder.decode(data[:size]))
            data = data[size:]
            if rng.random() < 0.01:
                write = terminal.answer
        terminal.note(decoder.decode(b"", final=True))
        for char in stdout.text + stderr.text:
            assert char in "\n\t" or (ord(char) >= 0x20 and not 0x7F <= ord(char) < 0xA0)
            assert not ("\u202a" <= char <= "\u202e" or "\u2066" <= char <= "\u2069")


def test_a_pipe_gets_the_answer_as_it_is(open_terminal) -> None:
    terminal, stdout, stderr = open_terminal(out=False, err=False)
    terminal.route_thoughts(None)
    terminal.thought("hidden")
    terminal.answer("a\x1b[1m\r\n")
    assert stdout.text == "a\x1b[1m\r\n"
    assert stderr.text == ""


def test_thoughts_are_dim_and_end_with_a_blank_line(open_terminal) -> None:
    terminal, stdout, stderr = open_terminal(out=True, err=True)
    terminal.route_thoughts("dim")
    terminal.thought("one\n")
    terminal.thought("two")
    terminal.answer("three")
    terminal.end_answer()
    terminal.note("four")
    assert stderr.text == "\x1b[2mone\n\x1b[0m\x1b[2mtwo\x1b[0m\n\nfour\n"
    assert stdout.text == "three\n"


@pytest.mark.parametrize("pieces", [["a", "b"], ["a", "b\n"], ["a\n", "b"], []])
def test_an_answer_ends_with_one_newline(open_terminal, pieces) -> None:
    terminal, stdout, _ = open_terminal(out=False, err=False)
    for _ in range(2):
        for piece in pieces:
            terminal.answer(piece)
        terminal.end_answer()
    assert stdout.text == 2 * ("".join(pieces).removesuffix("\n") + "\n")


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_styles_the_thoughts_are_marked(open_terminal, env) -> None:
    terminal, _, stderr = open_terminal(out=True, err=True, **env)
    terminal.route_thoughts("dim")
    terminal.thought("one")
    terminal.answer("two")
    terminal.end_answer()
    terminal.note("three", dim=True)
    assert stderr.text == "<think>\none\n</think>\n\nthree\n"


def test_thoughts_go_to_a_file(open_terminal, tmp_path) -> None:
    terminal, stdout, stderr = open_terminal(out=True, err=True)
    terminal.route_thoughts(str(tmp_path / "thoughts"))
    terminal.thought("one\n")
    terminal.thought("two")
    terminal.answer("three")
    terminal.end_answer()
    assert (tmp_path / "thoughts").read_text() == "one\ntwo\n"
    assert (stdout.text, stderr.text) == ("three\n", "")
    with pytest.raises(Qwen3Error, match=r"cannot write the thoughts to .*such: No such file"):
        terminal.route_thoughts(str(tmp_path / "no" / "such"))


def test_a_file_of_thoughts_keeps_the_old_ones_until_it_is_emptied(open_terminal, tmp_path) -> None:
    terminal, _, _ = open_terminal(out=False, err=False)
    file = tmp_path / "thoughts"
    file.write_text("old")
    terminal.route_thoughts(str(file))
    assert file.read_text() == "old"
    terminal.empty_thoughts()
    assert file.read_text() == ""
    terminal.thought("new")
    assert file.read_text() == "new"
    for where in (os.devnull, "show", "hide"):  # nothing to empty
        terminal.route_thoughts(where)
        terminal.empty_thoughts()


def test_a_model_is_no_place_for_thoughts(open_terminal, tmp_path) -> None:
    terminal, _, _ = open_terminal(out=False, err=False)
    (tmp_path / "model").write_bytes(b"GGUF\3\0\0\0")
    for where in (str(tmp_path / "model"), "-", ""):
        with pytest.raises(UsageError):
            terminal.route_thoughts(where)


@pytest.mark.parametrize("answer", ["", "half an answer"])
def test_notes_after_ctrl_c_begin_on_a_line_of_their_own(open_terminal, answer) -> None:
    terminal, _, stderr = open_terminal(out=True, err=True)
    if answer:
        terminal.answer(answer)
    terminal.interrupted()  # the terminal shows ^C
    if answer:
        terminal.end_answer()
    terminal.note("statistics")
    assert stderr.text == ("statistics\n" if answer else "\nstatistics\n")


def test_a_closed_stdout_is_an_error_and_a_closed_stderr_is_none(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    terminal = Terminal()
    terminal.note("for nobody")
    with pytest.raises(Qwen3Error, match="closed"):
        terminal.answer("lost")


def test_json_is_one_safe_line(open_terminal) -> None:
    terminal, stdout, _ = open_terminal(out=False, err=False)
    terminal.json({"text": "안녕\x1b\x9b\n\u202e"})
    assert stdout.text == '{"text": "안녕\\u001b\\u009b\\n\\u202e"}\n'


def test_a_table_is_tab_separated_in_a_pipe_and_never_markup(open_terminal) -> None:
    terminal, stdout, _ = open_terminal(out=False, err=False)
    terminal.table(("key", "value"), [("a", "1\n2\t\x1b[2J"), ("b", "[red]x[/]")])
    assert stdout.text == "a\t1 2 [2J\nb\t[red]x[/]\n"
    terminal, stdout, _ = open_terminal(out=True, err=True)
    terminal.table(("key", "value"), [("[red]a[/]", "\x1b[2J")])
    assert "[red]a[/]" in stdout.text
    assert "\x1b[2J" not in stdout.text


def test_columns_of_numbers_are_aligned_to_the_right(
    open_terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    terminal, stdout, _ = open_terminal(out=True, err=True)
    rows = [("a", "1.25", "9 %", "8G", ""), ("b", "1,000", "-", "16.5 GB", "-2e-05")]
    terminal.table(("name", "number", "share", "text", "gap"), rows)
    lines = [line.rstrip() for line in stdout.text.splitlines()]
    assert [line for line in lines if line[1:2] in ("a", "b")] == [
        " a        1.25     9 %   8G",
        " b       1,000       -   16.5 GB   -2e-05",
    ]


def test_a_narrow_table_cuts_nothing(open_terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    terminal, stdout, _ = open_terminal(out=True, err=True)
    terminal.table(("a long heading", "another"), [("a" * 30, "b" * 30)])
    assert "…" not in stdout.text and stdout.text.count("b") == 30


def test_a_table_too_narrow_for_its_words_is_a_block_for_each_row(
    open_terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [("first-of-them", "some-kind-x", "three words here and some more"), ("b", "", "4")]
    for columns, table in ((36, True), (35, False)):
        monkeypatch.setenv("COLUMNS", str(columns))
        terminal, stdout, _ = open_terminal(out=True, err=True)
        terminal.table(("name", "kind", "title"), rows)
        assert ("──" in stdout.text) == table
        assert "some-kind-x" in stdout.text  # unbroken
    assert stdout.text == (
        "\nname   first-of-them\nkind   some-kind-x\n"
        "title  three words here and some\n       more\n"
        "\nname   b\ntitle  4\n"
    )


def test_a_progress_bar_shows_a_hostile_title_as_text(open_terminal) -> None:
    terminal, _, stderr = open_terminal(out=True, err=True)
    with terminal.progress("[red]{task}\x1b[2J") as move:
        move(1, 2)
    assert "[red]{task}[2J" in stderr.text and "\x1b[2J" not in stderr.text


SCRIPT = """
import sys
from qwen3cli.screen.streams import OutputClosed
from qwen3cli.terminal import Terminal
terminal = Terminal()
try:
    for _ in range(100000):
        terminal.answer("x" * 100)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def test_a_closed_pipe_is_told_once_and_leaves_nothing_to_flush() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", SCRIPT], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.stderr.decode().strip() == f"{OutputClosed.__name__}:"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
def test_a_full_disk_is_an_error_with_a_reason() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([sys.executable, "-c", SCRIPT], stdout=full, stderr=subprocess.PIPE)
    assert "Qwen3Error: cannot write the output: No space left" in done.stderr.decode()
