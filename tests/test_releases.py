"""The table of the releases agrees with itself, with the shapes and with what is published."""

from __future__ import annotations

import math

import pytest

from quant.checkpoint import Hyperparameters
from quant.layout import layout
from quant.recipes import RECIPES
from qwen3cli.hub.registry import EMBEDDED, PREFERRED, release_of
from qwen3cli.hub.releases import RELEASES, Release
from qwen3cli.hub.shapes import SHAPES
from qwen3cli.names import check_name, check_repository
from qwen3cli.prompt import Generation, detect_generation, is_coder
from qwen3cli.thinking.control import default_sampling

# Weights in billions, all and for one token, from the model cards.
CARDS = {
    "0.6b": (0.6, 0.6), "1.7b": (1.7, 1.7), "4b": (4.0, 4.0), "8b": (8.2, 8.2),
    "14b": (14.8, 14.8), "32b": (32.8, 32.8), "30b-a3b": (30.5, 3.3), "235b-a22b": (235, 22),
}  # fmt: skip
# Bytes of official files.
PUBLISHED = {
    "0.6b:q8_0": 639_446_688,
    "1.7b:q8_0": 1_834_426_016,
    "4b:q4_k_m": 2_497_280_256,
    "8b:q4_k_m": 5_027_783_488,
    "14b:q4_k_m": 9_001_752_960,
    "32b:q4_k_m": 19_762_149_024,
    "30b-a3b:q4_k_m": 18_556_685_824,
}
each_release = pytest.mark.parametrize("release", RELEASES.values(), ids=lambda r: r.name)


@each_release
def test_a_release_is_found_under_its_name_and_its_repositories(release: Release) -> None:
    assert RELEASES[check_name(release.name)] is release
    for name in (release.name, release.weights, release.gguf or release.name):
        for spelled in (name, name.upper(), name.removeprefix("Qwen/")):
            assert release_of(spelled) is release
    check_repository(release.weights)


@each_release
def test_modes_are_those_that_the_prompts_detect(release: Release) -> None:
    named = {"general.name": release.weights.partition("/")[2].replace("-", " ")}
    expected = Generation.HYBRID if release.mode == "base" else Generation[release.mode.upper()]
    assert detect_generation(named) is expected
    sampling = default_sampling(release.mode == "thinking", coder=is_coder(named))
    assert sampling.repetition_penalty == release.repetition_penalty


def weights_of_a_token(shape: Hyperparameters) -> float:
    total = 0.0
    for tensor in layout(shape):
        share = shape.experts.used / tensor.n_experts if tensor.n_experts > 1 else 1
        total += math.prod(tensor.shape) * share
    return total


@each_release
def test_weights_and_context_are_those_of_the_model_card(release: Release) -> None:
    everything, active = CARDS[release.size]
    assert release.n_weights / 1e9 == pytest.approx(everything, rel=0.015)
    assert weights_of_a_token(release.shape) / 1e9 == pytest.approx(active, rel=0.02)
    later = release.name.endswith("2507") or release.name.startswith("coder")
    assert release.context == (262_144 if later else 32_768)
    assert release.name.removeprefix("coder-").startswith(release.size)


@each_release
def test_official_files_are_of_the_first_generation(release: Release) -> None:
    assert (release.gguf is not None) == (release.mode == "hybrid") == (release.name in SHAPES)
    assert {quant.upper() for quant in release.quants} <= RECIPES.keys()
    if release.quants:
        best = next(quant for quant in PREFERRED if quant in release.quants)
        assert release.quants[0] == best


@pytest.mark.parametrize(("name", "size"), PUBLISHED.items())
def test_sizes_are_those_of_the_published_files(name: str, size: int) -> None:
    name, _, quant = name.partition(":")
    assert RELEASES[name].file_bytes(quant) == pytest.approx(size, rel=1e-4)


def test_every_size_has_its_releases() -> None:
    assert {release.size for release in RELEASES.values()} == SHAPES.keys()
    assert not RELEASES.keys() & EMBEDDED.keys()
    repositories = [release.weights for release in RELEASES.values()]
    assert len(set(repositories)) == len(repositories) == 21
    bases = {name.removesuffix("-base") for name in RELEASES if name.endswith("-base")}
    assert bases == SHAPES.keys() - {"32b", "235b-a22b"}
