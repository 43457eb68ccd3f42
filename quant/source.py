"""Where the weights of a GGUF file come from: a checkpoint directory, or another GGUF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import gguf
import numpy as np
from numpy.typing import NDArray

from .checkpoint import Hyperparameters
from .errors import SourceNotFound
from .gguf_file import GgufFile
from .huggingface import Checkpoint
from .layout import Tensor
from .recipes import Recipe


class Source(Protocol):
    """An opened source, its tensors checked. Rows may be read from many threads."""

    @property
    def hp(self) -> Hyperparameters: ...

    @property
    def tensors(self) -> Sequence[Tensor]:
        """Of the GGUF file to write, in file order; their runs name tensors of the source."""

    def row_bytes(self, name: str) -> int:
        """What a row of a source tensor takes in the source."""

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows start..stop of a source tensor as [stop - start, row_length]."""

    def add_metadata(self, writer: gguf.GGUFWriter, recipe: Recipe) -> None:
        """Everything but the tensors, for a file of this recipe."""

    def close(self) -> None: ...


def open_source(path: Path, *, allow_requantize: bool = False) -> Source:
    """Opens a Hugging Face directory, or a GGUF file in F32, F16 and BF16.

    allow_requantize: a GGUF file may hold quantized tensors, whose errors then add up.
    Raises SourceNotFound, FormatError, QuantError.
    """
    if path.is_dir():
        return Checkpoint(path)
    if path.is_file():
        return GgufFile(path, allow_requantize=allow_requantize)
    raise SourceNotFound(f"{path}: there is no such checkpoint directory or GGUF file")
