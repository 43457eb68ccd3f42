"""Sampling against a reimplementation in numpy, and its promises of repeatability."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_tiny import tiny_model
from numpy.typing import NDArray

from qwen3cli.engine import Model, Sampling, Session
from qwen3cli.errors import Qwen3Error

IDS = [12, 80, 3, 3, 250, 264, 7, 99, 130, 41]
DRAWS = 20_000
WARM = Sampling(temperature=2.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("sampling") / "tiny.gguf"
    return Model(tiny_model(n_ctx=256).write(path))


@pytest.fixture
def session(model: Model) -> Session:
    session = model.session()
    session.sync(IDS)
    return session


def penalized(session: Session, s: Sampling, generated_from: int) -> NDArray[np.float64]:
    """Repetition over all tokens, then presence once over the generated ones, as vLLM does."""
    logits = session.logits().astype(np.float64)
    seen = sorted(set(session.ids))
    logits[seen] = np.where(
        logits[seen] > 0, logits[seen] / s.repetition_penalty, logits[seen] * s.repetition_penalty
    )
    logits[sorted(set(session.ids[generated_from:]))] -= s.presence_penalty
    return logits


def distribution(
    session: Session, s: Sampling, generated_from: int | None = None
) -> NDArray[np.float64]:
    """The probability of every token: temperature, top-k, top-p, min-p in this order."""
    start = len(session) if generated_from is None else generated_from
    logits = penalized(session, s, start) / s.temperature
    rank = np.argsort(-logits, kind="stable")[: s.top_k or None]
    p = np.exp(logits[rank] - logits.max())
    mass_before = np.concatenate(([0.0], np.cumsum(p)[:-1]))
    keep = (mass_before < s.top_p * p.sum()) & (p >= s.min_p * p[0])
    out = np.zeros(len(logits))
    out[rank[keep]] = p[keep] / p[keep].sum()
    return out


@pytest.mark.parametrize(
    "sampling",
    [
        WARM,
        replace(WARM, top_k=20),
        replace(WARM, top_p=0.8),
        replace(WARM, min_p=0.05),
        Sampling(temperature=0.6, top_k=20, top_p=0.95),
        Sampling(temperature=0.7, top_k=20, top_p=0.8),
        replace(WARM, top_k=40, top_p=0.9, min_p=0.02),
        replace(WARM, top_k=30, presence_penalty=1.5, repetition_penalty=1.3),
    ],
    ids=str,
)
def test_frequencies_follow_the_distribution(session: Session, sampling: Sampling) -> None:
    expected = distribution(session, sampling, generated_from=6)
    counts = np.zeros(len(expected))
    for seed in range(DRAWS):
        counts[session.sample(replace(sampling, seed=seed), generated_from=6)] += 1
    assert counts[expected == 0].sum() == 0, "a token outside top-k, top-p or min-p"
    sigma = np.sqrt(DRAWS * expected * (1 - expected))
    common = DRAWS * expected >= 20
    assert (np.abs(counts - DRAWS * expected) <= 4 * sigma)[common].all()
    assert counts[~common].sum() == pytest.approx(
        DRAWS * expected[~common].sum(), abs=4 * np.sqrt(DRAWS * expected[~common].sum()) + 1e-9
    )


def test_greedy_is_the_argmax(session: Session) -> None:
    assert session.sample(Sampling(temperature=0)) == session.logits().argmax()
    assert session.sample(replace(WARM, top_k=1, seed=5)) == session.logits().argmax()


def test_greedy_with_penalties_is_the_argmax_of_the_penalized(model: Model) -> None:
    session = model.session()
    session.sync(IDS)
    greedy = Sampling(presence_penalty=2.0, repetition_penalty=1.5)
    for _ in range(40):
        token = session.sample(greedy, generated_from=len(IDS))
        assert token == penalized(session, greedy, len(IDS)).argmax()
        session.extend([token])


def test_presence_counts_generated_tokens_once(model: Model) -> None:
    session = model.session()

    def lead(token: int) -> float:
        """By how much a token is predicted after itself, twice."""
        session.sync([*IDS, token, token])
        logits = session.logits()
        return float(logits[token] - np.delete(logits, token).max())

    best = max(range(269), key=lead)
    gap = lead(best)
    assert gap > 0, "this model never repeats a token: choose another seed"
    more, less = (Sampling(presence_penalty=gap * factor) for factor in (1.1, 0.7))
    assert session.sample(more) == best, "the prompt does not count"
    assert session.sample(more, generated_from=len(IDS)) != best
    assert session.sample(less, generated_from=len(IDS)) == best, "twice there, subtracted once"


def test_the_same_seed_gives_the_same_text(model: Model) -> None:
    def text(seed: int) -> list[int]:
        session = model.session()
        session.sync(IDS)
        return list(session.generate(replace(WARM, seed=seed), max_tokens=50))

    assert text(7) == text(7)
    assert text(2**64 - 1) == text(2**64 - 1)
    assert len({tuple(text(seed)) for seed in range(10)}) == 10


def test_a_rewound_session_repeats_itself(session: Session) -> None:
    sampling = replace(WARM, seed=11)
    first = list(session.generate(sampling, max_tokens=30))
    session.sync(IDS)
    assert list(session.generate(sampling, max_tokens=30)) == first
    session.sync(IDS + first[:10])
    assert list(session.generate(sampling, max_tokens=20)) == first[10:]


def test_drawing_changes_nothing(session: Session) -> None:
    before = session.logits()
    tokens = {session.sample(replace(WARM, seed=3, presence_penalty=1.0)) for _ in range(5)}
    assert len(tokens) == 1
    assert session.ids == IDS
    np.testing.assert_array_equal(session.logits(), before)


def test_positions_draw_independently(session: Session) -> None:
    hot = Sampling(temperature=100.0, seed=1)  # nearly uniform over 269 tokens
    drawn = list(session.generate(hot, max_tokens=200))
    assert len(set(drawn)) > 100


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("presence_penalty", float("inf")),
    ],
)
def test_a_parameter_out_of_range_is_named(session: Session, field: str, value: Any) -> None:
    with pytest.raises(Qwen3Error, match=field.replace("_penalty", " penalty")):
        session.sample(replace(WARM, **{field: value}))


def test_extreme_temperatures_are_finite(session: Session) -> None:
    best = session.logits().argmax()
    assert session.sample(Sampling(temperature=1e-6, seed=1)) == best
    assert 0 <= session.sample(Sampling(temperature=100.0, seed=1)) < 269


def test_logits_that_are_not_numbers_are_an_error(tmp_path: Path) -> None:
    image = tiny_model()
    norm = image.tensor("output_norm.weight")
    norm.data = np.full(norm.shape, 3e38, np.float32).tobytes()  # finite, but products overflow
    session = Model(image.write(tmp_path / "nan.gguf")).session()
    session.sync(IDS)
    with pytest.raises(Qwen3Error, match="finite"):
        session.sample()
