"""What a session of the engine promises: reuse, limits, cancelling, independence."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from gguf_tiny import tiny_model

from qwen3cli.engine import Cancelled, Model, Sampling, Session
from qwen3cli.errors import ContextOverflow, ModelNotFound, Qwen3Error

IDS = [12, 80, 3, 3, 250, 264, 7, 99, 130, 41]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("session") / "tiny.gguf"
    return Model(tiny_model(layers=2, n_ctx=64).write(path))


@pytest.fixture
def session(model: Model) -> Session:
    return model.session()


def logits_of(model: Model, ids: list[int]) -> np.ndarray:
    session = model.session()
    session.sync(ids)
    return session.logits()


def test_a_new_session_is_empty(session: Session) -> None:
    assert len(session) == 0
    assert session.ids == []
    with pytest.raises(Qwen3Error):
        session.logits()
    with pytest.raises(Qwen3Error):
        session.sample()


def test_the_context_is_the_models_unless_named(model: Model) -> None:
    assert model.session().n_ctx == 64
    assert model.session(n_ctx=16).n_ctx == 16


@pytest.mark.parametrize("n_ctx", [0, -1])
def test_a_context_without_room_is_refused(model: Model, n_ctx: int) -> None:
    with pytest.raises(Qwen3Error, match=str(n_ctx)):
        model.session(n_ctx=n_ctx)


def test_an_unknown_kv_type_is_refused(model: Model) -> None:
    with pytest.raises(ValueError, match="f16"):
        model.session(kv="q3")


def test_a_q8_cache_needs_heads_of_whole_blocks(model: Model) -> None:
    with pytest.raises(Qwen3Error, match="blocks of 32, not of 16: use f16"):
        model.session(kv="q8")


def test_the_cache_holds_whole_tiles_of_16_positions(model: Model) -> None:
    one_token = 2 * 2 * 2 * 16  # keys and values, layers, heads, items
    assert model.session(n_ctx=50, kv="f16").kv_bytes == 64 * one_token * 2
    assert model.session(n_ctx=64, kv="f32").kv_bytes == 64 * one_token * 4


def test_sync_reuses_the_common_prefix(model: Model, session: Session) -> None:
    assert session.sync(IDS) == 0
    assert session.ids == IDS
    longer = [*IDS, 55, 56]
    assert session.sync(longer) == len(IDS)
    branched = [*IDS[:4], 77, 78]
    assert session.sync(branched) == 4
    assert session.ids == branched
    np.testing.assert_allclose(session.logits(), logits_of(model, branched), atol=1e-5)


def test_syncing_the_same_tokens_computes_nothing(session: Session) -> None:
    session.sync(IDS)
    before = session.logits()
    assert session.sync(IDS) == len(IDS)
    np.testing.assert_array_equal(session.logits(), before)


def test_a_prefix_gets_its_own_logits(model: Model, session: Session) -> None:
    session.sync(IDS)
    assert session.sync(IDS[:5]) == 4, "the logits of the last token are computed again"
    assert session.ids == IDS[:5]
    np.testing.assert_allclose(session.logits(), logits_of(model, IDS[:5]), atol=1e-5)


def test_a_sequence_with_nothing_in_common_starts_over(model: Model, session: Session) -> None:
    session.sync(IDS)
    other = IDS[::-1]
    assert session.sync(other) == 0
    np.testing.assert_allclose(session.logits(), logits_of(model, other), atol=1e-5)


def test_extend_appends(model: Model, session: Session) -> None:
    session.extend(IDS[:3])
    session.extend(IDS[3:])
    assert session.ids == IDS
    np.testing.assert_allclose(session.logits(), logits_of(model, IDS), atol=1e-5)


def test_logits_are_a_copy(session: Session) -> None:
    session.sync(IDS)
    first = session.logits()
    kept = first.copy()
    session.extend([1])
    np.testing.assert_array_equal(first, kept)
    assert first.dtype == np.float32


@pytest.mark.parametrize("token", [-1, 269, 2**31 - 1, -(2**31)])
def test_a_token_out_of_range_changes_nothing(session: Session, token: int) -> None:
    session.sync(IDS)
    before = session.logits()
    for attempt in (session.sync, session.extend):
        with pytest.raises(Qwen3Error, match=str(token)):
            attempt([5, token])
    assert session.ids == IDS
    np.testing.assert_array_equal(session.logits(), before)


def test_syncing_nothing_empties_the_session(session: Session) -> None:
    session.sync(IDS)
    assert session.sync([]) == 0
    assert len(session) == 0
    with pytest.raises(Qwen3Error):
        session.logits()


def test_extending_by_nothing_is_refused(session: Session) -> None:
    session.sync(IDS)
    with pytest.raises(Qwen3Error):
        session.extend([])
    assert session.ids == IDS


def test_an_overflow_changes_nothing(model: Model) -> None:
    session = model.session(n_ctx=16)
    session.sync(IDS)
    before = session.logits()
    with pytest.raises(ContextOverflow, match="16"):
        session.sync([1] * 17)
    with pytest.raises(ContextOverflow, match="16"):
        session.extend([1] * 7)
    assert session.ids == IDS
    np.testing.assert_array_equal(session.logits(), before)
    session.extend([1] * 6)
    assert len(session) == 16


def test_generate_ends_with_the_context(model: Model) -> None:
    session = model.session(n_ctx=16)
    session.sync(IDS)
    assert len(list(session.generate())) == 6
    assert len(session) == 16


def test_generate_ends_at_its_limit_and_at_a_stop_token(session: Session) -> None:
    session.sync(IDS)
    three = list(session.generate(max_tokens=3))
    assert len(three) == 3
    assert session.ids == IDS + three
    session.sync(IDS)
    assert list(session.generate(stop={three[0]})) == []
    assert session.ids == IDS


def test_cancel_before_sync_stops_it_once(model: Model, session: Session) -> None:
    session.cancel()
    with pytest.raises(Cancelled):
        session.sync(IDS)
    session.sync(IDS)
    np.testing.assert_allclose(session.logits(), logits_of(model, IDS), atol=1e-5)


def test_after_a_cancelled_rewind_the_session_is_whole(model: Model, session: Session) -> None:
    session.sync(IDS)
    branched = [*IDS[:4], 9, 8, 7]
    session.cancel()
    with pytest.raises(Cancelled):
        session.sync(branched)
    kept = session.ids
    assert kept == branched[: len(kept)], "what is kept is a prefix of what was asked for"
    session.sync(branched)
    np.testing.assert_allclose(session.logits(), logits_of(model, branched), atol=1e-5)


def test_sessions_of_a_model_do_not_see_each_other(model: Model) -> None:
    one, two = model.session(), model.session()
    one.sync(IDS)
    two.sync(IDS[::-1])
    one.extend([4])
    np.testing.assert_allclose(one.logits(), logits_of(model, [*IDS, 4]), atol=1e-5)
    np.testing.assert_allclose(two.logits(), logits_of(model, IDS[::-1]), atol=1e-5)


def test_sessions_run_from_threads_at_once(model: Model) -> None:
    expected = [logits_of(model, IDS[i:] + IDS[:i]) for i in range(4)]
    results: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        for _ in range(20):
            results[i] = logits_of(model, IDS[i:] + IDS[:i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        np.testing.assert_array_equal(results[i], expected[i])


def test_a_session_outlives_the_name_of_its_model(tmp_path: Path) -> None:
    session = Model(tiny_model().write(tmp_path / "m.gguf")).session()
    session.sync(IDS)
    assert len(list(session.generate(Sampling(temperature=1.0), max_tokens=5))) <= 5


def test_f16_kv_stays_close_to_f32(model: Model) -> None:
    half, full = model.session(kv="f16"), model.session(kv="f32")
    half.sync(IDS)
    full.sync(IDS)
    difference = np.abs(half.logits() - full.logits()).max()
    assert 0 < difference < 0.05


def test_a_session_in_use_turns_a_second_thread_away(model: Model) -> None:
    """Two threads in one session may not corrupt it: each call works or says why not."""
    session = model.session()
    errors: list[Qwen3Error] = []

    def append() -> None:
        while not done.is_set():
            try:
                if len(session) > 50:
                    session.sync([])
                session.extend([1] * 7)
            except ContextOverflow:
                continue
            except Qwen3Error as error:
                errors.append(error)

    done = threading.Event()
    threads = [threading.Thread(target=append) for _ in range(2)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 60
    while not errors and time.monotonic() < end:
        done.wait(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert errors and all("in use by another thread" in str(error) for error in errors)
    session.sync([])
    session.sync(IDS)
    np.testing.assert_array_equal(session.logits(), logits_of(model, IDS))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_is_told_to_open_the_model_anew(model: Model, session: Session) -> None:
    pid = os.fork()
    if pid == 0:  # the child has none of the pool's threads
        try:
            session.sync(IDS)
        except Qwen3Error as error:
            os._exit(7 if "forked" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_a_path_with_a_nul_byte_is_not_cut_there(model: Model) -> None:
    with pytest.raises((ModelNotFound, ValueError)):
        Model(f"{model.path}\0junk")
