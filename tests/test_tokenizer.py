"""The tokenizer against ids of Hugging Face tokenizers (tests/vectors/make_tokenizer.py)."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import struct
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import pytest
from vocabulary import real_tokenizer

from qwen3cli.engine import TextStream, Tokenizer
from qwen3cli.errors import FormatError

DATA = Path(__file__).parent / "data"
N_ORDINARY, N_TOKENS, N_VOCAB = 151643, 151669, 151936
BLOCK, TEXT = 4096, 256  # of a sweep
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return real_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def vectors() -> dict[str, Any]:
    packed = (DATA / "tokenizer_vectors.json.gz").read_bytes()
    result: dict[str, Any] = json.loads(gzip.decompress(packed))
    return result


@pytest.fixture(scope="module")
def sentences(vectors: dict[str, Any]) -> list[tuple[str, list[int]]]:
    """Well-formed text of every language, with its ids."""
    groups = vectors["strings"].items()
    return [
        (text, ids)
        for name, rows in groups
        if name.startswith("language ") or name in ("code", "emoji and symbols")
        for text, ids, *_ in rows
    ]


# ---- ids --------------------------------------------------------------------


def test_the_vectors_span_the_world(vectors: dict[str, Any]) -> None:
    groups = vectors["strings"]
    assert sum(map(len, groups.values())) >= 3000
    assert sum(name.startswith("language ") for name in groups) >= 30


def test_ids_equal_the_reference(tokenizer: Tokenizer, vectors: dict[str, Any]) -> None:
    wrong = []
    for name, rows in vectors["strings"].items():
        for text, plain, *parsed in rows:
            data = text.encode("utf-8", "surrogateescape")  # not all of it is UTF-8
            for added, ids in ((False, plain), (True, parsed[0] if parsed else plain)):
                if tokenizer._native.encode(data, added) != ids:
                    wrong.append((name, text, added))
    assert not wrong, f"{len(wrong)} differ, such as {wrong[:3]!a}"


def test_every_character_is_read_as_the_reference_reads_it(
    tokenizer: Tokenizer, vectors: dict[str, Any]
) -> None:
    wrong = []
    for template, blocks in vectors["sweeps"].items():
        for start, expected in blocks.items():
            digest = hashlib.sha256()
            for first in range(int(start, 16), int(start, 16) + BLOCK, TEXT):
                codes = (c for c in range(first, first + TEXT) if not 0xD800 <= c <= 0xDFFF)
                ids = tokenizer.encode("".join(template.format(chr(code)) for code in codes))
                digest.update(struct.pack(f"<{len(ids)}i", *ids))
            if digest.hexdigest() != expected:
                wrong.append((template, start))
    assert not wrong, f"{wrong!a}"


def test_str_and_bytes_agree_and_threads_share_a_tokenizer(
    tokenizer: Tokenizer, sentences: list[tuple[str, list[int]]]
) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: tokenizer.encode(row[0]), sentences * 2))
    assert found == [ids for _, ids in sentences * 2]


def test_long_texts_take_linear_time(tokenizer: Tokenizer) -> None:
    rng = random.Random(1)
    n = MEGABYTE // 4
    texts = [unit * (MEGABYTE // len(unit.encode())) for unit in "a .\n7é的👍\u0301"]
    texts += ["\r\n" * n, " \n" * n, "<|" * n]
    texts.append("".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(MEGABYTE)))
    normalized = {text: text for text in texts}
    normalized |= {"e\u0301" * n: "é" * n, "\u0301\u0323" * n: "\u0323" * n + "\u0301" * n}
    for text, expected in normalized.items():
        start = time.process_time()
        ids = tokenizer.encode(text, added=True)
        # Takes under a second; a step of quadratic cost would take many minutes.
        assert time.process_time() - start < 20, ascii(text[:4])
        assert tokenizer.decode(ids) == expected


# ---- added tokens -----------------------------------------------------------


def test_added_tokens_are_read_only_when_asked_for(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.added) == N_TOKENS - N_ORDINARY == 26
    for text, token in tokenizer.added.items():
        assert tokenizer.encode(text, added=True) == [token]
        plain = tokenizer.encode(f"a{text}b")
        assert max(plain) < N_ORDINARY
        assert tokenizer.decode(plain) == f"a{text}b"


def test_kinds_and_bytes_of_tokens(tokenizer: Tokenizer) -> None:
    assert len(tokenizer) == N_VOCAB
    assert tokenizer.added["<think>"] == 151667
    assert tokenizer.added["<|im_end|>"] == 151645
    assert tokenizer.decode([151667, 151645], skip_control=True) == "<think>"
    assert tokenizer.token_bytes(151667) == b"<think>"
    assert tokenizer.token_bytes(0) == b"!"
    assert {tokenizer.token_bytes(i) for i in range(N_TOKENS, N_VOCAB)} == {b""}  # padding
    assert tokenizer.token_bytes(N_VOCAB) == tokenizer.token_bytes(-1) == b""
    assert tokenizer.decode([40, 151645, 151667], skip_control=True) == "I<think>"


# ---- back to text -----------------------------------------------------------


def test_decoding_gives_the_normalized_text(
    tokenizer: Tokenizer, sentences: list[tuple[str, list[int]]]
) -> None:
    for text, ids in sentences:
        assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_a_stream_emits_whole_characters(
    tokenizer: Tokenizer, sentences: list[tuple[str, list[int]]]
) -> None:
    for text, ids in sentences:
        stream, whole, emitted = TextStream(tokenizer), tokenizer.decode(ids), ""
        for token in ids:
            emitted += stream.push(token)
            assert whole.startswith(emitted), text
        assert stream.finish() == ""
        assert emitted == whole


def test_a_stream_of_any_tokens_equals_decoding_them(tokenizer: Tokenizer) -> None:
    """Sampled tokens need not form characters; no stream may differ from the whole."""
    rng = random.Random(2)
    partial = [i for i in range(N_VOCAB) if not _is_text(tokenizer.token_bytes(i))]
    assert len(partial) > 500
    for _ in range(300):
        ids = [rng.choice([rng.choice(partial), rng.randrange(N_VOCAB)]) for _ in range(20)]
        stream = TextStream(tokenizer)
        assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids)


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


# ---- files ------------------------------------------------------------------


def test_a_file_without_a_tokenizer_says_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "bare.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(FormatError, match=r"tokenizer\.ggml\.tokens is missing"):
        Tokenizer(path)


def test_another_family_of_tokenizers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "llama.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_tokenizer_model("llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(FormatError, match="llama"):
        Tokenizer(path)
