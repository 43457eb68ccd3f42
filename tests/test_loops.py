"""Loops in thoughts are noticed within a few periods, and what only looks like one is not."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from qwen3cli.engine import Model, Tokenizer
from qwen3cli.session import Conversation, Reply, Settings
from qwen3cli.thinking.loops import LONGEST, LoopDetector

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "qwen3cli/models/nano-dense-q8_0.gguf"
MOE = ROOT / "qwen3cli/models/nano-moe-q8_0.gguf"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Its tokens are short, so texts are long; a digit is one, as for every Qwen3 model."""
    return Tokenizer(NANO)


@pytest.fixture(scope="module")
def prose(tokenizer: Tokenizer) -> list[int]:
    """As long as an essay. Frequent words come often, as in one."""
    words = [tokenizer.encode(" " + word) for word in (ROOT / "LICENSE").read_text().split()]
    return list(itertools.chain.from_iterable(random.Random(1).choices(words, k=12_000)))


def noticed(tokens: Iterable[int]) -> int | None:
    """After how many tokens; None: no loop."""
    detector = LoopDetector()
    return next((n for n, token in enumerate(tokens, 1) if detector.push(token)), None)


# ---- loops ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("period", "periods"),
    [(1, 520), (2, 260), (7, 76), (15, 36), (16, 15), (24, 11), (50, 6), (100, 4.2), (200, 3.1),
     (500, 2.6), (LONGEST, 2.4)],
)  # fmt: skip
def test_exact_loops(prose: list[int], period: int, periods: float) -> None:
    for start in range(1000, 10_000, 1000):
        before, circle = prose[start - 500 : start], prose[start : start + period]
        at = noticed(before + circle * 999)
        assert at and 0 < at - len(before) <= periods * period, (start, at)


def test_a_loop_longer_than_any_thought_goes_on(prose: list[int]) -> None:
    assert noticed(prose[: 2 * LONGEST] * 4) is None


CHANGES = ["replaced", "inserted", "removed"]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("period", "periods"), [(64, 16), (100, 11), (200, 6), (400, 4), (1000, 3.2)]
)
def test_near_loops(prose: list[int], period: int, periods: float, change: str) -> None:
    """Another token is changed in each round."""
    r = random.Random(period)
    for start in range(1000, 10_000, 1000):
        paragraph = prose[start : start + period]

        def round_(paragraph: list[int] = paragraph) -> list[int]:
            at, new = r.randrange(period), r.choice(prose)
            return {
                "replaced": [*paragraph[:at], new, *paragraph[at + 1 :]],
                "inserted": [*paragraph[:at], new, *paragraph[at:]],
                "removed": [*paragraph[:at], *paragraph[at + 1 :]],
            }[change]

        at = noticed(itertools.chain.from_iterable(round_() for _ in range(30)))
        assert at and at <= periods * period, (start, at)


def test_a_thought_that_comes_back_in_other_words(tokenizer: Tokenizer) -> None:
    """Three words of some fifty differ at random: the variants have to be known first."""
    r = random.Random(2)
    rounds = []
    for _ in range(40):
        starts, sum_, sure = (
            r.choice(["Wait", "Hmm"]),
            r.choice(["60", "50"]),
            r.choice(["is", "was"]),
        )
        rounds.append(
            f"{starts}, let me check again. First 17 + 48 is 65, and then 65 - 5 is {sum_}. So the "
            f"answer {sure} 60, but I am not sure whether that is right.\n\n"
        )
    pieces = [tokenizer.encode(text) for text in rounds]
    at = noticed(itertools.chain.from_iterable(pieces))
    assert at and at <= sum(map(len, pieces[:24]))


# ---- no loops -------------------------------------------------------------


def rows(rows: int, columns: int, cell: str, seed: int = 1) -> str:
    """A table; cell: a format of a random number below 100."""
    r = random.Random(seed)
    lines = ([format(r.uniform(0, 100), cell) for _ in range(columns)] for _ in range(rows))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def long_sum(a: int, b: int) -> str:
    digits = zip(str(a)[::-1], str(b)[::-1], strict=True)
    parts = ", ".join(f"{x}+{y}={int(x) + int(y)}" for x, y in digits)
    return f"{a} + {b}: {parts}, {a + b}"


R = random.Random(4)
NAMES = ["Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gus"]
CHORUS = "Row, row, row your boat, gently down the stream,\nlife is but a dream.\n"
TEXTS = {
    "counting": "\n".join(map(str, range(1, 5001))),
    "counting on a line": ", ".join(map(str, range(1, 5001))),
    "counting in sentences": "".join(
        f"Is the number {n} divisible by 7? It is not, so I go on with the next one.\n"
        for n in range(1, 400) if n % 7
    ),
    "multiplication table": "\n".join(
        f"{a} x {b} = {a * b}" for a in range(1, 31) for b in range(1, 31)
    ),
    "records": "\n".join(
        json.dumps({"id": i, "name": R.choice(NAMES), "age": R.randint(18, 80), "active": True})
        for i in range(200)
    ),
    "records that only count": json.dumps(
        [{"id": i, "type": "point", "visible": True, "color": "red"} for i in range(200)], indent=2
    ),
    "table of numbers": rows(300, 6, ".2f"),
    "table of digits": rows(300, 8, ".0e"),
    "zeros and ones": "\n".join(" ".join(R.choices("01", k=12)) for _ in range(300)),
    "truth table": "\n".join(" | ".join(f"{n:07b}{n.bit_count() % 2}") for n in range(128))
    if hasattr(int, "bit_count") else "",
    "0.0.0": " ".join(f"{R.randint(0, 3) / 10}" for _ in range(3000)),
    "rules": "".join(f"{'-' * 78}\n{name}\n{'=' * 78}\n" for name in NAMES),
    "long sums": "\n".join(
        long_sum(R.randint(10_000, 99_999), R.randint(10_000, 99_999)) for _ in range(200)
    ),
    "orders": "\n".join(" -> ".join(order) for order in itertools.permutations(NAMES[:5])),
    "bottles": "".join(
        f"{n} bottles of beer on the wall, {n} bottles of beer.\nTake one down and pass it "
        f"around, {n - 1} bottles of beer on the wall.\n\n" for n in range(99, 0, -1)
    ),
    "refrains": "".join(f"{verse * 2}{CHORUS * 2}" for verse in
                        ("Merrily, merrily,\n", "Down the river,\n", "If you see a bear,\n")),
    "ten to the 200": f"10^200 = 1{'0' * 200}",
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_alike_is_no_loop(tokenizer: Tokenizer, name: str) -> None:
    assert noticed(tokenizer.encode(TEXTS[name])) is None


def test_no_loop_in_text_and_code(tokenizer: Tokenizer) -> None:
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("qwen3cli/[a-p]*.py")]:
        assert noticed(tokenizer.encode(path.read_text())) is None, path
    packed = gzip.decompress((ROOT / "tests/data/tokenizer_vectors.json.gz").read_bytes())
    for name, texts in json.loads(packed)["strings"].items():
        if name.startswith("language "):
            assert noticed(tokenizer.encode("\n".join(text for text, _ in texts))) is None, name


@pytest.mark.parametrize("model", [NANO, MOE], ids=["nano", "nano-moe"])
def test_no_loop_in_what_a_trained_model_thinks(model: Path) -> None:
    session, r = Model(model).session(n_ctx=1024), random.Random(9)
    for seed in range(40):
        terms = [str(r.randint(1, 99)) for _ in range(r.randint(2, 6))]
        question = r.choice(["What is {}?", "Compute {}."]).format(" + ".join(terms))
        *_, reply = Conversation(session).reply(question, Settings(seed=seed, temperature=0.6))
        assert isinstance(reply, Reply) and reply.thinking_stop == "natural"
