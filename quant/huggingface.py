"""A Hugging Face checkpoint directory as a source."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from .card import model_card
from .checkpoint import read_fp8_block, read_hyperparameters
from .convert import plan
from .fp8 import BlockScales
from .metadata import add_general, add_hyperparameters
from .recipes import Recipe
from .safetensors import Weights
from .vocab import add_tokenizer


class Checkpoint:
    """A Source: config.json, safetensors, the tokenizer and the model card."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self.hp = read_hyperparameters(directory)
        self._weights = Weights(directory)
        try:
            self.tensors = plan(self.hp, self._weights)
            names = {run.source for tensor in self.tensors for run in tensor.runs}
            self._scales = BlockScales(self._weights, names, read_fp8_block(directory))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._weights.close()

    def row_bytes(self, name: str) -> int:
        info = self._weights.info(name)
        return info.row_length * info.item_bytes

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        rows = self._weights.read_rows(name, start, stop)
        self._scales.apply(name, start, rows)
        return rows

    def add_metadata(self, writer: gguf.GGUFWriter, recipe: Recipe) -> None:
        add_general(writer, model_card(self.path), recipe)
        add_hyperparameters(writer, self.hp)
        add_tokenizer(writer, self.path, self.hp.n_vocab)
