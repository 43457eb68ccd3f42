"""The engine's logits against transformers in float32 (tests/vectors/make_logits.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from gguf_tiny import WEIGHT_TYPES, decoded, tiny_model
from numpy.typing import NDArray
from quant.quantize import quantize

from qwen3cli.engine import Model, Session, backends

DATA = Path(__file__).parent / "data"
MODELS = sorted(path.stem for path in (DATA / "logits").glob("*.npz"))
NANO = [name for name in MODELS if name.startswith("nano")]
Logits = NDArray[np.float32]
Convert = Callable[[str, str], Path]


@dataclass
class Reference:
    """One sequence: logits[i] belong to positions[i], top1 to every position."""

    ids: list[int]
    top1: NDArray[np.int32]
    positions: NDArray[np.int32]
    logits: Logits


def references(name: str) -> list[Reference]:
    with np.load(DATA / "logits" / f"{name}.npz") as file:
        arrays = dict(file)
    return [
        Reference(
            arrays[f"ids_{i}"].tolist(),
            arrays[f"top1_{i}"],
            arrays[f"positions_{i}"],
            arrays[f"logits_{i}"],
        )
        for i in range(len(arrays) // 4)
    ]


@pytest.fixture(scope="module")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Convert:
    """convert(name, recipe): the GGUF file of a checkpoint of tests/data."""
    directory = tmp_path_factory.mktemp("gguf")

    def cached(name: str, recipe: str) -> Path:
        path = directory / f"{name}-{recipe}.gguf"
        if not path.exists():
            quantize(DATA / name, path, recipe)
        return path

    return cached


def logits_of_all(session: Session, ids: list[int]) -> Logits:
    """The logits of every position, by syncing one prefix after the other."""
    rows = []
    for n in range(1, len(ids) + 1):
        session.sync(ids[:n])
        rows.append(session.logits())
    return np.array(rows)


def kl_divergence(reference: Logits, ours: Logits) -> NDArray[np.float64]:
    """KL(reference || ours) of each row, in nats."""

    def log_softmax(x: Logits) -> NDArray[np.float64]:
        y = x.astype(np.float64)
        y -= y.max(-1, keepdims=True)
        return y - np.log(np.exp(y).sum(-1, keepdims=True))

    p, q = log_softmax(reference), log_softmax(ours)
    return (np.exp(p) * (p - q)).sum(-1)


# ---- against the reference -------------------------------------------------


@pytest.mark.parametrize("isa", backends())
@pytest.mark.parametrize("name", MODELS)
def test_f32_weights_give_the_reference_logits(
    name: str, isa: str, convert: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN3_ISA", isa)
    model = Model(convert(name, "F32"))
    assert model.isa == isa
    session = model.session()
    for reference in references(name):
        ours = logits_of_all(session, reference.ids)
        assert ours.shape[1] == reference.logits.shape[1], "padding rows included"
        assert np.abs(ours[reference.positions] - reference.logits).max() <= 2e-4


@pytest.mark.parametrize("isa", backends())
@pytest.mark.parametrize("name", NANO)
def test_q8_0_keeps_the_distribution(
    name: str, isa: str, convert: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN3_ISA", isa)
    session = Model(convert(name, "Q8_0")).session()
    divergence, agrees = [], []
    for reference in references(name):
        ours = logits_of_all(session, reference.ids)
        divergence.append(kl_divergence(reference.logits, ours[reference.positions]))
        agrees.append(ours.argmax(-1) == reference.top1)
    print(name, isa, np.mean(divergence), np.max(divergence), np.mean(np.concatenate(agrees)))
    assert np.concatenate(divergence).mean() <= 1e-3
    assert np.concatenate(agrees).mean() >= 0.99


# The mean KL divergence a recipe may cost on the nano models.
RECIPES = {"F16": 1e-4, "BF16": 1e-4, "Q4_K_M": 0.1}


@pytest.mark.parametrize(("recipe", "most"), RECIPES.items())
@pytest.mark.parametrize("name", NANO)
def test_recipe_costs_no_more_than(name: str, recipe: str, most: float, convert: Convert) -> None:
    session = Model(convert(name, recipe)).session()
    divergence = []
    for reference in references(name):
        ours = logits_of_all(session, reference.ids)
        divergence.append(kl_divergence(reference.logits, ours[reference.positions]))
    print(name, recipe, np.concatenate(divergence).mean(), np.concatenate(divergence).max())
    assert np.concatenate(divergence).mean() <= most


@pytest.mark.parametrize("experts", [0, 3])
@pytest.mark.parametrize("kind", WEIGHT_TYPES)
@pytest.mark.parametrize("isa", backends())
def test_every_weight_type_computes_what_it_decodes_to(
    isa: str, kind: str, experts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the same weights in F32, decoded by the gguf package: what is left is the
    rounding of activations to 8 bits."""
    monkeypatch.setenv("QWEN3_ISA", isa)
    image = tiny_model(
        kind, hidden=256, ffn=256, heads=4, head_dim=64, tied=False, layers=2,
        experts=experts, experts_used=experts,  # all: rounding must not change the choice
    )  # fmt: skip
    ids = [5, 200, 31, 31, 77, 260, 0, 118, 264, 9, 9, 240]
    ours, exact = (
        logits_of_all(Model(made.write(tmp_path / f"{i}.gguf")).session(kv="f32"), ids)
        for i, made in enumerate((image, decoded(image)))
    )
    if kind in ("F32", "F16", "BF16"):
        assert np.abs(ours - exact).max() <= 1e-4
    else:
        print(isa, kind, experts, np.abs(ours - exact).max() / exact.std(), kl_divergence(exact, ours).max())
        assert np.abs(ours - exact).max() <= 0.2 * exact.std()
        assert kl_divergence(exact, ours).mean() <= 2e-3


# ---- the same sequence computed in other ways ------------------------------


@pytest.fixture(params=["nano-dense", "nano-moe"])
def nano(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("recipe", ["F32", "Q8_0"])
def test_prefill_in_any_chunks_gives_the_same_logits(
    nano: str, recipe: str, convert: Convert
) -> None:
    model = Model(convert(nano, recipe))
    ids = references(nano)[0].ids
    whole = model.session()
    whole.sync(ids)
    for size in (1, 2, 3, 7, 16, 33, 100):
        session = model.session()
        for at in range(0, len(ids), size):
            session.extend(ids[at : at + size])
        d = np.abs(session.logits() - whole.logits()).max()
        print(nano, recipe, size, d)
        assert d <= 1e-5


@pytest.mark.parametrize("recipe", ["F32", "Q8_0"])
def test_a_rewound_session_gives_the_same_logits(nano: str, recipe: str, convert: Convert) -> None:
    model = Model(convert(nano, recipe))
    one, other = (reference.ids for reference in references(nano)[:2])
    fresh = model.session()
    fresh.sync(one)
    session = model.session()
    session.sync(other)
    for keep in (0, 1, 17, len(one) - 1):
        session.sync([*one[:keep], *other[keep:]])
        assert session.sync(one) >= keep
        d = np.abs(session.logits() - fresh.logits()).max()
        print(nano, recipe, keep, d)
        assert d <= 1e-5


@pytest.mark.parametrize("recipe", ["F32", "Q8_0", "Q4_K_M"])
def test_every_thread_count_gives_the_same_bits(nano: str, recipe: str, convert: Convert) -> None:
    path = convert(nano, recipe)
    ids = references(nano)[1].ids
    results = []
    for threads in (1, 2, 3, 4):
        model = Model(path, threads=threads)
        assert model.threads == threads
        session = model.session()
        session.sync(ids[:-3])
        for token in ids[-3:]:
            session.extend([token])
        results.append(session.logits())
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
