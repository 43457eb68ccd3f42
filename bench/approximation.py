"""What --prefer-cached and --drop-misses cost and save: KL from exact decoding, and bytes read.

python bench/approximation.py [--tokens 1500] [--threads 2]

nano-moe decodes fresh conversations of the kind that it was trained on, token by token, with memory
for a part of its experts; each is compared with the distributions of the same model as a whole.
Bytes are those that a token read, relative to the exact run with the same memory.
"""

from __future__ import annotations

import argparse

import numpy as np
from kl import ROOT, Texts, conversations, divergence
from numpy.typing import NDArray

from qwen3cli.engine import Model
from qwen3cli.evaluate import log_softmax
from qwen3cli.plan.sizes import sizes_of

MODEL = ROOT / "qwen3cli/models/nano-moe-q8_0.gguf"
SHARES = (0.2, 0.35, 0.5)
SETTINGS = ((0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (2.0, 0.0), (0.0, 0.02), (0.0, 0.05), (1.0, 0.05))


def decode(model: Model, texts: Texts) -> NDArray[np.float64]:
    """Logarithms of probabilities behind each token, float64[positions, n_vocab]."""
    session = model.session(n_ctx=max(map(len, texts)))
    rows = []
    for ids in texts:
        session.sync([])
        for token in ids:
            session.extend([token])
            rows.append(log_softmax(session.logits()))
    return np.stack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    whole, sizes = Model(MODEL, threads=args.threads), sizes_of(MODEL)
    assert sizes is not None
    texts = conversations(whole.tokenizer, args.tokens)
    exact = decode(whole, texts)
    print("| held | prefer | drop | KL | ± | same top-1 | hits | bytes |\n" + "|---" * 8 + "|")
    for share in SHARES:
        read = 0
        for prefer, drop in SETTINGS:
            model = Model(MODEL, threads=args.threads, expert_bytes=int(share * sizes.experts))
            model.guess(False)
            model.approximate(prefer=prefer, drop=drop)
            logs = decode(model, texts)
            kl = divergence(exact, logs)
            same = (exact.argmax(-1) == logs.argmax(-1)).mean()
            stats = model.expert_stats
            read = read or stats.bytes_read
            print(
                f"| {share:.0%} | {prefer:g} | {drop:g} | {kl.mean():.1e} "
                f"| {kl.std() / len(kl) ** 0.5:.0e} | {same:.2%} "
                f"| {stats.hit_rate:.1%} | {stats.bytes_read / read:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
