"""The command as its users start it: through pipes, or on a pseudo-terminal."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pyte
from emulator import Screen, is_sane, lines_of, resize, scrolled
from forked import Server

COMMAND = [sys.executable, "-m", "qwen3cli"]
ROOT = Path(__file__).resolve().parent.parent
QUESTION = "What is 17 + 48 - 5?"
PATIENCE = 120  # seconds: only what hangs takes longer, on a machine of any load
# The first token of the answer over and over, to the end of a context that takes minutes.
ENDLESS = ["-m", "nano", "--no-think", "--temp", "0", "--presence-penalty", "-100",
           "--ctx", "32768"]  # fmt: skip
# To "hello" thoughts to the end of such a context: drawn from the 8 tokens that came most, which
# repeats nothing for long. (A loop would be noticed.)
THINKING = ["-m", "nano", "--temp", "50", "--top-k", "8", "--top-p", "1", "--seed", "3",
            "--presence-penalty", "-100", "--ctx", "32768"]  # fmt: skip
_STYLES = re.compile(r"\x1b\[[02]m")


def environment(home: Path, **more: str) -> dict[str, str]:
    """An environment in which nothing is installed, and no GPU is there."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
    folders = {
        "HOME": str(home),
        "XDG_DATA_HOME": str(home / "data"),
        "XDG_STATE_HOME": str(home / "state"),
        "HF_HOME": str(home / "huggingface"),
        "QWEN3_GPU_LIBRARY": os.devnull,
    }
    return kept | folders | {"TERM": "xterm-256color"} | more


_SERVER = Server(environment(Path("/")))


class Command:
    """qwen3 with a home of its own. cwd is the home."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(
        self, *args: str, input: str | bytes = b"", **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs it through pipes, to its end."""
        data = input.encode() if isinstance(input, str) else input
        where = {"cwd": self.home, "env": environment(self.home, **env), "timeout": PATIENCE}
        if _SERVER.can_run(where["env"]):
            done = _SERVER.run([*args], input=data, **where)
        else:
            done = subprocess.run([*COMMAND, *args], input=data, capture_output=True, **where)
        out, err = done.stdout.decode(), done.stderr.decode()
        assert "Traceback" not in err and "nanobind" not in err, err
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def shell(self, line: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Runs a line of bash in which "$@" stands for qwen3."""
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line, "bash", *COMMAND],
            capture_output=True,
            cwd=self.home,
            env=environment(self.home, **env),
            text=True,
            timeout=PATIENCE,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def start(self, *args: str, **env: str) -> subprocess.Popen[bytes]:
        """Starts it with pipes."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*COMMAND, *args],
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            cwd=self.home,
            env=environment(self.home, **env),
        )

    def terminal(
        self, *args: str, columns: int = 120, lines: int = 24, scripted: bool = False, **env: str
    ) -> TerminalCommand:
        """Starts it on a pseudo-terminal. scripted: with the model of scripted.py."""
        command = [sys.executable, str(ROOT / "tests" / "scripted.py")] if scripted else COMMAND
        return TerminalCommand([*command, *args], self.home, env, columns, lines)


class TerminalCommand:
    """A command on a pseudo-terminal, and what somebody sees there."""

    def __init__(
        self,
        argv: list[str],
        home: Path,
        env: dict[str, str],
        columns: int = 120,
        lines: int = 24,
    ) -> None:
        self.raw = ""
        self._emulator = Screen(columns, lines, history=10_000)
        self._stream = pyte.Stream(self._emulator)
        self.echoes = False  # at the end: the terminal is as a shell expects it
        self._process = pexpect.spawn(
            argv[0],
            argv[1:],
            cwd=str(home),
            # Where the cursor is, which prompt_toolkit asks, is answered by who reads the output.
            env=environment(home, **{"PROMPT_TOOLKIT_NO_CPR": "1"} | env),
            dimensions=(lines, columns),
            encoding="utf-8",
            codec_errors="replace",
            timeout=PATIENCE,
        )
        self._process.delaybeforesend = None  # everything here waits for what it answers
        self._process.ptyproc.delayafterclose = 0
        self._emulator.write_process_input = self._process.send

    def _see(self, text: str) -> None:
        self.raw += text
        self._stream.feed(text)

    def wait_for(self, pattern: str) -> str:
        """The output up to and with the next match of a regular expression."""
        self._process.expect(pattern)
        seen = str(self._process.before) + str(self._process.after)
        self._see(seen)
        return seen

    def wait_for_prompt(self) -> None:
        """Waits until chat's line editor has drawn its prompt: pastes on, cursor shown."""
        self.wait_for(r"\?2004h.*?\?25h")

    def wait_to_see(self, text: str) -> None:
        """Waits until a text is on the screen."""
        self.wait_until_it_shows(lambda: text in self.screen, text)

    def wait_until_it_shows(self, condition: Callable[[], bool], what: str = "it") -> None:
        """Waits until the screen is as it should be."""
        end = time.monotonic() + PATIENCE  # a panel never ceases to change
        while not condition():
            try:
                self.wait_for(".+")
                assert time.monotonic() < end
            except (pexpect.TIMEOUT, pexpect.EOF, AssertionError):
                raise AssertionError(f"{what!r} does not show:\n{self.screen}") from None

    def resize(self, columns: int, lines: int = 24) -> None:
        """Between two pieces of the output."""
        while self._process.expect([".+", pexpect.TIMEOUT], timeout=0.02) == 0:
            self._see(str(self._process.after))
        resize(self._emulator, columns, lines)
        self._process.setwinsize(lines, columns)

    def type(self, text: str) -> None:
        self._process.send(text)

    def press(self, key: str) -> None:
        """Ctrl and a letter."""
        self._process.sendcontrol(key)

    def signal(self, number: int) -> None:
        self._process.kill(number)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Waits for what the output does not show."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.01)

    @property
    def echo(self) -> bool:
        """Whether the terminal shows what is typed, now."""
        return bool(self._process.getecho())

    @property
    def stopped(self) -> bool:
        """Whether Ctrl-Z, or a signal like it, has stopped it."""
        state = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "T"

    def killed_by(self) -> int:
        """Waits for the end by a signal, and tells by which."""
        self._process.expect(pexpect.EOF)
        self._see(str(self._process.before))
        self.echoes = self._process.getecho()
        self._process.wait()
        self._process.close()
        assert self._process.signalstatus is not None, self._process.exitstatus
        return int(self._process.signalstatus)

    def finish(self) -> int:
        """Waits for the end; the exit code."""
        self._process.expect(pexpect.EOF)
        self._see(str(self._process.before))
        self.echoes = self._process.getecho()
        self._process.wait()
        self._process.close()
        assert "Traceback" not in self.raw
        assert self._process.exitstatus is not None, self._process.signalstatus
        return int(self._process.exitstatus)

    def wait_for_file(self, file: Path, size: int) -> None:
        """Waits until a file has so many bytes."""
        self.wait_until(lambda: file.exists() and file.stat().st_size >= size)

    @property
    def text(self) -> str:
        """The output without line ends' carriage returns and without the dim face."""
        return _STYLES.sub("", self.raw).replace("\r\n", "\n")

    @property
    def lines(self) -> list[str]:
        """The lines of the screen down to the last that is not empty."""
        return lines_of(self._emulator)

    @property
    def screen(self) -> str:
        """What the screen shows."""
        return "\n".join(self.lines)

    @property
    def everything(self) -> list[str]:
        """The lines with those that scrolled away."""
        return [*scrolled(self._emulator), *self.lines]

    @property
    def is_sane(self) -> bool:
        """Cursor shown, lines wrapping, no style left, the main screen."""
        return is_sane(self._emulator)


# ---- a chat on a terminal -------------------------------------------------------------

ANSWERED = r"seed\s+\d+"  # the end of the statistics


def chat(qwen3: Command, *args: str, columns: int = 80, **env: str) -> TerminalCommand:
    terminal = qwen3.terminal("chat", *args, columns=columns, **env)
    terminal.wait_for_prompt()
    return terminal


def say(terminal: TerminalCommand, line: str, pattern: str = ANSWERED) -> None:
    terminal.type(f"{line}\r")
    terminal.wait_for(pattern)
    terminal.wait_for_prompt()


def leave(terminal: TerminalCommand) -> str:
    """What is on the screen at the end."""
    terminal.press("d")
    assert terminal.finish() == 0
    assert terminal.echoes
    return terminal.screen
