"""Signals at 200 random moments of `run` and `chat`: the terminal is as it was, what was finished
is stored, the chat goes on, and the exit code tells what happened."""

from __future__ import annotations

import fcntl
import os
import random
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pexpect
import pyte
import pytest
from commandline import (
    ENDLESS,
    QUESTION,
    THINKING,
    Command,
    TerminalCommand,
    environment,
)

from qwen3cli.chat import transcripts

# Thinks to the end of the context and answers as long, in ever different words.
MUSING = ["-m", "nano", "--temp", "2", "--top-k", "0", "--top-p", "1", "--presence-penalty", "-20",
          "--ctx", "32768"]  # fmt: skip
PATIENCE = 12_000  # looks, one in 10 ms: no clock, for a machine may stand still
HUP, INT, TERM = signal.SIGHUP, signal.SIGINT, signal.SIGTERM
TSTP, CONT = signal.SIGTSTP, signal.SIGCONT
_TURNS = re.compile(r"(\d+) turns?, ")
_STATISTICS = re.compile(r"thinking .*?\((\w+)\), answer (\d+) tokens? \((\w+)\)")

# The command, which leaves a file where its own code begins: signals before that are Python's.
BEGIN = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "qwen3cli.cli.commands":
            open("begun", "w").close()
sys.meta_path.insert(0, Finder())
from qwen3cli.__main__ import main
main()
"""

# A shell that waits for a job in the foreground: without one, SIGTSTP stops nothing.
SHELL = """
import os, signal, subprocess, sys
def foreground():
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
code = subprocess.Popen(sys.argv[1:], preexec_fn=foreground).wait()
sys.exit(code if code >= 0 else 128 - code)
"""


@pytest.fixture
def qwen3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return Command(tmp_path)


class Job(TerminalCommand):
    """The command as a shell's job on a pseudo-terminal."""

    def __init__(self, qwen3: Command, *args: str) -> None:
        argv = [sys.executable, "-c", SHELL, sys.executable, "-c", BEGIN, *args]
        super().__init__(argv, qwen3.home, {}, 80)
        self._fd = self._process.child_fd
        self._emulator = pyte.Screen(80, 24)
        self._stream = pyte.Stream(self._emulator)
        self._before = attributes()
        begun = qwen3.home / "begun"
        self.until(begun.exists)
        begun.unlink()
        self.pid = os.tcgetpgrp(self._fd)

    def read(self) -> bool:
        """Takes what was written; False: it has ended."""
        try:
            while True:
                text = self._process.read_nonblocking(65536, 0)
                self.raw += text
                self._stream.feed(text)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False

    def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(PATIENCE):
            if condition():
                return
            assert self.read(), f"it has ended: {self.raw[-500:]!r}"
            time.sleep(0.01)
        pytest.fail(f"it has not come: {self.raw[-500:]!r}")

    def sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and self.read():
            time.sleep(min(left, 0.01))

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(self.pid, number)

    def resize(self, columns: int, lines: int) -> None:
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, size)
        self._emulator.resize(lines, columns)

    @property
    def reads_lines(self) -> bool:
        """Whether it is at its prompt, where Ctrl-C is a key."""
        return not termios.tcgetattr(self._fd)[3] & termios.ISIG

    @property
    def stopped(self) -> bool:
        with suppress(FileNotFoundError):
            stat = Path(f"/proc/{self.pid}/stat").read_text()
            return stat.rpartition(")")[2].split()[0] == "T"
        return False

    def stop_and_go(self, rng: random.Random, stop: Callable[[], None]) -> None:
        """Stopped for a moment, in which the terminal is the shell's."""
        stop()
        self.until(lambda: self.stopped)
        # Without the flags of input: prompt_toolkit leaves some as they are at its prompt.
        assert termios.tcgetattr(self._fd)[3] == self._before[3]
        self.sleep(rng.random() / 50)
        self.send(CONT)
        self.until(lambda: not self.stopped)

    def code(self) -> int:
        """The exit code as a shell has it. The terminal is as it was."""
        for _ in range(PATIENCE):
            if not self.read():
                break
            time.sleep(0.01)
        else:
            status = Path(f"/proc/{self.pid}/status")
            state = status.read_text()[:60] if status.exists() else "gone"
            pytest.fail(f"it does not end: {state!r} {self.raw[-500:]!r}")
        attributes = termios.tcgetattr(self._fd)
        self._process.wait()
        self._process.close()
        assert attributes == self._before
        assert "Traceback" not in self.raw and "Exception" not in self.raw, self.raw
        modes, face = self._emulator.mode, self._emulator.cursor.attrs
        assert pyte.modes.DECTCEM in modes and pyte.modes.DECAWM in modes
        assert not modes & {mode << 5 for mode in (47, 1049, 2004, 2026)}
        assert face._replace(data=" ") == self._emulator.default_char
        assert self._process.exitstatus is not None, self._process.signalstatus
        return int(self._process.exitstatus)


def attributes() -> list[Any]:
    """Of a terminal that is new."""
    master, slave = os.openpty()
    try:
        return termios.tcgetattr(slave)
    finally:
        os.close(master)
        os.close(slave)


def moment(rng: random.Random, most: float = 1.0) -> float:
    """Seconds; the beginning, where more happens, is the likeliest."""
    return float(most * rng.random() ** 6)


# ---- chat ----------------------------------------------------------------------


class Chat(Job):
    """A chat in which signals come."""

    def __init__(self, qwen3: Command, rng: random.Random) -> None:
        full = ["--ctx", "4096", "--overflow", "drop-oldest"]
        super().__init__(qwen3, "chat", *MUSING, "--threads", "1", *full)
        self._rng = rng
        self.until(lambda: self.reads_lines)

    def interrupt(self) -> None:
        """Ctrl-C, or what it sends; a key is one only where no lines are read."""
        if self._rng.random() < 0.5 and not self.reads_lines:
            self.press("c")
        else:
            self.send(INT)

    def ask(self, text: str) -> None:
        """To the moment when it is no more at its prompt."""
        self.type(f"{text}\r")
        self.until(lambda: not self.reads_lines)

    def answer(self, thinking: bool) -> None:
        """A moment of a reply, and a signal in it."""
        rng = self._rng
        self.ask("hello /think" if thinking else "hello /no_think")
        self.sleep(moment(rng))
        kind = rng.choice(["once", "once", "twice", "stop", "resize"])
        if kind == "stop" and not self.reads_lines:
            with_key = rng.random() < 0.5
            self.stop_and_go(
                rng, (lambda: self.press("z")) if with_key else lambda: self.send(TSTP)
            )
        elif kind == "resize":
            self.resize(rng.choice([40, 80, 200]), rng.choice([8, 24, 50]))
            self.sleep(rng.random() / 50)
        self.interrupt()
        if kind == "twice":
            self.sleep(rng.random() / 10)
            self.interrupt()
        elif thinking:
            self.sleep(rng.random() / 20)
            self.interrupt()
        # Once is enough for an answer, and twice for thoughts: none may be lost.
        self.until(lambda: self.reads_lines)

    def prompt(self) -> None:
        """A moment in which somebody types."""
        rng = self._rng
        self.type("so")
        self.sleep(moment(rng) / 5)
        kind = rng.choice(["key", "signal", "stop", "resize"])
        if kind == "key":
            self.press("c")
        elif kind == "signal":
            self.send(INT)
        elif kind == "stop":
            with_key = rng.random() < 0.5
            self.stop_and_go(
                rng, (lambda: self.press("z")) if with_key else lambda: self.send(TSTP)
            )
        else:
            self.resize(rng.choice([40, 80, 200]), rng.choice([8, 24, 50]))
        self.sleep(rng.random() / 50)
        self.press("u")  # deletes the line, where Ctrl-C has not
        self.until(lambda: self.reads_lines)

    def says(self, line: str, pattern: str) -> str:
        """What it writes behind a line, up to a pattern."""
        start = len(self.raw)
        self.type(f"{line}\r")
        self.until(lambda: re.search(pattern, self.raw[start:], re.DOTALL) is not None)
        self.until(lambda: self.reads_lines)
        return self.raw[start:]


@pytest.mark.parametrize(("seed", "end"), [(1, None), (2, TERM), (3, HUP), (4, TERM)])
def test_signals_in_a_chat(seed: int, end: int | None, qwen3: Command) -> None:
    rng = random.Random(seed)
    chat = Chat(qwen3, rng)
    asked = 0
    for _ in range(42):
        if rng.random() < 0.2:
            chat.prompt()
        else:
            chat.answer(thinking=rng.random() < 0.5)
            asked += 1
    chat.resize(120, 24)
    told = chat.says("/stats", r"\d+ turns?, ")
    (path,) = transcripts.stored()
    turns = transcripts.read(path).turns
    assert int(_TURNS.search(told)[1]) == len(turns)
    assert len(turns) + chat.raw.count("the message was taken back") <= asked
    for turn in turns:  # the model itself may say nothing
        assert turn.assistant["content"] or turn.statistics["answer_stop"] == "end"

    chat.says("/clear", "forgot|clear")
    for name in ("temp", "top-k", "top-p", "presence-penalty"):
        chat.says(f"/set {name} {'0' if name == 'temp' else 'none'}", name)
    chat.says(f"{QUESTION} /think", r"60.*answer \d+ tokens \(end\)")
    if end is None:
        chat.press("d")
        assert chat.code() == 0
    else:
        chat.says("/set temp 2", "temp")
        chat.says("/set presence-penalty -20", "presence")
        chat.ask("hello")
        chat.sleep(moment(rng))
        chat.send(end)
        assert chat.code() == 128 + end
    turns = transcripts.read(path).turns
    assert turns[0].assistant["content"] == "60"
    done = qwen3("chat", "--session", path.stem, "--temp", "0", input=QUESTION)
    assert (done.returncode, done.stdout) == (0, "60\n")


@pytest.mark.parametrize("number", [TSTP, signal.SIGSTOP])
def test_a_prompt_that_was_stopped_is_there_again(number: int, qwen3: Command) -> None:
    chat = Chat(qwen3, random.Random(0))
    chat.type("/st")
    chat.until(lambda: "/st" in chat.screen)
    chat.send(number)
    chat.until(lambda: chat.stopped)
    if number == TSTP:
        assert termios.tcgetattr(chat._fd)[3] == chat._before[3]
    termios.tcsetattr(chat._fd, termios.TCSANOW, chat._before)  # the shell's, for its own prompt
    chat.send(CONT)
    chat.until(lambda: chat.reads_lines)
    told = chat.says("atx\x7fs", r"\d+ turns?, ")
    assert "> /stats" in chat.screen and "0 turns, " in told
    chat.press("d")
    assert chat.code() == 0


def test_a_storm_of_interrupts_at_the_prompt(qwen3: Command) -> None:
    rng = random.Random(5)
    chat = Chat(qwen3, rng)
    for _ in range(30):
        for _ in range(2):
            chat.send(INT)
            chat.sleep(rng.random() / 200)
        chat.sleep(0.02)
    chat.says("/stats", "0 turns, ")
    chat.press("d")
    assert chat.code() == 0


def test_a_chat_whose_terminal_is_gone(qwen3: Command) -> None:
    chat = Chat(qwen3, random.Random(0))
    chat.ask("hello /no_think")
    start = len(chat.raw)
    chat.until(lambda: len(chat.raw) > start + 1000)  # more than its prompt draws
    chat.interrupt()
    chat.until(lambda: chat.reads_lines)
    chat.ask("hello /no_think")
    chat.sleep(0.1)
    # Not by its number, which would be closed again, as another's, with the object.
    chat._process.ptyproc.fileobj.close()
    for _ in range(PATIENCE):
        if not Path(f"/proc/{chat.pid}").exists():
            break
        time.sleep(0.01)
    else:
        pytest.fail("it does not end")
    (path,) = transcripts.stored()
    assert len(transcripts.read(path).turns) >= 1


# ---- run -----------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "chat"])
def test_the_panel_is_off_the_screen_while_it_is_stopped(command: str, qwen3: Command) -> None:
    prompt = ["hello"] if command == "run" else []
    job = Job(qwen3, command, *prompt, *THINKING, "--threads", "1")
    if command == "chat":
        job.until(lambda: job.reads_lines)
        job.type("hello\r")
    for _ in range(3):
        job.until(lambda: "▾ thinking" in job.screen)
        job.press("z")
        job.until(lambda: job.stopped)
        job.read()
        assert "▾" not in job.screen
        job.send(CONT)
    job.until(lambda: "▾ thinking" in job.screen)
    job.send(TERM)
    assert job.code() == 128 + TERM


@pytest.mark.parametrize("seed", range(20))
def test_a_signal_in_a_run_on_a_terminal(seed: int, qwen3: Command) -> None:
    rng = random.Random(100 + seed)
    thinking = seed % 2 == 0
    # Its answer ends by itself, at one of these letters.
    stops = [word for letter in "aeiot" for word in ("--stop", letter)]
    args = [*MUSING, "--seed", "1", *stops] if thinking else ENDLESS
    job = Job(qwen3, "run", "hello", *args, "--threads", "1")
    if seed % 4 < 2:
        job.until(lambda: job.raw != "")
        job.sleep(moment(rng))
    else:  # it may not have begun to answer
        job.sleep(rng.random())
    kind = ["once", "twice", "term", "hup", "stop", "resize", "twice", "once", "term", "stop"][
        seed // 2
    ]
    if kind == "stop":
        job.stop_and_go(rng, lambda: job.send(TSTP))
    elif kind == "resize":
        job.resize(rng.choice([40, 200]), rng.choice([8, 50]))
        job.sleep(0.02)
    number = {"term": TERM, "hup": HUP}.get(kind, INT)
    job.send(number)
    if kind == "twice":
        job.sleep(rng.random() / 10)
        job.send(INT)
    code = job.code()
    statistics = _STATISTICS.search(job.text)
    if number != INT:
        assert code == 128 + number
    elif code == 0:  # it was among the thoughts: now there is an answer
        assert thinking and statistics
        assert statistics[1] == "user" and statistics[3] in ("stop", "end")
    else:
        assert code == 130
        # The second may have come behind the answer.
        assert not statistics or statistics[3] == "user" or kind == "twice"


@pytest.mark.parametrize("seed", range(9))
def test_a_signal_in_a_run_through_pipes(seed: int, qwen3: Command) -> None:
    rng = random.Random(200 + seed)
    args = ENDLESS if seed % 3 else [*MUSING, "--seed", "1"]
    number = [INT, INT, TERM, HUP, INT][seed % 5]
    with begun(qwen3, "run", "hello", *args, "--threads", "1") as process:
        if args is ENDLESS and seed % 2:
            assert process.stdout and process.stdout.peek(1)
            time.sleep(moment(rng))
        else:
            time.sleep(rng.random())
        process.send_signal(number)
        if seed % 5 == 1:
            time.sleep(rng.random() / 10)
            process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE / 100)
    # A signal that comes before there is anything to end ends the process, for a shell with 130.
    assert process.returncode in ((130, -INT) if number == INT else (-number,))
    assert err == b""
    answer = out.removesuffix(b"\n")
    assert answer == answer[:1] * len(answer)  # one letter, as ENDLESS has it
    assert args is ENDLESS or not out


@pytest.mark.parametrize("seed", range(5))
def test_a_signal_in_a_chat_through_pipes(seed: int, qwen3: Command) -> None:
    rng = random.Random(300 + seed)
    with begun(qwen3, "chat", *ENDLESS, "--threads", "1") as process:
        assert process.stdin and process.stdout
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        process.stdout.read(1)
        time.sleep(moment(rng))
        process.send_signal(INT)
        assert process.wait(PATIENCE / 100) == 130
        assert process.stderr and process.stderr.read() == b""


def begun(qwen3: Command, *args: str) -> subprocess.Popen[bytes]:
    """Started with pipes, when its own code has begun."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN, *args],
        stdin=pipe if args[0] == "chat" else subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        cwd=qwen3.home,
        env=environment(qwen3.home),
    )
    while not (qwen3.home / "begun").exists():
        assert process.poll() is None
        time.sleep(0.005)
    return process
