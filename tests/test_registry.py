"""Model names: embedded, installed, cached by Hugging Face, or unknown."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from qwen3cli.errors import ModelNotFound, UsageError
from qwen3cli.hub import local, registry


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("QWEN3_MODEL", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def cache(
    home: Path, repository: str, *names: str, revision: str = "abc", main: bool = True
) -> Path:
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    if main:
        touch(folder / "refs" / "main", revision)
    for name in names:
        touch(folder / "snapshots" / revision / name, "{}")
    return folder / "snapshots" / revision


def test_embedded_models_win_over_files_of_their_name(home: Path) -> None:
    (home / "nano").mkdir()
    assert registry.resolve("nano").name == "nano-dense-q8_0.gguf"
    assert registry.resolve("nano-moe").name == "nano-moe-q8_0.gguf"


def test_a_path_is_itself_and_a_missing_one_is_an_error(home: Path) -> None:
    path = touch(home / "some.gguf")
    assert registry.resolve("some.gguf").samefile(path)
    assert registry.resolve(str(path)) == path
    with pytest.raises(ModelNotFound, match="no such model file"):
        registry.resolve("other.gguf")
    with pytest.raises(ModelNotFound, match="no such model file"):
        registry.resolve("folder/other")
    with pytest.raises(UsageError, match="quantize"):
        registry.resolve(str(home))
    with pytest.raises(UsageError, match="quantized already"):
        registry.source("nano")


def test_names_are_found_in_the_models_folder_first(home: Path) -> None:
    models = registry.models_folder()
    assert models == home / "data" / "qwen3" / "models"
    cached = cache(home, "Qwen/Qwen3-0.6B-GGUF", "Qwen3-0.6B-Q8_0.gguf") / "Qwen3-0.6B-Q8_0.gguf"
    assert registry.resolve("0.6b") == cached
    assert registry.resolve("Qwen/Qwen3-0.6B") == cached
    assert registry.resolve("0.6B:Q8_0") == cached
    ours = touch(models / "0.6b-q8_0.gguf")
    assert registry.resolve("0.6b:q8") == ours
    better = touch(models / "0.6b-q4_k_m.gguf")
    assert registry.resolve("0.6b") == better
    assert registry.resolve("0.6b:q8") == ours
    with pytest.raises(ModelNotFound, match="installed: q4_k_m, q8_0"):
        registry.resolve("0.6b:q6_k")
    mine = touch(models / "mine.gguf")
    assert registry.resolve("mine") == mine


@pytest.mark.parametrize("file", ["Qwen3-0.6B-Q8_0.gguf", "qwen3-0.6b-q8_0.gguf", "0.6b-Q8_0.gguf"])
def test_files_keep_the_names_they_were_published_under(file: str) -> None:
    path = touch(registry.models_folder() / file)
    for name in ("0.6b", "0.6B:q8", "Qwen3-0.6B", "Qwen/Qwen3-0.6B:Q8_0", "Qwen3-0.6B-Q8_0"):
        assert registry.resolve(name) == path


def test_members_without_a_short_name_are_found_by_their_file() -> None:
    path = touch(registry.models_folder() / "Qwen3-4B-Instruct-2507-Q4_K_M.gguf")
    for name in ("Qwen3-4B-Instruct-2507", "Qwen/Qwen3-4B-Instruct-2507:q4", path.stem):
        assert registry.resolve(name) == path
    with pytest.raises(ModelNotFound, match="installed: q4_k_m"):
        registry.resolve("Qwen3-4B-Instruct-2507:q8")


def test_a_repository_is_looked_for_in_the_cache(home: Path) -> None:
    with pytest.raises(ModelNotFound, match="`qwen3 pull you/Mine-GGUF:q4` gets it"):
        registry.resolve("you/Mine-GGUF:q4")
    folder = cache(home, "you/Mine-GGUF", "Mine-Q4_K_M.gguf", "Mine.Q8_0.gguf")
    assert registry.resolve("you/Mine-GGUF") == folder / "Mine-Q4_K_M.gguf"
    assert registry.resolve("you/Mine-GGUF:q4") == folder / "Mine-Q4_K_M.gguf"
    assert registry.resolve("you/Mine-GGUF:Q8") == folder / "Mine.Q8_0.gguf"
    with pytest.raises(ModelNotFound, match="installed: q4_k_m, q8_0"):
        registry.resolve("you/Mine-GGUF:q6_k")
    with pytest.raises(ModelNotFound, match="qwen3 pull you/Mine --weights"):
        registry.source("you/Mine")
    folder = cache(home, "you/Mine", "config.json", "model.safetensors")
    assert registry.source("you/Mine") == (folder, Path("Mine"))
    path = touch(home / "you" / "Mine-GGUF")
    assert registry.resolve("you/Mine-GGUF").samefile(path)  # what is there is meant


@pytest.mark.parametrize("name", ["../../x", "a--b/c", "a/b/c", "..", "a/.."])
def test_no_name_leads_out_of_the_cache(home: Path, name: str) -> None:
    with pytest.raises(UsageError, match="repository"):
        local.snapshot(name)


def test_later_releases_are_installed_under_either_name() -> None:
    models = registry.models_folder()
    path = touch(models / "Qwen3-Coder-30B-A3B-Instruct-Q4_K_M.gguf")
    for name in ("coder-30b-a3b", "coder-30b-a3b:Q4", "Qwen/Qwen3-Coder-30B-A3B-Instruct"):
        assert registry.resolve(name) == path
    ours = touch(models / "coder-30b-a3b-q4_k_m.gguf")
    assert registry.resolve("coder-30b-a3b") == ours
    with pytest.raises(ModelNotFound, match="8b-base --weights` and `qwen3 quantize 8b-base"):
        registry.resolve("8b-base")


def test_without_a_home_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    notes: list[str] = []
    assert registry.choose(None, notes.append) == registry.resolve("nano")
    assert len(notes) == 1
    with pytest.raises(ModelNotFound, match="`qwen3 pull"):
        registry.resolve("0.6b")
    with pytest.raises(OSError, match="no home directory"):
        registry.models_folder()


def test_parts_and_other_models_are_not_taken_for_a_quantization(home: Path) -> None:
    cache(home, "Qwen/Qwen3-4B-GGUF", "Q4_K_M/Qwen3-4B-Q4_K_M-00001-of-00002.gguf")
    touch(registry.models_folder() / "4b-instruct-2507-q4_k_m.gguf")
    with pytest.raises(ModelNotFound, match="qwen3 pull 4b"):
        registry.resolve("4b")


def test_a_split_model_is_its_first_shard(home: Path) -> None:
    names = [f"Q4_K_M/Qwen3-4B-Q4_K_M-0000{i}-of-00002.gguf" for i in (1, 2)]
    cached = cache(home, "Qwen/Qwen3-4B-GGUF", *names)
    for name in ("4b", "4b:q4", "Qwen/Qwen3-4B"):
        assert registry.resolve(name) == cached / names[0]
    first, second = (registry.models_folder() / f"mine-0000{i}-of-00002.gguf" for i in (1, 2))
    touch(first)
    with pytest.raises(ModelNotFound):  # the other one is missing
        registry.resolve("mine")
    assert registry.installed() == []
    touch(second)
    assert registry.installed() == [first]
    assert registry.resolve("mine") == first == registry.choose(None, lambda _: None)
    assert registry.resolve(str(first.with_name("mine.gguf"))) == first
    assert registry.resolve(str(second)) == second  # the engine says which one to open


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("0.6", "did you mean 0.6b"),
        ("nanno", "did you mean nano"),
        ("zzz", "known: nano, nano-moe"),
        ("z" * 256, "known: nano, nano-moe"),  # longer than names of files can be
        ("z" * 5000, "known: nano, nano-moe"),
    ],
)
def test_an_unknown_name_comes_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(ModelNotFound, match=hint):
        registry.resolve(name)
    with pytest.raises(ModelNotFound) as caught:
        registry.source(name)
    assert "nano" not in str(caught.value).removeprefix(name)  # it has no weights here


def test_the_default_is_the_variable_then_the_last_installed_then_nano(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    assert registry.choose(None, notes.append) == registry.resolve("nano")
    assert len(notes) == 1 and "nano" in notes[0]
    cache(home, "some/Other-GGUF", "other-q8_0.gguf")  # perhaps no model of ours
    assert registry.choose(None, notes.append) == registry.resolve("nano")
    pulled = cache(home, "Qwen/Qwen3-0.6B-GGUF", "Qwen3-0.6B-Q8_0.gguf") / "Qwen3-0.6B-Q8_0.gguf"
    assert registry.choose(None, notes.append) == pulled
    os.utime(pulled, (2, 2))
    new = touch(registry.models_folder() / "new.gguf")
    old = touch(registry.models_folder() / "old.gguf")
    os.utime(old, (1, 1))
    assert registry.choose(None, notes.append) == new
    monkeypatch.setenv("QWEN3_MODEL", "nano-moe")
    assert registry.choose(None, notes.append) == registry.resolve("nano-moe")
    assert registry.choose(str(old), notes.append) == old
    assert len(notes) == 2


def test_a_relative_xdg_folder_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert registry.models_folder() == Path.home() / ".local/share/qwen3/models"


def test_weights_must_be_cached_completely(home: Path) -> None:
    with pytest.raises(ModelNotFound, match="--weights` gets them"):
        registry.source("0.6b")
    folder = cache(home, "Qwen/Qwen3-0.6B", "config.json")
    assert local.weights("Qwen/Qwen3-0.6B") is None
    touch(folder / "model.safetensors")
    assert registry.source("0.6b") == (folder, Path("0.6b"))
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    touch(folder / "model.safetensors.index.json", json.dumps(index))
    touch(folder / "model-1.safetensors")
    assert local.weights("Qwen/Qwen3-0.6B") is None
    touch(folder / "model-2.safetensors")
    assert local.weights("Qwen/Qwen3-0.6B") == folder


def test_without_a_main_reference_the_last_snapshot_counts(home: Path) -> None:
    assert local.snapshot("Qwen/Qwen3-8B") is None
    old = cache(home, "Qwen/Qwen3-8B", "config.json", revision="old", main=False)
    new = cache(home, "Qwen/Qwen3-8B", "config.json", revision="new", main=False)
    os.utime(old, (1, 1))
    assert local.snapshot("Qwen/Qwen3-8B") == new
