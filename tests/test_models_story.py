"""Models on this machine: the whole story from pull to rm, what goes and what stays, offers."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commandline import QUESTION, ROOT, Command
from conftest import COMMAND
from hub_server import LoopbackHub, Repository, cut, slow
from huggingface_hub import constants
from pulling import GGUF, MODEL, NAME, Outcome, Pull, cache, everything, models, part, set_up

from qwen3cli.cli import commands
from qwen3cli.errors import ModelNotFound
from qwen3cli.hub import registry
from qwen3cli.library.remove import rm
from qwen3cli.terminal import Terminal

NANO = ROOT / "tests" / "data" / "nano-dense"
GGUF_NANO = ROOT / "qwen3cli" / "models" / "nano-dense-q8_0.gguf"


@pytest.fixture
def qwen3(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pull:
    """Any command, in this process."""
    monkeypatch.setattr(commands, "app", COMMAND)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setenv("QWEN3_TRACEBACK", "1")

    def run(*args: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["qwen3", *args])
        code = commands.main()
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return run


def listed(qwen3: Pull) -> list[dict[str, Any]]:
    """What ls knows, but the embedded models."""
    told = json.loads(qwen3("ls", "--json").out)
    return [each for each in told if each["place"] != "embedded"]


def flip(path: Path) -> None:
    """One bit in the middle, behind the back of everybody."""
    with path.resolve().open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


# ---- the whole story --------------------------------------------------------


def test_from_pull_to_rm(hub: LoopbackHub, qwen3: Pull) -> None:
    weights = {path.name: path.read_bytes() for path in NANO.iterdir()}
    hub.repositories["Qwen/Qwen3-0.6B"].files = weights
    assert listed(qwen3) == []
    assert qwen3("pull", "0.6b", "--weights").code == 0
    assert qwen3("quantize", "0.6b", "--q8").code == 0
    made, pulled = listed(qwen3)
    assert (made["model"], made["quant"], made["place"]) == ("0.6b:q8_0", "q8_0", "models")
    assert Path(made["path"]) == registry.resolve("0.6b")
    assert (pulled["model"], pulled["kind"], pulled["place"]) == ("0.6b", "weights", "cache")
    assert pulled["bytes"] == sum(map(len, weights.values())) and pulled["complete"]
    rows = [line.split("\t") for line in qwen3("ls").out.splitlines()]
    assert [row[:2] for row in rows if row[4] != "embedded"] == [
        ["0.6b:q8_0", "q8_0"], ["0.6b", "weights"]
    ]  # fmt: skip
    assert qwen3("run", QUESTION, "-m", "0.6b:q8", "--temp", "0").out == "60\n"
    assert qwen3("verify", "0.6b", "--source", "0.6b").code == 0
    assert qwen3("verify", "0.6b", "--weights").code == 0

    flip(registry.source("0.6b")[0] / "model.safetensors")
    damaged = qwen3("verify", "0.6b", "--weights", "--json")
    told = json.loads(damaged.out)
    assert (damaged.code, told["ok"], told["checksums"]) == (7, False, len(weights))
    assert told["problems"] == [
        "model.safetensors: differs from its checksum; --repair fetches it again"
    ]
    before = len(hub.received("cdn"))
    repaired = json.loads(qwen3("verify", "0.6b", "--weights", "--repair", "--json").out)
    assert (repaired["ok"], repaired["repaired"]) == (True, ["model.safetensors"])
    assert len(hub.received("cdn")) == before + 1
    assert qwen3("verify", "0.6b", "--weights").code == 0

    gone = json.loads(qwen3("rm", "0.6b", "--yes", "--json").out)
    assert gone["freed_bytes"] == made["bytes"]
    assert qwen3("rm", "0.6b", "--weights", "--yes").code == 0
    assert listed(qwen3) == [] and everything(cache()) == []
    assert list(cache().glob("models--*")) == []
    assert everything(registry.models_folder()) == []


def test_a_damaged_model_of_the_hub(hub: LoopbackHub, qwen3: Pull) -> None:
    hub.repositories[GGUF].files[NAME] = GGUF_NANO.read_bytes()
    assert qwen3("pull", "0.6b").code == 0
    shown = json.loads(qwen3("show", "0.6b", "--json").out)
    path = registry.resolve("0.6b")
    assert shown["sha256"] == path.resolve().name
    assert (shown["format"], shown["repository"], shown["commit"]) == ("hybrid", GGUF, "1" * 40)
    assert qwen3("verify", "0.6b").code == 0
    flip(path)
    hub.always["content"] = lambda handler, data: handler.answer(404, b"", {})
    hub.plan("api", lambda handler, _: handler.answer(404, b"", {}))
    failed = qwen3("verify", "0.6b", "--repair")
    assert failed.code == 7 and f"{path}: differs from its checksum; not repaired" in failed.err
    hub.always.clear()
    hub.repositories[GGUF].commit = "2" * 40  # main went on
    hub.repositories[GGUF].names = {"1" * 40: "1" * 40}
    assert qwen3("verify", "0.6b", "--repair").code == 0
    assert registry.resolve("0.6b").read_bytes() == GGUF_NANO.read_bytes()
    assert qwen3("run", QUESTION, "-m", "0.6b", "--temp", "0").out == "60\n"


def test_a_repair_looks_at_the_space_first(
    hub: LoopbackHub, qwen3: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file at a time is there twice."""
    assert qwen3("pull", "0.6b", "--weights").code == 0
    folder, _ = registry.source("0.6b")
    for i in (1, 2):
        flip(folder / f"model-0000{i}-of-00002.safetensors")
    asked = len(hub.received("cdn"))
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=69_999))
    refused = qwen3("verify", "0.6b", "--weights", "--repair")
    assert refused.code == 7 and f"needs 0.1 MB, but the disk of {cache()} has" in refused.err
    assert len(hub.received("cdn")) == asked
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=70_000))
    assert qwen3("verify", "0.6b", "--weights", "--repair").code == 0


def test_no_repair_offline(hub: LoopbackHub, qwen3: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    assert qwen3("pull", "0.6b", "--weights").code == 0
    flip(registry.source("0.6b")[0] / "tokenizer.json")
    asked = len(hub.seen)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = qwen3("verify", "0.6b", "--weights", "--repair")
    assert done.code == 7 and "not repaired: HF_HUB_OFFLINE is set" in done.err
    assert len(hub.seen) == asked


# ---- what is here -----------------------------------------------------------


def test_a_part_of_a_model(hub: LoopbackHub, qwen3: Pull, pauses: Any) -> None:
    hub.plan("content", cut(100_000))
    hub.always["content"] = cut(0)
    assert qwen3("pull", "0.6b").code == 1
    (told,) = listed(qwen3)
    assert (told["model"], told["complete"]) == ("0.6b:q8_0", False)
    assert (told["bytes"], told["total_bytes"], told["path"]) == (100_000, len(MODEL), None)
    assert "\tincomplete\n" in qwen3("ls").out
    hub.always.clear()
    assert qwen3("pull", "0.6b").code == 0
    assert [each["complete"] for each in listed(qwen3)] == [True]
    assert qwen3("rm", "0.6b", "--yes").code == 0
    part().parent.mkdir(parents=True)
    part().write_bytes(MODEL[:1000])  # another tool's
    (told,) = listed(qwen3)
    assert (told["model"], told["bytes"], told["total_bytes"]) == ("0.6b", 1000, None)
    assert qwen3("rm", "0.6b", "--yes").code == 0
    assert everything(cache()) == []


def test_what_is_odd_hides_nothing(hub: LoopbackHub, qwen3: Pull) -> None:
    """Links in a circle in the cache, and notes of pulls that somebody edited."""
    assert qwen3("pull", "0.6b").code == 0
    circle = registry.resolve("0.6b").parent / "circle"
    circle.symlink_to("circle")
    part().write_bytes(b"beginning")
    notes = Path(os.environ["XDG_STATE_HOME"]) / "qwen3" / "pulls"
    notes.mkdir(parents=True, exist_ok=True)
    file = {"name": NAME, "size": "many", "digest": part().name[:64]}
    note = {"model": "0.6b:q8_0", "kind": "gguf", "repository": GGUF, "cache": str(cache())}
    odd = [[], 7, note | {"files": [file]}, note | {"files": [], "kind": "../x"}]
    for i, told in enumerate(odd):
        (notes / f"{i}.json").write_text(json.dumps(told))
    whole, rest = listed(qwen3)
    assert (whole["complete"], rest["complete"], rest["bytes"]) == (True, False, 9)
    assert qwen3("rm", "0.6b", "--yes").code == 0
    assert models() == [circle.relative_to(cache()).as_posix()]
    assert listed(qwen3) == []


def test_at_an_older_commit(hub: LoopbackHub, qwen3: Pull) -> None:
    assert qwen3("pull", "0.6b").code == 0
    base = cache() / "models--Qwen--Qwen3-0.6B-GGUF"
    (base / "snapshots" / ("2" * 40)).mkdir()
    (base / "refs" / "main").write_text("2" * 40)  # as another tool that fetched a README
    assert registry.resolve("0.6b").read_bytes() == MODEL


# ---- what goes --------------------------------------------------------------


def test_all_revisions_go_and_what_others_use_stays(hub: LoopbackHub, qwen3: Pull) -> None:
    assert qwen3("pull", "0.6b").code == 0
    hub.repositories[GGUF].commit = "2" * 40
    assert qwen3("pull", "0.6b").code == 0
    blob = registry.resolve("0.6b").resolve()
    other = cache() / "models--you--Mine" / "snapshots" / "abc" / "mine.gguf"
    other.parent.mkdir(parents=True)
    other.symlink_to(blob)
    done = qwen3("rm", "0.6b:q8_0", "--yes", "--json")
    assert "of 2 revisions: 111111111111, 222222222222" in done.err
    assert f"0.3 MB stay: {other} needs them" in done.err
    told = json.loads(done.out)
    assert told["freed_bytes"] == 0
    assert told["removed"][0]["kept"] == [{"path": str(blob), "used_by": [str(other)]}]
    assert other.read_bytes() == MODEL
    assert not any("Qwen3-0.6B" in name and "/snapshots/" in name for name in everything(cache()))


def test_a_blob_that_two_have_is_counted_once(hub: LoopbackHub, qwen3: Pull) -> None:
    twins = ["some/twin-GGUF:q4_k_m", "some/twin-GGUF:q8_0"]
    names = ("twin-q4_k_m.gguf", "twin-q8_0.gguf")
    hub.repositories["some/twin-GGUF"] = Repository(dict.fromkeys(names, MODEL))
    assert [qwen3("pull", each).code for each in twins] == [0, 0]
    done = qwen3("rm", *twins, "--yes", "--json")
    told = json.loads(done.out)
    assert [each["freed_bytes"] for each in told["removed"]] == [len(MODEL), 0]
    assert told["freed_bytes"] == len(MODEL)
    assert everything(cache()) == []


def test_one_of_several(hub: LoopbackHub, qwen3: Pull) -> None:
    folder = registry.models_folder()
    folder.mkdir(parents=True)
    for name in ("4b-q4_k_m.gguf", "4b-q8_0.gguf", "mine.gguf"):
        (folder / name).write_bytes(b"GGUF")
    done = qwen3("rm", "4b", "--yes")
    assert done.code == 3 and "there are 4b:q4_k_m, 4b:q8_0; name one of them" in done.err
    assert qwen3("rm", "4b:q8", "mine", "--yes").code == 0
    assert everything(folder) == ["4b-q4_k_m.gguf"]


@pytest.mark.parametrize("name", ["nano", "../x", "/etc/passwd", "a/b/c", "none", "a--b/c", ""])
def test_nothing_else_is_removed(hub: LoopbackHub, qwen3: Pull, tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_bytes(b"GGUF")
    assert qwen3("rm", name, "--yes").code in (2, 3)
    assert (tmp_path / "x").exists() and registry.resolve("nano").exists()


def test_links_that_lead_out(hub: LoopbackHub, qwen3: Pull, tmp_path: Path) -> None:
    outside = tmp_path / "outside.gguf"
    outside.write_bytes(b"GGUF")
    for folder in (registry.models_folder(), cache() / "models--you--Mine" / "snapshots" / "abc"):
        folder.mkdir(parents=True)
        (folder / "mine-q8_0.gguf").symlink_to(outside)
    for name in ("mine", "you/Mine"):
        done = qwen3("rm", name, "--yes")
        assert done.code == 1 and "leads out of the" in done.err
    assert outside.exists() and (registry.models_folder() / "mine-q8_0.gguf").is_symlink()


@pytest.mark.parametrize("where", ["refs", ".no_exist", "refs/heads"])
def test_tidying_follows_no_link(hub: LoopbackHub, qwen3: Pull, tmp_path: Path, where: str) -> None:
    """What is in the folder of a repository for no model's sake leads nowhere else either."""
    outside = tmp_path / "outside"
    (outside / "more").mkdir(parents=True)
    for path in (outside / "note", outside / "more" / "note"):
        path.write_text("precious")
    assert qwen3("pull", "0.6b").code == 0
    link = cache() / "models--Qwen--Qwen3-0.6B-GGUF" / where
    if where == "refs":
        shutil.rmtree(link)
    link.symlink_to(outside)
    assert qwen3("rm", "0.6b", "--yes").code == 0
    assert everything(outside) == ["more/note", "note"] and models() == []


@pytest.mark.parametrize("content", [b"", b"\xff", b"../..", b"/etc", b"1" * 39])
def test_a_damaged_name_of_a_commit(hub: LoopbackHub, qwen3: Pull, content: bytes) -> None:
    """Leads nowhere, and is no reason to fail."""
    assert qwen3("pull", "0.6b").code == 0
    path = registry.resolve("0.6b")
    (cache() / "models--Qwen--Qwen3-0.6B-GGUF" / "refs" / "main").write_bytes(content)
    assert registry.resolve("0.6b") == path
    assert str(path) in qwen3("pull", "0.6b", "--offline").err
    assert qwen3("rm", "0.6b", "--yes").code == 0
    assert everything(cache()) == []


def test_nothing_without_a_yes(hub: LoopbackHub, qwen3: Pull, tmp_path: Path) -> None:
    assert qwen3("pull", "0.6b").code == 0
    done = qwen3("rm", "0.6b")
    assert done.code == 2 and "--yes" in done.err and len(models()) == 1
    home = {"HF_HUB_CACHE": str(cache())}
    for answer, left in (("\r", 1), ("n\r", 1), ("maybe\ry\r", 0)):
        child = Command(tmp_path).terminal("rm", "0.6b", **home)
        child.wait_for(r"Remove 0.3 MB\? \[y/N\] ")
        child.type(answer)
        assert child.finish() == 0 and len(models()) == left


@pytest.mark.parametrize("key", ["\x03", "\x04"])
def test_a_question_without_an_answer_leaves_the_cursor_on_a_row_of_its_own(
    key: str, hub: LoopbackHub, qwen3: Pull, tmp_path: Path
) -> None:
    assert qwen3("pull", "0.6b").code == 0
    child = Command(tmp_path).terminal("rm", "0.6b", HF_HUB_CACHE=str(cache()))
    child.wait_for(r"\[y/N\] ")
    child.type(key)
    assert child.finish() == 130 and len(models()) == 1
    assert child.raw.endswith("\n")


def test_several_beginnings_of_a_file(hub: LoopbackHub, qwen3: Pull) -> None:
    """Other tools, and other versions of them, call theirs differently; the lock is one."""
    assert qwen3("pull", "0.6b").code == 0
    for more in (".incomplete", ".1234.incomplete"):
        part().with_name(part().name.replace(".incomplete", more)).write_bytes(b"beginning")
    assert qwen3("rm", "0.6b", "--yes").code == 0
    assert everything(cache()) == []


def test_what_a_pull_ended_meanwhile(
    hub: LoopbackHub, qwen3: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The beginning that rm saw is a model when it gets its lock."""
    from qwen3cli.library import remove

    part().parent.mkdir(parents=True)
    part().write_bytes(MODEL[:1000])
    wait = remove.locked

    def late(*args: Any) -> Any:
        assert qwen3("pull", "0.6b").code == 0
        return wait(*args)

    monkeypatch.setattr(remove, "locked", late)
    done = qwen3("rm", "0.6b", "--yes", "--json")
    assert json.loads(done.out)["freed_bytes"] == len(MODEL)
    assert everything(cache()) == []


def test_beside_a_pull(hub: LoopbackHub, qwen3: Pull) -> None:
    """Neither a removal between the bytes and the links of a pull, nor a pull meanwhile."""
    assert qwen3("pull", "0.6b").code == 0
    from qwen3cli.hub.store import locked

    with locked(GGUF, print):
        done = qwen3("rm", "0.6b", "--yes")
    assert done.code == 1 and "another process is fetching" in done.err
    assert registry.resolve("0.6b").read_bytes() == MODEL


# ---- the end at any moment --------------------------------------------------


def removing(url: str, folder: str, state: str, seed: int) -> None:
    """rm in a process that kills itself at one of its steps."""
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    os.environ |= {"XDG_STATE_HOME": state, "XDG_DATA_HOME": state}
    set_up(setattr, url, Path(folder))
    left = random.Random(seed).randrange(8)
    unlink: Callable[..., None] = Path.unlink

    def counted(path: Path, missing_ok: bool = False) -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        unlink(path, missing_ok)

    Path.unlink = counted  # type: ignore[method-assign]
    rm(["0.6b"], Terminal(), weights=True, yes=True, as_json=False)


def test_killed_while_removing(hub: LoopbackHub, qwen3: Pull) -> None:
    """No half model opens, and rm or pull of the same name goes on."""
    forks = multiprocessing.get_context("fork")
    killed = 0
    for seed in range(12):
        assert qwen3("pull", "0.6b", "--weights").code == 0
        state = os.environ["XDG_STATE_HOME"]
        args = (hub.url, constants.HF_HUB_CACHE, state, seed)
        process = forks.Process(target=removing, args=args)
        process.start()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        found = listed(qwen3)
        if found and found[0]["complete"]:
            assert qwen3("verify", "0.6b", "--weights").code == 0
            continue
        if found and seed % 2:
            assert [each["model"] for each in found] == ["0.6b"]
            assert qwen3("rm", "0.6b", "--weights", "--yes").code == 0
            assert everything(cache()) == []
        assert qwen3("pull", "0.6b", "--weights").code == 0
        assert [each["complete"] for each in listed(qwen3)] == [True]
    assert killed > 6


def test_ctrl_c_while_removing(
    hub: LoopbackHub, qwen3: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert qwen3("pull", "some/model-GGUF:q8_0").code == 0
    unlink = Path.unlink

    def interrupted(path: Path, missing_ok: bool = False) -> None:
        if "-00002-" in path.name:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", interrupted)
        done = qwen3("rm", "some/model-GGUF:q8_0", "--yes")
    assert (done.code, done.err.splitlines()[-1]) == (
        130, "interrupted; the same command removes what is left"
    )  # fmt: skip
    with pytest.raises(ModelNotFound):
        registry.resolve("some/model-GGUF:q8_0")
    assert qwen3("rm", "some/model-GGUF:q8_0", "--yes").code == 0
    assert everything(cache()) == []


# ---- offers -----------------------------------------------------------------


def test_a_model_that_is_missing_is_offered(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.repositories[GGUF].files[NAME] = GGUF_NANO.read_bytes()
    state = tmp_path / "state" / "qwen3" / "pulls"
    state.mkdir(parents=True)
    (state / "rate").write_text("100000.0")
    command = Command(tmp_path)
    args = ("run", QUESTION, "-m", "0.6b", "--temp", "0")
    done = command(*args, HF_ENDPOINT=hub.url)
    assert done.returncode == 3 and "`qwen3 pull 0.6b` gets" in done.stderr and hub.seen == []
    for answer, code in (("n\r", 3), ("\r", 0)):
        child = command.terminal(*args, HF_ENDPOINT=hub.url)
        child.wait_for(
            r"0\.6b:q8_0 is not installed: 4\.6 MB from Qwen/Qwen3-0\.6B-GGUF, about 46 s, "
        )
        child.wait_for(r"of disk free\. Pull it\? \[Y/n\] ")
        child.type(answer)
        assert child.finish() == code
    assert "60" in child.text


def test_ctrl_c_in_a_pull_that_was_offered(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.plan("content", slow(10_000, 0.1))
    child = Command(tmp_path).terminal("run", QUESTION, "-m", "0.6b", HF_ENDPOINT=hub.url)
    child.wait_for(r"Pull it\? \[Y/n\] ")
    child.type("\r")
    child.wait_for("MB/s")
    child.type("\x03")
    assert child.finish() == 130
    assert "interrupted; the same command goes on where this one ended" in child.text


def test_a_file_that_is_missing_is_not_looked_for_on_the_hub(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    child = Command(tmp_path).terminal("run", QUESTION, "-m", "private/x.gguf", HF_ENDPOINT=hub.url)
    assert child.finish() == 3 and "private/x.gguf: there is no such model file" in child.text
    assert hub.seen == []


def test_missing_weights_are_offered(hub: LoopbackHub, tmp_path: Path) -> None:
    weights = {path.name: path.read_bytes() for path in NANO.iterdir()}
    hub.repositories["Qwen/Qwen3-0.6B"].files = weights
    command = Command(tmp_path)
    child = command.terminal("quantize", "0.6b", "--q8", HF_ENDPOINT=hub.url)
    child.wait_for(r"the weights of 0\.6b are not installed: 8\.6 MB from Qwen/Qwen3-0\.6B, ")
    child.wait_for(r"Pull them\? \[Y/n\] ")
    child.type("y\r")
    assert child.finish() == 0
    assert command("run", QUESTION, "-m", "0.6b", "--temp", "0").stdout == "60\n"
    shutil.rmtree(command.home / "huggingface")
    assert command("quantize", "0.6b", "--q4").returncode == 3
