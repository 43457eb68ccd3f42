"""The interactive loop, on a terminal and through pipes."""

from __future__ import annotations

import re
import stat

import pytest
from commandline import ENDLESS, QUESTION, Command, TerminalCommand
from gguf_tiny import tiny_model

GREEDY = ("-m", "nano", "--temp", "0")
STATISTICS = r"answer\s+\d+\s+tokens\s+\(\w+\),\s+\d+\s+tok/s,\s+seed\s+\d+"


def ask(terminal: TerminalCommand, line: str, pattern: str = STATISTICS) -> str:
    """Types a line; the output up to the pattern, when the next prompt is there."""
    terminal.type(f"{line}\r")
    seen = terminal.wait_for(pattern)
    terminal.wait_for_prompt()
    return seen


# ---- through pipes -------------------------------------------------------------


def test_every_line_of_a_pipe_is_a_turn(qwen3: Command) -> None:
    done = qwen3("chat", *GREEDY, input=f"{QUESTION}\n\n{QUESTION}\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "60\n60\n", "")


def test_a_budget_is_exact_in_chat(qwen3: Command) -> None:
    lines = []
    for budget in ("none", "0", "1", "16", "4000"):
        lines += [f"/budget {budget}", "/clear", QUESTION, "/stats"]
    done = qwen3("chat", *GREEDY, input="\n".join(lines))
    assert (done.returncode, done.stdout.count("\n")) == (0, 5)
    last = re.findall(r"last reply: thinking (.*?), answer", done.stderr)
    natural = int(last[0].split()[0])
    assert last == [
        f"{natural} tokens (natural)",
        "off",
        "1/1 token (budget)",
        "16/16 tokens (budget)",
        f"{natural}/4000 tokens (natural)",
    ]


def test_commands_change_the_session_and_never_reach_the_model(qwen3: Command) -> None:
    lines = ["/no_think", QUESTION, "/stats", "/think", "/system Be kind.", "/bugdet 3", "/xyz",
             "/help", "/budget x", "/stats", "/clear", "/stats", "/exit", QUESTION]  # fmt: skip
    done = qwen3("chat", *GREEDY, input="\n".join(lines))
    assert (done.returncode, done.stdout.count("\n")) == (2, 1)
    notes = done.stderr.splitlines()
    assert notes[0] == "thinking off, budget none"
    assert re.fullmatch(r"1 turn, \d+ of 4,096 tokens of context", notes[1])
    assert "last reply: thinking off" in notes[3]
    assert notes[4:6] == ["thinking on, budget none", "system message: Be kind."]
    assert "unknown command /bugdet; did you mean /budget?" in notes[6]
    assert "unknown command /xyz; /help lists them" in notes[7]
    assert any(note.startswith("/budget") for note in notes[8:16])
    assert "'x' is no number of tokens" in done.stderr
    assert notes[-3].startswith("0 turns, ")


def test_settings_are_shown_by_their_command_alone(qwen3: Command) -> None:
    lines = ["/system", "/budget", "/system Be kind.", "/system", "/budget 7", "/budget",
             "/budget 0", "/think", "/budget none", "/budget 99999999999", "/budget x",
             "/system none", "/stats"]  # fmt: skip
    notes = qwen3("chat", *GREEDY, input="\n".join(lines)).stderr.splitlines()
    assert notes[:7] == [
        "no system message",
        "thinking on, budget none",
        "system message: Be kind.",
        "system message: Be kind.",
        "thinking on, budget 7",
        "thinking on, budget 7",
        "thinking off, budget 0",
    ]
    assert notes[7] == "thinking off, budget 0: a budget of 0 is no thinking"
    assert notes[8] == "thinking on, budget none"
    assert "99999999999 is not in the range" in notes[9] and "'x' is no number" in notes[10]
    assert notes[11:] == [
        "no system message", "0 turns, 0 of 4,096 tokens of context", "thinking on, budget none"
    ]  # fmt: skip


def test_forgotten_turns_take_no_context(qwen3: Command) -> None:
    notes = qwen3("chat", *GREEDY, input=f"{QUESTION}\n/stats\n/clear\n/stats").stderr.splitlines()
    assert re.match(r"1 turn, [1-9]\d+ of 4,096", notes[0])
    assert notes[-3] == "0 turns, 0 of 4,096 tokens of context"


@pytest.mark.parametrize(
    ("name", "switch", "mode"),
    [
        ("Thinking", "/no_think", "thinking on, budget none: this model always thinks"),
        ("Instruct", "/think", "thinking off, budget none: this model never thinks"),
    ],
)
def test_a_switch_that_a_model_cannot_obey_says_so(
    qwen3: Command, name: str, switch: str, mode: str
) -> None:
    image = tiny_model()
    image.put("general.name", f"Qwen3 4B {name} 2507")
    image.write(qwen3.home / "fixed.gguf")
    notes = qwen3("chat", "-m", "fixed.gguf", input=f"{switch}\n/stats").stderr.splitlines()
    assert len(notes) == 3 and notes[0].startswith(mode) and notes[2] == notes[0]
    flag = "--no-think" if switch == "/no_think" else "--think"
    done = qwen3("run", "hi", "-m", "fixed.gguf", flag, "--max-tokens", "1", "--seed", "1")
    assert done.stderr.startswith("qwen3: this model ")
    other = "--think" if switch == "/no_think" else "--no-think"
    assert "this model" not in qwen3("chat", "-m", "fixed.gguf", other, input="/help").stderr


def test_a_soft_switch_that_still_holds_is_named(qwen3: Command) -> None:
    done = qwen3("chat", *GREEDY, input=f"{QUESTION} /no_think\n/think")
    assert done.stderr == (
        "thinking off, budget none: the last /no_think in the messages still holds\n"
    )


def test_the_last_answer_of_a_pipe_decides_the_exit_code(qwen3: Command) -> None:
    done = qwen3("chat", *GREEDY, "--max-tokens", "1", input=f"{QUESTION}\n/stats")
    assert (done.returncode, done.stdout) == (6, "6\n")
    assert done.stderr.splitlines()[0] == "qwen3: the answer was cut at --max-tokens 1"


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["/bugdet", "/model no-such", QUESTION], 2),
        (["/load no-such.json"], 1),
        (["/model no-such", "/stats"], 3),
    ],
)
def test_a_command_that_failed_in_a_pipe_is_seen_in_the_exit_code(
    qwen3: Command, lines: list[str], code: int
) -> None:
    done = qwen3("chat", *GREEDY, input="\n".join(lines))
    assert done.returncode == code
    assert done.stdout == ("60\n" if QUESTION in lines else "")  # and the chat goes on


def test_soft_switches_and_slashed_text_go_to_the_model(qwen3: Command) -> None:
    lines = [f"/no_think {QUESTION}", "/stats", "/usr/bin is a path", f"{QUESTION} /no_think",
             "/stats", " /budget"]  # fmt: skip
    done = qwen3("chat", *GREEDY, input="\n".join(lines))
    assert done.stdout.count("\n") >= 4
    assert done.stderr.count("last reply: thinking off") == 2
    assert "unknown" not in done.stderr


def test_errors_end_a_chat_through_a_pipe(qwen3: Command) -> None:
    done = qwen3("chat", *GREEDY, "--ctx", "16", input=f"{QUESTION}\n{QUESTION}\n")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (5, "", 1)
    assert qwen3("chat", "-m", "nanno").returncode == 3


# ---- on a terminal -------------------------------------------------------------


def test_turns_history_and_leaving_on_a_terminal(qwen3: Command) -> None:
    terminal = qwen3.terminal("chat", *GREEDY)
    terminal.wait_for_prompt()
    seen = ask(terminal, QUESTION)
    assert "60" in seen and "thinking" in seen
    terminal.type("\x1b[A")  # the arrow brings the last line back
    terminal.wait_to_see(QUESTION)
    assert "60" in ask(terminal, "")
    assert "2 turns" in ask(terminal, "/stats", "last reply")
    terminal.press("d")
    assert terminal.finish() == 0
    assert terminal.echoes
    history = qwen3.home / "state" / "qwen3" / "history"
    assert QUESTION in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_the_banner_names_the_model(qwen3: Command) -> None:
    terminal = qwen3.terminal("chat", *GREEDY)
    assert "nano-dense-q8_0: /help" in terminal.wait_for("/help")
    terminal.wait_for_prompt()
    terminal.press("d")
    assert terminal.finish() == 0


def test_a_dumb_terminal_sees_no_escapes(qwen3: Command) -> None:
    terminal = qwen3.terminal("chat", *GREEDY, "--thoughts", "hide", TERM="dumb")
    terminal.wait_for("> ")
    terminal.type(f"{QUESTION}\r")
    terminal.wait_for(f"60\r\n.*{STATISTICS}")
    terminal.type("/edit\r")
    terminal.wait_for("/edit takes the new text here")
    terminal.type("/edit What is 2 + 2?\r")
    terminal.wait_for(r"\n4\r\n.*seed \d")
    terminal.type("/fold\r")
    terminal.wait_for("cannot be folded here")
    terminal.type("/exit\r")
    assert terminal.finish() == 0
    assert "\x1b" not in terminal.raw


def test_ctrl_c_ends_the_thoughts_and_then_the_answer(qwen3: Command) -> None:
    # Nothing else thinks for so long: greedy, and every token makes itself likelier.
    args = [*(flag for flag in ENDLESS if flag != "--no-think"), "--thoughts", "show"]
    terminal = qwen3.terminal("chat", *args)
    terminal.wait_for_prompt()
    terminal.type("hello\r")
    seen = terminal.wait_for(r"\w ")
    while "seed" not in seen:  # where a loop was noticed first, one is enough
        terminal.press("c")
        seen = terminal.wait_for(r"(\w+)\1{5}|seed")
    assert re.search(r"\((user|loop)\), answer [1-9]\d* tokens \(user\)", terminal.text)
    terminal.wait_for_prompt()
    assert "1 turn," in ask(terminal, "/stats", "last reply")
    terminal.press("d")
    assert terminal.finish() == 0


def test_ctrl_c_drops_a_line_and_ends_a_reply_but_not_the_session(qwen3: Command) -> None:
    terminal = qwen3.terminal("chat", *ENDLESS)
    terminal.wait_for_prompt()
    terminal.type("/exit")
    terminal.press("c")
    terminal.wait_for_prompt()
    terminal.type("hello\r")
    terminal.wait_for(r"\w{20}")
    terminal.press("c")
    assert "(user)" in terminal.wait_for(STATISTICS)
    terminal.wait_for_prompt()
    assert "1 turn," in ask(terminal, "/stats", "last reply")
    terminal.type("again\r")
    terminal.wait_for(r"\w{20}")
    terminal.press("c")
    terminal.wait_for(STATISTICS)
    terminal.wait_for_prompt()
    terminal.type("/exit\r")
    assert terminal.finish() == 0
    assert terminal.echoes


def test_a_paste_of_several_lines_is_one_message(qwen3: Command) -> None:
    terminal = qwen3.terminal("chat", *GREEDY, "--budget", "0", "--max-tokens", "4")
    terminal.wait_for_prompt()
    lines = "\n".join(["What is 17 + 48 - 5?"] + 50 * ["pasted line"])
    terminal.type(f"\x1b[200~{lines}\x1b[201~")
    terminal.type("\r")
    terminal.wait_for(STATISTICS)
    terminal.wait_for_prompt()
    terminal.type("one\x1b\rtwo\r")  # Alt-Enter
    terminal.wait_for(STATISTICS)
    terminal.wait_for_prompt()
    assert "2 turns" in ask(terminal, "/stats", "last reply")
    terminal.press("d")
    assert terminal.finish() == 0


def test_an_error_ends_the_turn_not_the_session(qwen3: Command) -> None:
    terminal = qwen3.terminal("chat", *GREEDY, "--ctx", "64")
    terminal.wait_for_prompt()
    ask(terminal, "x " * 100, r"qwen3: .*context of 64[\s\S]*takes room")
    assert "drop-oldest" not in terminal.text  # it does not fit alone either
    ask(terminal, "/stats", "0 turns")
    ask(terminal, "/no_think", "thinking off")
    ask(terminal, QUESTION)
    seen = ask(terminal, "x " * 30, r"qwen3: .*context of 64[\s\S]*makes some")
    assert "/set overflow drop-oldest" in " ".join(seen.split())
    ask(terminal, "/stats", "1 turn,")
    terminal.press("d")
    assert terminal.finish() == 0


def test_the_screen_after_a_turn(qwen3: Command) -> None:
    terminal = qwen3.terminal("chat", *GREEDY, "--thoughts", "hide")
    terminal.wait_for_prompt()
    ask(terminal, QUESTION)
    lines = terminal.screen.splitlines()
    assert lines[1:3] == [f"> {QUESTION}", "60"]
    assert lines[3].startswith("thinking ") and lines[4] == ">"
    terminal.press("d")
    assert terminal.finish() == 0
