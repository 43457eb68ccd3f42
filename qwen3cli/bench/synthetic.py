"""Model files of the real shapes with random weights: what `qwen3 bench` measures where there
is no model. They compute as fast as a real file and answer nonsense.

The blocks are random bits behind scales that give every matrix the deviation of an untrained
network, so that no logit overflows. The tokenizer knows single bytes alone, but the vocabulary
is padded to the real size: the output matrix costs what it costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize
from numpy.typing import NDArray

from quant.card import ModelCard
from quant.checkpoint import Hyperparameters
from quant.layout import Tensor, layout
from quant.metadata import add_general, add_hyperparameters
from quant.recipes import Recipe, assign, recipe
from quant.writer import TensorInfo, gguf_output
from qwen3cli.errors import UsageError
from qwen3cli.hub import registry
from qwen3cli.hub.shapes import SHAPES as SHAPES
from qwen3cli.terminal import Terminal

Table = list[tuple[Tensor, str]]  # the tensors of a file and their types

_CHUNK_BLOCKS = 1 << 16
_ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")

# Where a block keeps its f16 scale and, if it has one, its f16 scale of minima.
_SCALES_AT = {
    "Q8_0": (0,), "Q6_K": (208,), "Q5_K": (0, 2), "Q5_1": (0, 2), "Q5_0": (0,),
    "Q4_K": (0, 2), "Q4_1": (0, 2), "Q4_0": (0,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip
# Of the bits of a float: their number, those of sign and mantissa, first bit and bias of the
# exponent.
_FLOATS = {
    "F32": (32, 0x807FFFFF, 23, 127),
    "F16": (16, 0x83FF, 10, 15),
    "BF16": (16, 0x807F, 7, 127),
}


def synthetic(spec: str, terminal: Terminal) -> Path:
    """The file for NAME:TYPE, such as 0.6b:q4_k_m; written to the cache folder the first time.
    Raises UsageError, and QuantError where the disk is too small."""
    name, _, kind = spec.lower().partition(":")
    if name not in SHAPES:
        raise UsageError(f"--synthetic {spec}: no such shape; there are {', '.join(SHAPES)}")
    chosen = recipe(kind or "q4_k_m")
    hp = SHAPES[name]
    folder = registry.xdg("XDG_CACHE_HOME", ".cache") / "synthetic"
    path = folder / f"qwen3-{name}-{chosen.name.lower()}.gguf"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    size = sum(TensorInfo.of(tensor, kind).n_bytes for tensor, kind in table(hp, chosen))
    terminal.note(f"qwen3: writing {path}, {size / 1e9:.1f} GB of random weights, kept for later")
    with terminal.progress(path.name) as move:
        write(path, name, hp, chosen, move)
    return path


def table(hp: Hyperparameters, chosen: Recipe) -> Table:
    """Every tensor of a file and its type, in file order."""
    return assign(chosen, layout(hp), hp)


def write(
    path: Path,
    name: str,
    hp: Hyperparameters,
    chosen: Recipe,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> None:
    """Writes a model of this shape; progress is told the bytes done, and of how many. A file
    in the making is removed when it fails. Raises QuantError."""
    tensors = table(hp, chosen)
    infos = [TensorInfo.of(tensor, kind) for tensor, kind in tensors]
    total = sum(info.n_bytes for info in infos)
    done = 0
    metadata = gguf.GGUFWriter(None, hp.architecture)
    add_general(metadata, ModelCard(f"Qwen3 {name}, random weights"), chosen)
    add_hyperparameters(metadata, hp)
    _add_tokenizer(metadata, hp.n_vocab)
    rng = np.random.default_rng(0)
    with gguf_output(path, metadata, infos, elsewhere="$XDG_CACHE_HOME") as output:
        for tensor, kind in tensors:
            for chunk in _data(rng, tensor, kind, tied=hp.tied_embedding):
                output.write(chunk)
                done += chunk.nbytes
                progress(done, total)


def _data(
    rng: np.random.Generator, tensor: Tensor, kind: str, *, tied: bool
) -> Iterator[NDArray[np.uint8] | NDArray[np.float32]]:
    if len(tensor.shape) == 1:
        yield np.ones(tensor.shape, np.float32)
        return
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    n = math.prod(tensor.shape) // block
    # With less in the embedding, what the layers add would make all tokens look alike, and a
    # router would send them to the same experts. Where it is the output, too, logits count more.
    alone = tensor.name == "token_embd.weight" and not tied
    deviation = 1 if alone else tensor.row_length**-0.5
    for start in range(0, n, _CHUNK_BLOCKS):
        yield random_blocks(rng, kind, min(_CHUNK_BLOCKS, n - start), deviation)


def random_blocks(
    rng: np.random.Generator, kind: str, n: int, deviation: float
) -> NDArray[np.uint8]:
    """n blocks whose weights have mean 0 and about this standard deviation."""
    if kind in _FLOATS:
        n_bits, sign_and_mantissa, first, bias = _FLOATS[kind]
        bits = np.frombuffer(rng.bytes(n * n_bits // 8), f"<u{n_bits // 8}")
        # Sign and mantissa at random: 1.53 is the deviation of what is even in +-[1, 2).
        exponent = bias + round(math.log2(deviation / 1.53))
        floats: NDArray[np.uint8] = (bits & sign_and_mantissa | exponent << first).view(np.uint8)
        return floats
    raw = gguf.GGMLQuantizationType[kind]
    _, size = gguf.GGML_QUANT_SIZES[raw]
    blocks: NDArray[np.uint8] = np.frombuffer(rng.bytes(n * size), np.uint8).copy()
    blocks = blocks.reshape(n, size)

    def decoded(*scales: float) -> NDArray[np.float32]:
        _set_scales(sample, kind, scales)
        values: NDArray[np.float32] = dequantize(sample, raw)
        return values

    # What the bits mean to the type is measured on some of them.
    sample = blocks[:256].copy()
    if len(_SCALES_AT[kind]) == 1:
        _set_scales(blocks, kind, [deviation / float(decoded(1).std())])
    else:
        slope = -float(decoded(1, 0).mean() / decoded(0, 1).mean())
        scale = deviation / float(decoded(1, slope).std())
        _set_scales(blocks, kind, [scale, scale * slope])
    return blocks.reshape(-1)


def _set_scales(blocks: NDArray[np.uint8], kind: str, scales: Sequence[float]) -> None:
    for at, scale in zip(_SCALES_AT[kind], scales, strict=True):
        blocks[:, at : at + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)


def _add_tokenizer(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """A token per byte, the five added tokens that chats need, and padding."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [chr(b) for b in printable]  # as byte-level BPE spells the bytes
    letters += [chr(256 + i) for i in range(256 - len(letters))]
    tokens = [*letters, "ĠĠ", *_ADDED]
    types = [gguf.TokenType.NORMAL] * (len(letters) + 1) + [gguf.TokenType.CONTROL] * len(_ADDED)
    padding = n_vocab - len(tokens)
    tokens += [f"[PAD{i}]" for i in range(padding)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([*map(int, types), *[int(gguf.TokenType.UNUSED)] * padding])
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
