"""Fixtures that several files of tests share."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import typer.main
from cards import devices  # noqa: F401
from commandline import Command
from emulated import emulated_gpu  # noqa: F401
from hub_server import LoopbackHub, Repository
from pulling import (
    GGUF,
    MODEL,
    NAME,
    SPLIT,
    TOKEN,
    WEIGHTS,
    Outcome,
    Pull,
    leading_elsewhere,
    set_up,
)

from qwen3cli import config
from qwen3cli.cli import commands
from qwen3cli.hub import remote

COMMAND = typer.main.get_command(commands.app)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in the background of a script:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what the tests start inherits it
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup, likewise
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

for key in config.KEYS:  # of whoever runs the tests
    os.environ.pop(config.variable(key), None)


@pytest.fixture
def qwen3(tmp_path: Path) -> Command:
    """The command in a home of its own."""
    return Command(tmp_path)


@pytest.fixture(scope="session")
def forks() -> Any:
    """Processes that need no time to import things. There is one server that forks them, whichever
    test is the first: they have the environment from before any test changed it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "pytest",
            "quant.quantize",
            "qwen3cli.chat.transcripts",
            "qwen3cli.engine",
            "qwen3cli.library.pull",
            "huggingface_hub.utils._auth",
            "huggingface_hub.utils._fixes",
        ]
    )
    forkserver.ensure_running()
    return context


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """The only network there is, and an empty cache."""
    repositories = {
        GGUF: Repository({NAME: MODEL, "README.md": b"about", ".gitattributes": b""}),
        "some/model-GGUF": Repository({**SPLIT, "some-model-f16.gguf": b"f" * 1000}),
        "Qwen/Qwen3-0.6B": Repository({**WEIGHTS, "pytorch_model.bin": b"p"}),
        "some/gated-GGUF": Repository({NAME: MODEL}, token=TOKEN, gated=True),
        "some/private-GGUF": Repository({NAME: MODEL}, token=TOKEN),
    }
    for name in leading_elsewhere():
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with LoopbackHub(repositories) as served:
        set_up(monkeypatch.setattr, served.url, tmp_path / "cache")
        yield served


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, none of which takes any time."""
    waited: list[float] = []
    monkeypatch.setattr(remote, "sleep", waited.append)
    return waited


@pytest.fixture
def pull(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pull:
    """The command in this process, built once: that takes longer than most pulls here."""
    monkeypatch.setattr(commands, "app", COMMAND)

    def run(*args: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["qwen3", "pull", *args])
        monkeypatch.setenv("QWEN3_TRACEBACK", "1")
        code = commands.main()
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return run
