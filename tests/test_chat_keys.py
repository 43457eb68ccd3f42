"""The keys of chat on a terminal: while a line is typed, and while a reply comes."""

from __future__ import annotations

import signal
import time

import pytest
from commandline import ANSWERED, ENDLESS, QUESTION, Command, TerminalCommand, chat, leave, say

GREEDY = ("-m", "nano", "--temp", "0", "--thoughts", "hide")
STREAMING = r"\w{20}"  # of an endless answer


def last_line(terminal: TerminalCommand) -> str:
    return terminal.screen.splitlines()[-1]


# ---- while a line is typed ----------------------------------------------------


def test_new_lines_inside_a_message(qwen3: Command) -> None:
    terminal = chat(qwen3, *GREEDY, "--max-tokens", "1")
    terminal.type("one\x1b\rtwo\\\rthree")  # Alt-Enter, and Enter behind a backslash
    terminal.wait_to_see("three")
    assert terminal.screen.splitlines()[-3:] == ["> one", "  two", "  three"]
    say(terminal, "")
    say(terminal, "/ctx", r"one two three[\s\S]*begins with")
    leave(terminal)


def test_a_paste_never_submits(qwen3: Command) -> None:
    terminal = chat(qwen3, *GREEDY, "--max-tokens", "1")
    terminal.type("\x1b[200~one\rtwo\n/exit\r\x1b[201~")
    terminal.wait_to_see("/exit")
    say(terminal, "", ANSWERED)
    say(terminal, "/stats", "1 turn, ")
    leave(terminal)


def test_ctrl_r_searches_and_a_leading_space_keeps_a_line_out(qwen3: Command) -> None:
    terminal = chat(qwen3, *GREEDY)
    say(terminal, f" {QUESTION} secret", ANSWERED)
    say(terminal, "/stats", "turn")
    terminal.press("r")
    terminal.type("/st")
    terminal.wait_to_see("> /stats")
    terminal.type("\x03\x03")  # the search, and the line that was found
    terminal.wait_for_prompt()
    leave(terminal)
    history = (qwen3.home / "state" / "qwen3" / "history").read_text()
    assert "/stats" in history and "secret" not in history


def test_a_private_chat_leaves_nothing_behind(qwen3: Command) -> None:
    terminal = chat(qwen3, *GREEDY, "--private")
    say(terminal, QUESTION)
    leave(terminal)
    assert not (qwen3.home / "state").exists()


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_commands_and_their_arguments_are_completed(qwen3: Command, columns: int) -> None:
    (qwen3.home / "docs").mkdir()
    (qwen3.home / "docs" / "a note.txt").write_text("hello")
    terminal = chat(qwen3, *GREEDY, columns=columns)
    terminal.type("/fi")
    terminal.wait_to_see("/file")  # in the menu
    terminal.type("\t")
    terminal.wait_to_see("> /file")
    terminal.type("d")
    terminal.wait_to_see("docs/")
    terminal.type("\t\ra")  # Enter goes on in the folder
    terminal.wait_to_see("a\\ note.txt")
    terminal.type("\t\r")
    terminal.wait_for("goes with")
    terminal.wait_for_prompt()
    assert "docs/a note.txt:" in terminal.screen
    terminal.type("/set tem")
    terminal.wait_to_see("  temp")
    terminal.type("\t\r0.5")
    terminal.wait_to_see("> /set temp 0.5")
    terminal.press("c")
    terminal.wait_for_prompt()
    terminal.type("/model nano-")
    terminal.wait_to_see("nano-moe")
    terminal.press("c")
    terminal.wait_for_prompt()
    terminal.type("no command/")
    terminal.wait_to_see("no command/")
    terminal.press("c")
    terminal.wait_for_prompt()
    leave(terminal)


def test_the_menu_goes_when_the_line_is_done(qwen3: Command) -> None:
    terminal = chat(qwen3, *GREEDY)
    say(terminal, "/help", "answer now")  # the prompt is at the bottom of the screen
    terminal.type("/s")
    terminal.wait_to_see("/system  ")
    terminal.type("tats")
    say(terminal, "", "0 turns")
    below = terminal.screen.splitlines()
    assert [line for line in below if line.startswith("> /")] == ["> /stats"]
    assert not any(line.startswith("  ") for line in below[below.index("> /stats") :])
    leave(terminal)


def test_ctrl_g_edits_the_line_elsewhere(qwen3: Command) -> None:
    editor = qwen3.home / "editor"
    editor.write_text('#!/bin/sh\nprintf "%s and more\\nin two lines\\n" "$(cat "$1")" > "$1"\n')
    editor.chmod(0o755)
    terminal = chat(qwen3, *GREEDY, VISUAL=str(editor), EDITOR="false")
    terminal.type("some text")
    terminal.press("g")
    terminal.wait_to_see("in two lines")
    assert terminal.screen.splitlines()[-2:] == ["> some text and more", "  in two lines"]
    terminal.press("c")
    terminal.wait_for_prompt()
    leave(terminal)


@pytest.mark.parametrize(
    ("editor", "problem"),
    [("false", "false failed"), ("/no/such", "cannot start"), ("'", "closing quotation")],
)
def test_an_editor_that_fails_loses_nothing(qwen3: Command, editor: str, problem: str) -> None:
    terminal = chat(qwen3, *GREEDY, EDITOR=editor)
    terminal.type("some text")
    terminal.press("g")
    terminal.wait_for(f"(?i){problem}")
    terminal.wait_to_see("> some text")
    terminal.press("c")
    terminal.wait_for_prompt()
    leave(terminal)


def test_edit_offers_the_last_message_and_replaces_it_when_it_is_sent(qwen3: Command) -> None:
    terminal = chat(qwen3, *GREEDY)
    say(terminal, "What is 2 + 2?")
    terminal.type("/edit\r")
    terminal.wait_for("2 [+] 2")
    terminal.press("c")  # nothing has changed
    terminal.wait_for_prompt()
    say(terminal, "/ctx", r"2 [+] 2[\s\S]*begins with")
    terminal.type("/edit\r")
    terminal.wait_until_it_shows(lambda: last_line(terminal) == "> What is 2 + 2?")
    terminal.type(" + 1?")
    for _ in range(5):
        terminal.type("\x1b[D")
    terminal.type("\x7f")
    say(terminal, "", ANSWERED)
    say(terminal, "/ctx", r"2 [+] 2 [+] 1[\s\S]*begins with")
    say(terminal, "/stats", "1 turn, ")
    leave(terminal)


# ---- while a reply comes ------------------------------------------------------


def test_what_is_typed_meanwhile_is_the_next_line(qwen3: Command) -> None:
    terminal = chat(qwen3, *ENDLESS)
    terminal.type("hello\r")
    terminal.wait_for(STREAMING)
    terminal.type("typed ahead")
    terminal.type("\x1b[200~ with\ra paste\x1b[201~")
    for _ in range(20):
        terminal.wait_for(STREAMING)
    terminal.press("c")
    streamed = terminal.wait_for(ANSWERED)
    assert "typed" not in streamed and "paste" not in streamed and "^C" not in streamed
    terminal.wait_to_see("a paste")
    assert terminal.screen.splitlines()[-2:] == ["> typed ahead with", "  a paste"]
    terminal.press("c")
    terminal.wait_for_prompt()
    leave(terminal)


def test_lines_typed_meanwhile_are_sent_one_by_one(qwen3: Command) -> None:
    terminal = chat(qwen3, *ENDLESS)
    terminal.type("hello\r")
    terminal.wait_for(STREAMING)
    terminal.type("/set seed 7\r/stats\r")
    terminal.press("c")
    terminal.wait_for(r"seed +7")
    terminal.wait_for("1 turn, ")
    terminal.wait_for_prompt()
    leave(terminal)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_answers_leaves_a_sane_terminal(qwen3: Command, number: int) -> None:
    terminal = chat(qwen3, *ENDLESS)
    terminal.type("hello\r")
    terminal.wait_for(STREAMING)
    assert not terminal.echo
    terminal.signal(number)
    if number == signal.SIGINT:
        terminal.wait_for_prompt()
        leave(terminal)
    else:
        assert terminal.killed_by() == number
        assert terminal.echoes
        assert terminal.raw.count("\x1b[?2004h") == terminal.raw.count("\x1b[?2004l")


@pytest.mark.parametrize("delay", [0, 0.001, 0.003, 0.01, 0.1])
def test_sigterm_at_the_prompt_leaves_a_sane_terminal(qwen3: Command, delay: float) -> None:
    """Also while the line editor is still getting ready."""
    terminal = qwen3.terminal("chat", *GREEDY, columns=80)
    terminal.wait_for(r"\?2004h")
    time.sleep(delay)
    terminal.signal(signal.SIGTERM)
    assert terminal.killed_by() == signal.SIGTERM
    assert terminal.echoes and "Exception" not in terminal.raw


def test_ctrl_z_while_it_answers_gives_the_terminal_back_and_takes_it_again(qwen3: Command) -> None:
    terminal = chat(qwen3, *ENDLESS)
    terminal.type("hello\r")
    terminal.wait_for(STREAMING)
    terminal.press("z")
    terminal.wait_until(lambda: terminal.stopped)
    assert terminal.echo
    terminal.signal(signal.SIGCONT)
    terminal.wait_until(lambda: not terminal.echo)
    terminal.wait_for(STREAMING)
    terminal.press("c")
    terminal.wait_for(ANSWERED)
    terminal.wait_for_prompt()
    leave(terminal)


def test_ctrl_t_shows_folded_thoughts(qwen3: Command) -> None:
    terminal = chat(qwen3, "-m", "nano", "--temp", "0", "--thoughts", "fold")
    say(terminal, QUESTION)
    terminal.press("t")
    terminal.wait_until_it_shows(  # the prompt, too: a key before it may be lost
        lambda: "65 - 5: 5-5=0, 6-0=6, 60" in terminal.screen and last_line(terminal) == ">"
    )
    leave(terminal)


def test_the_statistics_warn_of_a_full_context(qwen3: Command) -> None:
    terminal = chat(qwen3, *GREEDY, "--no-think", "--ctx", "32", columns=200)
    say(terminal, QUESTION, r"\d+ of 32 tokens of context: 9\d% full")
    leave(terminal)
