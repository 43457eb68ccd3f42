"""Small complete GGUF models for tests, written byte by byte so that any of it can be made wrong.

`python tests/gguf_tiny.py` makes tests/data/tiny.gguf, its shards, tiny-moe.gguf, and
tiny-gpu.gguf, tiny-gpu-moe.gguf and tiny-gpu-mixed.gguf, whose shapes a GPU takes; the native tests
read them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

DATA = Path(__file__).parent / "data"
WEIGHT_TYPES = [  # every type the engine runs
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1",
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
]  # fmt: skip
ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
MERGES = ["Ġ Ġ", "i n", "Ġ t", "e r", "o n", "Ġ a", "r e", "a t"]

# Where a block keeps its f16 scale and its f16 scale of minima.
_SCALE_AT = {"Q2_K": 80, "Q3_K": 108, "Q4_K": 0, "Q5_K": 0, "Q6_K": 208, "IQ4_NL": 0, "IQ4_XS": 0}
_MIN_SCALE_AT = {"Q2_K": 82, "Q4_K": 2, "Q5_K": 2}

_SCALARS = {
    GGUFValueType.UINT8: "<B", GGUFValueType.INT8: "<b", GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h", GGUFValueType.UINT32: "<I", GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f", GGUFValueType.BOOL: "<?", GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q", GGUFValueType.FLOAT64: "<d",
}  # fmt: skip


@dataclass
class Value:
    """One metadata value; a list is written as an array of type."""

    type: GGUFValueType
    value: Any

    def encode(self) -> bytes:
        if isinstance(self.value, list):
            items = b"".join(_encode(self.type, item) for item in self.value)
            return struct.pack("<IIQ", GGUFValueType.ARRAY, self.type, len(self.value)) + items
        return struct.pack("<I", self.type) + _encode(self.type, self.value)


@dataclass
class Tensor:
    """shape has the fastest dimension first, as in the file; data are the bytes as they lie."""

    name: str
    shape: tuple[int, ...]
    type: int
    data: bytes
    offset: int | None = None  # None: behind the one before


@dataclass
class Image:
    """A GGUF file in memory. Keys and tensors may stand twice: they are lists."""

    kv: list[tuple[str, Value | bytes]] = field(default_factory=list)  # bytes: raw, type and all
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32

    def put(self, key: str, value: Any, kind: GGUFValueType | None = None) -> None:
        """Sets or adds a key; without a kind it keeps its own, or takes Python's nearest."""
        at = next((i for i, (k, _) in enumerate(self.kv) if k == key), len(self.kv))
        if not isinstance(value, bytes):
            old = self.kv[at][1] if at < len(self.kv) else None
            if kind is None:
                kind = old.type if isinstance(old, Value) else _natural(value)
            value = Value(kind, value)
        self.kv[at : at + 1] = [(key, value)]

    def drop(self, key: str) -> None:
        self.kv = [(k, v) for k, v in self.kv if k != key]

    def get(self, key: str) -> Any:
        return next(v.value for k, v in self.kv if k == key and isinstance(v, Value))

    def tensor(self, name: str) -> Tensor:
        return next(t for t in self.tensors if t.name == name)

    def matrix(self, name: str) -> NDArray[np.float32]:
        """What a tensor's data decode to, the fastest dimension last."""
        t = self.tensor(name)
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(t.type)]
        raw = np.frombuffer(t.data, np.uint8).reshape(*t.shape[:0:-1], t.shape[0] // block * size)
        return dequantize(raw, GGMLQuantizationType(t.type)).astype(np.float32)

    def header(self) -> bytes:
        """Everything before the tensor data, padded to the alignment."""
        out = self.magic + struct.pack("<IQQ", self.version, len(self.tensors), len(self.kv))
        for key, value in self.kv:
            out += _string(key) + (value if isinstance(value, bytes) else value.encode())
        end = 0
        for t in self.tensors:
            offset = end if t.offset is None else t.offset
            end = self._aligned(end + len(t.data))
            out += _string(t.name) + struct.pack("<I", len(t.shape))
            out += struct.pack(f"<{len(t.shape)}QIQ", *t.shape, t.type, offset)
        return out.ljust(self._aligned(len(out)), b"\0")

    def encode(self) -> bytes:
        data = b"".join(t.data.ljust(self._aligned(len(t.data)), b"\0") for t in self.tensors)
        return self.header() + data

    def write(self, path: Path) -> Path:
        path.write_bytes(self.encode())
        return path

    def _aligned(self, n: int) -> int:
        return -(-n // self.alignment) * self.alignment


def split(image: Image, count: int) -> list[Image]:
    """The same model in shards, as the ecosystem splits: the metadata in the first one."""
    n = len(image.tensors)
    parts = []
    for i in range(count):
        tensors = image.tensors[n * i // count : n * (i + 1) // count]
        part = Image(list(image.kv) if i == 0 else [], tensors, alignment=image.alignment)
        part.put("split.no", i, GGUFValueType.UINT16)
        part.put("split.count", count, GGUFValueType.UINT16)
        part.put("split.tensors.count", n, GGUFValueType.INT32)
        parts.append(part)
    return parts


def write_shards(parts: list[Image], folder: Path, name: str = "tiny") -> Path:
    """Writes them under the names they must have; the first one."""
    paths = [folder / f"{name}-{i + 1:05}-of-{len(parts):05}.gguf" for i in range(len(parts))]
    for part, path in zip(parts, paths, strict=True):
        part.write(path)
    return paths[0]


def _natural(value: Any) -> GGUFValueType:
    item = value[0] if isinstance(value, list) else value
    for python, kind in (
        (bool, GGUFValueType.BOOL), (int, GGUFValueType.UINT32),
        (float, GGUFValueType.FLOAT32), (str, GGUFValueType.STRING),
    ):  # fmt: skip
        if isinstance(item, python):
            return kind
    raise TypeError(f"no GGUF type for {value!r}")


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _encode(kind: GGUFValueType, value: Any) -> bytes:
    return _string(value) if kind == GGUFValueType.STRING else struct.pack(_SCALARS[kind], value)


# ---- weights ---------------------------------------------------------------


def weights(rng: np.random.Generator, kind: str, shape: tuple[int, ...], std: float) -> bytes:
    """Random weights of about this deviation in blocks of one type; shape: fastest first."""
    rows = int(np.prod(shape[1:]))
    qtype = GGMLQuantizationType[kind]
    if kind not in _SCALE_AT:
        values = rng.standard_normal((rows, shape[0]), np.float32) * np.float32(std)
        return quantize(values, qtype).tobytes()
    # No encoder in the gguf package: random blocks, their scales set to what gives mean 0 and std.
    block, size = GGML_QUANT_SIZES[qtype]
    blocks = rng.integers(0, 256, (rows * shape[0] // block, size), np.uint8)

    def decoded(scale: float, min_scale: float) -> NDArray[np.float32]:
        for at, f16 in ((_SCALE_AT, scale), (_MIN_SCALE_AT, min_scale)):
            if kind in at:
                blocks[:, at[kind] : at[kind] + 2] = np.frombuffer(np.float16(f16), np.uint8)
        return dequantize(blocks, qtype)

    slope = 0.0
    if kind in _MIN_SCALE_AT:
        slope = float(decoded(1, 0).mean() / -decoded(0, 1).mean())
    scale = std / float(decoded(1, slope).std())
    decoded(scale, scale * slope)
    return blocks.tobytes()


# ---- models ----------------------------------------------------------------


def _byte_alphabet() -> list[str]:
    """The 256 bytes as GPT-2's byte-level BPE spells them, in the order of their ids."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]


def tiny_model(
    kind: str = "F32",
    *,
    hidden: int = 32,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    ffn: int = 48,
    layers: int = 1,
    experts: int = 0,
    experts_used: int = 0,
    tied: bool = True,
    n_ctx: int = 256,
    seed: int = 0,
) -> Image:
    """A random qwen3 model, or with experts a qwen3moe model, whose matrices are of one type."""
    rng = np.random.default_rng(seed)
    arch = "qwen3moe" if experts else "qwen3"
    image = Image()
    tokens = _byte_alphabet() + [merge.replace(" ", "") for merge in MERGES]
    ordinary = len(tokens)
    u32, f32, i32 = GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.INT32
    image.put("general.architecture", arch)
    image.put(f"{arch}.block_count", layers, u32)
    image.put(f"{arch}.context_length", n_ctx, u32)
    image.put(f"{arch}.embedding_length", hidden, u32)
    image.put(f"{arch}.feed_forward_length", ffn, u32)
    image.put(f"{arch}.attention.head_count", heads, u32)
    image.put(f"{arch}.attention.head_count_kv", kv_heads, u32)
    image.put(f"{arch}.attention.key_length", head_dim, u32)
    image.put(f"{arch}.attention.value_length", head_dim, u32)
    image.put(f"{arch}.attention.layer_norm_rms_epsilon", 1e-6, f32)
    image.put(f"{arch}.rope.freq_base", 1e6, f32)
    if experts:
        image.put(f"{arch}.expert_count", experts, u32)
        image.put(f"{arch}.expert_used_count", experts_used, u32)
        image.put(f"{arch}.expert_feed_forward_length", ffn, u32)
    image.put("tokenizer.ggml.model", "gpt2")
    image.put("tokenizer.ggml.pre", "qwen2")
    image.put("tokenizer.ggml.tokens", tokens + ADDED)
    image.put("tokenizer.ggml.token_type", [1] * ordinary + [3, 3, 3, 4, 4], i32)
    image.put("tokenizer.ggml.merges", MERGES)
    image.put("tokenizer.ggml.eos_token_id", ordinary + 2, u32)

    def add(name: str, kind: str, shape: tuple[int, ...], std: float) -> None:
        data = weights(rng, kind, shape, std)
        image.tensors.append(Tensor(name, shape, GGMLQuantizationType[kind], data))

    def matrix(name: str, n_in: int, *n_out: int, gain: float = 1.5) -> None:
        add(name, kind, (n_in, *n_out), gain / n_in**0.5)

    def norm(name: str, n: int) -> None:
        values = 1 + 0.2 * rng.standard_normal(n).astype(np.float32)
        image.tensors.append(Tensor(name, (n,), GGMLQuantizationType.F32, values.tobytes()))

    n_vocab = ordinary + len(ADDED)
    matrix("token_embd.weight", hidden, n_vocab, gain=3.0)
    norm("output_norm.weight", hidden)
    if not tied:
        matrix("output.weight", hidden, n_vocab, gain=3.0)
    for i in range(layers):
        blk = f"blk.{i}."
        norm(blk + "attn_norm.weight", hidden)
        matrix(blk + "attn_q.weight", hidden, heads * head_dim)
        matrix(blk + "attn_k.weight", hidden, kv_heads * head_dim)
        matrix(blk + "attn_v.weight", hidden, kv_heads * head_dim)
        matrix(blk + "attn_output.weight", heads * head_dim, hidden)
        norm(blk + "attn_q_norm.weight", head_dim)
        norm(blk + "attn_k_norm.weight", head_dim)
        norm(blk + "ffn_norm.weight", hidden)
        if experts:
            add(blk + "ffn_gate_inp.weight", "F32", (hidden, experts), 2 / hidden**0.5)
            matrix(blk + "ffn_gate_exps.weight", hidden, ffn, experts)
            matrix(blk + "ffn_up_exps.weight", hidden, ffn, experts)
            matrix(blk + "ffn_down_exps.weight", ffn, hidden, experts)
        else:
            matrix(blk + "ffn_gate.weight", hidden, ffn)
            matrix(blk + "ffn_up.weight", hidden, ffn)
            matrix(blk + "ffn_down.weight", ffn, hidden)
    return image


def mixed_experts() -> Image:
    """Experts of a shape that a GPU takes: those of the first layer are larger, those of the second
    of a type that it multiplies as vectors alone. The logits are small, and so are roundings."""
    image = tiny_model(
        "Q8_0", heads=1, kv_heads=1, head_dim=32, ffn=32, layers=2, experts=8, experts_used=2
    )
    rng = np.random.default_rng(1)
    for layer, kind, parts in ((0, "F16", ("down",)), (1, "Q5_0", ("gate", "up", "down"))):
        for part in parts:
            t = image.tensor(f"blk.{layer}.ffn_{part}_exps.weight")
            t.type = GGMLQuantizationType[kind]
            t.data = weights(rng, kind, t.shape, 1.5 / t.shape[0] ** 0.5)
    norm = image.tensor("output_norm.weight")
    norm.data = (np.frombuffer(norm.data, np.float32) / 8).tobytes()
    return image


def decoded(image: Image) -> Image:
    """The same model with every tensor in F32: what a quantized one stands for."""
    tensors = [
        Tensor(t.name, t.shape, GGMLQuantizationType.F32, image.matrix(t.name).tobytes())
        for t in image.tensors
    ]
    return Image(list(image.kv), tensors)


if __name__ == "__main__":
    tiny_model().write(DATA / "tiny.gguf")
    write_shards(split(tiny_model(), 2), DATA)
    moe = tiny_model(experts=4, experts_used=2, tied=False, ffn=32)
    moe.put("qwen3moe.rope.scaling.type", "yarn")
    moe.put("qwen3moe.rope.scaling.factor", 4.0)
    moe.put("qwen3moe.rope.scaling.original_context_length", 64)
    moe.put("qwen3moe.expert_weights_norm", True)
    moe.write(DATA / "tiny-moe.gguf")
    gpu = tiny_model("Q8_0", hidden=64, ffn=64, head_dim=32, layers=3, tied=False)
    gpu.write(DATA / "tiny-gpu.gguf")
    gpu_moe = tiny_model(
        "Q8_0", hidden=64, ffn=32, head_dim=32, layers=3, experts=8, experts_used=2
    )
    gpu_moe.write(DATA / "tiny-gpu-moe.gguf")
    mixed_experts().write(DATA / "tiny-gpu-mixed.gguf")
