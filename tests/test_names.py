"""What may be a name, and what a name makes `pull` fetch."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen3cli.errors import ModelNotFound, Qwen3Error, UsageError
from qwen3cli.hub import registry
from qwen3cli.hub.registry import Wanted, known, quant_of, wanted
from qwen3cli.names import check_file, check_name, check_repository

HOSTILE = [
    "", ".", "..", "a..b", ".hidden", "-m", "a b", "a\nb", "a\x00b", "a\\b", "a:b", "~", "~root",
    "a?b", "a*b", "$HOME", "`id`", "a;b", "a|b", "a&b", "%2e%2e", "a%2fb", "é", "a\u202eb", "a.",
    "ａ", "a" * 300, "a\x1b[2Jb", "a\r", "<a>", "'", '"',
]  # fmt: skip


@pytest.mark.parametrize("part", HOSTILE)
def test_hostile_names_are_refused(part: str) -> None:
    with pytest.raises(UsageError):
        check_name(part)
    for text in (f"{part}/model", f"owner/{part}", f"../{part}", f"/{part}", f"owner/{part}/x"):
        with pytest.raises(UsageError):
            check_repository(text)
    if part != "a b":  # files may be called so
        for text in (part, f"folder/{part}", f"{part}/file"):
            with pytest.raises(UsageError):
                check_file(text)
    with pytest.raises(Qwen3Error):
        wanted(f"owner/{part}/x")
    with pytest.raises(Qwen3Error):
        wanted(f"owner/{part}", weights=True)


def test_a_refused_name_is_shown_escaped_and_cut() -> None:
    with pytest.raises(UsageError) as caught:
        check_name("a\x1b[2J" + "b" * 10_000)
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["a/b", "Qwen/Qwen3-0.6B-GGUF", "bartowski/Qwen_Qwen3-4B_x.y"])
def test_repositories_stay_as_they_are(text: str) -> None:
    assert check_repository(text) == text
    assert check_file(f"{text}/Model Q4_K_M (1)+2.gguf").startswith(text)


@pytest.mark.parametrize("text", ["a", "a/b/c", "a//b", "/a/b", "a/b/", "a--b/c", "a/" + "b" * 96])
def test_what_is_no_repository(text: str) -> None:
    with pytest.raises(UsageError, match="OWNER/NAME"):
        check_repository(text)


@pytest.mark.parametrize(
    ("model", "repository", "name"),
    [
        ("30b-a3b", "Qwen/Qwen3-30B-A3B-GGUF", "30b-a3b:q4_k_m"),
        ("Qwen3-30B-A3B:Q8", "Qwen/Qwen3-30B-A3B-GGUF", "30b-a3b:q8_0"),
        ("qwen3-30b-a3b-gguf:Q8_0", "Qwen/Qwen3-30B-A3B-GGUF", "30b-a3b:q8_0"),
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B-GGUF", "4b:q4_k_m"),
        ("0.6B", "Qwen/Qwen3-0.6B-GGUF", "0.6b:q8_0"),
        ("Qwen/Qwen3-4B-GGUF:Q3_K_M", "Qwen/Qwen3-4B-GGUF", "Qwen/Qwen3-4B-GGUF:q3_k_m"),
        ("you/Mine-GGUF:q4", "you/Mine-GGUF", "you/Mine-GGUF:q4_k_m"),
    ],
)
def test_a_name_wants_one_quantization(model: str, repository: str, name: str) -> None:
    wish = wanted(model)
    assert (wish.repository, wish.kind, wish.name) == (repository, "gguf", name)
    quant = name.partition(":")[2].upper()
    whole = f"Some-{quant}.gguf"
    assert wish.choose(["README.md", "Some-F16.gguf", whole, f"imatrix-{quant}.gguf"]) == [whole]


def test_a_repository_alone_wants_the_best_it_has() -> None:
    wish = wanted("you/Mine-GGUF")
    assert wish == Wanted("you/Mine-GGUF", None, "gguf", "you/Mine-GGUF")
    assert wish.choose(["a-Q8_0.gguf", "a-Q6_K.gguf", "a-BF16.gguf"]) == ["a-Q8_0.gguf"]
    assert wish.choose(["a-IQ4_XS.gguf", "a-Q2_K.gguf"]) == ["a-IQ4_XS.gguf"]
    assert wish.choose(["model.gguf", "mmproj-F16.gguf"]) == ["model.gguf"]
    with pytest.raises(ModelNotFound, match="no GGUF files"):
        wish.choose(["model.safetensors"])
    with pytest.raises(ModelNotFound, match=r"of a\.gguf, b\.gguf no name tells a quantization"):
        wish.choose(["a.gguf", "b.gguf"])


def test_all_shards_of_one_folder_are_wanted() -> None:
    shards = [f"Q4_K_M/Big-Q4_K_M-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    others = ["Q8_0/Big-Q8_0-00001-of-00002.gguf", "old/Big-Q4_K_M.gguf", "Big-Q5_K_M.gguf"]
    assert wanted("235b-a22b").choose([*others, *shards]) == shards
    assert wanted("you/Big:q4_k_m").choose(shards) == shards
    with pytest.raises(ModelNotFound, match="there are q4_k_m, q5_k_m, q8_0"):
        wanted("you/Big:q6_k").choose([*others, *shards])


def test_weights_are_what_quantize_reads() -> None:
    wish = wanted("coder-30b-a3b", weights=True)
    assert wish.repository == "Qwen/Qwen3-Coder-30B-A3B-Instruct"
    assert (wish.kind, wish.name) == ("weights", "coder-30b-a3b")
    needed = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    needed += ["model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"]
    assert wish.choose([*needed, "LICENSE", "figure.png", "pytorch_model.bin"]) == needed
    with pytest.raises(ModelNotFound, match="no safetensors"):
        wish.choose(["config.json", "a.gguf"])
    assert wanted("you/Mine", weights=True).repository == "you/Mine"


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("4b-instruct-2507", "pull 4b-instruct-2507 --weights"),
        ("8b-base:q4", "quantize 8b-base"),
        ("0.6b:q4", "has q8_0; .*--type Q4_K_M"),
        ("0.6b:q9", "has q8_0, and `qwen3 quantize` makes no q9"),
        ("30b-a3", "did you mean 30b-a3b"),
        ("30b", "did you mean 30b-a3b"),
        ("coder", "did you mean coder-30b-a3b"),
        ("nano", "part of this program"),
    ],
)
def test_what_cannot_be_had_comes_with_what_to_do(model: str, hint: str) -> None:
    with pytest.raises(Qwen3Error, match=hint):
        wanted(model)


@pytest.mark.parametrize(
    ("path", "quant"),
    [
        ("Qwen3-8B-Q4_K_M.gguf", "q4_k_m"),
        ("Q8_0/Qwen3-235B-A22B-Q8_0-00001-of-00009.gguf", "q8_0"),
        ("model.IQ4_XS.gguf", "iq4_xs"),
        ("Qwen3-4B-UD-Q4_K_XL.gguf", "q4_k_xl"),
        ("Qwen3-8B-BF16.gguf", "bf16"),
        ("Qwen3-8B.gguf", ""),
        ("Qwen3-4B-Instruct-2507.gguf", ""),
    ],
)
def test_the_quant_is_read_from_the_name(path: str, quant: str) -> None:
    assert quant_of(path) == quant


def test_completion_knows_what_is_installed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    models = registry.models_folder()
    models.mkdir(parents=True)
    for file in ("Qwen3-4B-Q4_K_M.gguf", "Qwen3-Coder-30B-A3B-Instruct-Q8_0.gguf", "mine.gguf"):
        (models / file).touch()
    here = ["4b:q4_k_m", "coder-30b-a3b:q8_0", "mine"]
    assert known()[:5] == [*here, "nano", "nano-moe"]
    assert all(registry.resolve(name).parent == models for name in here)
    assert "8b:q6_k" in known(quants=True) and "8b:q6_k" not in known()
