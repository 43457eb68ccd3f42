"""The releases of the family: what is published where, and what each can do.

From the model cards on the Hugging Face Hub. Qwen published no base model of 32b and
235b-a22b, and GGUF files of the first generation alone, at the two smallest sizes in 8 bits
alone. All others are quantized from their weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the names alone are needed at every start, the shapes rarely
    from quant.checkpoint import Hyperparameters

Mode = Literal["hybrid", "thinking", "instruct", "base"]

_K32, _K256 = 32_768, 262_144  # tokens
_Q8 = ("q8_0",)
_Q4_TO_Q8 = ("q4_k_m", "q5_0", "q5_k_m", "q6_k", "q8_0")
# Bytes of a GGUF file beside its tensors, nearly all of them the vocabulary.
_METADATA_BYTES = 5_950_000


@dataclass(frozen=True)
class Release:
    name: str
    weights: str  # repository of the safetensors
    size: str  # the name of its shape
    mode: Mode  # hybrid thinks or not, base is not made for chats
    context: int  # tokens, as trained: without YaRN
    quants: tuple[str, ...] = ()  # of the official GGUF files; the first is the default
    repetition_penalty: float = 1.0  # all else of the sampling follows the mode

    @property
    def gguf(self) -> str | None:
        """Repository of the official GGUF files, if there are any."""
        return f"{self.weights}-GGUF" if self.quants else None

    @property
    def shape(self) -> Hyperparameters:
        from qwen3cli.hub.shapes import SHAPES

        return SHAPES[self.size]

    @property
    def n_weights(self) -> int:
        """Embeddings included."""
        from qwen3cli.hub.shapes import n_weights

        return n_weights(self.shape)

    def tensors(self, quant: str) -> list[tuple[str, tuple[int, ...], str, int]]:
        """(name, shape, type, bytes) of all in a GGUF file. Raises UsageError for an unknown
        quant."""
        from quant.layout import layout
        from quant.recipes import assign, recipe
        from quant.writer import TensorInfo

        tensors = assign(recipe(quant), layout(self.shape), self.shape)
        infos = [TensorInfo.of(*tensor) for tensor in tensors]
        return [(info.name, info.shape, info.type, info.n_bytes) for info in infos]

    def file_bytes(self, quant: str) -> int:
        """The size of a GGUF file, within 0.1 %. Raises UsageError for an unknown quant."""
        return _METADATA_BYTES + sum(n_bytes for *_, n_bytes in self.tensors(quant))


RELEASES = {
    release.name: release
    for release in (
        Release("0.6b", "Qwen/Qwen3-0.6B", "0.6b", "hybrid", _K32, _Q8),
        Release("1.7b", "Qwen/Qwen3-1.7B", "1.7b", "hybrid", _K32, _Q8),
        Release("4b", "Qwen/Qwen3-4B", "4b", "hybrid", _K32, _Q4_TO_Q8),
        Release("8b", "Qwen/Qwen3-8B", "8b", "hybrid", _K32, _Q4_TO_Q8),
        Release("14b", "Qwen/Qwen3-14B", "14b", "hybrid", _K32, _Q4_TO_Q8),
        Release("32b", "Qwen/Qwen3-32B", "32b", "hybrid", _K32, _Q4_TO_Q8),
        Release("30b-a3b", "Qwen/Qwen3-30B-A3B", "30b-a3b", "hybrid", _K32, _Q4_TO_Q8),
        Release("235b-a22b", "Qwen/Qwen3-235B-A22B", "235b-a22b", "hybrid", _K32, _Q4_TO_Q8),
        Release("0.6b-base", "Qwen/Qwen3-0.6B-Base", "0.6b", "base", _K32),
        Release("1.7b-base", "Qwen/Qwen3-1.7B-Base", "1.7b", "base", _K32),
        Release("4b-base", "Qwen/Qwen3-4B-Base", "4b", "base", _K32),
        Release("8b-base", "Qwen/Qwen3-8B-Base", "8b", "base", _K32),
        Release("14b-base", "Qwen/Qwen3-14B-Base", "14b", "base", _K32),
        Release("30b-a3b-base", "Qwen/Qwen3-30B-A3B-Base", "30b-a3b", "base", _K32),
        Release("4b-instruct-2507", "Qwen/Qwen3-4B-Instruct-2507", "4b", "instruct", _K256),
        Release("4b-thinking-2507", "Qwen/Qwen3-4B-Thinking-2507", "4b", "thinking", _K256),
        Release(
            "30b-a3b-instruct-2507",
            "Qwen/Qwen3-30B-A3B-Instruct-2507",
            "30b-a3b",
            "instruct",
            _K256,
        ),
        Release(
            "30b-a3b-thinking-2507",
            "Qwen/Qwen3-30B-A3B-Thinking-2507",
            "30b-a3b",
            "thinking",
            _K256,
        ),
        Release(
            "235b-a22b-instruct-2507",
            "Qwen/Qwen3-235B-A22B-Instruct-2507",
            "235b-a22b",
            "instruct",
            _K256,
        ),
        Release(
            "235b-a22b-thinking-2507",
            "Qwen/Qwen3-235B-A22B-Thinking-2507",
            "235b-a22b",
            "thinking",
            _K256,
        ),
        Release(
            "coder-30b-a3b",
            "Qwen/Qwen3-Coder-30B-A3B-Instruct",
            "30b-a3b",
            "instruct",
            _K256,
            repetition_penalty=1.05,
        ),
    )
}
