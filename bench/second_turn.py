"""Time to the first token of a second turn whose history drops the thoughts of the first.

python bench/second_turn.py [MODEL.gguf] [--prompt 500] [--thought 2000] [--answer 300]
                            [--question 50] [--kv f16] [--threads 2] [--rounds 5] [--folder DIR]

From the question to the first token drawn, medians of rounds in turns:

  kept prefix   the session still holds prompt, thoughts and answer; it computes the answer,
                which now stands in another place, and the question
  prepared      the answer was computed behind the prompt while the user typed: the question
  reopened      a new session loads from the disk what `prepared` saved: the question
  all of it     a new session computes prompt, answer and question

Opening the model is not counted. Without MODEL: random weights in the shape of 0.6B, Q4_K_M.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

from qwen3cli.bench.synthetic import synthetic
from qwen3cli.engine import Model, Session
from qwen3cli.terminal import Terminal


def evict(path: Path) -> None:
    """What is read next of it comes from the disk."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def timed(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, nargs="?")
    for name, default in {"prompt": 500, "thought": 2000, "answer": 300, "question": 50}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"tokens; {default}")
    parser.add_argument("--kv", default="f16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="for the saved session")
    args = parser.parse_args()
    model = Model(args.model or synthetic("0.6b:q4_k_m", Terminal()), threads=args.threads)
    first_turn = args.prompt + args.thought + args.answer
    n_vocab = model.config["n_vocab"]
    prompt = [i % n_vocab for i in range(args.prompt)]  # the tokens that fill() puts there
    answer = [(7 * i + 1) % n_vocab for i in range(args.answer)]
    question = [(11 * i + 2) % n_vocab for i in range(args.question)]
    seconds: dict[str, list[float]] = {}
    computed: dict[str, int] = {}

    def new() -> Session:
        return model.session(n_ctx=first_turn + args.question + 1, kv=args.kv)

    def ask(session: Session, name: str, load: Path | None = None) -> None:
        def first_token() -> None:
            if load:
                session.load(load)
            ids = [*prompt, *answer, *question]
            computed[name] = len(ids) - session.sync(ids)
            session.sample()

        seconds.setdefault(name, []).append(timed(first_token))

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        saved = Path(folder) / "kv"
        for _ in range(args.rounds):
            session = new()
            session.fill(first_turn)
            ask(session, "kept prefix")
            session.fill(first_turn)
            background = timed(lambda s=session: s.sync([*prompt, *answer]))
            saving = timed(lambda s=session: s.save(saved))
            ask(session, "prepared")
            evict(saved)
            ask(new(), "reopened", saved)
            ask(new(), "all of it")
        size = saved.stat().st_size

    slowest = seconds["all of it"]
    print(f"{model.path.name}, kv {args.kv}, {args.threads} threads, {args.rounds} rounds")
    print(f"prompt {args.prompt}, thoughts {args.thought}, answer {args.answer}, question "
          f"{args.question} tokens")  # fmt: skip
    print(
        "| second turn | tokens computed | time to first token | of all of it |\n|---|---|---|---|"
    )
    for name, values in seconds.items():
        ratio = median(a / b for a, b in zip(values, slowest, strict=True))
        print(f"| {name} | {computed[name]} | {median(values):.3f} s | {ratio:.0%} |")
    print(f"in the background: {background:.3f} s; saved: {size / 1e6:.0f} MB in {saving:.3f} s")


if __name__ == "__main__":
    main()
