"""Accuracy of a nano model on fresh sums by thinking budget (the tables in bench/README.md).

python bench/budget_curve.py MODEL.gguf [--landing hard|soft|both] [--sums 500]

Greedy; sums and differences of 2 to 5 terms, evenly; B = 0 is the non-thinking mode. It goes
through the same Conversation as `qwen3 run`, so what is measured is what a user gets. Shares
have their 95 % interval (Wilson). The landings answer the same sums; what they differ by has the
interval of a paired difference, from the sums that only one of them got right.
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path

from qwen3cli.engine import Model, Session
from qwen3cli.session import Conversation, Reply, Settings
from qwen3cli.thinking.control import Landing

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docs/nano-recipe"))
from data import chain  # type: ignore[import-not-found]

BUDGETS = (0, 16, 32, 64, 96, 128, 192)
Z = 1.96  # of 95 %


@dataclass
class Curve:
    """What a budget with one landing gave."""

    right: list[bool] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    early: int = 0  # landed before the budget was spent

    def cells(self) -> list[str]:
        low, high = wilson(sum(self.right), len(self.right))
        share = 100 * sum(self.right) / len(self.right)
        mean = sum(self.used) / len(self.used)
        return [f"{share:.1f} % ({100 * low:.1f} to {100 * high:.1f})", f"{mean:.1f}"]


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    share, z2 = right / n, Z * Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = Z * sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return middle - reach, middle + reach


def difference(hard: list[bool], soft: list[bool]) -> tuple[float, float]:
    """Soft less hard on the same questions, and how far its 95 % interval reaches."""
    n = len(hard)
    steps = [s - h for h, s in zip(hard, soft, strict=True)]
    mean = sum(steps) / n
    return mean, Z * sqrt((sum(step * step for step in steps) / n - mean * mean) / n)


def measure(session: Session, sums: list[tuple[str, str]], budget: int, landing: Landing) -> Curve:
    curve = Curve()
    for question, answer in sums:
        settings = Settings(budget=budget, landing=landing, max_tokens=16, temperature=0)
        *_, reply = Conversation(session).reply(question, settings)
        assert isinstance(reply, Reply) and reply.thinking_tokens <= budget
        curve.right.append(reply.answer.strip() == answer)
        curve.used.append(reply.thinking_tokens)
        curve.early += reply.thinking_stop == "budget" and reply.thinking_tokens < budget
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--landing", choices=("hard", "soft", "both"), default="both")
    parser.add_argument("--sums", type=int, default=500)
    parser.add_argument("--seed", type=int, default=20261122)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    chains = [chain(rng, 2 + i % 4) for i in range(args.sums)]
    sums = [(question, answer) for question, _, answer in chains]
    session = Model(args.model, threads=args.threads).session(n_ctx=1024)
    landings: list[Landing] = ["hard", "soft"] if args.landing == "both" else [args.landing]
    columns = ["B"]
    for landing in landings:
        columns += [landing, "tokens used"]
    if args.landing == "both":
        columns += ["landed early", "soft - hard"]
    print(f"{Path(args.model).stem}: {args.sums} sums of 2 to 5 terms\n")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for budget in BUDGETS:
        curves = [measure(session, sums, budget, landing) for landing in landings]
        cells = [str(budget), *(cell for curve in curves for cell in curve.cells())]
        if args.landing == "both":
            mean, reach = difference(curves[0].right, curves[1].right)
            cells += [f"{100 * curves[1].early / args.sums:.0f} %"]
            cells += [f"{100 * mean:+.1f} ± {100 * reach:.1f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
