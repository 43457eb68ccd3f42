"""Stored chats: a session is a file of JSON lines that is only ever appended to.

    $XDG_STATE_HOME/qwen3/sessions/ID.jsonl
    $XDG_STATE_HOME/qwen3/sessions/ID.kv        the kv cache of its chat, where that was saved

The first line is a header, every other one an event:

    {"format": "qwen3-session", "version": 1, "id", "time", "model", "system": TEXT or null}
    {"event": "turn", "time", "user": MESSAGE, "assistant": MESSAGE, "statistics": {...}}
    {"event": "replace", "time", "assistant": MESSAGE, "statistics": {...}}    in the last turn
    {"event": "undo", "time"}                                                  the last turn
    {"event": "clear", "time"}                                                 all turns
    {"event": "system", "time", "system": TEXT or null}
    {"event": "model", "time", "model": NAME}

Times are UTC. A line is on the disk before the next one is begun, so that what a power cut leaves
unfinished is the last line, which is dropped. Anything else that is wrong is an error.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import NoneType
from typing import Any, BinaryIO, NoReturn, cast

from quant.output import sync
from qwen3cli.errors import DamagedFile, FormatError, Qwen3Error, UsageError
from qwen3cli.folders import xdg
from qwen3cli.prompt import Message
from qwen3cli.screen.sanitize import json_line, one_line
from qwen3cli.screen.streams import reason

_FORMAT, _VERSION = "qwen3-session", 1
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")  # a file may be renamed by its owner
_TAIL = "23456789abcdefghjkmnpqrstuvwxyz"  # what is not taken for something else
_LARGEST = 64 * 2**20  # bytes of a file: what is longer is no chat
_DEEPEST = 16  # values within values of statistics and tool calls
_TITLE = 48  # characters


def folder() -> Path:
    """Where the sessions are. Raises OSError where the user has no home directory."""
    return xdg("XDG_STATE_HOME", ".local/state") / "sessions"


def stored() -> list[Path]:
    """The files of all sessions, the one that was used last first."""
    found = []
    with suppress(FileNotFoundError):
        for path in folder().iterdir():
            if path.suffix == ".jsonl" and _ID.fullmatch(path.stem):
                with suppress(FileNotFoundError):  # removed meanwhile
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode):
                        found.append((status.st_mtime_ns, path))
    return [path for _, path in sorted(found, reverse=True)]


def find(text: str) -> Path:
    """The session of this id, of the only id that begins so, or that ends in -text. Raises
    UsageError."""
    paths = {path.stem: path for path in stored()}
    if text in paths:
        return paths[text]
    if not text:
        raise UsageError("a session is named by the beginning of its id")
    meant = [
        each for each in paths if text and (each.startswith(text) or each.endswith("-" + text))
    ]
    if len(meant) == 1:
        return paths[meant[0]]
    if meant:
        more = f" and {len(meant) - 5} more" if len(meant) > 5 else ""
        raise UsageError(f"{text}: there are {', '.join(meant[:5])}{more}; name one of them")
    from difflib import get_close_matches

    close = get_close_matches(text[:64], paths, 3)
    hint = f"did you mean {' or '.join(close)}?" if close else "`qwen3 session ls` lists them"
    raise UsageError(f"{text[:64]}: there is no such session; {hint}")


@dataclass(frozen=True)
class Turn:
    """What was said, and what was answered."""

    time: datetime
    user: Message
    assistant: Message
    statistics: Mapping[str, Any]


class Stored:
    """A session as its events left it."""

    def __init__(self, path: Path, began: datetime, model: str, system: str | None) -> None:
        self.path = path
        self.began = began
        self.model = model
        self.system = system
        self.turns: list[Turn] = []

    @property
    def id(self) -> str:
        return self.path.stem

    @property
    def kv_path(self) -> Path:
        """Where the kv cache of the chat is, if it was saved."""
        return self.path.with_suffix(".kv")

    @property
    def messages(self) -> list[Message]:
        """Of all turns, without the system message."""
        return [message for turn in self.turns for message in (turn.user, turn.assistant)]

    @property
    def title(self) -> str:
        """The beginning of the first message, on a line."""
        text = str(self.turns[0].user.get("content")) if self.turns else ""
        line = " ".join(one_line(text[: 10 * _TITLE]).split())
        return line if len(line) <= _TITLE else line[: _TITLE - 3].rstrip() + "..."

    def take(self, event: Mapping[str, Any]) -> None:
        """Does what an event says. Raises ValueError for one that is not as it should be,
        FormatError for one that this program does not know."""
        kind, when = _field(event, "event", str), _time(event)
        if kind == "turn":
            user, assistant = (_message(event, role) for role in ("user", "assistant"))
            self.turns.append(Turn(when, user, assistant, _statistics(event)))
        elif kind in ("replace", "undo"):
            if not self.turns:
                raise ValueError("it changes a turn, but there is none")
            last = self.turns.pop()
            if kind == "replace":
                assistant = _message(event, "assistant")
                self.turns.append(Turn(when, last.user, assistant, _statistics(event)))
        elif kind == "clear":
            self.turns.clear()
        elif kind == "system":
            self.system = _field(event, "system", str, NoneType)
        elif kind == "model":
            self.model = _field(event, "model", str)
        else:
            raise FormatError(f"{kind[:40]!r} is no event that this qwen3 knows")


def read(path: Path) -> Stored:
    """A session, whether it is open in a chat or not. Raises DamagedFile, FormatError for what a
    newer version wrote, and Qwen3Error where it cannot be read."""
    with _opened(path) as file:
        return _load(path, _contents(path, file))


def lines(path: Path) -> list[dict[str, Any]]:
    """The header and the events of a session. Raises as read does."""
    with _opened(path) as file:
        data = _contents(path, file)
    _load(path, data)
    return [_parsed(line) for line in _split(data)]


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keeps chats from opening a session. Raises Qwen3Error when one has it open."""
    with _opened(path) as file:
        _lock(path, file)
        yield


class Transcript(Stored):
    """A session that a chat writes to, and no other one meanwhile.

    What a call adds is on the disk when it returns. When it raises Qwen3Error because that could
    not be, all that was stored before is as it was, the transcript goes on in memory, and the next
    call that succeeds stores what is missing first: there are never gaps."""

    def __init__(self, path: Path, began: datetime, model: str, system: str | None) -> None:
        """create, open and latest are what makes one."""
        super().__init__(path, began, model, system)
        self._file: BinaryIO | None = None  # open as long as this is, for its lock
        self._seen = (0, 0, 0)  # device, inode and size when this last looked
        self._end = 0  # bytes of the file that are known to be right and on the disk
        self._missing: list[bytes] = []  # lines that have to be written there
        self._headed = False  # the header is in the file, or missing yet

    @classmethod
    def create(cls, model: str, system: str | None) -> Transcript:
        """A new session, which becomes a file with its first turn. Raises Qwen3Error where the
        user has no home directory."""
        now = _now()
        tail = "".join(secrets.choice(_TAIL) for _ in range(4))
        try:
            # The time as people's clocks have it: they look for the chat of yesterday evening.
            path = folder() / f"{now.astimezone():%Y%m%d-%H%M}-{tail}.jsonl"
        except OSError as error:
            raise Qwen3Error(f"chats cannot be stored: {reason(error)}") from None
        return cls(path, now, model, system)

    @classmethod
    def open(cls, text: str) -> Transcript:
        """The session of this id, or of the only one that begins so. Raises UsageError where
        there is none, Qwen3Error where it is open in another chat, and what read raises."""
        return cls._go_on(find(text))

    @classmethod
    def latest(cls) -> Transcript:
        """The session that was used last. Raises as open does."""
        paths = stored()
        if not paths:
            raise UsageError("there is no session to go on with; `qwen3 chat` begins one")
        return cls._go_on(paths[0])

    @classmethod
    def _go_on(cls, path: Path) -> Transcript:
        file = _opened(path)
        try:
            _lock(path, file)
            data = _contents(path, file)
            session = _load(path, data)
        except BaseException:
            file.close()
            raise
        self = cls(path, session.began, session.model, session.system)
        self.turns = session.turns
        self._file, self._headed = file, True
        self._end = len(_whole(data))
        self._seen = _identity(file.fileno())
        return self

    def turn(self, user: Message, assistant: Message, statistics: Mapping[str, Any]) -> None:
        """A message and its answer. statistics: any JSON values."""
        self._note("turn", user=user, assistant=assistant, statistics=statistics)

    def replace(self, assistant: Message, statistics: Mapping[str, Any]) -> None:
        """Another answer to the last message. Raises ValueError when there is none."""
        self._note("replace", assistant=assistant, statistics=statistics)

    def undo(self) -> None:
        """Takes the last turn back, if there is one."""
        if self.turns:
            self._note("undo")

    def clear(self) -> None:
        """Takes all turns back."""
        if self.turns:
            self._note("clear")

    def set_system(self, text: str | None) -> None:
        if text != self.system:
            self._note("system", system=text)

    def set_model(self, name: str) -> None:
        if name != self.model:
            self._note("model", model=name)

    def close(self) -> None:
        """Lets others open it. What is missing on the disk is tried once more; raises Qwen3Error
        when it has to be lost."""
        try:
            if self._missing:
                self._store("what was said since then is lost")
        finally:
            if self._file:
                self._file.close()
                self._file = None

    def __enter__(self) -> Transcript:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _note(self, kind: str, **more: Any) -> None:
        line = json_line({"event": kind, "time": _now().isoformat()} | more).encode()
        header = {
            "format": _FORMAT,
            "version": _VERSION,
            "id": self.id,
            "time": self.began.isoformat(),
            "model": self.model,
            "system": self.system,
        }
        self.take(_parsed(line))  # as it will be read, or not at all
        if not self._headed:
            if kind != "turn":
                return  # the header will have it
            self._missing.append(json_line(header).encode())
            self._headed = True
        self._missing.append(line)
        self._store()

    def _store(
        self, outlook: str = "what is missing is stored with the next turn, once that is mended"
    ) -> None:
        """Writes what is missing, all or nothing of it. outlook: what it means if that fails."""
        data = b"".join(self._missing)
        try:
            if self._end + len(data) > _LARGEST:
                raise OSError(errno.EFBIG, "the session is too long; begin another")
            if self._file is None:
                self._create(data)
            else:
                data = self._append(data)
        except OSError as error:
            raise Qwen3Error(
                f"{self.path}: cannot be written: {reason(error)}; {outlook}"
            ) from None
        self._missing, self._end = [], self._end + len(data)

    def _create(self, data: bytes) -> None:
        """The name comes last: there is no session without a turn."""
        for each in (self.path.parent.parent, self.path.parent):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(self.path.parent)
        part = self.path.with_suffix(".part")
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        file = os.fdopen(fd, "r+b", buffering=0)
        try:
            _lock(part, file)
            _write(fd, data, 0)
            os.fsync(fd)
            if self.path.exists():  # by chance, a million to one
                raise FileExistsError(errno.EEXIST, "another session has this id; begin a new one")
            part.rename(self.path)
        except BaseException:
            file.close()
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        self._file, self._seen = file, _identity(fd)
        with suppress(OSError):  # not every file system can
            sync(self.path.parent)
            sync(self.path.parent.parent)

    def _append(self, data: bytes) -> bytes:
        """Behind what is right, in place of a torn line. The bytes that were written."""
        fd = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            if _identity(fd) != self._seen:
                raise OSError(errno.EBUSY, "another program has changed it since this chat did")
            if os.pread(fd, 1, self._end - 1) != b"\n":  # an editor leaves the last one out
                data = b"\n" + data
            try:
                os.ftruncate(fd, self._end)
                _write(fd, data, self._end)
                os.fsync(fd)
            except BaseException:
                with suppress(OSError):
                    os.ftruncate(fd, self._end)
                raise
            finally:
                self._seen = _identity(fd)
        finally:
            os.close(fd)
        return data


# ---- files ------------------------------------------------------------------


def _opened(path: Path) -> BinaryIO:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "it is no regular file")
    except OSError as error:
        raise Qwen3Error(f"{path}: cannot be read: {reason(error)}") from None
    return os.fdopen(fd, "rb", buffering=0)


def _lock(path: Path, file: BinaryIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Qwen3Error(
            f"the session {path.stem} is in use by another qwen3; end that one first"
        ) from None
    except OSError:  # a file system without locks
        pass
    if os.fstat(file.fileno()).st_nlink == 0:
        raise UsageError(f"the session {path.stem} was removed a moment ago")


def _contents(path: Path, file: BinaryIO) -> bytes:
    """Raises DamagedFile for more than a session can be."""
    try:
        if os.fstat(file.fileno()).st_size <= _LARGEST:
            return file.read()
    except OSError as error:
        raise Qwen3Error(f"{path}: cannot be read: {reason(error)}") from None
    raise DamagedFile(f"{path}: no session is larger than {_LARGEST >> 20} MiB; {_remedy(path)}")


def _identity(fd: int) -> tuple[int, int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino, status.st_size


def _write(fd: int, data: bytes, position: int) -> None:
    while data:
        written = os.pwrite(fd, data, position)
        data, position = data[written:], position + written


def _sweep(where: Path) -> None:
    """Removes what was killed while it was created: an hour ago, so that nobody still is at it."""
    for part in where.glob("*.part"):
        with suppress(OSError):
            if time.time() - part.lstat().st_mtime > 3600:
                part.unlink()


def _remedy(path: Path) -> str:
    return f"mend it, or remove it with `qwen3 session rm {path.stem}`"


# ---- lines ------------------------------------------------------------------


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(microsecond=0)


def _whole(data: bytes) -> bytes:
    """The lines of a file without a torn last one: one that ends early, or of which a block did
    not reach the disk before the power went, and is zeros. No beginning of a JSON object is one,
    so a line that lacks but its newline is whole."""
    start = data.rfind(b"\n", 0, -1) + 1
    last = data[start:]
    torn = b"\0" in last
    if not torn and not last.endswith(b"\n"):
        try:
            _parsed(last)
        except ValueError:
            torn = True
    return data[:start] if torn else data


def _split(data: bytes) -> list[bytes]:
    whole = _whole(data)
    return whole.removesuffix(b"\n").split(b"\n") if whole else []


def _load(path: Path, data: bytes) -> Stored:
    session: Stored | None = None
    for number, line in enumerate(_split(data), 1):
        try:
            value = _parsed(line)
            if session is None:
                session = _begun(path, value)
            else:
                session.take(value)
        except FormatError as error:
            raise FormatError(
                f"{path}: line {number}: {error}; a newer one wrote it and can open it"
            ) from None
        except ValueError as error:
            raise DamagedFile(
                f"{path}: line {number} is damaged: {error}; {_remedy(path)}"
            ) from None
    if session is None:
        raise DamagedFile(f"{path}: there is no session in it; {_remedy(path)}")
    return session


def _begun(path: Path, header: Mapping[str, Any]) -> Stored:
    if header.get("format") != _FORMAT:
        raise ValueError("it is no header of a session")
    version = header.get("version")
    if type(version) is not int or version < 1:
        raise ValueError("it has no version")
    if version > _VERSION:
        raise FormatError(f"the format is of version {version}, this qwen3 reads {_VERSION}")
    model, system = _field(header, "model", str), _field(header, "system", str, NoneType)
    return Stored(path, _time(header), model, system)


def _parsed(line: bytes) -> dict[str, Any]:
    """Raises ValueError."""
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_refused, parse_float=_finite)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def _refused(text: str) -> NoReturn:
    raise ValueError(text)


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refused(text)


def _field(value: Mapping[str, Any], key: str, *kinds: type) -> Any:
    found = value.get(key)
    if not isinstance(found, kinds):
        raise ValueError(f"its {key} is not as it should be")
    return found


def _time(value: Mapping[str, Any]) -> datetime:
    try:
        found = datetime.fromisoformat(_field(value, "time", str))
        if found.tzinfo and 1970 <= found.year < 9999:
            return found
    except ValueError:
        pass
    raise ValueError("its time is not as it should be")


def _message(event: Mapping[str, Any], role: str) -> Message:
    """The user's or the assistant's message, with what belongs into one."""
    value = _field(event, role, dict)
    if value.get("role") != role:
        raise ValueError(f"its message of the {role} is of another role")
    kinds: dict[str, tuple[type, ...]] = {
        "role": (str,),
        "content": (str,) if role == "user" else (str, NoneType),
        "reasoning_content": (str, NoneType),
        "tool_calls": (list, NoneType),
        "name": (str,),
    }
    calls = value.get("tool_calls") or []
    _check_depth(calls)
    if isinstance(calls, list) and not all(isinstance(call, dict) for call in calls):
        raise ValueError("its tool_calls are not as they should be")
    found = {key: _field(value, key, *kinds[key]) for key in kinds if key in value}
    if "content" not in found:
        raise ValueError(f"its message of the {role} has no content")
    return cast(Message, found)


def _statistics(event: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = _field(event, "statistics", dict)
    _check_depth(found)
    return found


def _check_depth(value: Any, deepest: int = _DEEPEST) -> None:
    """So that what was read can be written."""
    if deepest == 0:
        raise ValueError("there are values within values within values in it")
    if isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            _check_depth(each, deepest - 1)
