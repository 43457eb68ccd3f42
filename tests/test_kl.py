"""Quantized weights and products stay close to F32: the figures of bench/kl.py, with room."""

from __future__ import annotations

import sys
from pathlib import Path

from quant.quantize import quantize
from qwen3cli.engine import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
from kl import conversations, decode_weights, divergence, ours  # noqa: E402


def test_the_divergence_from_f32(tmp_path: Path) -> None:
    source, run = ROOT / "tests/data/nano-dense", ours(threads=1)
    plain, path, decoded = (tmp_path / f"{name}.gguf" for name in ("plain", "path", "decoded"))
    quantize(source, plain, "F32")
    texts = conversations(Tokenizer(plain), 300)
    reference = run(plain, texts)
    # About twice what these texts give.
    for recipe, most, most_of_products in (("Q8_0", 2.5e-4, 1.5e-4), ("Q4_K_M", 6e-3, 1.5e-4)):
        quantize(source, path, recipe)
        decode_weights(path, decoded)
        weights, quantized = run(decoded, texts), run(path, texts)
        assert 0 < divergence(weights, quantized).mean() < most_of_products, recipe
        assert divergence(reference, quantized).mean() < most, recipe
