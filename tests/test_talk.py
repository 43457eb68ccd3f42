"""What a chat keeps when something fails: a disk, or the terminal that it is shown on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_session import FakeSession, conversation

from qwen3cli.chat import talk as rooms
from qwen3cli.chat import transcripts
from qwen3cli.chat.talk import Talk
from qwen3cli.chat.transcripts import Transcript
from qwen3cli.errors import Qwen3Error
from qwen3cli.options import Options
from qwen3cli.session import Settings
from qwen3cli.terminal import Terminal


class Disk:
    """Full, or not."""

    full = False

    def write(self, *args: Any) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self._write(*args)

    _write = staticmethod(transcripts._write)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Disk:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    disk = Disk()
    monkeypatch.setattr(transcripts, "_write", disk.write)
    return disk


@pytest.fixture
def talk(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Talk:
    monkeypatch.setattr(rooms, "statistics", lambda *_: "")
    session: Any = FakeSession()
    talk = Talk(
        conversation(session),
        Settings(think=False),
        Options(),
        Terminal(),
        Transcript.create("nano", None),
    )
    said(talk, "first", "1")
    said(talk, "second", "2")
    return talk


def said(talk: Talk, text: str, answer: str) -> None:
    session: Any = talk.conversation.session
    session.says(answer)
    talk.say(text)


def stored(talk: Talk) -> list[str]:
    assert talk.transcript
    return [str(turn.user["content"]) for turn in transcripts.read(talk.transcript.path).turns]


def messages(talk: Talk) -> list[str]:
    return [m["content"] or "" for m in talk.conversation.messages if m["role"] == "user"]


def test_an_edit_on_a_full_disk_is_stored_later(talk: Talk, disk: Disk) -> None:
    session: Any = talk.conversation.session
    disk.full = True
    session.says("3")
    talk.say_instead("other")
    assert stored(talk) == ["first", "second"] and messages(talk) == ["first", "other"]
    disk.full = False
    said(talk, "third", "4")
    assert stored(talk) == messages(talk) == ["first", "other", "third"]


def test_a_conversation_loaded_on_a_full_disk_is_stored_later(talk: Talk, disk: Disk) -> None:
    disk.full = True
    loaded = [*talk.conversation.messages, *talk.conversation.messages]
    talk.replace(loaded, None)
    disk.full = False
    said(talk, "third", "3")
    assert stored(talk) == messages(talk) == ["first", "second", "first", "second", "third"]


@pytest.mark.parametrize("how", ["say", "say_instead", "regenerate"])
def test_an_answer_that_cannot_be_shown_is_not_said(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    session: Any = talk.conversation.session
    session.says("three")

    def broken(self: Terminal, text: str) -> None:
        raise Qwen3Error("cannot write the output")

    with monkeypatch.context() as patch:
        patch.setattr(Terminal, "answer", broken)
        with pytest.raises(Qwen3Error) as caught:
            getattr(talk, how)(*["third"][: how != "regenerate"])
    del caught
    assert messages(talk) == stored(talk) == ["first", "second"]
    talk.conversation.undo()
    talk.store(lambda transcript: transcript.undo())
    assert messages(talk) == stored(talk) == ["first"]
