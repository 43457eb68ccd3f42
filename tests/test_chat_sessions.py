"""Chats that are stored as they go, and taken up again."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from commandline import QUESTION, Command, chat, leave, say

GREEDY = ("-m", "nano", "--temp", "0", "--thoughts", "hide")


def stored(qwen3: Command) -> dict[str, Any]:
    """The only session, as `session show` has it."""
    (listed,) = json.loads(qwen3("session", "ls", "--json").stdout)
    shown: dict[str, Any] = json.loads(qwen3("session", "show", listed["id"], "--json").stdout)
    return shown


def said(qwen3: Command) -> list[tuple[str, str]]:
    return [
        (turn["user"]["content"], turn["assistant"]["content"]) for turn in stored(qwen3)["turns"]
    ]


def test_a_chat_is_stored_turn_by_turn(qwen3: Command) -> None:
    terminal = chat(qwen3, *GREEDY)
    say(terminal, "/system Be kind.", "system message")
    say(terminal, QUESTION)
    assert said(qwen3) == [(QUESTION, "60")]  # while it runs
    turn = stored(qwen3)["turns"][0]
    assert turn["statistics"]["answer_stop"] == "end" and turn["assistant"]["reasoning_content"]
    say(terminal, "What is 2 + 2?")
    say(terminal, "/regen")
    assert said(qwen3) == [(QUESTION, "60"), ("What is 2 + 2?", "4")]
    say(terminal, "/edit What is 3 + 3?")
    assert said(qwen3)[1:] == [("What is 3 + 3?", "6")]
    say(terminal, "/undo", "taken back")
    assert said(qwen3) == [(QUESTION, "60")]
    session = stored(qwen3)
    assert (session["system"], session["model"]) == ("Be kind.", "nano")
    say(terminal, "/clear", "forgotten")
    assert said(qwen3) == []
    say(terminal, QUESTION)
    assert f"`qwen3 chat --session {session['id']}` goes on" in leave(terminal)


def test_a_chat_without_a_turn_is_not_stored(qwen3: Command) -> None:
    terminal = chat(qwen3, *GREEDY)
    say(terminal, "/stats", "0 turns")
    assert "goes on with" not in leave(terminal)
    assert json.loads(qwen3("session", "ls", "--json").stdout) == []


def test_continue_goes_on_with_the_messages_and_the_model(qwen3: Command) -> None:
    terminal = chat(qwen3, "-m", "nano-moe", *GREEDY[2:])
    say(terminal, "/system Be kind.", "system message")
    say(terminal, QUESTION)
    leave(terminal)
    terminal = chat(qwen3, "--continue", "--temp", "0")
    screen = terminal.screen
    assert "1 turn" in screen and f"you: {QUESTION}" in screen and "qwen3: " in screen
    say(terminal, "/stats", "1 turn, ")
    say(terminal, "/model", "nano-moe-q8_0")
    say(terminal, "/system", "Be kind.")
    say(terminal, "again")
    leave(terminal)
    assert len(said(qwen3)) == 2
    name = stored(qwen3)["id"]
    terminal = chat(qwen3, "--session", name[:-2], *GREEDY, "--system", "Be brief.")
    assert "was with nano-moe, and goes on with nano" in terminal.screen
    say(terminal, "/system", "Be brief.")
    leave(terminal)
    session = stored(qwen3)
    assert (session["model"], session["system"]) == ("nano", "Be brief.")


def test_the_kv_cache_spares_the_prefill(qwen3: Command) -> None:
    terminal = chat(qwen3, *GREEDY, "--save-kv")
    say(terminal, QUESTION)
    assert re.search(r"kv cache saved: \d{3} KB", leave(terminal))
    terminal = chat(qwen3, *GREEDY, "--continue")
    assert "restored from its kv cache" in terminal.screen
    leave(terminal)
    done = qwen3("chat", *GREEDY, "--session", stored(qwen3)["id"], input="/ctx")
    found = re.search(r"these (\d+), of which (\d+) are computed already", done.stderr)
    assert found and found[1] == found[2]
    damaged = next((qwen3.home / "state").rglob("*.kv"))
    damaged.write_bytes(b"x" * 100)
    terminal = chat(qwen3, *GREEDY, "--continue")
    assert "computed again:" in terminal.screen
    say(terminal, QUESTION)
    leave(terminal)
    assert len(said(qwen3)) == 2


def test_a_session_goes_on_through_a_pipe(qwen3: Command) -> None:
    terminal = chat(qwen3, *GREEDY)
    say(terminal, QUESTION)
    leave(terminal)
    done = qwen3("chat", "--continue", "--temp", "0", input="/stats\nWhat is 2 + 2?")
    assert done.stdout == "4\n" and done.stderr.startswith("1 turn, ")
    assert [answer for _, answer in said(qwen3)] == ["60", "4"]
    assert qwen3("chat", *GREEDY, input=QUESTION).returncode == 0  # is not stored
    assert len(said(qwen3)) == 2


def test_a_session_is_open_once(qwen3: Command) -> None:
    terminal = chat(qwen3, *GREEDY)
    say(terminal, QUESTION)
    done = qwen3("chat", "--continue", input="hi")
    assert done.returncode == 1 and "in use" in done.stderr
    leave(terminal)


def test_a_loaded_conversation_is_a_session_of_its_own(qwen3: Command) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (qwen3.home / "in.json").write_text(json.dumps(messages))
    terminal = chat(qwen3, *GREEDY)
    say(terminal, QUESTION)
    say(terminal, "/load in.json", "1 turn loaded")
    say(terminal, QUESTION)
    leave(terminal)
    ids = [each["id"] for each in json.loads(qwen3("session", "ls", "--json").stdout)]
    turns = [len(json.loads(qwen3("session", "show", i, "--json").stdout)["turns"]) for i in ids]
    assert sorted(turns) == [1, 2]


@pytest.mark.parametrize(
    "flags",
    [
        ("--continue", "--session", "x"),
        ("--private", "--continue"),
        ("--private", "--save-kv"),
        ("--save-kv",),
        ("--session", "none-such"),
        ("--continue",),
    ],
)
def test_flags_that_ask_for_what_cannot_be(qwen3: Command, flags: tuple[str, ...]) -> None:
    done = qwen3("chat", *GREEDY, *flags, input=QUESTION)
    assert done.returncode == 2 and done.stderr.startswith("qwen3: ") and done.stdout == ""


def test_what_was_not_stored_is_not_offered_to_go_on_with(qwen3: Command) -> None:
    (qwen3.home / "file").touch()
    terminal = qwen3.terminal("chat", *GREEDY, XDG_STATE_HOME=str(qwen3.home / "file"))
    terminal.wait_for_prompt()
    say(terminal, QUESTION, "cannot be written")
    assert "goes on with this" not in leave(terminal)
