"""A Hugging Face Hub on loopback: repositories behind real HTTP, small files from the hub
itself, large ones by a redirect to a second host:port, and faults by plan."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_RANGE = re.compile(r"bytes=(\d+)-(\d*)\Z")
_LARGE = (".gguf", ".safetensors")


@dataclass
class Repository:
    """One commit of a repository."""

    files: dict[str, bytes]
    commit: str = "1" * 40
    names: dict[str, str] = field(default_factory=dict)  # further revisions: commit
    token: str | None = None  # who has it may read; None: everybody
    gated: bool = False
    siblings: list[Any] | None = None  # what is listed instead of the files

    def listed(self) -> list[Any]:
        if self.siblings is not None:
            return self.siblings
        return [entry(name, data) for name, data in self.files.items()]


def digest(name: str, data: bytes) -> str:
    """What the hub calls a file: its sha256 if it is large, else its git blob id."""
    if name.endswith(_LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def entry(name: str, data: bytes) -> dict[str, Any]:
    """A file as the hub lists it."""
    told: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": "0" * 40}
    if name.endswith(_LARGE):
        told["lfs"] = {"sha256": digest(name, data), "size": len(data), "pointerSize": 134}
    else:
        told["blobId"] = digest(name, data)
    return told


@dataclass(frozen=True)
class Seen:
    """A request."""

    host: str  # hub or cdn
    method: str
    path: str
    headers: Mapping[str, str]


Fault = Callable[["_Handler", bytes], None]


def status(code: int, **headers: str) -> Fault:
    """An error; Retry_After names the header Retry-After."""
    return lambda handler, _: handler.answer(
        code, b"", {name.replace("_", "-"): value for name, value in headers.items()}
    )


def redirect(url: str) -> Fault:
    return status(302, Location=url)


def cut(n: int) -> Fault:
    """The connection ends after n bytes."""
    return lambda handler, data: handler.content(data, stop=n)


def slow(n: int, seconds: float) -> Fault:
    """A pause before every n bytes."""
    return lambda handler, data: handler.content(data, step=n, pause=lambda _: time.sleep(seconds))


def stalled(n: int, until: Event) -> Fault:
    """Nothing comes after n bytes, until an event."""

    def pause(at: int) -> None:
        if at:
            until.wait()

    return lambda handler, data: handler.content(data, step=n, pause=pause)


def notified(sent: Event) -> Fault:
    """Tells that all was sent."""

    def fault(handler: _Handler, data: bytes) -> None:
        handler.content(data)
        sent.set()

    return fault


def shifted(by: int) -> Fault:
    """A Content-Range that was not asked for."""
    return lambda handler, data: handler.content(data, shift=by)


def flipped(handler: _Handler, data: bytes) -> None:
    """One wrong bit."""
    middle = len(data) // 2
    handler.content(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])


def unranged(handler: _Handler, data: bytes) -> None:
    """200 for 206."""
    handler.content(data, ranges=False)


def longer(handler: _Handler, data: bytes) -> None:
    """More than there is, and nothing said of how much."""
    handler.answer(200, data + b"more", {}, length=False)


class LoopbackHub:
    """Serves from the start of a with to its end. faults: for each of "api", "resolve" and
    "content" what the next requests meet; None, or no more of them: nothing."""

    def __init__(self, repositories: dict[str, Repository]) -> None:
        self.repositories = repositories
        self.faults: dict[str, deque[Fault | None]] = {
            what: deque() for what in ("api", "resolve", "content")
        }
        self.always: dict[str, Fault] = {}  # where there are no more of them
        self.seen: list[Seen] = []
        self._lock = Lock()
        self._servers = {name: _Server(self, name) for name in ("hub", "cdn")}
        self.url, self.cdn = (server.url for server in self._servers.values())

    def __enter__(self) -> LoopbackHub:
        for server in self._servers.values():
            Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Nobody is there any more."""
        while self._servers:
            _, server = self._servers.popitem()
            server.shutdown()
            server.server_close()

    def received(self, host: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.host == host]

    def plan(self, what: str, *faults: Fault | None) -> None:
        self.faults[what].extend(faults)

    def note(self, seen: Seen) -> None:
        with self._lock:
            self.seen.append(seen)

    def fault(self, what: str) -> Fault | None:
        with self._lock:
            plan = self.faults[what]
            return plan.popleft() if plan else self.always.get(what)

    def blob(self, name: str) -> bytes:
        """A large file by its sha256."""
        for repository in self.repositories.values():
            for path, data in repository.files.items():
                if digest(path, data) == name:
                    return data
        raise KeyError(name)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: LoopbackHub, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.name = hub, name
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """A client that hung up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, at = self.server.hub, urlsplit(self.path)
        hub.note(Seen(self.server.name, self.command, self.path, dict(self.headers.items())))
        path = unquote(at.path)
        if self.server.name == "cdn":
            self._serve("content", hub.blob(path[1:]))
        elif found := re.match(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?\Z", path):
            self._api(found[1], found[2] == "tree", found[3] or "main", parse_qs(at.query))
        elif found := re.match(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)\Z", path):
            self._resolve(found[1], found[2], found[3])
        else:
            self.answer(404, b"", {})

    def _allowed(self, name: str, revision: str) -> Repository | None:
        """The repository, or an answer like the hub's, which does not tell what it hides."""
        found = self.server.hub.repositories.get(name)
        token = self.headers.get("Authorization")
        mine = found is not None and found.token in (None, (token or "").removeprefix("Bearer "))
        if found is None or not mine:
            code = "GatedRepo" if found and found.gated else "RepoNotFound"
            self.answer(403 if token else 401, b"{}", {"X-Error-Code": code})
            return None
        if revision not in ("main", found.commit, *found.names):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return None
        return found

    def _api(self, name: str, tree: bool, revision: str, query: dict[str, Any]) -> None:
        if fault := self.server.hub.fault("api"):
            fault(self, b"{}")
        elif found := self._allowed(name, revision):
            listed = found.listed()
            commit = found.names.get(revision, found.commit)
            told: Any = {"id": name, "sha": commit, "siblings": listed}
            if tree:
                told = [
                    {"type": "file", "path": each["rfilename"], "size": each["size"]}
                    | {"oid": each["blobId"]}
                    | (
                        {"lfs": each["lfs"] | {"oid": each["lfs"]["sha256"]}}
                        if "lfs" in each
                        else {}
                    )
                    for each in listed
                ]
            elif not query.get("blobs"):
                told["siblings"] = [{"rfilename": each["rfilename"]} for each in listed]
            self.answer(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        hub = self.server.hub
        if fault := hub.fault("resolve"):
            fault(self, b"")
        elif found := self._allowed(name, revision):
            if path not in found.files:
                self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
                return
            data = found.files[path]
            known = digest(path, data)
            headers = {"X-Repo-Commit": found.commit, "ETag": f'"{known}"'}
            if path.endswith(_LARGE):
                headers |= {"X-Linked-Etag": f'"{known}"', "X-Linked-Size": str(len(data))}
                self.answer(302, b"", headers | {"Location": f"{hub.cdn}/{known}"})
            else:
                self._serve("content", data, headers)

    def _serve(self, what: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        if self.command == "GET" and (fault := self.server.hub.fault(what)):
            fault(self, data)
        else:
            self.content(data, headers=headers)

    def content(
        self,
        data: bytes,
        *,
        headers: dict[str, str] | None = None,
        ranges: bool = True,
        stop: int | None = None,
        shift: int = 0,
        step: int = 2**16,
        pause: Callable[[int], None] = lambda _: None,
    ) -> None:
        """The bytes that were asked for; stop: only so many of them. pause: is called before
        every step with what was sent."""
        found = _RANGE.match(self.headers.get("Range", "")) if ranges else None
        start = int(found[1]) if found else 0
        if found and start >= len(data):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        told = dict(headers or {})
        if found:
            told["Content-Range"] = f"bytes {start + shift}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        self._head(206 if found else 200, told | {"Content-Length": str(len(body))})
        if self.command == "HEAD":
            return
        sent = body if stop is None else body[:stop]
        for at in range(0, len(sent), step):
            pause(at)
            self.wfile.write(sent[at : at + step])
        if stop is not None:
            self._hang_up()

    def answer(
        self, code: int, body: bytes, headers: dict[str, str], *, length: bool = True
    ) -> None:
        self._head(code, headers | ({"Content-Length": str(len(body))} if length else {}))
        if self.command != "HEAD":
            self.wfile.write(body)
        if not length:
            self._hang_up()

    def _head(self, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
