"""A GGUF file as a source: the same tensors and metadata, in other types."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import qwen3_native
from numpy.typing import NDArray

from .checkpoint import ARCHITECTURES, Experts, Hyperparameters, Yarn
from .errors import FormatError, UsageError
from .layout import Run, Tensor, layout
from .metadata import quantization
from .recipes import Recipe
from .safetensors import floats
from .source_file import SourceFile

_FLOATS = ("F32", "F16", "BF16")
# What describes the file and not the model: the writer has its own.
_OF_THE_FILE = ("general.architecture", "general.alignment")
_OF_THE_FILE_PREFIXES = ("GGUF.", "split.", "quantize.imatrix.")


class GgufFile:
    """A Source: a file of the architectures qwen3 and qwen3moe."""

    def __init__(self, path: Path, *, allow_requantize: bool = False) -> None:
        self.path = path
        self._file = SourceFile(path)
        try:
            try:
                header = qwen3_native.File(os.fsencode(path))
                self._metadata = header.metadata()
            except qwen3_native.NativeError as error:
                raise FormatError(f"{path}: {error.args[1]}") from None
            self._value_types = header.value_types()
            self._offsets = header.data_offsets()
            self._types = {name: kind for name, _, kind, _ in header.tensors()}
            shapes = {name: shape for name, shape, _, _ in header.tensors()}
            self.hp = _Keys(path, self._metadata).hyperparameters(shapes)
            self.tensors = [self._tensor(tensor, shapes) for tensor in layout(self.hp)]
            self._row_lengths = {tensor.name: tensor.row_length for tensor in self.tensors}
            self._refuse_rest()
            self._check_types(allow_requantize)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._file.close()

    def row_bytes(self, name: str) -> int:
        return qwen3_native.type_bytes(self._types[name], self._row_lengths[name])

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        row_bytes, kind = self.row_bytes(name), self._types[name]
        offset = self._offsets[name] + start * row_bytes
        raw = self._file.read(offset, (stop - start) * row_bytes, name)
        if kind in _FLOATS:
            values = floats(raw, kind)
        else:
            blocks = np.frombuffer(raw, np.uint8)
            n = (stop - start) * self._row_lengths[name]
            values = qwen3_native.dequantize(kind, blocks, n)
        return values.reshape(stop - start, self._row_lengths[name])

    def add_metadata(self, writer: gguf.GGUFWriter, recipe: Recipe) -> None:
        """As it is in the file, in its order."""
        changed = quantization(recipe)
        for key, value in self._metadata.items():
            if key in _OF_THE_FILE or key.startswith(_OF_THE_FILE_PREFIXES) or value == []:
                continue
            kind, item = map(gguf.GGUFValueType, self._value_types[key])
            if key in changed:
                writer.add_uint32(key, changed.pop(key))
            else:
                writer.add_key_value(key, value, kind, item if item != kind else None)
        for key, number in changed.items():
            writer.add_uint32(key, number)

    def _tensor(self, tensor: Tensor, shapes: dict[str, tuple[int, ...]]) -> Tensor:
        name = tensor.name
        if name not in shapes:
            raise FormatError(f"{self.path}: the tensor {name} is missing; download it again")
        if shapes[name] != tensor.shape:
            raise FormatError(
                f"{self.path}: the tensor {name} has shape {list(shapes[name])}, "
                f"but the metadata calls for {list(tensor.shape)}"
            )
        run = Run(name, 0, tensor.n_rows)
        return Tensor(name, tensor.shape, tensor.layer, (run,))

    def _check_types(self, allow_requantize: bool) -> None:
        for name, kind in self._types.items():
            try:
                qwen3_native.type_bytes(kind, 256)
            except ValueError:
                raise FormatError(
                    f"{self.path}: the tensor {name} has {kind}, which cannot be read"
                ) from None
            if kind not in _FLOATS and not allow_requantize:
                raise UsageError(
                    f"{self.path}: is quantized already ({name} is {kind}), and errors add up; "
                    "take a file in F32, F16 or BF16, or --allow-requantize"
                )

    def _refuse_rest(self) -> None:
        if rest := self._types.keys() - {tensor.name for tensor in self.tensors}:
            raise FormatError(
                f"{self.path}: holds {min(rest)[:200]!r}, which is no part of "
                f"{self.hp.architecture} with {self.hp.n_layers} layers"
            )


class _Keys:
    """The keys of the architecture, each checked."""

    def __init__(self, path: Path, metadata: dict[str, Any]) -> None:
        self.path = path
        self.metadata = metadata
        self.architecture = metadata.get("general.architecture")
        if self.architecture not in ARCHITECTURES.values():
            raise FormatError(
                f"{path}: its architecture is {str(self.architecture)[:200]}; only "
                f"{' and '.join(ARCHITECTURES.values())} can be converted"
            )

    def hyperparameters(self, shapes: dict[str, tuple[int, ...]]) -> Hyperparameters:
        """What the tensors' shapes follow from; rope stays with the metadata."""
        n_embd = self.integer("embedding_length")
        n_heads = self.integer("attention.head_count")
        n_layers = self.integer("block_count")
        if n_layers > len(shapes):
            raise self.error(f"{n_layers} layers are announced for {len(shapes)} tensors")
        moe = self.architecture == "qwen3moe"
        return Hyperparameters(
            architecture=str(self.architecture),
            n_layers=n_layers,
            n_embd=n_embd,
            n_heads=n_heads,
            n_kv_heads=self.integer("attention.head_count_kv", n_heads),
            head_dim=self.integer("attention.key_length", n_embd // n_heads),
            n_ff=self.integer("feed_forward_length", 1 if moe else None),
            n_vocab=shapes.get("token_embd.weight", (1,))[0],
            n_context=self.integer("context_length"),
            rms_eps=self.number("attention.layer_norm_rms_epsilon", None),
            rope_theta=self.number("rope.freq_base", 1e6),
            yarn=self.yarn(),
            tied_embedding="output.weight" not in shapes,
            experts=self.experts() if moe else None,
        )

    def experts(self) -> Experts:
        return Experts(
            count=self.integer("expert_count"),
            used=self.integer("expert_used_count"),
            n_ff=self.integer("expert_feed_forward_length"),
            norm_topk=self.metadata.get(f"{self.architecture}.expert_weights_norm") is not False,
        )

    def yarn(self) -> Yarn | None:
        kind = self.metadata.get(f"{self.architecture}.rope.scaling.type", "none")
        if kind == "none":
            return None
        if kind != "yarn":
            raise self.error(f"rope.scaling.type is {str(kind)[:40]}; none and yarn are known")
        context = self.integer("rope.scaling.original_context_length")
        return Yarn(self.number("rope.scaling.factor", None), context)

    def error(self, text: str) -> FormatError:
        return FormatError(f"{self.path}: {text}")

    def integer(self, name: str, default: int | None = None) -> int:
        """A count of 1 or more."""
        value = self.metadata.get(f"{self.architecture}.{name}", default)
        if type(value) is not int or not 1 <= value < 1 << 31:
            raise self.error(f"{self.architecture}.{name} is {str(value)[:40]}")
        return value

    def number(self, name: str, default: float | None) -> float:
        value = self.metadata.get(f"{self.architecture}.{name}", default)
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.error(f"{self.architecture}.{name} is {str(value)[:40]}")
        return float(value)
