"""qwen3 pull against a hub on loopback: what comes, who may read it, what is told."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from commandline import Command
from hub_server import LoopbackHub, cut, redirect, slow, status
from huggingface_hub import constants, hf_hub_download, scan_cache_dir
from pulling import GGUF, MODEL, NAME, SPLIT, TOKEN, WEIGHTS, Pull, cache, everything, models, part

from qwen3cli.hub import registry

# ---- what comes -------------------------------------------------------------


def test_a_model_and_nothing_else(hub: LoopbackHub, pull: Pull) -> None:
    done = pull("0.6b", "--json")
    assert (done.code, done.err) == (0, "")
    told = json.loads(done.out)
    assert Path(told["path"]).read_bytes() == MODEL
    assert told["files"] == [{"name": NAME, "bytes": len(MODEL)}]
    assert (told["model"], told["commit"], told["repository"]) == ("0.6b:q8_0", "1" * 40, GGUF)
    assert told["received_bytes"] == told["bytes"] == len(MODEL)
    blob = hashlib.sha256(MODEL).hexdigest()
    base = "models--Qwen--Qwen3-0.6B-GGUF"
    assert everything(cache()) == [
        f"{base}/blobs/{blob}", f"{base}/refs/main", f"{base}/snapshots/{'1' * 40}/{NAME}"
    ]  # fmt: skip
    assert registry.resolve("0.6b") == Path(told["path"])
    again = pull("0.6b")
    assert (again.code, again.out) == (0, "")
    assert again.err == f"0.6b:q8_0: {told['path']} (0.3 MB): is here already\n"
    assert len(hub.received("cdn")) == 1


def test_all_parts_of_a_split_model(hub: LoopbackHub, pull: Pull) -> None:
    told = json.loads(pull("some/model-GGUF:q8_0", "--json").out)
    opens = Path(told["path"])
    assert opens.name == "some-model-q8_0-00001-of-00003.gguf"
    assert {path.name: path.read_bytes() for path in opens.parent.iterdir()} == SPLIT
    del hub.repositories["some/model-GGUF"].files["some-model-q8_0-00002-of-00003.gguf"]
    lacking = pull("some/model-GGUF:q8_0")
    assert lacking.code == 3
    assert "lacks some-model-q8_0-00002-of-00003.gguf, a part of a split model" in lacking.err


def test_the_weights(hub: LoopbackHub, pull: Pull) -> None:
    done = pull("0.6b", "--weights")
    assert done.code == 0
    folder, named = registry.source("0.6b")
    assert named == Path("0.6b")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == WEIGHTS
    assert "`qwen3 quantize 0.6b --q4`" in done.err


def test_other_tools_share_the_cache(hub: LoopbackHub, pull: Pull) -> None:
    ours = json.loads(pull("0.6b", "--json").out)["path"]
    theirs = hf_hub_download(GGUF, NAME, local_files_only=True, cache_dir=cache())
    assert theirs == ours
    assert hf_hub_download(GGUF, NAME, cache_dir=cache(), endpoint=hub.url) == ours
    (told,) = scan_cache_dir(cache()).repos
    assert (told.repo_id, told.size_on_disk) == (GGUF, len(MODEL))
    shutil.rmtree(cache())
    hf_hub_download(GGUF, NAME, cache_dir=cache(), endpoint=hub.url)
    before = len(hub.received("cdn"))
    assert "is here already" in pull("0.6b").err
    assert len(hub.received("cdn")) == before


def test_a_cache_that_was_copied(hub: LoopbackHub, pull: Pull) -> None:
    """By what follows links, or made by a tool on a disk without them: files are in their place."""
    pull("0.6b")
    path = registry.resolve("0.6b")
    blob = path.resolve()
    path.unlink()
    blob.rename(path)
    assert "is here already" in pull("0.6b").err
    assert path.read_bytes() == MODEL and not path.is_symlink()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_cache_that_others_fill(
    hub: LoopbackHub, pull: Pull, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    opened = os.open

    def read_only(path: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_CREAT and Path(path).is_relative_to(cache()):
            raise OSError(code, os.strerror(code), str(path))
        return opened(path, flags, *rest)

    pull("0.6b")
    shutil.rmtree(cache() / ".locks")
    monkeypatch.setattr(os, "open", read_only)
    done = pull("0.6b")
    assert done.code == 0 and "is here already" in done.err
    with pytest.raises(OSError, match=os.strerror(code)):
        pull("some/model-GGUF:q8_0")


def test_a_revision(hub: LoopbackHub, pull: Pull) -> None:
    hub.repositories[GGUF].names = {"v1": "1" * 40, "refs/pr/7": "1" * 40}
    for revision in ("v1", "refs/pr/7"):
        assert pull("0.6b", "--revision", revision).code == 0
        assert pull("0.6b", "--revision", revision, "--offline").code == 0
    assert pull("0.6b", "--revision", "1" * 40).code == 0
    assert not (cache() / "models--Qwen--Qwen3-0.6B-GGUF" / "refs" / "main").exists()
    missing = pull("0.6b", "--revision", "v2")
    assert (missing.code, missing.err) == (3, f"qwen3: {GGUF}: has no revision v2\n")


def test_another_commit_than_the_one_asked_for(hub: LoopbackHub, pull: Pull) -> None:
    hub.repositories[GGUF].names = {"3" * 40: "1" * 40}
    done = pull("0.6b", "--revision", "3" * 40)
    assert done.code == 1 and f"asked for {'3' * 40} and tells of {'1' * 40}" in done.err
    assert everything(cache()) == []


def test_a_new_commit_costs_what_changed(hub: LoopbackHub, pull: Pull) -> None:
    pull("0.6b", "--weights")
    repository = hub.repositories["Qwen/Qwen3-0.6B"]
    repository.commit = "2" * 40
    repository.files = {**repository.files, "tokenizer.json": b'{"new": 1}'}
    told = json.loads(pull("0.6b", "--weights", "--json").out)
    assert told["received_bytes"] == len(b'{"new": 1}')
    assert registry.source("0.6b")[0].name == "2" * 40


def test_progress_with_rate_on_a_terminal(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.plan("content", slow(30_000, 0.06))
    child = Command(tmp_path).terminal("pull", "0.6b", HF_ENDPOINT=hub.url)
    assert child.finish() == 0
    assert "0.6b:q8_0 from Qwen/Qwen3-0.6B-GGUF" in child.raw and "MB/s" in child.raw


# ---- who may read -----------------------------------------------------------


def test_the_token_stays_with_the_hub(
    hub: LoopbackHub, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.plan("resolve", redirect(f"{hub.cdn}/{hashlib.sha256(MODEL).hexdigest()}"))
    hub.plan("content", cut(1000))
    assert pull("some/private-GGUF").code == 0
    assert {seen.headers.get("Authorization") for seen in hub.received("hub")} == {
        f"Bearer {TOKEN}"
    }
    sent = [" ".join(seen.headers.values()) + seen.path for seen in hub.received("cdn")]
    assert len(sent) == 2 and TOKEN not in "".join(sent)


def test_no_token_where_that_is_set(
    hub: LoopbackHub, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    assert pull("0.6b").code == 0
    done = pull("some/gated-GGUF")
    assert done.code == 1 and "and unset HF_HUB_DISABLE_IMPLICIT_TOKEN: no token" in done.err
    assert [seen for seen in hub.seen if "Authorization" in seen.headers] == []


def test_no_proxy_sees_the_token(
    hub: LoopbackHub, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub on this machine is asked directly: what goes to a proxy by http, it can read."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HTTP_PROXY", hub.cdn)
    hub.plan("resolve", lambda handler, _: handler.content(MODEL))  # no other host
    assert pull("some/private-GGUF").code == 0
    assert hub.received("cdn") == []


@pytest.mark.parametrize(
    "url", ["", "hub", "ftp://hub.test", "http://[::1", "https://hub:port", "https:///x"]
)
def test_an_endpoint_that_is_none(
    hub: LoopbackHub, pull: Pull, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    done = pull("0.6b")
    assert done.code == 2 and f"HF_ENDPOINT {url}: an address is needed" in done.err


def test_no_password_in_the_endpoint(
    hub: LoopbackHub, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url.replace("//", "//me:secret@"))
    done = pull("some/nothing")
    assert done.code == 2 and "set HF_TOKEN instead" in done.err and "secret" not in done.err
    assert hub.seen == []


REFUSED = {
    "some/gated-GGUF": (1, "is gated; accept its licence at {url}/some/gated-GGUF and set HF_"),
    "some/private-GGUF": (3, "there is no such repository on {url}; if it is a private one, set"),
    "some/nothing": (3, "there is no such repository on {url}"),
    "0.7b": (3, "did you mean"),
}  # fmt: skip


@pytest.mark.parametrize("model", REFUSED)
@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_the_next_step(
    hub: LoopbackHub,
    pull: Pull,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    token: str | None,
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    done = pull(model)
    code, text = REFUSED[model]
    assert done.code == code and text.format(url=hub.url) in done.err
    assert everything(cache()) == []


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 451])
@pytest.mark.parametrize("where", ["api", "resolve"])
def test_refusals_are_final(
    hub: LoopbackHub, pull: Pull, pauses: Any, where: str, code: int
) -> None:
    hub.plan(where, status(code))
    done = pull("0.6b")
    assert done.code == (3 if code == 404 else 1) and pauses == []
    assert models() == []


def test_no_network(hub: LoopbackHub, pull: Pull, pauses: Any) -> None:
    path = json.loads(pull("0.6b", "--json").out)["path"]
    hub.stop()
    done = pull("0.6b")
    assert done.code == 1
    what_now = "check the connection, or try again later"
    assert f"(tried 5 times); {what_now}; in the cache there is: {NAME}" in done.err
    assert pull("0.6b", "--offline").err.startswith(f"0.6b:q8_0: {path} ")


def test_offline(hub: LoopbackHub, pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    done = pull("0.6b", "--offline")
    assert done.code == 3
    nothing = "nothing of Qwen/Qwen3-0.6B-GGUF is in the cache"
    assert f"this is offline; {nothing}; leave out --offline to fetch it" in done.err
    assert pull("0.6b", "--weights", "--offline").code == 3
    assert hub.seen == []
    assert pull("0.6b").code == pull("0.6b", "--weights").code == 0
    asked = len(hub.seen)
    assert pull("0.6b", "--offline").code == pull("0.6b", "--weights", "--offline").code == 0
    (registry.source("0.6b")[0] / "model-00002-of-00002.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = pull("0.6b", "--weights")
    assert done.code == 3 and "unset HF_HUB_OFFLINE to fetch it" in done.err
    assert len(hub.seen) == asked


# ---- a full disk ----
def test_the_space_is_looked_at_first(
    hub: LoopbackHub, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=200_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    done = pull("0.6b")
    assert done.code == 1
    assert f"needs 0.3 MB, but the disk of {cache()} has 0.2 MB free; free some" in done.err
    assert hub.received("cdn") == [] and not cache().exists()
    part().parent.mkdir(parents=True)
    part().write_bytes(MODEL[:150_000])  # the rest fits
    assert pull("0.6b").code == 0
