"""Accuracy of a nano model on fresh sums by thinking budget (the table in bench/README.md).

python bench/budget_curve.py MODEL.gguf [--sums 300]

Greedy; sums and differences of 2 to 5 terms, evenly; B = 0 is the non-thinking mode. It goes
through the same Conversation as `qwen3 run`, so what is measured is what a user gets.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from qwen3cli.engine import Model
from qwen3cli.session import Conversation, Reply, Settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docs/nano-recipe"))
from data import chain  # type: ignore[import-not-found]

BUDGETS = (0, 16, 32, 64, 96, 128, 192)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--sums", type=int, default=300)
    parser.add_argument("--seed", type=int, default=20261122)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    sums = [chain(rng, 2 + i % 4) for i in range(args.sums)]
    session = Model(args.model).session(n_ctx=1024)
    print(f"{args.model}: {args.sums} sums of 2 to 5 terms\n")
    print("| B | right | thinking tokens |\n|---|---|---|")
    for budget in BUDGETS:
        right = used = 0
        for question, _, answer in sums:
            settings = Settings(budget=budget, max_tokens=16, temperature=0)
            *_, reply = Conversation(session).reply(question, settings)
            assert isinstance(reply, Reply) and reply.thinking_tokens <= budget
            right += reply.answer.strip() == answer
            used += reply.thinking_tokens
        print(
            f"| {budget} | {100 * right / args.sums:.1f} % | {used / args.sums:.0f} |", flush=True
        )


if __name__ == "__main__":
    main()
