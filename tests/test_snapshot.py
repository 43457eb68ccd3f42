"""Sessions put aside: they go on bit by bit, in every type of cache and size of context, and what
is damaged, foreign or half written is an error and no answer."""

from __future__ import annotations

import os
import random
import signal
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_tiny import split, tiny_model, write_shards

from qwen3cli.engine import Model, Sampling, Session
from qwen3cli.errors import ContextOverflow, FormatError, Qwen3Error, UsageError

KV = ["f16", "f32", "q8"]
PROMPT = [7 * i % 269 for i in range(37)]
DRAWN = Sampling(temperature=1.0, presence_penalty=0.5, repetition_penalty=1.1, seed=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    image = tiny_model(layers=2, head_dim=32, n_ctx=512)
    return Model(image.write(tmp_path_factory.mktemp("snapshot") / "tiny.gguf"))


def talk(session: Session, *, tokens: int = 20) -> tuple[list[int], bytes]:
    """How a session goes on: what it draws, and the last logits."""
    start = len(session)
    session.logits()
    drawn = list(session.generate(DRAWN, max_tokens=tokens))
    assert len(session) == start + len(drawn)
    return drawn, session.logits().tobytes()


def begun(model: Model, kv: str, n_ctx: int = 128) -> Session:
    session = model.session(n_ctx=n_ctx, kv=kv)
    session.sync(PROMPT)
    talk(session)
    return session


# ---- in memory --------------------------------------------------------------


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("start", [0, 5, 16, 37, 57])
def test_a_restored_session_was_never_rewound(model: Model, kv: str, start: int) -> None:
    session = begun(model, kv)
    snapshot = session.snapshot(start)
    ids, logits = session.ids, session.logits()
    assert (snapshot.start, snapshot.ids, len(snapshot)) == (start, ids, 57)
    session.sync([*ids[:start], 9, 9, 9])
    session.extend([1] * 30)
    session.restore(snapshot)
    assert session.ids == ids
    np.testing.assert_array_equal(session.logits(), logits)
    undisturbed = begun(model, kv)
    assert talk(session) == talk(undisturbed)
    session.restore(snapshot)  # as often as wanted
    assert talk(session, tokens=4) == talk(begun(model, kv), tokens=4)


@pytest.mark.parametrize("kv", KV)
def test_another_session_of_the_model_takes_it(model: Model, kv: str) -> None:
    session = begun(model, kv)
    snapshot = session.snapshot()
    other = model.session(n_ctx=500, kv=kv)
    other.restore(snapshot)
    assert talk(other) == talk(session)


def test_a_snapshot_of_other_tokens_is_refused(model: Model) -> None:
    session = begun(model, "f16")
    snapshot = session.snapshot(30)
    session.sync([*PROMPT[:25], 1, 2, 3, 4, 5, 6, 7])
    before = session.ids, session.logits().tobytes()
    with pytest.raises(UsageError, match="begins at token 30, but only 25 tokens"):
        session.restore(snapshot)
    assert (session.ids, session.logits().tobytes()) == before


def test_a_snapshot_beyond_the_end_is_refused(model: Model) -> None:
    with pytest.raises(UsageError, match="from token 58 on, but the session has 57"):
        begun(model, "f16").snapshot(58)


def test_a_snapshot_takes_memory_for_what_it_holds(model: Model) -> None:
    session = begun(model, "f16")
    one_token = 2 * 2 * 2 * 32 * 2  # keys and values, layers, heads, items, bytes
    assert session.snapshot(48).n_bytes < 16 * one_token + 4096
    assert 64 * one_token < session.snapshot().n_bytes < 64 * one_token + 4096


# ---- in a file --------------------------------------------------------------


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("n_ctx", [77, 128, 500])
def test_a_loaded_session_was_never_closed(
    model: Model, kv: str, n_ctx: int, tmp_path: Path
) -> None:
    session = begun(model, kv)
    session.save(tmp_path / "kv")
    reopened = Model(model.path).session(n_ctx=n_ctx, kv=kv)
    reopened.sync(PROMPT[::-1])
    reopened.load(tmp_path / "kv")
    assert reopened.sync(session.ids) == 57, "nothing is computed again"
    assert talk(reopened) == talk(session)


def test_only_the_user_reads_it(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "kv"
    path.write_bytes(b"another file")
    path.chmod(0o644)
    begun(model, "f16").save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def refused(session: Session, path: Path, error: type[Qwen3Error], match: str) -> None:
    before = session.ids
    with pytest.raises(error, match=match) as caught:
        session.load(path)
    assert str(path) in str(caught.value)
    assert session.ids == before


def test_the_saved_session_of_another_model(model: Model, tmp_path: Path) -> None:
    """Other weights of the same shape, or another figure of the computation; another name for the
    model, or in how many files it comes, makes no other model."""
    begun(model, "f16").save(tmp_path / "kv")
    image = tiny_model(layers=2, head_dim=32, n_ctx=512)
    image.put("general.name", "renamed")
    Model(image.write(tmp_path / "renamed.gguf")).session(kv="f16").load(tmp_path / "kv")
    Model(write_shards(split(image, 3), tmp_path)).session(kv="f16").load(tmp_path / "kv")
    image.put("qwen3.rope.freq_base", 1e5)
    others = {
        "other weights": image,
        "same shape": tiny_model(layers=2, head_dim=32, n_ctx=512, seed=1),
        "of 2 layers, 2 heads of 32 and 269 tokens; this one has 1, 2 of 32 and 269": tiny_model(
            head_dim=32
        ),
    }
    for match, other in others.items():
        session = Model(other.write(tmp_path / "other.gguf")).session(kv="f16")
        session.sync(PROMPT)
        refused(session, tmp_path / "kv", UsageError, match)


def test_one_retrained_matrix_makes_another_model(model: Model, tmp_path: Path) -> None:
    begun(model, "f16").save(tmp_path / "kv")
    image = tiny_model(layers=2, head_dim=32, n_ctx=512)
    down = image.tensor("blk.1.ffn_down.weight")
    down.data = (np.frombuffer(down.data, np.float32) * np.float32(1 + 1e-6)).tobytes()
    session = Model(image.write(tmp_path / "retrained.gguf")).session(kv="f16")
    refused(session, tmp_path / "kv", UsageError, "other weights")


def test_another_type_of_cache_and_too_small_a_context(model: Model, tmp_path: Path) -> None:
    begun(model, "q8").save(tmp_path / "kv")
    refused(begun(model, "f16"), tmp_path / "kv", UsageError, "type q8, this one has f16")
    small = model.session(n_ctx=50, kv="q8")
    refused(small, tmp_path / "kv", ContextOverflow, "57 tokens .* context of 50: 7 too many")


@pytest.mark.parametrize("content", [b"", b"qwen3 kv", b"GGUF" * 100, b"\0" * 4096])
def test_no_saved_session(model: Model, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "kv").write_bytes(content)
    refused(begun(model, "f16"), tmp_path / "kv", FormatError, "no saved session")
    refused(begun(model, "f16"), tmp_path, FormatError, "no saved session")
    refused(begun(model, "f16"), tmp_path / "none", Qwen3Error, "No such file")


def test_a_damaged_file(model: Model, tmp_path: Path) -> None:
    """Wherever it is, the session has nothing of it and goes on."""
    path = tmp_path / "kv"
    begun(model, "q8").save(path)
    good = path.read_bytes()
    session = begun(model, "q8")
    rng = random.Random(0)
    for at in [*range(56), *(rng.randrange(56, len(good)) for _ in range(200))]:
        path.write_bytes(good[:at] + bytes([good[at] ^ rng.randrange(1, 256)]) + good[at + 1 :])
        session.sync(PROMPT)
        with pytest.raises(FormatError, match=r"kv: .*(remove it|no saved session)"):
            session.load(path)
        assert session.ids == (PROMPT if at < 56 else [])
    for end in [56, 100, len(good) // 2, len(good) - 1]:
        path.write_bytes(good[:end])
        session.sync(PROMPT)
        refused(session, path, FormatError, "cut or damaged: remove it")
    path.write_bytes(good)
    session.load(path)
    assert talk(session) == talk(begun(model, "q8"))


# ---- disks, folders, kills --------------------------------------------------


def test_a_folder_that_is_not_there_or_not_ours(model: Model, tmp_path: Path) -> None:
    session = begun(model, "f16")
    with pytest.raises(Qwen3Error, match=r"nowhere/\.kv\.part: No such file or directory"):
        session.save(tmp_path / "nowhere" / "kv")
    if os.geteuid() != 0:  # root writes everywhere
        tmp_path.chmod(0o500)
        with pytest.raises(Qwen3Error, match="Permission denied"):
            session.save(tmp_path / "kv")
    assert list(tmp_path.iterdir()) == []


def save_with_room(model: Path, path: Path, room: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    session = Model(model).session(kv="f16")
    session.fill(500)
    try:
        session.save(path)
    except Qwen3Error as error:
        os._exit(3 if "cannot write" in str(error) and str(path) in str(error) else 1)


def save_for_ever(model: Path, path: Path, ready: Any) -> None:
    session = Model(model).session(kv="f16")
    for n in range(10**9):
        session.fill(400 + n % 100)
        session.save(path)
        ready.set()


def test_a_disk_that_fills_up_leaves_the_old_file(model: Model, tmp_path: Path, forks: Any) -> None:
    path = tmp_path / "kv"
    begun(model, "f16").save(path)
    old = path.read_bytes()
    process = forks.Process(target=save_with_room, args=(model.path, path, 70_000))
    process.start()
    process.join()
    assert process.exitcode == 3
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_in_the_middle_leaves_the_old_file(model: Model, tmp_path: Path, forks: Any) -> None:
    path = tmp_path / "kv"
    session = model.session(kv="f16")
    rng = random.Random(0)
    for _ in range(10):
        ready = forks.Event()
        process = forks.Process(target=save_for_ever, args=(model.path, path, ready))
        process.start()
        assert ready.wait(60)
        process.join(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        session.load(path)
        assert 400 <= len(session) < 500
    session.save(path)
    assert list(tmp_path.iterdir()) == [path], "what a kill left is gone"
