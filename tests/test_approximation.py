"""Decoding that leans to the experts in memory: what it gives up, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commandline import ROOT, Command
from numpy.typing import NDArray

from qwen3cli.engine import Model, Session
from qwen3cli.errors import UsageError
from qwen3cli.evaluate import divergence, log_softmax
from qwen3cli.plan.sizes import sizes_of

NANO_MOE = ROOT / "qwen3cli/models/nano-moe-q8_0.gguf"
IDS = [(i * 7919) % 4000 for i in range(90)]


def opened(share: float = 0.3, *, threads: int = 2, n_ctx: int = 256) -> Session:
    """Of nano-moe with room for that share of its experts."""
    sizes = sizes_of(NANO_MOE)
    assert sizes is not None
    budget = max(int(share * sizes.experts), sizes.least_experts)
    model = Model(NANO_MOE, threads=threads, expert_bytes=budget)
    return model.session(n_ctx=n_ctx)


def decoded(session: Session, n: int = 60) -> NDArray[np.float32]:
    """The logits behind a prompt and each token that follows."""
    session.sync(IDS[:20])
    rows = [session.logits()]
    for token in IDS[20 : 20 + n]:
        session.extend([token])
        rows.append(session.logits())
    return np.stack(rows)


def kl(exact: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(divergence(log_softmax(exact), log_softmax(other)).mean())


@pytest.mark.parametrize("share", [2.0, 0.5, 0.2, 0.0])
def test_routers_of_their_own_give_the_same_bits_whatever_is_guessed(share: float) -> None:
    """With room for all (in whole pages), half, a fifth and the least, which is 24 of 384."""
    whole = Model(NANO_MOE, threads=2).session(n_ctx=256)
    want = decoded(whole, 30).tobytes()
    for threads in (1, 2, 5, 8):
        for guess in (True, False):
            session = opened(share, threads=threads)
            session.model.guess(guess)
            assert decoded(session, 30).tobytes() == want, (threads, guess)
            stats = session.model.expert_stats
            assert (stats.guesses > 0) == (guess and share < 1)


def test_switched_off_it_changes_nothing() -> None:
    session = opened()
    want = decoded(session).tobytes()
    session.model.approximate(prefer=2, drop=0.1)
    session.sync([])
    assert decoded(session).tobytes() != want
    session.model.approximate()
    session.sync([])
    assert decoded(session).tobytes() == want


def test_leaning_to_memory_hits_more_and_stays_close() -> None:
    exact = opened()
    want, stats = decoded(exact), exact.model.expert_stats
    last_rate = stats.hit_rate
    for prefer in (0.5, 2.0):
        session = opened()
        session.model.approximate(prefer=prefer)
        got = decoded(session)
        assert session.model.expert_stats.hit_rate > last_rate
        last_rate = session.model.expert_stats.hit_rate
        assert 0 < kl(want, got) < 0.5


def test_leaving_out_reads_less_and_stays_close() -> None:
    exact = opened()
    exact.model.guess(False)
    want = decoded(exact)
    session = opened()
    session.model.approximate(drop=0.08)
    assert 0 < kl(want, decoded(session)) < 0.5
    assert session.model.expert_stats.bytes_read < exact.model.expert_stats.bytes_read


def test_a_prompt_is_exact_also_its_last_token_and_a_single_one() -> None:
    for n in (1, 2, 9, 60):
        exact, session = opened(0.1), opened(0.1)
        session.model.approximate(prefer=100, drop=1)
        exact.sync(IDS[:n])
        session.sync(IDS[:n])
        assert session.logits().tobytes() == exact.logits().tobytes(), n
    exact.sync(IDS[:61])
    session.sync(IDS[:61])
    assert session.logits().tobytes() == exact.logits().tobytes()


def test_the_answer_depends_neither_on_the_disk_nor_on_threads() -> None:
    """Guesses come in time or not, as the disk has it: with and without them it is the same."""
    answers = set()
    for threads, guess in ((1, True), (2, True), (4, True), (2, False)):
        session = opened(0.15, threads=threads)
        session.model.guess(guess)
        session.model.approximate(prefer=1.5, drop=0.05)
        answers.add(decoded(session).tobytes())
    assert len(answers) == 1


def test_without_a_store_there_is_nothing_to_give_up() -> None:
    session = Model(NANO_MOE, threads=2).session(n_ctx=256)
    want = decoded(session, 10).tobytes()
    session.model.approximate(prefer=2, drop=0.1)
    session.sync([])
    assert decoded(session, 10).tobytes() == want


@pytest.mark.parametrize(
    ("prefer", "drop"), [(-1, 0), (101, 0), (0, -0.1), (0, 1.1), (float("nan"), 0)]
)
def test_numbers_out_of_range(prefer: float, drop: float) -> None:
    with pytest.raises(UsageError, match="from 0 to"):
        opened().model.approximate(prefer=prefer, drop=drop)


def test_the_command_line_and_the_settings_pass_it_on(tmp_path: Path) -> None:
    qwen3 = Command(tmp_path)
    ask = ("run", "-m", "nano-moe", "--no-think", "--temp", "0", "--ctx", "512", "2 + 2 = ?")
    for wrong in (("--prefer-cached", "-1"), ("--drop-misses", "2")):
        assert qwen3(*ask, *wrong).returncode == 2
    plain = qwen3(*ask)
    # What fits has nothing to give up.
    assert qwen3(*ask, "--prefer-cached", "9", "--drop-misses", "1").stdout == plain.stdout
    for key, value in (("prefer-cached", "2"), ("drop-misses", "0.1")):
        assert qwen3("config", "set", key, value).returncode == 0
        assert qwen3("config", "set", key, "-1").returncode == 2
