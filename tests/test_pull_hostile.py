"""Names, lists and links that try to lead `pull` out of the cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hub_server import LoopbackHub, Repository, entry
from pulling import GGUF, MODEL, NAME, Pull, cache, everything, models, part

HOSTILE = [
    "..", "../x", "a/..", "a/../b", "../../etc/passwd", "/etc/passwd", "/", "//x/y", "a//b",
    "a/b/c", "./a", "a/.", ".a/b", "a/.b", "a/b.", "-a/b", "a/-b", "a/b-", "~/a", "~root/x",
    "a\\b", "..\\x", "a/..\\b", "C:/x", "C:\\x", "c:x/y", "\\\\host\\share", "a/b\0c", "\0", "a/\0",
    "a/b\n", "a/b\r", "a\tb/c", "a/b c", " a/b", "a/b ", "a/b%2f..", "a/%2e%2e", "a/b?x", "a/b#x",
    "a/b@x", "https://x/y", "file:///etc/passwd", "a--b/c", "a/b--c", "a/..b..", "a/b..c",
    "\u2025/x", "a/\uff0e\uff0e", "a\u2215b/c", "a/b\u2044c", "a/\u202egpj.b", "\u0430/b",
    "a/b\u0301", "a/\U0001f600", "a/$HOME", "a/`id`", "a/;id", "a/b|c", "a/*", "x" * 97 + "/a",
    "a/" + "y" * 4000, "a/" + "\u0130" * 40,
]  # fmt: skip


def test_there_are_enough_of_them() -> None:
    assert len(set(HOSTILE)) >= 60


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_of_repositories(
    hub: LoopbackHub, pull: Pull, tmp_path: Path, name: str
) -> None:
    for flags in ([], ["--weights"], ["--offline"]):
        assert pull(*flags, "--", name).code in (2, 3)
    assert hub.seen == [] and everything(tmp_path) == []


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_of_files(hub: LoopbackHub, pull: Pull, tmp_path: Path, name: str) -> None:
    """As a name in a list, before and behind a good one, and as a folder."""
    data = b"hostile"
    for path in (f"{name}-q8_0.gguf", f"{name}/x-q8_0.gguf", f"x/{name}/y-q8_0.gguf"):
        hub.repositories[GGUF] = Repository({path: data}, siblings=[entry(path, data)])
        done = pull(GGUF + ":q8_0")
        assert "\0" not in done.err and "\r" not in done.err
        root = cache().resolve()
        for folder, _, files in os.walk(tmp_path):
            for file in files:
                written = (Path(folder) / file).resolve()
                assert written.is_relative_to(root), written
        if done.code == 0:  # a name that is merely odd
            assert path in {p.split("/", 3)[3] for p in models()}
            assert "\\" not in path and ":" not in path and path.isascii() and ".." not in path


@pytest.mark.parametrize(
    "name",
    ["../x-q8_0.gguf", "/x-q8_0.gguf", "a\\x-q8_0.gguf", "C:x-q8_0.gguf", "a\u202e-q8_0.gguf"],
)
def test_hostile_names_are_refused(hub: LoopbackHub, pull: Pull, name: str) -> None:
    hub.repositories[GGUF] = Repository({name: b"x"})
    done = pull(GGUF)
    assert done.code == 1 and "cannot be a file of a repository; nothing was fetched" in done.err
    assert everything(cache()) == []


GOOD = entry(NAME, MODEL)
LISTS: list[Any] = [
    None, 7, "x", {}, {"a": 1}, [None], [7], ["x"], [[]], [{}], [{"rfilename": None}],
    [{"rfilename": 7}], [{"rfilename": [1]}], [GOOD | {"lfs": None, "blobId": "../../x"}],
    [GOOD | {"lfs": 7, "blobId": None}], [GOOD | {"lfs": {}}],
    [GOOD | {"lfs": {"sha256": "x" * 64, "size": 1}}],
    [GOOD | {"lfs": {"sha256": "../" * 21 + "x", "size": 1}}],
    [GOOD | {"lfs": {"sha256": "A" * 64, "size": 1}}],
    [GOOD | {"lfs": {"sha256": "a" * 65, "size": 1}}],
    [GOOD | {"lfs": {"sha256": "a" * 64 + "\n", "size": 1}}],
    [GOOD | {"lfs": {"sha256": "a" * 64, "size": -1}}],
    [GOOD | {"lfs": {"sha256": "a" * 64, "size": 2**70}}],
    [GOOD | {"lfs": {"sha256": "a" * 64, "size": "1"}}],
    [GOOD | {"lfs": {"sha256": "a" * 64, "size": True}}],
    [GOOD | {"lfs": {"sha256": "a" * 64, "size": 1e3}}],
    [GOOD, entry("qwen3-0.6b-q8_0.gguf", b"")],
    [entry("x-q8_0-00001-of-65535.gguf", b"")],
]  # fmt: skip


@pytest.mark.parametrize("siblings", LISTS, ids=range(len(LISTS)))
def test_hostile_lists(hub: LoopbackHub, pull: Pull, tmp_path: Path, siblings: Any) -> None:
    served = hub.repositories[GGUF]
    served.listed = lambda: siblings  # type: ignore[method-assign]
    done = pull("0.6b")
    assert done.code in (1, 3) and GGUF in done.err
    assert everything(tmp_path) == [] and hub.received("cdn") == []


@pytest.mark.parametrize("commit", ["", "main", "../../x", "1" * 39, "1" * 41, 7, None, ["1" * 40]])
def test_hostile_commits(hub: LoopbackHub, pull: Pull, tmp_path: Path, commit: Any) -> None:
    hub.repositories[GGUF].commit = commit
    assert pull("0.6b").code == 1
    assert everything(tmp_path) == []


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b"[" * 100_000, b"\xff"])
def test_answers_that_are_no_list(hub: LoopbackHub, pull: Pull, body: bytes) -> None:
    hub.plan("api", lambda handler, _: handler.answer(200, body, {}))
    done = pull("0.6b")
    assert done.code == 1 and "no list of files; check HF_ENDPOINT" in done.err


REVISIONS = [
    "", "..", "../x", "a/../b", "/x", "-x", "a\\b", "a b", "a\0", "x" * 300, "a/", "a//b", "\u0430"
]  # fmt: skip


@pytest.mark.parametrize("revision", REVISIONS, ids=range(len(REVISIONS)))
def test_hostile_revisions(hub: LoopbackHub, pull: Pull, revision: str) -> None:
    assert pull("0.6b", "--revision", revision).code == 2
    assert hub.seen == [] and not cache().exists()


@pytest.mark.parametrize("where", ["", "blobs", "snapshots", "snapshots/" + "1" * 40, "refs"])
def test_links_that_lead_out(hub: LoopbackHub, pull: Pull, tmp_path: Path, where: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    link = cache() / "models--Qwen--Qwen3-0.6B-GGUF" / where
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    done = pull("0.6b")
    assert done.code == 1 and "leads out of the cache, to" in done.err
    assert list(outside.iterdir()) == []


def test_a_file_that_leads_out(hub: LoopbackHub, pull: Pull, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    part().parent.mkdir(parents=True)
    for link in (part(), part().with_suffix("")):
        link.symlink_to(victim)
        assert pull("0.6b").code == 1
        link.unlink()
    assert victim.read_bytes() == b"precious"
    os.mkfifo(part())
    assert "is no regular file" in pull("0.6b").err


def test_a_cache_behind_a_link(hub: LoopbackHub, pull: Pull, tmp_path: Path) -> None:
    """Many keep it on another disk."""
    (tmp_path / "disk").mkdir()
    cache().symlink_to(tmp_path / "disk")
    assert pull("0.6b").code == pull("0.6b").code == 0
