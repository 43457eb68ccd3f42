"""Importance matrices: collected as the reference computes them, written and read in the
ecosystem's format, and used where they say."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import gguf_files
import numpy as np
import pytest
import qwen3_native
from checkpoint_tiny import DATA, DENSE, MOE, fused, tensors_of, write_checkpoint
from commandline import Command
from numpy.typing import NDArray

from quant.errors import FormatError, QuantError, SourceNotFound
from quant.imatrix import Corpus, Imatrix, write_imatrix
from quant.quantize import predict, quantize
from qwen3cli.engine import Cancelled, Importance, Inputs, Model, Session
from qwen3cli.errors import UsageError
from qwen3cli.imatrix import imatrix
from qwen3cli.options import Reading
from qwen3cli.terminal import Terminal

SITES = {"q": "qkv", "k": "qkv", "v": "qkv", "output": "o", "gate": "gate_up", "up": "gate_up"}
CORPUS = Corpus(["a.txt", "b.txt"], 3, 16)
Arrays = dict[str, NDArray[Any]]


def stored(folder: str, name: str) -> Arrays:
    with np.load(DATA / folder / f"{name}.npz") as file:
        return dict(file)


def sequences(name: str) -> list[list[int]]:
    return [ids.tolist() for key, ids in stored("logits", name).items() if key.startswith("ids_")]


def collected(model: Model, texts: list[list[int]], step: int = 4096) -> Importance:
    importance = Importance(model)
    session = model.session()
    session.observe(importance)
    for ids in texts:
        session.sync([])
        for at in range(0, len(ids), step):
            session.extend(ids[at : at + step])
    return importance


def test_a_matrix_named_like_a_split_model_leaves_it_alone(tmp_path: Path, qwen3: Command) -> None:
    quantize(DATA / "nano-dense", tmp_path / "m.gguf", "q8_0", split_size=2_000_000)
    (tmp_path / "a.txt").write_text("one two three " * 20)
    shards = sorted(tmp_path.glob("m-0*.gguf"))
    assert len(shards) > 1
    done = qwen3("imatrix", shards[0].name, "a.txt", "-o", "m.gguf", "--chunks", "1")
    assert done.returncode == 0, done.stderr
    assert sorted(tmp_path.glob("m-0*.gguf")) == shards
    assert qwen3("show", shards[0].name).returncode == 0


# ---- collecting ------------------------------------------------------------


@pytest.mark.parametrize("name", ["nano-dense", "nano-moe", "tiny-gqa2", "tiny-moe8"])
def test_the_sums_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """Of weights in F32; the vectors come from tests/vectors/make_importance.py."""
    quantize(DATA / name, tmp_path / "f32.gguf", "F32")
    model = Model(tmp_path / "f32.gguf")
    texts, want = sequences(name), stored("importance", name)
    entries = list(collected(model, texts))
    assert len(entries) == 7 * model.config["n_layers"]
    for tensor, sums, counts in entries:
        _, layer, part, _ = tensor.split(".")
        site = SITES.get(part.removeprefix("attn_").removeprefix("ffn_").removesuffix("_exps"))
        key = f"{layer}.{site or 'down'}"
        if part.endswith("_exps"):
            np.testing.assert_array_equal(counts, want[f"{layer}.counts"])
        else:
            assert counts.tolist() == [sum(map(len, texts))]
        if key in want:
            np.testing.assert_allclose(sums, np.atleast_2d(want[key]), rtol=2e-4, atol=1e-6)
        else:  # the sums in both directions
            np.testing.assert_allclose(sums.sum(1), want[key + ".rows"], rtol=2e-4, atol=1e-6)
            np.testing.assert_allclose(sums.sum(0), want[key + ".columns"], rtol=2e-4, atol=1e-6)


def test_the_first_layer_meets_the_normed_embedding() -> None:
    path = Path("qwen3cli/models/nano-dense-q8_0.gguf")
    file, ids = qwen3_native.File(bytes(path)), sequences("nano-dense")[0]
    x = np.stack([file.read_rows("token_embd.weight", i, i + 1)[0] for i in ids]).astype(float)
    x /= np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    x *= file.read_rows("blk.0.attn_norm.weight", 0, 1)[0]
    first = next(iter(collected(Model(path), [ids])))
    assert first.tensor == "blk.0.attn_q.weight"
    np.testing.assert_allclose(first.sums[0], (x**2).sum(0), rtol=1e-5)


def test_chunks_and_threads_change_no_bit() -> None:
    path, texts = "qwen3cli/models/nano-moe-q8_0.gguf", sequences("nano-moe")
    want = list(collected(Model(path, threads=1), texts))
    for threads, step in ((1, 1), (2, 100), (3, 7)):
        for ours, theirs in zip(
            collected(Model(path, threads=threads), texts, step), want, strict=True
        ):
            np.testing.assert_array_equal(ours.sums, theirs.sums)
            np.testing.assert_array_equal(ours.counts, theirs.counts)


def test_a_session_that_is_no_longer_observed_adds_nothing() -> None:
    model = Model("qwen3cli/models/nano-dense-q8_0.gguf")
    importance = Importance(model)
    session = model.session()
    session.observe(importance)
    session.sync([1, 2, 3])
    session.sync([1, 2, 3, 4])  # three are reused
    session.observe(None)
    session.sync([5, 6])
    assert next(iter(importance)).counts.tolist() == [4]
    with pytest.raises(UsageError, match="another model"):
        session.observe(Importance(Model("qwen3cli/models/nano-moe-q8_0.gguf")))


# ---- the format ------------------------------------------------------------


def entries(n_experts: int = 1) -> list[Inputs]:
    """As CORPUS might have given them; expert 2 was never reached."""
    rng = np.random.default_rng(1)
    sums, counts = rng.random((n_experts, 8)) * 10, np.full(n_experts, 40)
    if n_experts > 2:
        sums[2], counts[2] = 0, 0
    suffix = "_exps" if n_experts > 1 else ""
    return [Inputs(f"blk.0.ffn_{part}{suffix}.weight", sums, counts) for part in ("gate", "up")]


def test_the_file_is_what_the_ecosystem_reads(tmp_path: Path) -> None:
    """Keys, types, names, dimensions and padding of llama.cpp's loader and writer."""
    path = tmp_path / "i.gguf"
    dense, experts = entries()[0], entries(4)[0]
    write_imatrix(path, [dense, experts], CORPUS)
    reader = gguf_files.read(path)
    metadata = {
        key: (field.types, field.contents())
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    }
    kinds = gguf.GGUFValueType
    assert metadata == {
        "general.type": ([kinds.STRING], "imatrix"),
        "imatrix.datasets": ([kinds.ARRAY, kinds.STRING], ["a.txt", "b.txt"]),
        "imatrix.chunk_count": ([kinds.UINT32], 3),
        "imatrix.chunk_size": ([kinds.UINT32], 16),
    }
    got = {t.name: (t.shape.tolist(), t.tensor_type.name, t.data) for t in reader.tensors}
    for each, sums_shape, counts_shape in ((dense, [8], [1]), (experts, [8, 4], [1, 4])):
        shape, kind, data = got.pop(each.tensor + ".in_sum2")
        assert (shape, kind) == (sums_shape, "F32")
        np.testing.assert_array_equal(np.atleast_2d(data), each.sums.astype(np.float32))
        shape, kind, data = got.pop(each.tensor + ".counts")
        assert (shape, kind) == (counts_shape, "F32")
        np.testing.assert_array_equal(data.reshape(-1), each.counts)
    assert not got


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "i.gguf", entries(4), CORPUS)
    read = Imatrix(tmp_path / "i.gguf")
    assert (read.corpus, read.n_entries) == (CORPUS, 2)
    for each in entries(4):
        for expert in range(4):
            weights = read.weights(each.tensor, expert)
            want = each.sums[expert] / 40 if expert != 2 else np.ones(8)
            assert weights is not None
            np.testing.assert_allclose(weights, want, rtol=1e-6)
    assert read.weights("blk.1.attn_q.weight", 0) is None


def edited(path: Path, change: Callable[[dict[str, Any], Arrays], None]) -> Path:
    """An importance matrix of GGUF's own making, after a change of its keys and tensors."""
    keys: dict[str, Any] = {
        "general.type": "imatrix",
        "imatrix.datasets": ["a.txt"],
        "imatrix.chunk_count": 3,
        "imatrix.chunk_size": 16,
    }
    tensors: Arrays = {}
    for each in entries():
        tensors[each.tensor + ".in_sum2"] = each.sums.astype(np.float32)  # [1, n]: as good as [n]
        tensors[each.tensor + ".counts"] = each.counts.astype(np.float32)
    change(keys, tensors)
    writer = gguf.GGUFWriter(path, "none")
    for key, value in keys.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_string(key, value) if isinstance(value, str) else writer.add_uint32(
                key, value
            )
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_other_versions_add_is_passed_over(tmp_path: Path) -> None:
    def more(keys: dict[str, Any], tensors: Arrays) -> None:
        keys["imatrix.more"] = 1
        tensors["blk.0.ffn_up.weight.in_sum"] = np.full(8, -1.0, np.float32)

    assert Imatrix(edited(tmp_path / "i.gguf", more)).n_entries == 2


SUMS, COUNTS = "blk.0.ffn_up.weight.in_sum2", "blk.0.ffn_up.weight.counts"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda keys, _: keys.update({"general.type": "model"}), "no importance matrix"),
        (lambda keys, _: keys.pop("imatrix.datasets"), "imatrix.datasets is missing"),
        (lambda keys, _: keys.update({"imatrix.chunk_size": "x"}), "imatrix.chunk_size is no"),
        (lambda _, tensors: tensors.pop(COUNTS), f"{COUNTS} is missing"),
        (lambda _, tensors: tensors.pop(SUMS), f"{SUMS} is missing"),
        (lambda _, tensors: tensors.clear(), "no importances"),
        (lambda _, tensors: tensors.update({SUMS: np.full(8, np.nan, np.float32)}), "ffn_up"),
        (lambda _, tensors: tensors.update({SUMS: np.full(8, -1, np.float32)}), "ffn_up"),
        (lambda _, tensors: tensors.update({COUNTS: np.full(1, np.inf, np.float32)}), "ffn_up"),
        (lambda _, tensors: tensors.update({COUNTS: np.ones(3, np.float32)}), "3 counts for 8"),
        (lambda _, tensors: tensors.update({SUMS: np.ones(8, np.float16)}), "type F16"),
    ],
)
def test_a_file_that_is_wrong_is_an_error(
    change: Callable[[dict[str, Any], Arrays], None], text: str, tmp_path: Path
) -> None:
    path = edited(tmp_path / "wrong.gguf", change)
    with pytest.raises(FormatError, match=re.escape(text)) as error:
        Imatrix(path)
    assert str(error.value).startswith(str(path))


def test_the_old_format_is_named_and_so_is_the_way_out(tmp_path: Path) -> None:
    path, name = tmp_path / "old.dat", b"blk.0.ffn_down.weight"
    head = np.array([7, len(name)], "<i4").tobytes() + name
    path.write_bytes(head + np.array([12, 2], "<i4").tobytes() + bytes(8))
    with pytest.raises(FormatError, match=r"llama-imatrix --in-file \S+old.dat -o old.gguf"):
        Imatrix(path)
    path.write_bytes(b"\0\1\2\3\xff\xff\xff\xff")
    with pytest.raises(FormatError, match="no GGUF file"):
        Imatrix(path)
    with pytest.raises(SourceNotFound, match="no such"):
        Imatrix(tmp_path / "absent.gguf")


def test_sums_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    bad = entries()[0]._replace(sums=np.full((1, 8), 1e39))
    with pytest.raises(QuantError, match=r"blk\.0\.ffn_gate\.weight is not finite"):
        write_imatrix(tmp_path / "i.gguf", [bad], CORPUS)


# ---- quantizing ------------------------------------------------------------

WIDE = {"hidden_size": 256, "moe_intermediate_size": 256, "intermediate_size": 256, "head_dim": 64}


def made_up(config: dict[str, Any]) -> Iterator[Inputs]:
    """Importances for every matrix of a checkpoint; the last expert was never reached."""
    rng = np.random.default_rng(2)
    experts = config.get("num_experts", 0)
    for layer in range(config["num_hidden_layers"]):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            moe = part.startswith("ffn") and experts > 0
            counts = rng.integers(1, 99, experts if moe else 1)
            if moe:
                counts[-1] = 0
            n_in = 256  # 4 heads of 64, too
            sums = rng.lognormal(0, 2, (len(counts), n_in)) * counts[:, None]
            suffix = "_exps" if moe else ""
            yield Inputs(f"blk.{layer}.{part}{suffix}.weight", sums, counts)


@pytest.mark.parametrize("config", [DENSE | WIDE, MOE | WIDE], ids=["dense", "moe"])
def test_each_expert_is_quantized_with_its_own_row(config: dict[str, Any], tmp_path: Path) -> None:
    tensors = tensors_of(config, 3)
    source = write_checkpoint(tmp_path / "source", config, tensors)
    inputs = list(made_up(config))
    write_imatrix(tmp_path / "i.gguf", inputs, CORPUS)
    exact, out = tmp_path / "f32.gguf", tmp_path / "q.gguf"
    quantize(source, exact, "F32")
    done = quantize(source, out, "Q4_K_M", imatrix=tmp_path / "i.gguf", threads=2)
    assert done.unweighed == []
    rows = qwen3_native.File(bytes(exact))
    got = {tensor.name: tensor for tensor in gguf_files.read(out).tensors}
    for tensor, sums, counts in inputs:
        per_expert = got[tensor].data.reshape(len(counts), -1, got[tensor].data.shape[-1])
        n = per_expert.shape[1]
        for expert, blocks in enumerate(per_expert):
            weights = sums[expert].astype(np.float32) / np.float32(counts[expert] or 1)
            want = qwen3_native.quantize(
                got[tensor].tensor_type.name,
                rows.read_rows(tensor, expert * n, (expert + 1) * n),
                weights if counts[expert] else np.ones_like(weights),
            )
            np.testing.assert_array_equal(blocks, want, err_msg=f"{tensor} {expert}")
    others = [exact]  # all experts of a tensor in one run of rows
    if "num_experts" in config:
        others.append(write_checkpoint(tmp_path / "fused", config, fused(tensors, config)))
    for other in others:
        quantize(other, tmp_path / "o.gguf", "Q4_K_M", imatrix=tmp_path / "i.gguf")
        for tensor in gguf_files.read(tmp_path / "o.gguf").tensors:
            np.testing.assert_array_equal(tensor.data, got[tensor.name].data)


def test_the_types_follow_whether_importance_is_known(tmp_path: Path) -> None:
    """As llama.cpp's do: in Q4_0 the first eighth of ffn_down has minima then."""
    config = DENSE | WIDE | {"num_hidden_layers": 8}
    source = write_checkpoint(tmp_path / "source", config)
    write_imatrix(tmp_path / "i.gguf", list(made_up(config)), CORPUS)
    kinds = {share.kind for share in predict(source, "Q4_0").shares}
    with_it = predict(source, "Q4_0", imatrix=tmp_path / "i.gguf").shares
    assert {share.kind for share in with_it} - kinds == {"Q4_1"}
    assert next(share.n_tensors for share in with_it if share.kind == "Q4_1") == 1


def test_the_file_says_which_importance_it_was_made_with(tmp_path: Path) -> None:
    config = DENSE | WIDE
    source = write_checkpoint(tmp_path / "source", config, tensors_of(config, 3))
    inputs = [each for each in made_up(config) if "attn" in each.tensor]
    write_imatrix(tmp_path / "i.gguf", inputs, CORPUS)
    done = quantize(source, tmp_path / "q.gguf", "Q4_K_M", imatrix=tmp_path / "i.gguf")
    told = predict(source, "Q4_K_M", imatrix=tmp_path / "i.gguf")
    assert told.file_bytes == [(tmp_path / "q.gguf").stat().st_size]
    assert done.unweighed[:2] == ["blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"]
    assert len(done.unweighed) == 6, "neither norms nor the embedding"
    metadata = qwen3_native.File(bytes(tmp_path / "q.gguf")).metadata()
    assert {key: metadata[key] for key in metadata if key.startswith("quantize.")} == {
        "quantize.imatrix.file": str(tmp_path / "i.gguf"),
        "quantize.imatrix.dataset": "a.txt, b.txt",
        "quantize.imatrix.entries_count": 8,
        "quantize.imatrix.chunks_count": 3,
    }


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"num_hidden_layers": 3}, "'blk.2.attn_q.weight', which the model lacks"),
        (
            {"intermediate_size": 512},
            "blk.0.ffn_down.weight has 1 x 512 sums, but the model's has 1 x 256",
        ),
    ],
)
def test_the_importance_of_another_model_is_refused(
    change: dict[str, int], text: str, tmp_path: Path
) -> None:
    source = write_checkpoint(tmp_path / "source", DENSE | WIDE, tensors_of(DENSE | WIDE, 3))
    inputs = [
        each._replace(sums=np.ones((1, 512)))
        if "ffn_down" in each.tensor and "intermediate_size" in change
        else each
        for each in made_up(DENSE | WIDE | change)
    ]
    write_imatrix(tmp_path / "i.gguf", inputs, CORPUS)
    with pytest.raises(FormatError, match=re.escape(text)):
        quantize(source, tmp_path / "q.gguf", "Q4_K_M", imatrix=tmp_path / "i.gguf")
    assert not (tmp_path / "q.gguf").exists()


# ---- the command -----------------------------------------------------------


def test_from_text_to_a_file_that_quantize_takes(qwen3: Command) -> None:
    (qwen3.home / "a.txt").write_text("What is 17 + 48 - 5? " * 40)
    done = qwen3("imatrix", "nano", "a.txt", "-", "--ctx", "64", input="Sort 8, 71, 25, 90.")
    assert (done.returncode, done.stdout) == (0, "")
    assert re.search(r"^nano-dense-q8_0-imatrix.gguf: \d+ tokens in \d+ chunks", done.stderr)
    path = qwen3.home / "nano-dense-q8_0-imatrix.gguf"
    corpus = Imatrix(path).corpus
    assert (corpus.texts, corpus.chunk_size) == (["a.txt", "stdin"], 64)
    again = qwen3("imatrix", "nano", "a.txt")
    assert (again.returncode, "--force" in again.stderr) == (2, True)
    again = qwen3("imatrix", "nano", "a.txt", "--ctx", "8", "--chunks", "1", "-o", ".", "--force")
    assert "8 tokens in 1 chunk," in again.stderr and Imatrix(path).corpus.n_chunks == 1
    source = str(DATA / "nano-dense")
    done = qwen3("quantize", source, "--q4", "--imatrix", path.name, "-o", "q.gguf")
    assert done.returncode == 0 and "knows nothing" not in done.stderr
    refused = qwen3("imatrix", "q.gguf", "a.txt", "-o", "q.gguf", "--force")
    assert refused.returncode == 2 and "q.gguf: exists and is no importance" in refused.stderr
    done = qwen3("quantize", source, "--q4", "--imatrix", "absent.gguf", "-o", "r.gguf")
    assert (done.returncode, "absent.gguf" in done.stderr) == (3, True)


def test_experts_that_saw_little_are_counted(qwen3: Command) -> None:
    done = qwen3("imatrix", "nano-moe", input="one two")
    assert re.search(r"384 experts in all layers: 3\d\d never reached, [1-9]", done.stderr)


def test_text_is_text_unless_added_tokens_are_asked_for(qwen3: Command) -> None:
    counts = []
    for more in ((), ("--added",)):
        done = qwen3("imatrix", "nano", *more, "-o", "i.gguf", "--force", input="<|im_end|>")
        assert done.returncode == 0
        counts.append(int(re.findall(r"(\d+) tokens", done.stderr)[0]))
    assert counts[0] > 1 and counts[1] == 1


def test_no_text_and_too_long_a_chunk_are_usage_errors(qwen3: Command) -> None:
    for args in (("nano",), ("nano", "--ctx", "8192")):
        done = qwen3("imatrix", *args, input="1 " * 5000 if len(args) > 1 else "")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert qwen3("imatrix", "nano", "absent.txt").returncode == 1
    assert qwen3("imatrix", "nano", "-o", "no/i.gguf", input="x").returncode == 1
    assert not list(qwen3.home.glob("*.gguf"))


class Interrupting(Terminal):
    """Presses Ctrl-C after some chunks."""

    def __init__(self, chunks: int) -> None:
        super().__init__()
        self.left = chunks
        self.notes: list[str] = []

    @contextmanager
    def progress(
        self, title: str, unit: str = "", of: int = 1
    ) -> Iterator[Callable[[int, int], None]]:
        def move(_done: int, _total: int) -> None:
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)

        yield move

    def note(self, text: str, *, dim: bool = False) -> None:
        self.notes.append(text)


def test_ctrl_c_keeps_what_was_collected(tmp_path: Path) -> None:
    text, out = tmp_path / "a.txt", tmp_path / "i.gguf"
    text.write_text("What is 17 + 48 - 5? " * 100)
    terminal = Interrupting(3)
    with pytest.raises(KeyboardInterrupt):
        imatrix(Reading("nano", [str(text)], ctx=64), str(out), terminal, force=False)
    assert re.search(r"192 tokens in 3 of \d+ chunks", terminal.notes[0])
    assert "interrupted" in terminal.notes[-1]
    read = Imatrix(out)
    assert (read.corpus.n_chunks, read.n_entries) == (3, 28)


def test_a_cancelled_chunk_ends_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(session: Session, ids: list[int]) -> int:
        if ids:
            raise Cancelled("cancelled")
        return 0

    monkeypatch.setattr(Session, "sync", sync)
    terminal = Interrupting(0)
    with pytest.raises(KeyboardInterrupt):
        imatrix(Reading("nano", [__file__]), str(tmp_path / "i.gguf"), terminal, force=False)
    assert terminal.notes == ["interrupted in the first chunk: nothing was written"]
    assert not list(tmp_path.iterdir())
