"""Commands forked from a process that has imported what they import: the start takes a tenth.

Each is a process of its own, with its own pipes, folder and environment, and ends like one that was
started from nothing. `python tests/forked.py FD` serves requests from a socket, one by one.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import typer.main

import quant
import qwen3cli
from qwen3cli import __main__

_AT_START = ("PYTHON", "LANG", "LC_")  # variables that Python reads when it starts
_REQUEST = 1 << 18  # bytes, at most


class Server:
    """The process that forks. It starts with the first command, and ends with this one."""

    def __init__(self, env: dict[str, str]) -> None:
        self._env = env
        self._socket: socket.socket | None = None

    def can_run(self, env: dict[str, str]) -> bool:
        """Whether a start in this environment begins as the server's did."""
        names = [name for name in {*env, *self._env} if name.startswith(_AT_START)]
        return all(env.get(name) == self._env.get(name) for name in names)

    def run(
        self, args: list[str], *, input: bytes, cwd: Path, env: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[bytes]:
        """As subprocess.run of the command with args, which captures its output."""
        server = self._start() if self._socket is None else self._socket
        (stdin, write), (out, stdout), (err, stderr) = (os.pipe() for _ in range(3))
        request = json.dumps([args, str(cwd), env]).encode()
        socket.send_fds(server, [request], [stdin, stdout, stderr])
        for fd in (stdin, stdout, stderr):
            os.close(fd)
        read: dict[int, bytes] = {}
        readers = [Thread(target=_read, args=(fd, read)) for fd in (out, err)]
        for reader in readers:
            reader.start()
        with suppress(BrokenPipeError), os.fdopen(write, "wb") as file:
            file.write(input)
        server.settimeout(timeout)
        try:
            status = int(server.recv(16))
        except TimeoutError:
            self._socket = None
            raise
        for reader in readers:
            reader.join()
        return subprocess.CompletedProcess(args, status, read[out], read[err])

    def _start(self) -> socket.socket:
        self._socket, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _REQUEST)
        with theirs:
            fd = theirs.fileno()
            command = [sys.executable, __file__, str(fd)]
            self._process = subprocess.Popen(
                command, pass_fds=[fd], env=self._env, stdin=subprocess.DEVNULL
            )
        return self._socket


def _read(fd: int, into: dict[int, bytes]) -> None:
    with os.fdopen(fd, "rb") as file:
        into[fd] = file.read()


def _serve(requests: socket.socket) -> None:
    """Returns in the process of a command, or where nobody asks any more."""
    while True:
        data, fds, _, _ = socket.recv_fds(requests, _REQUEST, 3)
        if not data:
            sys.exit()
        child = os.fork()
        if not child:
            break
        for fd in fds:
            os.close(fd)
        _, status = os.waitpid(child, 0)
        requests.send(str(os.waitstatus_to_exitcode(status)).encode())
    requests.close()
    for at, fd in enumerate(fds):
        os.dup2(fd, at)
        os.close(fd)
    args, cwd, env = json.loads(data)
    sys.argv[1:] = args
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)


def _import_everything() -> None:
    """But huggingface_hub, which reads the environment when it is imported."""
    for package in (qwen3cli, quant):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for name in ("jinja2", "rich.progress", "rich.table", "typer.rich_utils"):
        importlib.import_module(name)
    commands: Any = importlib.import_module("qwen3cli.cli.commands")
    commands.app = typer.main.get_command(commands.app)
    assert "huggingface_hub.constants" not in sys.modules


if __name__ == "__main__":
    _import_everything()
    gc.freeze()  # no collection of a command looks at them
    _serve(socket.socket(fileno=int(sys.argv[1])))
    __main__.main()
