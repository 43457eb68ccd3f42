"""Receipts: what they hold, that they repeat the text, and that they tell what differs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from commandline import ENDLESS, QUESTION, ROOT, THINKING, Command

from qwen3cli.engine import Model, backends
from qwen3cli.errors import Qwen3Error
from qwen3cli.library.checksums import checksums
from qwen3cli.run.receipts import read, write
from qwen3cli.terminal import Terminal

NANO = ROOT / "qwen3cli" / "models" / "nano-dense-q8_0.gguf"
DRAWN = ("-m", "nano", "--temp", "1.5", "--seed", "11")


def receipt(qwen3: Command, *args: str, code: int = 0) -> dict[str, Any]:
    done = qwen3("run", QUESTION, *args, "--receipt", "receipt")
    assert (done.returncode, done.stderr) == (code, "") or code == 6
    return dict(json.loads((qwen3.home / "receipt").read_text()))


def change(qwen3: Command, **values: Any) -> None:
    file = qwen3.home / "receipt"
    told = json.loads(file.read_text()) | values
    file.write_text(json.dumps(told))


# ---- what it holds -------------------------------------------------------------


def test_a_receipt_says_what_the_text_came_from(qwen3: Command) -> None:
    told = receipt(qwen3, *DRAWN, "--seed", "5", "--budget", "3", "--system", "Be kind.")
    assert told["receipt"] == 1 and told["model"] == "nano" and told["path"] == str(NANO)
    assert told["files"] == {NANO.name: hashlib.sha256(NANO.read_bytes()).hexdigest()}
    template = (ROOT / "templates" / "hybrid.jinja").read_text()
    assert told["template"] == hashlib.sha256(template.encode()).hexdigest()
    assert told["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": QUESTION},
    ]
    assert list(told["versions"]) == ["qwen3", "isa", "python", "platform"]
    assert (told["budget"], told["kv"], told["n_ctx"], told["thinking"]) == (3, "f16", 4096, True)
    assert told["sampling"]["temperature"] == 1.5 and told["sampling"]["top_k"] == 20
    (sample,) = told["samples"]
    assert (sample["seed"], sample["answer_stop"]) == (5, "end")
    digest = hashlib.sha256(sample["answer"].encode()).hexdigest()
    assert digest == sample["answer_sha256"]
    model = Model(NANO)
    text = model.tokenizer.decode([*told["prompt"], *sample["output"]])
    assert QUESTION in text and "Be kind." in text and text.endswith(sample["answer"])
    assert (qwen3.home / "receipt").read_text().count("\n") == len(told)


def test_a_receipt_replaces_receipts_alone(qwen3: Command) -> None:
    notes = qwen3.home / "notes"
    notes.write_text("mine")
    done = qwen3("run", QUESTION, *DRAWN, "--receipt", "notes")
    assert (done.returncode, done.stdout) == (2, "") and notes.read_text() == "mine"
    first = receipt(qwen3, *DRAWN, "--seed", "1")
    assert receipt(qwen3, *DRAWN, "--seed", "2") != first
    (qwen3.home / "link").symlink_to("receipt")
    qwen3("run", QUESTION, *DRAWN, "--receipt", "link", "--seed", "3")
    assert (qwen3.home / "link").is_symlink()
    assert json.loads((qwen3.home / "receipt").read_text())["samples"][0]["seed"] == 3
    assert sorted(p.name for p in qwen3.home.iterdir() if "receipt" in p.name) == ["receipt"]


def test_a_receipt_is_written_at_once_or_not_at_all(
    qwen3: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt(qwen3, *DRAWN)
    file = qwen3.home / "receipt"
    before, told = file.read_bytes(), read(str(file))

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Qwen3Error, match=r"cannot write the receipt to .*: No space left"):
        write(told, str(file))
    assert file.read_bytes() == before
    assert [path.name for path in qwen3.home.glob("*receipt*")] == ["receipt"]
    assert not list(qwen3.home.glob(".receipt*"))


# ---- replay --------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--budget", "12"],
        ["--budget", "12", "--landing", "hard"],
        ["--budget", "0.02s"],
        ["--budget", "0.2s"],
        ["--no-think"],
        ["--stop", "1"],
        ["--kv", "q8", "--ctx", "512"],
        ["--min-p", "0.01", "--presence-penalty", "0.7", "--repetition-penalty", "1.1"],
        ["--system", "안녕 <|im_end|>"],
        ["-n", "3"],
        ["-n", "2", "--json"],
        ["-m", "nano-moe"],
    ],
)
def test_a_replay_is_the_same_text(qwen3: Command, args: list[str]) -> None:
    told = receipt(qwen3, *DRAWN, *args)
    done = qwen3("replay", "receipt", "--threads", "1")
    answers = [sample["answer"] for sample in told["samples"]]
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "---\n".join(f"{answer}\n" for answer in answers)


def test_a_cut_answer_is_replayed_as_it_was_cut(qwen3: Command) -> None:
    args = ("-m", "nano", "--temp", "100", "--top-k", "0", "--no-think", "--seed", "1",
            "--max-tokens", "50")  # fmt: skip
    (sample,) = receipt(qwen3, *args, code=6)["samples"]
    done = qwen3("replay", "receipt", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["reproduced"], told["changes"]) == (0, True, [])
    assert (told["answer"], told["answer_stop"]) == (sample["answer"], "limit")


def test_what_the_user_ended_is_replayed(qwen3: Command) -> None:
    args = (*THINKING, "--max-tokens", "5", "--thoughts", "thoughts", "--receipt", "receipt")
    terminal = qwen3.terminal("run", "hello", *args)
    terminal.wait_for_file(qwen3.home / "thoughts", 400)
    terminal.press("c")
    assert terminal.finish() == 6
    (sample,) = read(str(qwen3.home / "receipt")).samples
    assert sample.thinking_stop == "user" and sample.thinking_tokens > 9
    told = json.loads(qwen3("replay", "receipt", "--json").stdout)
    assert told["reproduced"] and told["answer"] == sample.answer


def test_an_answer_of_a_schema_is_replayed(qwen3: Command) -> None:
    schema = {"type": "object", "properties": {"sum": {"type": "integer", "maximum": 99}},
              "required": ["sum"], "additionalProperties": False}  # fmt: skip
    (qwen3.home / "schema.json").write_text(json.dumps(schema))
    told = receipt(qwen3, *DRAWN, "--schema", "schema.json", "--budget", "20")
    assert told["schema"] == schema
    (sample,) = told["samples"]
    assert list(json.loads(sample["answer"])) == ["sum"]
    (qwen3.home / "schema.json").unlink()  # it is in the receipt
    done = qwen3("replay", "receipt")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{sample['answer']}\n", "")


def test_an_interrupted_answer_leaves_no_receipt(qwen3: Command) -> None:
    terminal = qwen3.terminal("run", "x", *ENDLESS, "--receipt", "receipt")
    terminal.wait_for(r"(\w+)\1{20}")
    terminal.press("c")
    assert terminal.finish() == 130
    assert not (qwen3.home / "receipt").exists()


# ---- what differs --------------------------------------------------------------


def test_another_output_is_told_with_its_place(qwen3: Command) -> None:
    told = receipt(qwen3, *DRAWN, "--seed", "1")
    output = told["samples"][0]["output"]
    changed = [*output[:10], output[10] + 1, *output[11:]]
    change(qwen3, samples=[told["samples"][0] | {"output": changed}])
    done = qwen3("replay", "receipt")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert re.search(r"output token 11 was '.+' and is '.+'", done.stderr)
    reply = json.loads(qwen3("replay", "receipt", "--json").stdout)
    assert not reply["reproduced"] and reply["difference"] in done.stderr
    change(qwen3, samples=[told["samples"][0] | {"output": output[:5]}])
    assert "output token 6 was the end and is '" in qwen3("replay", "receipt").stderr
    change(qwen3, samples=[told["samples"][0] | {"answer": "61"}])
    assert "the text of the answer" in qwen3("replay", "receipt").stderr


def test_another_seed_and_another_version_are_told(qwen3: Command) -> None:
    told = receipt(
        qwen3, "-m", "nano", "--temp", "100", "--top-k", "0", "--seed", "1", "--max-tokens", "9",
        code=6,
    )  # fmt: skip
    change(qwen3, versions=told["versions"] | {"qwen3": "0.0.1"}, template="0" * 64)
    done = qwen3("replay", "receipt")  # the same text all the same
    assert done.returncode == 0 and done.stderr.count("\n") == 1
    assert "the same text, though qwen3 was 0.0.1 and is" in done.stderr
    assert "the template of its prompt is another one" in done.stderr
    change(qwen3, sampling=told["sampling"] | {"temperature": 0.5})
    done = qwen3("replay", "receipt")
    assert (done.returncode, done.stdout) == (1, "")
    assert "output token " in done.stderr and "qwen3 was 0.0.1" in done.stderr


def test_another_instruction_set_is_named(qwen3: Command) -> None:
    if len(backends()) < 2:
        pytest.skip("there is one instruction set")
    told = receipt(qwen3, *DRAWN)
    done = qwen3("replay", "receipt", QWEN3_ISA="scalar")  # the text may well be the same
    assert f"isa was {told['versions']['isa']} and is scalar" in done.stderr
    assert f"QWEN3_ISA={told['versions']['isa']}" in done.stderr


def test_another_model_is_refused(qwen3: Command) -> None:
    shutil.copy(NANO, qwen3.home / "mine.gguf")
    receipt(qwen3, "-m", "mine.gguf")
    assert qwen3("replay", "receipt").returncode == 0
    shutil.move(qwen3.home / "mine.gguf", qwen3.home / "moved.gguf")
    done = qwen3("replay", "receipt")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert qwen3("replay", "receipt", "-m", "moved.gguf").returncode == 0
    done = qwen3("replay", "receipt", "-m", "nano-moe")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nano-moe-q8_0.gguf: is not the model of the receipt: its sha256 is " in done.stderr


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"receipt": 2}, "another version"),
        ({"prompt": [1, "2"]}, "its prompt is"),
        ({"prompt": [-1]}, "its prompt is"),
        ({"n_ctx": 2**40}, "too large"),
        ({"n_ctx": 4}, "too many for a context"),
        ({"kv": "f7"}, "f7"),
        ({"kv": None}, "its kv is None"),
        ({"samples": []}, "no samples"),
        ({"samples": [{}]}, "it has no "),
        ({"samples": 3}, ""),
        ({"more": 1}, "its more is 1"),
        ({"generation": "qwen4"}, "qwen4"),
        ({"sampling": {"heat": 1}}, "it has no temperature"),
        ({"sampling": {"temperature": "hot"}}, "temperature"),
        ({"sampling": {"seed": 3}}, "a seed"),
        ({"landing": "gentle"}, "gentle"),
        ({"prompt": [10**9]}, ""),
        ({"prompt": [2**40]}, "too large"),
        ({"prompt": []}, "no prompt"),
    ],
)
def test_what_is_no_receipt_is_refused(qwen3: Command, values: dict[str, Any], told: str) -> None:
    receipt(qwen3, *DRAWN)
    change(qwen3, **values)
    done = qwen3("replay", "receipt")
    assert done.returncode in (1, 2, 5) and done.stderr.count("\n") == 1
    assert told in done.stderr and "internal error" not in done.stderr


def test_an_output_of_huge_numbers_is_refused(qwen3: Command) -> None:
    (sample,) = receipt(qwen3, *DRAWN)["samples"]
    change(qwen3, samples=[sample | {"output": [2**63]}])
    done = qwen3("replay", "receipt")
    assert done.returncode == 1 and "too large" in done.stderr


def test_other_files_are_no_receipts(qwen3: Command) -> None:
    (qwen3.home / "deep").write_text("[" * 100_000)
    (qwen3.home / "text").write_bytes(b"\xff")
    (qwen3.home / "list").write_text("[]")
    for name in ("deep", "text", "list"):
        done = qwen3("replay", name)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert f"{name}: is no receipt of" in done.stderr
    assert "missing: No such file" in qwen3("replay", "missing").stderr


# ---- checksums -----------------------------------------------------------------


def test_checksums_are_kept_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    file, kept = tmp_path / "model", tmp_path / "cache" / "qwen3" / "sha256.json"

    def digest() -> str:
        return checksums([file], Terminal())[file]

    def sha256(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    file.write_bytes(b"one")
    assert digest() == sha256(b"one")
    told = json.loads(kept.read_text())
    told[str(file)]["sha256"] = "e" * 64
    kept.write_text(json.dumps(told))
    assert digest() == "e" * 64  # it is not computed again
    file.write_bytes(b"another")
    assert digest() == sha256(b"another")
    stat = file.stat()
    new = tmp_path / "new"
    new.write_bytes(b"ANOTHER")
    os.utime(new, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    new.replace(file)  # the same size and time, another inode
    assert digest() == sha256(b"ANOTHER")
    for damaged in ("", "[]", '{"' + str(file) + '": 3}', "[" * 100_000):
        kept.write_text(damaged)
        assert digest() == sha256(b"ANOTHER")
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("no folder")
    assert digest() == sha256(b"ANOTHER")


def test_a_file_of_the_hub_is_called_by_its_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / ("a" * 64)).write_bytes(b"large")
    (snapshot / "m.gguf").symlink_to(blobs / ("a" * 64))
    assert checksums([snapshot / "m.gguf"], Terminal()) == {snapshot / "m.gguf": "a" * 64}
    assert not (tmp_path / "cache").exists()
