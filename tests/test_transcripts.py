"""Stored chats: what was said is there again, whatever ended the program, the disk or the file."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from qwen3cli.chat import transcripts
from qwen3cli.chat.transcripts import Transcript, read
from qwen3cli.errors import DamagedFile, FormatError, Qwen3Error, UsageError
from qwen3cli.prompt import Message

KILLS = 40
STRANGE = "\x1b[31m \x9b \u202e \ud800 \u2028 \n\t 你好 \0 </think> 👩‍🚀"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "qwen3" / "sessions"


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, thoughts: str = "") -> Message:
    return {"role": "assistant", "content": text, "reasoning_content": thoughts}


def say(transcript: Transcript, text: str, thoughts: str = "") -> None:
    transcript.turn(user(text), assistant(text.upper(), thoughts), {"answer_tokens": len(text)})


def said(session: transcripts.Stored) -> list[str]:
    return [str(turn.user["content"]) for turn in session.turns]


def talk(*texts: str, system: str | None = None) -> Path:
    """A session of these turns, closed."""
    with Transcript.create("nano", system) as transcript:
        for text in texts:
            say(transcript, text)
    return transcript.path


def state(session: transcripts.Stored) -> tuple[Any, ...]:
    return session.model, session.system, session.messages, said(session)


# ---- what is stored ----------------------------------------------------------


def test_a_session_is_a_file_from_its_first_turn(folder: Path) -> None:
    transcript = Transcript.create("nano", "Be brief.")
    transcript.set_system("Be terse.")
    transcript.set_model("nano-moe")
    transcript.undo()
    transcript.clear()
    assert not folder.exists()
    say(transcript, "hello")
    assert [*folder.iterdir()] == [transcript.path]
    assert re.fullmatch(r"\d{8}-\d{4}-[a-z0-9]{4}", transcript.id)
    assert transcript.path.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700
    header, turn = map(json.loads, transcript.path.read_text().splitlines())
    assert (header["model"], header["system"], header["version"]) == ("nano-moe", "Be terse.", 1)
    assert turn["user"] == user("hello") and turn["statistics"] == {"answer_tokens": 5}


def test_every_call_is_on_the_disk_when_it_returns() -> None:
    """Random calls: what is read back is what the chat has, and goes on like it."""
    rng = random.Random(0)
    transcript = Transcript.create("nano", None)
    say(transcript, "0")
    calls: list[Callable[[str], None]] = [
        lambda text: say(transcript, text + STRANGE, STRANGE),
        lambda text: say(transcript, text),
        lambda text: transcript.replace(assistant(text), {}) if transcript.turns else None,
        lambda _: transcript.undo(),
        lambda text: transcript.set_system(rng.choice((None, text + STRANGE))),
        lambda text: transcript.set_model(text),
        lambda _: transcript.clear() if rng.random() < 0.2 else None,
    ]
    for number in range(120):
        rng.choice(calls)(str(number))
        assert state(read(transcript.path)) == state(transcript)
        if rng.random() < 0.2:
            transcript.close()
            transcript = Transcript.open(transcript.id)
    assert b"\x1b" not in transcript.path.read_bytes()
    lines = transcripts.lines(transcript.path)
    assert len(lines) == transcript.path.read_bytes().count(b"\n") > 60


def test_every_line_is_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the file held when it was synced last is all of it."""
    synced: dict[int, int] = {}
    fsync = os.fsync

    def noted(fd: int) -> None:
        fsync(fd)
        synced[os.fstat(fd).st_ino] = os.fstat(fd).st_size

    monkeypatch.setattr(os, "fsync", noted)
    transcript = Transcript.create("nano", None)
    for text in ("one", "two", "three"):
        say(transcript, text)
        status = transcript.path.stat()
        assert synced[status.st_ino] == status.st_size
        assert transcript.path.parent.stat().st_ino in synced


def test_a_message_has_what_its_turn_had() -> None:
    with Transcript.create("nano", None) as transcript:
        call = {"name": "add", "arguments": {"a": [1, 2.5, None]}}
        answer: Message = {"role": "assistant", "content": None, "tool_calls": [call]}
        transcript.turn(user("1 + 2.5"), answer, {"nested": {"rate": 1.5}})
    assert read(transcript.path).messages == [user("1 + 2.5"), answer]
    assert read(transcript.path).turns[0].statistics == {"nested": {"rate": 1.5}}


def test_what_could_not_be_read_again_is_not_written() -> None:
    transcript = Transcript.create("nano", None)
    say(transcript, "one")
    before = transcript.path.read_bytes()
    with pytest.raises(ValueError):
        transcript.turn(user("two"), assistant("2"), {"rate": float("nan")})
    with pytest.raises(ValueError):
        transcript.turn(assistant("two"), assistant("2"), {})
    assert (transcript.path.read_bytes(), said(transcript)) == (before, ["one"])


def test_the_latest_is_the_one_used_last() -> None:
    first, second = talk("first"), talk("second")
    os.utime(first, ns=(0, 10**9))
    os.utime(second, ns=(0, 2 * 10**9))
    with Transcript.latest() as latest:
        assert latest.path == second
    with Transcript.open(first.stem) as transcript:
        say(transcript, "again")
    assert transcripts.stored() == [first, second]
    with Transcript.latest() as latest:
        assert said(latest) == ["first", "again"]


def test_there_is_no_latest_before_the_first() -> None:
    with pytest.raises(UsageError, match="no session"):
        Transcript.latest()


# ---- torn files --------------------------------------------------------------


def test_cut_at_any_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what was not finished is lost, and the session goes on behind what was."""
    path = talk("one", "two " + STRANGE, "three", system="Be brief.")
    monkeypatch.setattr(os, "fsync", lambda _: None)
    whole = path.read_bytes()
    ends = [match.end() for match in re.finditer(b"\n", whole)]
    everything = said(read(path))
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        finished = sum(end - 1 <= cut for end in ends) - 1  # without its newline a line is whole
        if finished < 0:
            with pytest.raises(DamagedFile, match=rf"{path.name}: .*session rm"):
                read(path)
            continue
        assert said(read(path)) == everything[:finished], cut
        if cut % 5 and cut not in ends:
            continue
        with Transcript.open(path.stem) as transcript:
            say(transcript, "next")
        assert said(read(path)) == [*everything[:finished], "next"], cut
        assert path.read_bytes().count(b"\n") == finished + 2


def test_zeros_where_a_block_never_reached_the_disk() -> None:
    path = talk("one", "two")
    whole = path.read_bytes()
    for tail in (b"\0" * 4096, b'{"event": "tu' + b"\0" * 50 + b'"}\n'):
        path.write_bytes(whole + tail)
        with Transcript.open(path.stem) as transcript:
            say(transcript, "three")
        assert said(read(path)) == ["one", "two", "three"]
        assert b"\0" not in path.read_bytes()


def test_opening_writes_nothing() -> None:
    path = talk("one")
    path.write_bytes(torn := path.read_bytes() + b'{"event')
    Transcript.open(path.stem).close()
    assert path.read_bytes() == torn


def append_forever(path: str, acknowledged: str) -> None:
    """Turns of any length, of which each is acknowledged when it is stored."""
    os.environ["XDG_STATE_HOME"] = str(Path(path).parents[2])  # the server that forks has its own
    rng = random.Random()
    fd = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if Path(path).exists():
        transcript = Transcript.open(Path(path).stem)
    else:
        transcript = Transcript.create("nano", None)
        transcript.path = Path(path)
    for number in count(len(transcript.turns)):
        say(transcript, str(number), "x" * int(10 ** rng.uniform(0, 6)))
        os.write(fd, b"%d\n" % number)


def test_killed_at_any_moment(folder: Path, tmp_path: Path, forks: Any) -> None:
    """Again and again: all turns that were acknowledged are there, in order, and at most one more;
    and the next process goes on from them."""
    rng, acknowledged = random.Random(0), tmp_path / "acknowledged"
    path, most = folder / "killed.jsonl", 0
    for _ in range(KILLS):
        if rng.random() < 0.2:
            path.unlink(missing_ok=True)
        acknowledged.unlink(missing_ok=True)
        process = forks.Process(target=append_forever, args=(str(path), str(acknowledged)))
        process.start()
        wanted = rng.choice((0, 0, 1, 3))
        while not acknowledged.exists() or acknowledged.read_bytes().count(b"\n") < wanted:
            assert process.is_alive()
        time.sleep(rng.uniform(0, 0.01))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        told = acknowledged.read_text().split()
        texts = said(read(path)) if path.exists() else []
        assert texts == [str(number) for number in range(len(texts))]
        assert not told or int(told[-1]) + 1 <= len(texts) <= int(told[-1]) + 2
        most = max(most, len(texts))
    assert most > 3


def test_what_was_killed_while_it_was_created_is_swept(folder: Path) -> None:
    path = talk("one")
    old, new = folder / "old.part", folder / "new.part"
    for part in (old, new):
        part.write_text("{")
    os.utime(old, (0, 0))
    other = talk("two")
    assert {*folder.iterdir()} == {path, other, new}


# ---- disks that refuse -------------------------------------------------------


def test_what_a_full_disk_refused_comes_with_the_next_turn() -> None:
    """A disk with room for so many bytes of the file, then with more."""
    script = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_transcripts import *
def room(n):
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, resource.RLIM_INFINITY))
transcript = Transcript.create("nano", None)
for limit in (0, 10, 300, 700, 701, 900, 10**6):
    for n in range(4):
        room(limit)
        before = said(read(transcript.path)) if transcript.path.exists() else []
        number = len(transcript.turns)
        try:
            say(transcript, f"turn {{number}}")
            now = [f"turn {{n}}" for n in range(number + 1)]
        except Qwen3Error as error:
            assert transcript.id in str(error) and "File too large" in str(error)
            now = before
        assert (said(read(transcript.path)) if transcript.path.exists() else []) == now
        assert not transcript.path.with_suffix(".part").exists()
assert len(now) == 28
print("stored")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "stored\n", done.stderr


def test_a_write_that_ends_early_and_a_failed_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    transcript = Transcript.create("nano", None)
    say(transcript, "one")
    before, pwrite, fsync = transcript.path.read_bytes(), os.pwrite, os.fsync

    def short(fd: int, data: bytes, at: int) -> int:
        if at > len(before):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data[:7], at)

    monkeypatch.setattr(os, "pwrite", short)
    with pytest.raises(Qwen3Error, match=f"{transcript.id}.*No space left on device"):
        say(transcript, "two")
    assert transcript.path.read_bytes() == before
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:7], at))

    def failing(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(Qwen3Error, match="Input/output error"):
        say(transcript, "three")
    with pytest.raises(Qwen3Error, match=r"Input/output error; .*is lost"):
        transcript.close()
    assert transcript.path.read_bytes() == before
    monkeypatch.setattr(os, "fsync", fsync)
    with Transcript.open(transcript.id) as again:
        say(again, "four")
    assert said(read(transcript.path)) == ["one", "four"]


def test_closing_tries_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    with Transcript.create("nano", None) as transcript:
        say(transcript, "one")
        with monkeypatch.context() as patch:
            patch.setattr(os, "ftruncate", lambda *_: os.close(-1))
            with pytest.raises(Qwen3Error):
                say(transcript, "two")
            with pytest.raises(Qwen3Error, match="with the next turn"):
                transcript.undo()
        assert said(read(transcript.path)) == ["one"]
        assert said(transcript) == ["one"]
    assert [line.get("event") for line in transcripts.lines(transcript.path)] == [
        None,
        "turn",
        "turn",
        "undo",
    ]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with Transcript.create("nano", None) as transcript:
        for text in ("one", "two"):
            with pytest.raises(Qwen3Error, match=f"{transcript.id}.*cannot be written"):
                say(transcript, text)
        (tmp_path / "state").unlink()
        transcript.set_system("Be brief.")
    assert state(read(transcript.path)) == state(transcript)
    assert said(transcript) == ["one", "two"]


def test_without_a_home_there_is_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError()))
    with pytest.raises(Qwen3Error, match="home directory"):
        Transcript.create("nano", None)


def test_what_another_program_changed_is_left_alone() -> None:
    transcript = Transcript.create("nano", None)
    say(transcript, "one")
    with transcript.path.open("ab") as file:
        file.write(b"# mine\n")
    changed = transcript.path.read_bytes()
    with pytest.raises(Qwen3Error, match="another program has changed it"):
        say(transcript, "two")
    assert transcript.path.read_bytes() == changed
    transcript.path.unlink()
    with pytest.raises(Qwen3Error, match="No such file"):
        say(transcript, "three")


# ---- two chats ---------------------------------------------------------------


def test_one_chat_at_a_time() -> None:
    first = Transcript.create("nano", None)
    say(first, "one")
    for again in (lambda: Transcript.open(first.id), Transcript.latest):
        with pytest.raises(Qwen3Error, match=f"{first.id} is in use by another qwen3"):
            again()
    assert said(read(first.path)) == ["one"]
    say(first, "two")
    first.close()
    with Transcript.open(first.id) as second, pytest.raises(Qwen3Error, match="in use"):
        assert said(second) == ["one", "two"]
        with transcripts.held(first.path):
            pass
    with transcripts.held(first.path), pytest.raises(Qwen3Error, match="in use"):
        Transcript.open(first.id)


def test_reading_beside_a_chat_that_writes(folder: Path, tmp_path: Path, forks: Any) -> None:
    """A reader sees whole turns, a prefix of what was said."""
    path, acknowledged = folder / "busy.jsonl", tmp_path / "acknowledged"
    process = forks.Process(target=append_forever, args=(str(path), str(acknowledged)))
    process.start()
    try:
        seen = 0
        while seen < 15:
            assert process.is_alive()
            if path.exists():
                texts = said(read(path))
                assert texts == [str(number) for number in range(len(texts))]
                assert len(texts) >= seen
                seen = len(texts)
    finally:
        process.kill()
        process.join()


# ---- files that are something else --------------------------------------------


def header(**more: Any) -> dict[str, Any]:
    return {
        "format": "qwen3-session",
        "version": 1,
        "id": "x",
        "time": "2026-11-22T16:43:00+00:00",
        "model": "nano",
        "system": None,
    } | more


def turn(**more: Any) -> dict[str, Any]:
    return {
        "event": "turn",
        "time": "2026-11-22T16:44:00+00:00",
        "user": user("hello"),
        "assistant": assistant("hi"),
        "statistics": {},
    } | more


def put(folder: Path, *lines: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "hostile.jsonl"
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"".join(text + b"\n" for text in texts))
    return path


WHEN = "2026-11-22T16:44:00+00:00"
DAMAGED: list[object] = [
    b"",
    b"not json",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"event": ' + b"[" * 100_000,
    b"[]",
    b"null",
    b'{"a": 1e999}',
    b'{"a": NaN}',
    {},
    {"event": 1, "time": WHEN},
    {"event": "clear"},
    {"event": "clear", "time": 0},
    {"event": "clear", "time": "yesterday"},
    {"event": "clear", "time": "2026-11-22T16:44:00"},
    {"event": "clear", "time": "0001-01-01T00:00:00+00:00"},
    {"event": "system", "time": WHEN, "system": 1},
    {"event": "model", "time": WHEN, "model": None},
    {"event": "replace", "time": WHEN},
    turn(user=None),
    turn(user="hello"),
    turn(user={"role": "user"}),
    turn(user={"role": "user", "content": None}),
    turn(user={"role": "system", "content": "obey"}),
    turn(assistant=user("hi")),
    turn(assistant=assistant("hi") | {"content": ["hi"]}),
    turn(assistant=assistant("hi") | {"reasoning_content": {}}),
    turn(assistant=assistant("hi") | {"tool_calls": "rm"}),
    turn(assistant=assistant("hi") | {"tool_calls": [1]}),
    turn(assistant=assistant("hi") | {"name": []}),
    turn(statistics=[]),
    turn(statistics=json.loads('{"a":' * 30 + "1" + "}" * 30)),
]


@pytest.mark.parametrize("line", DAMAGED, ids=lambda line: str(line)[:40])
def test_a_damaged_line_is_named(folder: Path, line: object) -> None:
    path = put(folder, header(), turn(), line, turn())
    with pytest.raises(DamagedFile, match=f"{path}: line 3 is damaged: .*session rm hostile"):
        read(path)
    with pytest.raises(DamagedFile):
        Transcript.open("hostile")
    with pytest.raises(DamagedFile, match="line 1 is damaged"):
        read(put(folder, line, turn()))


@pytest.mark.parametrize(
    "lines",
    [
        (header(version=2),),
        (header(), turn(), {"event": "branch", "time": WHEN}),
    ],
)
def test_what_a_newer_version_wrote_is_refused(folder: Path, lines: tuple[object, ...]) -> None:
    path = put(folder, *lines)
    with pytest.raises(FormatError, match=rf"{path}: line {len(lines)}: .*a newer one wrote it"):
        read(path)


@pytest.mark.parametrize("version", [None, "1", 1.0, True, 0])
def test_a_version_is_a_number(folder: Path, version: object) -> None:
    with pytest.raises(DamagedFile, match="line 1 is damaged"):
        read(put(folder, header(version=version)))


def test_undoing_what_is_not_there_is_damage(folder: Path) -> None:
    events = [{"event": kind, "time": WHEN} for kind in ("clear", "undo")]
    with pytest.raises(DamagedFile, match=r"line 3 is damaged: .*there is none"):
        read(put(folder, header(), *events))


def test_bytes_changed_at_random(folder: Path) -> None:
    """Every file is a session or a sentence that names it."""
    original = talk(*(f"turn {n} {STRANGE}" for n in range(5))).read_bytes()
    rng, path, readable = random.Random(0), folder / "mutated.jsonl", 0
    for _ in range(1000):
        data = bytearray(original)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(data))
            data[at : at + rng.choice((0, 1, 1, 40))] = rng.choice(
                (b"", bytes([rng.randrange(256)]), b"\n", b'"', b"{", b"\0", data[:at][-30:])
            )
        path.write_bytes(data)
        try:
            read(path)
            readable += 1
        except Qwen3Error as error:
            assert str(path) in str(error)
    assert 50 < readable < 950


def test_what_is_no_file_of_a_session_is_none(folder: Path, tmp_path: Path) -> None:
    path = talk("one")
    (folder / "folder.jsonl").mkdir()
    (folder / "link.jsonl").symlink_to(path)
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "-rf.jsonl").write_text("")
    (folder / "two words.jsonl").write_text("")
    (folder / ".hidden.jsonl").write_text("")
    assert transcripts.stored() == [path]
    for other in ("folder", "link", "pipe"):
        with pytest.raises(Qwen3Error, match="cannot be read"):
            read(folder / f"{other}.jsonl")


def test_more_than_any_chat_is_not_read(folder: Path) -> None:
    path = talk("one")
    os.truncate(path, 2**40)  # takes no room on the disk
    with pytest.raises(DamagedFile, match="no session is larger than 64 MiB"):
        read(path)


# ---- ids ---------------------------------------------------------------------


def test_a_unique_beginning_or_the_end_is_enough(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("20261122-1643-k7qd", "20261122-1644-a2cd", "20261123-0801-zzzz", "20261123"):
        (folder / f"{name}.jsonl").write_text("")
    for text, meant in (
        ("20261122-1643", "20261122-1643-k7qd"),
        ("20261123", "20261123"),
        ("20261123-", "20261123-0801-zzzz"),
        ("k7qd", "20261122-1643-k7qd"),
    ):
        assert transcripts.find(text).stem == meant
    with pytest.raises(UsageError, match=r"there are .*k7qd.*name one of them"):
        transcripts.find("20261122")
    with pytest.raises(UsageError, match="did you mean 20261122-1643-k7qd"):
        transcripts.find("20261122-1643-k7qq")
    for text in ("", "7qd", "../../history", "/etc/passwd", ".", "*", "nothing", "x" * 10**6):
        with pytest.raises(UsageError) as error:
            transcripts.find(text)
        assert len(str(error.value)) < 300
