"""The real Qwen3 tokenizer, from a GGUF file without tensors."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import gguf

from quant.vocab import add_tokenizer
from qwen3cli.engine import Tokenizer

DATA = Path(__file__).parent / "data"
N_VOCAB = 151936


def real_tokenizer(directory: Path) -> Tokenizer:
    packed = DATA / "qwen3-tokenizer" / "tokenizer.json.gz"
    (directory / "tokenizer.json").write_bytes(gzip.decompress(packed.read_bytes()))
    shutil.copy(DATA / "qwen3-tokenizer" / "tokenizer_config.json", directory)
    path = directory / "tokenizer.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    add_tokenizer(writer, directory, N_VOCAB)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return Tokenizer(path)
