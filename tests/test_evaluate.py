"""`qwen3 eval`: perplexities and divergences against recomputations from single tokens."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import ROOT, Command
from gguf_tiny import tiny_model
from numpy.typing import NDArray

from quant.quantize import quantize
from qwen3cli.engine import ContextOverflow, Model
from qwen3cli.evaluate import chunks_of

sys.path.insert(0, str(ROOT / "docs/nano-recipe"))
from data import sample  # type: ignore[import-not-found,unused-ignore]

NANO = ROOT / "qwen3cli/models/nano-dense-q8_0.gguf"
Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano in F32."""
    path = tmp_path_factory.mktemp("gguf") / "plain.gguf"
    quantize(ROOT / "tests/data/nano-dense", path, "F32")
    return path


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fresh conversations, on which nano was trained."""
    rng = random.Random(7)
    tokenizer = Model(NANO).tokenizer
    texts = [
        tokenizer.decode(sample(rng, lambda text: tokenizer.encode(text, added=True))[0])
        for _ in range(20)
    ]
    path = tmp_path_factory.mktemp("text") / "talk.txt"
    path.write_text("".join(texts))
    return path


def evaluated(qwen3: Command, *args: str | Path, input: str = "") -> dict[str, Any]:
    done = qwen3("eval", *map(str, args), "--json", input=input)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def log_probabilities(model: Model, ids: list[int]) -> Floats:
    """[len(ids)][n_vocab], token by token."""
    session = model.session(kv="f32")
    rows = []
    for token in ids:
        session.extend([token])
        logits = session.logits().astype(np.float64)
        rows.append(logits - np.logaddexp.reduce(logits))
    return np.array(rows)


# ---- logits of every token -------------------------------------------------------------


@pytest.mark.parametrize("experts", [0, 4])
def test_a_pass_over_all_tokens_gives_the_logits_of_each(tmp_path: Path, experts: int) -> None:
    image = tiny_model("Q8_0", experts=experts, experts_used=experts // 2, ffn=32)
    session = Model(image.write(tmp_path / "tiny.gguf")).session(n_ctx=100)
    ids = [i * 37 % 250 for i in range(100)]
    together = np.concatenate([session.extend_logits(ids[:70]), session.extend_logits(ids[70:])])
    assert np.array_equal(session.logits(), together[-1])
    with pytest.raises(ContextOverflow):
        session.extend_logits([1])
    session.sync([])
    for token, row in zip(ids, together, strict=True):
        session.extend([token])
        assert np.array_equal(session.logits(), row)


# ---- figures ---------------------------------------------------------------------------


def test_chunks_are_whole_unless_there_is_only_one() -> None:
    assert chunks_of(range(11), 5) == [range(0, 5), range(5, 10)]
    assert chunks_of(range(4), 5) == [range(4)]


def test_the_figures_are_those_of_single_tokens(qwen3: Command, plain: Path, talk: Path) -> None:
    args = (NANO, talk, "--reference", plain, "--added", "--ctx", "64", "--chunks", "4")
    report = evaluated(qwen3, "kl", *args)
    assert (report["chunks"], report["positions"]) == (4, 4 * 31)

    models = [Model(path) for path in (NANO, plain)]
    nll: list[list[Floats]] = [[], []]
    kl, same = [], []
    ids = models[0].tokenizer.encode(talk.read_text(), added=True)
    for start in range(0, 4 * 64, 64):
        chunk = ids[start : start + 64]
        logs = [log_probabilities(model, chunk)[32:-1] for model in models]
        for values, log in zip(nll, logs, strict=True):
            values.append(-log[np.arange(31), chunk[33:]])
        kl.append((np.exp(logs[1]) * (logs[1] - logs[0])).sum(axis=1))
        same.append(logs[0].argmax(axis=1) == logs[1].argmax(axis=1))
    ours, theirs = (np.concatenate(values) for values in nll)
    divergence, top = np.concatenate(kl), np.concatenate(same)

    def approx(value: Any) -> Any:
        return pytest.approx(float(value), rel=1e-9, abs=1e-12)

    for name, values in (
        ("perplexity", ours),
        ("reference_perplexity", theirs),
        ("perplexity_ratio", ours - theirs),
    ):
        value = np.exp(values.mean())
        assert report[name]["value"] == approx(value)
        assert report[name]["error"] == approx(value * values.std() / len(values) ** 0.5)
    figures = report["kl"]
    assert figures["mean"] == approx(divergence.mean()) and divergence.mean() > 0
    assert figures["error"] == approx(divergence.std() / len(divergence) ** 0.5)
    for key, q in (("median", 50), ("p90", 90), ("p99", 99), ("p99_9", 99.9), ("max", 100)):
        assert figures[key] == approx(np.percentile(divergence, q))
    assert report["same_top"]["share"] == approx(top.mean())


def test_the_divergence_is_the_published_one(qwen3: Command, plain: Path, talk: Path) -> None:
    """bench/README.md: 6.7e-5 for nano in Q8_0, over whole conversations of the same kind."""
    figures = evaluated(qwen3, "kl", NANO, talk, "--reference", plain, "--added")["kl"]
    assert abs(figures["mean"] - 6.7e-5) < 4 * figures["error"]


def test_a_file_does_not_diverge_from_itself(qwen3: Command, talk: Path) -> None:
    report = evaluated(qwen3, "kl", NANO, talk, "--reference", "nano", "--chunks", "2")
    assert set(report["kl"].values()) == {0.0}
    assert report["perplexity_ratio"] == {"value": 1.0, "error": 0.0}
    assert report["same_top"] == {"share": 1.0, "error": 0.0}


def test_perplexity_alone_from_a_pipe(qwen3: Command, talk: Path) -> None:
    piped = evaluated(qwen3, "ppl", "nano", "--added", input=talk.read_text())
    named = evaluated(qwen3, "ppl", "nano", talk, "--added")
    assert piped == named and "kl" not in piped
    trained, noise = piped["perplexity"], evaluated(qwen3, "ppl", "nano", input="?! " * 200)
    assert 1 < trained["value"] < noise["perplexity"]["value"] / 10


def test_texts_are_cut_apart_and_a_short_one_is_a_chunk(qwen3: Command) -> None:
    for name in ("a", "b"):
        (qwen3.home / name).write_text("1 2 3 4 5 6 7 8")
    report = evaluated(qwen3, "ppl", "nano", "a", "b")
    alone = evaluated(qwen3, "ppl", "nano", "a")
    assert (report["chunks"], report["positions"]) == (2, 2 * alone["positions"])
    assert report["perplexity"]["value"] == pytest.approx(alone["perplexity"]["value"])


def test_a_person_gets_a_table_a_bar_and_what_was_counted(qwen3: Command, talk: Path) -> None:
    terminal = qwen3.terminal("eval", "kl", "nano", str(talk), "--reference", "nano")
    assert terminal.finish() == 0
    for text in ("perplexity of the reference", "KL, 99.9 %", "100.00%", "positions", "tok/s"):
        assert text in terminal.text, text
    assert terminal.echoes


# ---- what goes wrong ---------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "1 "])
def test_a_text_without_tokens_is_an_error(qwen3: Command, text: str) -> None:
    done = qwen3("eval", "ppl", "nano", input=text)
    assert (done.returncode, done.stdout) == (2, "")
    assert "stdin" in done.stderr and "too short" in done.stderr


def test_models_of_two_tokenizers_are_not_compared(qwen3: Command) -> None:
    tiny = tiny_model()
    tiny.write(qwen3.home / "tiny.gguf")
    done = qwen3("eval", "kl", "tiny.gguf", "--reference", "nano", input="1 2 3 4")
    assert done.returncode == 2
    assert "tiny.gguf" in done.stderr and "different tokenizers (of 269 and 4224" in done.stderr

    tokens = tiny.get("tokenizer.ggml.tokens")
    tiny.put("tokenizer.ggml.tokens", [*tokens[:-1], "<other>"])
    tiny.write(qwen3.home / "other.gguf")
    done = qwen3("eval", "kl", "tiny.gguf", "--reference", "other.gguf", input="1 2 3 4")
    assert done.returncode == 2 and "b'<other>'" in done.stderr

    tiny.put("tokenizer.ggml.tokens", tokens)
    tiny.put("tokenizer.ggml.merges", tiny.get("tokenizer.ggml.merges")[:1])
    tiny.write(qwen3.home / "merges.gguf")
    done = qwen3("eval", "kl", "tiny.gguf", "--reference", "merges.gguf", input="then in on at")
    assert done.returncode == 2 and "cut stdin into different tokens" in done.stderr


def test_missing_files_and_wrong_numbers(qwen3: Command) -> None:
    assert qwen3("eval", "ppl", "none.gguf", input="1 2 3").returncode == 3
    assert qwen3("eval", "kl", "nano", "--reference", "none.gguf", input="1 2 3").returncode == 3
    assert qwen3("eval", "kl", "nano", input="1 2 3").returncode == 2
    assert qwen3("eval", "ppl", "nano", "--ctx", "3", input="1 2 3").returncode == 2
    done = qwen3("eval", "ppl", "nano", "--ctx", "8192", input="1 " * 5000)
    assert done.returncode == 2 and "has a context of 4,096 tokens" in done.stderr
    done = qwen3("eval", "ppl", "nano", "no-such-text")
    assert done.returncode == 1 and "no-such-text" in done.stderr


def test_logits_that_are_not_finite_are_an_error(qwen3: Command) -> None:
    """Weights near the largest float: their products overflow."""
    image = tiny_model()
    embedding = image.tensor("output_norm.weight")
    embedding.data = np.full(32, 3e38, np.float32).tobytes()
    image.write(qwen3.home / "huge.gguf")
    done = qwen3("eval", "ppl", "huge.gguf", input="1 2 3 4 5 6 7 8")
    assert done.returncode == 1 and "not finite" in done.stderr
    assert done.stderr.count("\n") == 1


def test_nobody_reads_the_output(qwen3: Command, talk: Path) -> None:
    done = qwen3.shell(f'"$@" eval ppl nano {talk} 2>err >&- ; echo $?')
    assert done.stdout == "1\n" and "cannot write" in (qwen3.home / "err").read_text()
    done = qwen3.shell(f'"$@" eval ppl nano {talk} 2>err | true; echo ${{PIPESTATUS[0]}}')
    assert done.stdout == "141\n" and "Error" not in (qwen3.home / "err").read_text()


def test_ctrl_c_ends_it(qwen3: Command) -> None:
    (qwen3.home / "long").write_text("17 + 48 - 5 is 60. " * 100_000)
    terminal = qwen3.terminal("eval", "ppl", "nano", "long")
    terminal.wait_for("tok/s")
    terminal.press("c")
    assert terminal.finish() == 130
