"""How far quantized models are from the same models in F32, and llama.cpp's from them.

python bench/kl.py [--llama] [--tokens 4000] [--threads 2]

Compared are next-token distributions over fresh conversations of the kind that the nano models
were trained on. The reference is our F32 engine, which the tests hold against transformers. Two
divergences, in nats: from the model in F32, and from the quantized weights decoded to F32, which
is what the product with quantized activations adds. The wide model is random, with the outliers in
weights and activations that large models have. kv caches are F32 everywhere, so that only the
products differ. `pip install qwen3[llama]` brings the peer.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from quant.quantize import quantize
from qwen3cli.engine import Model, ModelFile, Tokenizer
from qwen3cli.evaluate import divergence, log_softmax

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "docs/nano-recipe"), str(ROOT / "tests")]
from checkpoint_tiny import DENSE, tensors_of, write_checkpoint  # noqa: E402
from data import sample  # type: ignore[import-not-found,attr-defined,unused-ignore]  # noqa: E402

SEED = 20261123
RECIPES = ("Q8_0", "Q4_K_M")
OURS, PEER = "qwen3", "llama.cpp"
Texts = list[list[int]]
Logs = NDArray[np.float32]  # [positions][n_vocab], logarithms of probabilities
Engine = Callable[[Path, Texts], Logs]


# ---- models and texts ------------------------------------------------------


def wide_checkpoint(directory: Path) -> Path:
    """Two layers of 1024 with heavy-tailed weights and a few channels 8 times as large."""
    config = DENSE | {
        "head_dim": 128,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_position_embeddings": 1024,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    }
    gains = {"o_proj": 0.5, "down_proj": 0.5, "lm_head": 0.5}  # a random stack is chaotic
    rng = np.random.default_rng(SEED)
    tensors = {}
    for name, values in tensors_of(config, SEED).items():
        if values.ndim == 1:
            values = 1 + 0.2 * values
            values[rng.choice(len(values), len(values) // 128, replace=False)] *= 8
        else:
            gain = next((g for part, g in gains.items() if part in name), 1.0)
            chi = rng.chisquare(4, values.shape)  # Student's t of 4 degrees of freedom
            values = values * gain / np.sqrt(chi / 4 * values.shape[1])
        tensors[name] = np.ascontiguousarray(values, np.float32)
    return write_checkpoint(directory, config, tensors)


def decode_weights(path: Path, out: Path) -> None:
    """The same file with every tensor in F32."""
    reader = gguf.GGUFReader(path)
    kv = {name: f for name, f in reader.fields.items() if not name.startswith("GGUF.")}
    writer = gguf.GGUFWriter(out, kv.pop("general.architecture").contents())
    for name, f in kv.items():
        item = f.types[1] if len(f.types) > 1 else None
        writer.add_key_value(name, f.contents(), f.types[0], item)
    for t in reader.tensors:
        values = gguf.quants.dequantize(t.data, t.tensor_type)
        writer.add_tensor(t.name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def conversations(tokenizer: Tokenizer, n_tokens: int) -> Texts:
    rng = random.Random(SEED)
    texts: Texts = []
    while sum(map(len, texts)) < n_tokens:
        texts.append(sample(rng, lambda text: tokenizer.encode(text, added=True))[0])
    return texts


# ---- engines ---------------------------------------------------------------


def ours(threads: int) -> Engine:
    def run(path: Path, texts: Texts) -> Logs:
        session = Model(path, threads=threads).session(n_ctx=max(map(len, texts)), kv="f32")
        rows = []
        for ids in texts:
            session.sync([])
            rows.append(log_softmax(session.extend_logits(ids)).astype(np.float32))
        return np.concatenate(rows)

    return run


def llama(threads: int) -> Engine:
    import llama_cpp  # type: ignore[import-not-found,unused-ignore]

    defaults = llama_cpp.llama_cpp.llama_model_default_params

    def without_repacking() -> Any:  # which crashes where the CPU has AMX and the system hides it
        params = defaults()
        params.use_extra_bufts = False
        return params

    llama_cpp.llama_cpp.llama_model_default_params = without_repacking

    def run(path: Path, texts: Texts) -> Logs:
        f32 = int(gguf.GGMLQuantizationType.F32)
        model: Any = llama_cpp.Llama(
            str(path), n_ctx=max(map(len, texts)), n_threads=threads, n_threads_batch=threads,
            logits_all=True, type_k=f32, type_v=f32, verbose=False,
        )  # fmt: skip
        rows = []
        for ids in texts:
            model.reset()
            model.eval(ids)
            rows.append(log_softmax(model.scores[: len(ids)]).astype(np.float32))
        return np.concatenate(rows)

    return run


# ---- figures ---------------------------------------------------------------


def paired(a: NDArray[np.float64], b: NDArray[np.float64]) -> str:
    """The mean of a - b and its standard error."""
    return f"{(a - b).mean():+.1e} ± {(a - b).std() / len(a) ** 0.5:.1e}"


def compare(source: Path, directory: Path, n_tokens: int, engines: dict[str, Engine]) -> None:
    """Prints the table of one checkpoint."""
    plain, decoded = directory / "f32.gguf", directory / "decoded.gguf"
    quantize(source, plain, "F32")
    texts = conversations(Tokenizer(plain), n_tokens)
    reference = engines[OURS](plain, texts)
    entropy = -(np.exp(reference) * reference).sum(axis=-1).mean()
    print(f"\n{source.name}: {len(reference)} positions, entropy {entropy:.2f} nats")
    if PEER in engines:
        kl = divergence(reference, engines[PEER](plain, texts))
        print(f"{PEER} on the F32 file: KL {kl.mean():.1e}")
    print("\n| file | computed by | KL | 99 % | same top-1 | KL of products |\n" + "|---" * 6 + "|")
    for recipe in RECIPES:
        path = directory / "quantized.gguf"
        quantize(source, path, recipe)
        decode_weights(path, decoded)
        weights = engines[OURS](decoded, texts)
        logs = {"F32": weights} | {label: run(path, texts) for label, run in engines.items()}
        whole = {label: divergence(reference, its) for label, its in logs.items()}
        products = {label: divergence(weights, its) for label, its in logs.items()}
        for label, its in logs.items():
            mean, tail = whole[label].mean(), np.quantile(whole[label], 0.99)
            top = 100 * (reference.argmax(axis=-1) == its.argmax(axis=-1)).mean()
            print(
                f"| {recipe} | {label} | {mean:.2e} | {tail:.1e} | {top:.2f} % "
                f"| {products[label].mean():.2e} |",
                flush=True,
            )
        if PEER in engines:
            both, alone = (paired(kl[OURS], kl[PEER]) for kl in (whole, products))
            print(f"| | difference | {both} | | | {alone} |")
        kinds = Counter(kind for _, shape, kind, _ in ModelFile(path).tensors() if len(shape) > 1)
        types = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        print(f"| | *{types}* | | | | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama", action="store_true", help="the same files through llama.cpp")
    parser.add_argument("--tokens", type=int, default=4000, help="a quarter for the wide model")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    engines = {OURS: ours(args.threads)}
    if args.llama:
        engines[PEER] = llama(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        for name in ("nano-dense", "nano-moe"):
            compare(ROOT / "tests/data" / name, directory, args.tokens, engines)
        compare(wide_checkpoint(directory / "wide"), directory, args.tokens // 4, engines)


if __name__ == "__main__":
    main()
