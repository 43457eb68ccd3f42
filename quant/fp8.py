"""Weights in fp8 with a scale for each block, as the official -FP8 releases hold them.

A matrix X.weight of F8_E4M3 stands beside X.weight_scale_inv, a matrix with one scale
for each block of (usually) 128 x 128 weights: weight = fp8 value * scale. The blocks
at the lower and right edge may be cut.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from .errors import FormatError
from .safetensors import TensorInfo, Weights


def scales_of(name: str) -> str:
    """The name of the tensor that holds the scales of an fp8 tensor."""
    return f"{name}_scale_inv"


class BlockScales:
    """The scales of every fp8 tensor in names, all checked when made."""

    def __init__(
        self, weights: Weights, names: Iterable[str], block: tuple[int, int] | None
    ) -> None:
        """block: rows and columns of a block, as config.json tells them."""
        self._weights = weights
        self._shapes: dict[str, tuple[int, int]] = {}  # rows and columns of a matrix
        self._block = block or (0, 0)
        for name in names:
            info = weights.info(name)
            if info.dtype != "F8_E4M3":
                continue
            if block is None:
                raise FormatError(
                    f"{weights.directory / 'config.json'}: the tensor {name} is F8_E4M3, but "
                    "there is no quantization_config of quant_method fp8"
                )
            self._check(info, block)
            self._shapes[name] = info.shape[-2], info.shape[-1]

    def _check(self, info: TensorInfo, block: tuple[int, int]) -> None:
        name = scales_of(info.name)
        if name not in self._weights:
            raise FormatError(f"the checkpoint lacks {name}, the scales of {info.name}")
        if len(info.shape) < 2:
            raise FormatError(f"the tensor {info.name} is F8_E4M3, but no matrix")
        *stack, rows, columns = info.shape
        wanted = (*stack, -(-rows // block[0]), -(-columns // block[1]))
        scales = self._weights.info(name)
        if scales.shape != wanted:
            raise FormatError(
                f"the tensor {name} has shape {list(scales.shape)}, but {list(info.shape)} in "
                f"blocks of {block[0]} x {block[1]} calls for {list(wanted)}"
            )
        if scales.dtype == "F8_E4M3":
            raise FormatError(f"the tensor {name} holds scales in F8_E4M3, not in floats")

    def apply(self, name: str, start: int, values: NDArray[np.float32]) -> None:
        """Multiplies values, the rows of a tensor from start on, by their scales."""
        if name not in self._shapes:
            return
        rows, columns = self._shapes[name]
        height, width = self._block
        per_matrix = -(-rows // height)  # rows of scales
        row, end = start, start + len(values)
        while row < end:
            matrix, inside = divmod(row, rows)
            block = inside // height
            stop = min(end, matrix * rows + min(rows, (block + 1) * height))
            at = matrix * per_matrix + block
            scales = self._weights.read_rows(scales_of(name), at, at + 1)[0]
            values[row - start : stop - start] *= np.repeat(scales, width)[:columns]
            row = stop
