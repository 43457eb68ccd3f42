"""Damaged and contradictory model files: each a clear error, none a crash."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf_tiny import WEIGHT_TYPES, Image, Tensor, tiny_model

from quant.quantize import quantize
from qwen3cli.engine import Model, ModelFile
from qwen3cli.errors import FormatError, ModelNotFound, Qwen3Error

DATA = Path(__file__).parent / "data"
Edit = Callable[[Image], object]


def refused(image: Image, path: Path, *names: str) -> None:
    """The model does not open, and the message has every one of names."""
    with pytest.raises(FormatError) as caught:
        Model(image.write(path / "hostile.gguf"))
    for name in names:
        assert name in str(caught.value)


def moe_model() -> Image:
    return tiny_model(experts=4, experts_used=2, tied=False)


@pytest.mark.parametrize("image", [tiny_model(), tiny_model(tied=False), moe_model()])
def test_the_generator_makes_models_that_open(image: Image, tmp_path: Path) -> None:
    for version in (2, 3):
        image.version = version
        model = Model(image.write(tmp_path / "good.gguf"))
        session = model.session()
        session.sync([1, 2, 3])
        assert np.isfinite(session.logits()).all()


# ---- the file itself -------------------------------------------------------


@pytest.mark.parametrize("opener", [Model, ModelFile])
def test_a_missing_file(opener: type, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"nowhere\.gguf"):
        opener(tmp_path / "nowhere.gguf")
    with pytest.raises(ModelNotFound):
        opener(tmp_path)


@pytest.mark.parametrize("opener", [Model, ModelFile])
@pytest.mark.parametrize("content", [b"", b"G", b"GGUF", b"PK\3\4" * 100, b"\0" * 4096])
def test_a_file_of_another_kind(opener: type, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    with pytest.raises(FormatError):
        opener(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tiny_model().write(tmp_path / "secret.gguf")
    path.chmod(0)
    with pytest.raises(Qwen3Error, match=r"secret\.gguf"):
        Model(path)


def test_truncated_at_every_4_kb(tmp_path: Path) -> None:
    path = tmp_path / "nano.gguf"
    quantize(DATA / "nano-dense", path, "Q8_0")
    size = path.stat().st_size
    Model(path)
    for cut in range((size - 1) // 4096 * 4096, -1, -4096):
        os.truncate(path, cut)
        for opener in (ModelFile, Model):
            with pytest.raises(FormatError):
                opener(path)


def test_truncated_at_every_byte_of_the_header(tmp_path: Path) -> None:
    image = tiny_model()
    path = image.write(tmp_path / "tiny.gguf")
    for cut in range(len(image.header()) - 1, -1, -1):
        os.truncate(path, cut)
        with pytest.raises(FormatError):
            Model(path)


@pytest.mark.parametrize("version", [0, 1, 4, 2**32 - 1])
def test_other_versions(version: int, tmp_path: Path) -> None:
    image = tiny_model()
    image.version = version
    refused(image, tmp_path, str(version))


def test_big_endian(tmp_path: Path) -> None:
    image = tiny_model()
    image.version = 3 << 24  # version 3 as a big-endian file spells it
    refused(image, tmp_path, "little-endian")
    image = tiny_model()
    image.magic = b"FUGG"
    refused(image, tmp_path, "GGUF")


# ---- metadata --------------------------------------------------------------

REQUIRED = [
    "block_count",
    "context_length",
    "embedding_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
]
OPTIONAL = [
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "rope.freq_base",
]
DENSE = ["feed_forward_length"]
MOE = ["expert_count", "expert_used_count", "expert_feed_forward_length"]


def full_keys(names: list[str], *without: str) -> list[str]:
    """The keys of both architectures."""
    dense = [f"qwen3.{name}" for name in names + DENSE if name not in without]
    return dense + [f"qwen3moe.{name}" for name in names + MOE if name not in without]


def model_with(key: str) -> Image:
    return moe_model() if key.startswith("qwen3moe") else tiny_model()


@pytest.mark.parametrize("key", full_keys(REQUIRED))
def test_a_missing_hyperparameter(key: str, tmp_path: Path) -> None:
    image = model_with(key)
    image.drop(key)
    refused(image, tmp_path, key, "missing")


@pytest.mark.parametrize("key", full_keys(REQUIRED + OPTIONAL))
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (0, GGUFValueType.UINT32),
        (-1, GGUFValueType.INT32),
        (-(2**63), GGUFValueType.INT64),
        ("4", GGUFValueType.STRING),
        (True, GGUFValueType.BOOL),
        ([4, 4], GGUFValueType.UINT32),
        (float("nan"), GGUFValueType.FLOAT32),
    ],
    ids=str,
)
def test_a_hyperparameter_that_makes_no_sense(
    key: str, value: object, kind: GGUFValueType, tmp_path: Path
) -> None:
    image = model_with(key)
    image.put(key, value, kind)
    refused(image, tmp_path, key)


@pytest.mark.parametrize("key", full_keys(REQUIRED + OPTIONAL, "rope.freq_base"))
@pytest.mark.parametrize("value", [2**32 - 1, 2**63, 2**64 - 1])
def test_an_absurd_hyperparameter(key: str, value: int, tmp_path: Path) -> None:
    image = model_with(key)
    image.put(key, value, GGUFValueType.UINT64)
    refused(image, tmp_path, key)


@pytest.mark.parametrize(
    "key",
    full_keys(
        ["block_count", "attention.head_count", "attention.head_count_kv", "embedding_length"],
        "expert_used_count",
    ),
)
def test_a_hyperparameter_that_the_tensors_contradict(key: str, tmp_path: Path) -> None:
    image = model_with(key)
    image.put(key, 2 * image.get(key))
    refused(image, tmp_path, "token_embd.weight" if "embedding" in key else "tensor 'blk.")


def test_head_sizes_that_the_tensors_contradict(tmp_path: Path) -> None:
    image = tiny_model(head_dim=16)
    image.put("qwen3.attention.key_length", 32)
    refused(image, tmp_path, "key heads of 32", "value heads of 16")
    image.put("qwen3.attention.value_length", 32)
    refused(image, tmp_path, "blk.0.attn_q.weight")
    image.put("qwen3.attention.key_length", 15)
    image.put("qwen3.attention.value_length", 15)
    refused(image, tmp_path, "key heads of 15")


def test_heads_that_cannot_share(tmp_path: Path) -> None:
    image = tiny_model(heads=4)
    image.put("qwen3.attention.head_count_kv", 3)
    refused(image, tmp_path, "3 key/value heads")


def test_more_experts_used_than_there_are(tmp_path: Path) -> None:
    image = moe_model()
    image.put("qwen3moe.expert_used_count", 5)
    refused(image, tmp_path, "qwen3moe.expert_used_count")


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3next", "", "qwen3\0"])
def test_another_architecture(arch: str, tmp_path: Path) -> None:
    image = tiny_model()
    image.put("general.architecture", arch)
    refused(image, tmp_path, "architecture", arch.rstrip("\0"))


def test_no_architecture(tmp_path: Path) -> None:
    image = tiny_model()
    image.drop("general.architecture")
    refused(image, tmp_path, "general.architecture")
    image.put("general.architecture", 3)
    refused(image, tmp_path, "general.architecture")


def test_another_rope_scaling(tmp_path: Path) -> None:
    image = tiny_model()
    image.put("qwen3.rope.scaling.type", "longrope")
    refused(image, tmp_path, "qwen3.rope.scaling.type", "longrope")
    image.put("qwen3.rope.scaling.type", "yarn")
    refused(image, tmp_path, "qwen3.rope.scaling.factor")
    image.put("qwen3.rope.scaling.factor", 4.0)
    image.put("qwen3.rope.scaling.original_context_length", 0)
    refused(image, tmp_path, "qwen3.rope.scaling.original_context_length")


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    image = tiny_model()
    image.kv.append(("qwen3.block_count", image.kv[1][1]))
    refused(image, tmp_path, "qwen3.block_count", "twice")


ARRAY, U8, STRING = GGUFValueType.ARRAY, GGUFValueType.UINT8, GGUFValueType.STRING
HUGE_VALUES = {
    "string of 2^63 bytes": struct.pack("<IQ", STRING, 2**63),
    "string of 2^64-1 bytes": struct.pack("<IQ", STRING, 2**64 - 1),
    "array of 2^61 u64": struct.pack("<IIQ", ARRAY, GGUFValueType.UINT64, 2**61),
    "array of 2^64-1 u8": struct.pack("<IIQ", ARRAY, U8, 2**64 - 1),
    "array of 2^61 strings": struct.pack("<IIQ", ARRAY, STRING, 2**61),
    "array of arrays": struct.pack("<IIQIIQ", ARRAY, ARRAY, 1, ARRAY, U8, 0),
    "array of unknown type": struct.pack("<IIQ", ARRAY, 13, 0),
    "unknown type": struct.pack("<I", 13),
    "type 2^32-1": struct.pack("<I", 2**32 - 1),
}


@pytest.mark.parametrize("value", HUGE_VALUES.values(), ids=HUGE_VALUES.keys())
@pytest.mark.parametrize("opener", [Model, ModelFile])
def test_a_value_that_lies_about_its_size(opener: type, value: bytes, tmp_path: Path) -> None:
    image = tiny_model()
    image.put("general.strange", value)
    with pytest.raises(FormatError, match=r"general\.strange"):
        opener(image.write(tmp_path / "hostile.gguf"))


@pytest.mark.parametrize("counts", [(2**63, 1), (1, 2**63), (2**64 - 1, 2**64 - 1), (10**6, 0)])
def test_counts_that_the_file_cannot_hold(counts: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + b"\0" * 64)
    with pytest.raises(FormatError, match="announces"):
        ModelFile(path)


def test_names_that_are_not_utf8_still_make_a_message(tmp_path: Path) -> None:
    image = tiny_model()
    path = tmp_path / "hostile.gguf"
    raw = image.encode().replace(b"blk.0.ffn_up.weight", b"\xff\xfe\x1b[31m.ffn_up.weig", 1)
    path.write_bytes(raw)
    with pytest.raises(FormatError, match=r"blk\.0\.ffn_up\.weight"):
        Model(path)
    assert len(ModelFile(path).tensors()) == len(image.tensors)


# ---- tensors ---------------------------------------------------------------


TENSORS = sorted({t.name for m in (tiny_model(tied=False), moe_model()) for t in m.tensors})


def model_holding(tensor: str) -> Image:
    dense = tiny_model(tied=False)
    return dense if any(t.name == tensor for t in dense.tensors) else moe_model()


@pytest.mark.parametrize("name", [name for name in TENSORS if name != "output.weight"])
def test_a_missing_tensor(name: str, tmp_path: Path) -> None:
    image = model_holding(name)
    image.tensors = [t for t in image.tensors if t.name != name]
    refused(image, tmp_path, name, "missing")


def scaled(t: Tensor, dim: int, factor: float) -> None:
    t.shape = tuple(int(n * factor) if d == dim else n for d, n in enumerate(t.shape))
    size = int(np.prod(t.shape)) * 4
    t.data = t.data.ljust(size, b"\0")[:size]


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_of_another_shape(name: str, tmp_path: Path) -> None:
    for dim in range(len(model_holding(name).tensor(name).shape)):
        if name == "token_embd.weight" and dim == 1:
            continue  # it says how many rows there are
        for factor in (0.5, 2):
            image = model_holding(name)
            scaled(image.tensor(name), dim, factor)
            refused(image, tmp_path, name)
    image = model_holding(name)
    t = image.tensor(name)
    t.shape = (*t.shape, 2)
    t.data *= 2
    refused(image, tmp_path, name)


@pytest.mark.parametrize("name", ["token_embd.weight", "blk.0.attn_norm.weight"])
@pytest.mark.parametrize(
    ("kind", "text"), [(16, "IQ2_XXS"), (9, "Q8_1"), (4, "4"), (31, "31"), (999, "999")]
)
def test_a_tensor_of_a_type_we_do_not_run(name: str, kind: int, text: str, tmp_path: Path) -> None:
    image = tiny_model()
    image.tensor(name).type = kind
    refused(image, tmp_path, name, text)


@pytest.mark.parametrize(
    "shape", [(), (0, 4), (2**31, 1), (2**63, 2), (32, 2**31 - 1), (32, 1, 1, 1, 1)], ids=str
)
def test_a_tensor_whose_shape_makes_no_sense(shape: tuple[int, ...], tmp_path: Path) -> None:
    image = tiny_model()
    image.tensor("blk.0.ffn_up.weight").shape = shape
    refused(image, tmp_path, "blk.0.ffn_up.weight")


def test_rows_of_part_of_a_block(tmp_path: Path) -> None:
    image = tiny_model()
    t = image.tensor("blk.0.ffn_down.weight")  # rows of 48
    t.type = 8  # Q8_0, blocks of 32
    refused(image, tmp_path, t.name, "Q8_0")


@pytest.mark.parametrize("offset", [2**63, 2**64 - 32, 2**40, 8])
def test_a_tensor_that_lies_elsewhere(offset: int, tmp_path: Path) -> None:
    image = tiny_model()
    image.tensor("blk.0.ffn_up.weight").offset = offset
    refused(image, tmp_path, "blk.0.ffn_up.weight")


def test_the_last_tensor_runs_past_the_end(tmp_path: Path) -> None:
    image = tiny_model()
    last = image.tensors[-1]
    last.data = last.data[:-32]
    refused(image, tmp_path, last.name, "truncated")


def test_tensors_that_overlap(tmp_path: Path) -> None:
    image = tiny_model()
    image.tensor("blk.0.ffn_up.weight").offset = 0
    refused(image, tmp_path, "blk.0.ffn_up.weight", "token_embd.weight", "overlap")


def test_a_tensor_that_stands_twice(tmp_path: Path) -> None:
    image = tiny_model()
    image.tensors.append(image.tensors[-1])
    refused(image, tmp_path, image.tensors[-1].name, "twice")


@pytest.mark.parametrize("value", [0, 1, 7, 2**31, 2**32 - 1, "32"])
def test_an_alignment_that_makes_no_sense(value: object, tmp_path: Path) -> None:
    image = tiny_model()
    image.put("general.alignment", value)
    refused(image, tmp_path, "general.alignment")


def test_another_alignment_is_followed(tmp_path: Path) -> None:
    image = tiny_model()
    image.alignment = 4096
    image.put("general.alignment", 4096)
    session = Model(image.write(tmp_path / "aligned.gguf")).session()
    plain = Model(tiny_model().write(tmp_path / "plain.gguf")).session()
    for each in (session, plain):
        each.sync([1, 2, 3])
    np.testing.assert_array_equal(session.logits(), plain.logits())


# ---- weights ---------------------------------------------------------------

# Where a block keeps its f16 scales, if not in front.
SCALES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2)}
SCALES |= {"Q5_K": (0, 2), "Q6_K": (208,)}
NAN = {"F32": b"\0\0\xc0\x7f", "BF16": b"\xc0\x7f"}


@pytest.mark.parametrize("kind", WEIGHT_TYPES)
def test_a_weight_that_is_not_a_number(kind: str, tmp_path: Path) -> None:
    image = tiny_model(kind, hidden=512, head_dim=64, ffn=256)
    t = image.tensor("blk.0.ffn_up.weight")
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    good, row_blocks = t.data, 512 // block
    for scale in SCALES.get(kind, (0,)):
        data = bytearray(good)
        nan = NAN.get(kind, b"\0\x7e")
        at = (3 * row_blocks + 1) * size + scale
        data[at : at + len(nan)] = nan
        t.data = bytes(data)
        refused(image, tmp_path, t.name, f"row 3, block 1 ({kind})", "download or convert it again")
    t.data = good
    Model(image.write(tmp_path / "good.gguf"))


# ---- vocabularies ----------------------------------------------------------

TOKENIZER_EDITS: dict[str, tuple[Edit, str]] = {
    "no tokens": (lambda i: i.drop("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens"),
    "no merges": (lambda i: i.drop("tokenizer.ggml.merges"), "tokenizer.ggml.merges"),
    "tokens are a string": (lambda i: i.put("tokenizer.ggml.tokens", "abc", STRING), "tokens"),
    "another tokenizer": (lambda i: i.put("tokenizer.ggml.model", "llama"), "llama"),
    "a merge of one part": (
        lambda i: i.put("tokenizer.ggml.merges", ["ab"]),
        "merge 0",
    ),
    "too few token types": (
        lambda i: i.put("tokenizer.ggml.token_type", [1, 1]),
        "tokenizer.ggml.token_type",
    ),
}


@pytest.mark.parametrize(("edit", "name"), TOKENIZER_EDITS.values(), ids=TOKENIZER_EDITS.keys())
def test_a_vocabulary_that_cannot_work(edit: Edit, name: str, tmp_path: Path) -> None:
    image = tiny_model()
    edit(image)
    refused(image, tmp_path, name)


def test_a_bias_is_refused_not_ignored(tmp_path: Path) -> None:
    image = tiny_model()
    bias = np.zeros(64, np.float32).tobytes()
    image.tensors.append(Tensor("blk.0.attn_q.bias", (64,), GGMLQuantizationType.F32, bias))
    with pytest.raises(FormatError, match=r"blk\.0\.attn_q\.bias.*no biases"):
        Model(image.write(tmp_path / "biased.gguf"))
