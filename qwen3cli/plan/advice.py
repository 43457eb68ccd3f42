"""Which releases fit into a memory, in which quantization: from their shapes, without a file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from quant.shards import model_name
from qwen3cli.hub.registry import quant_of, release_of, split
from qwen3cli.hub.releases import RELEASES, Release
from qwen3cli.plan.memory import amount
from qwen3cli.plan.sizes import Sizes, sizes_of_release

QUANTS = ("q8_0", "q6_k", "q5_k_m", "q4_k_m")  # the best first
_SHOWN = 2


@dataclass(frozen=True)
class Candidate:
    """A release in a quantization."""

    release: Release
    quant: str

    @property
    def name(self) -> str:
        return f"{self.release.name}:{self.quant}"

    @cached_property
    def sizes(self) -> Sizes:
        return sizes_of_release(self.release, self.quant)

    @property
    def commands(self) -> tuple[str, ...]:
        """What gets it."""
        if self.quant in self.release.quants:
            return (f"qwen3 pull {self.name}",)
        name = self.release.name
        quantize = f"qwen3 quantize {name} --type {self.quant.upper()}"
        return f"qwen3 pull {name} --weights", quantize


def hybrids() -> list[Release]:
    """The models that think or do not, the largest first."""
    found = [release for release in RELEASES.values() if release.mode == "hybrid"]
    return sorted(found, key=lambda release: release.n_weights, reverse=True)


def candidate_of(model: str) -> Candidate | None:
    """Of a file's name or of NAME:QUANT; without a quant the one that `pull` takes, in a file's
    name the best. None for what is no release."""
    name, quant = split(model)
    if not quant:
        stem = model_name(Path(model)) if model.endswith(".gguf") else model
        quant = quant_of(model) if model.endswith(".gguf") else ""
        name = stem[: -len(quant) - 1] if quant else stem
    release = release_of(name)
    if release is None:
        return None
    return Candidate(release, quant or (release.quants or QUANTS[-1:])[0])


def instead(model: str, ram: int, *, n_ctx: int | None, kv: str | None = None) -> str:
    """The end of a sentence about a model that does not fit into ram: what is nearest to it and
    does. First the same model in fewer bits, then smaller ones, in the best quantization each."""
    asked = candidate_of(model)
    releases = hybrids()
    if asked:
        smaller = [each for each in releases if each.n_weights < asked.release.n_weights]
        releases = [asked.release, *smaller]
    found = []
    for release in releases:
        for quant in QUANTS:
            each = Candidate(release, quant)
            least = each.sizes.least(min(n_ctx or 2048, each.sizes.n_ctx), kv)
            if least <= ram and each != asked:
                found.append(f"{each.name} needs {amount(least)}")
                break
    return f"; {', '.join(found[:_SHOWN])}" if found else ""
