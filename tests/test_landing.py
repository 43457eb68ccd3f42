"""Soft landings, and budgets of time."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import chain
from typing import Any

import pytest
from scripted_model import (
    ANSWER,
    CLOSE,
    GAP,
    TOKENIZER,
    TOKENS,
    Clock,
    Ran,
    control,
    run,
    varied,
)

from qwen3cli.errors import UsageError
from qwen3cli.thinking.control import (
    parse_budget,
)
from qwen3cli.thinking.landing import ends

# ---- soft landings --------------------------------------------------------


def thoughts(text: str, budget: int, **more: Any) -> tuple[str, str]:
    """What is thought of a text with a soft landing, and why it ends."""
    ran = run(control(budget=budget, landing="soft", prefilled=True, **more),
              chain(TOKENIZER.encode(text), varied(999)), ANSWER)  # fmt: skip
    return TOKENIZER.decode(ran.thoughts), ran.control.thinking_stop


@pytest.mark.parametrize(
    ("line", "used"), [(80, 100), (88, 100), (89, 90), (90, 91), (95, 96), (99, 100), (100, 100)]
)
def test_a_line_that_ends_in_the_last_tenth_ends_the_thoughts(line: int, used: int) -> None:
    """Its newline is counted."""
    text = TOKENIZER.decode(varied(line)) + "\n"
    assert thoughts(text + "c" * 99, 100) == ((text + "c" * 99)[:used], "budget")


@pytest.mark.parametrize("budget", range(10))
def test_a_small_budget_lands_hard(budget: int) -> None:
    assert thoughts("a\n" * 10, budget) == (("a\n" * 10)[:budget], "budget")


def test_a_budget_of_ten_has_a_tenth_of_one() -> None:
    assert thoughts("abcdefgh\nijk", 10)[0] == "abcdefgh\n"
    assert thoughts("abcdefg\nijkl", 10)[0] == "abcdefg\nij"


def test_a_hard_landing_asks_nothing() -> None:
    ran = run(control(budget=100, prefilled=True), TOKENIZER.encode("ab\n" * 50), ANSWER)
    assert ran.counts[0] == 100


def test_the_likeliest_close_lands_without_the_stop_text() -> None:
    script = [*varied(95), CLOSE]
    ran = run(control(budget=100, landing="soft", prefilled=True), script, [GAP, *ANSWER])
    assert ran.sequence == [*script, GAP, *ANSWER[:-1]]  # as if the model had drawn it
    assert ran.stops == ("natural", "end")
    assert ran.counts == (95, 0, 2)


@pytest.mark.parametrize(
    ("before", "after", "over"),
    [
        ("one.\n", "T", True),
        ("x = 65", "\n", False),  # </think> may be likely behind it
        ("x = 65\n\n", "S", True),
        ("Steps:\n", "1", False),
        ("\n", "T", False),
        ("It is 65.", " So", True),
        ("It is 65. ", "So", True),
        ("It is 3.", "14", False),
        ("It is 65.", " so", False),
        ("\n3.", " Add", False),
        ("\n - 12.", " Add", False),
        ("\n**Step 2.", " Add", False),
        ("\nSo the sum is 12.", " Add", True),
        ("It works!", " Now", True),
        ("Does it?", " Now", True),
        ("5!", " =", False),
        ('He said "no."', " Then", True),
        ("(It is.)", " Then", True),
        ("e.g.", " Add", False),
        ("see Dr.", " Who", False),
        ("by J.", " Smith", False),
        ("Hmm...", " Wait", False),
        ("file.", "txt", False),
        ("60이다.", " 다시", True),
        ("答案是六十。", "所以", True),
        ("答案是六十。", "”", False),
        ("他说：“好。”", "所以", True),
        ("对吗？", "不", True),
        ("答案是，", "所以", False),
        ("no end", " So", False),
        ("", "So", False),
    ],
)
def test_where_a_line_or_a_sentence_ends(before: str, after: str, over: bool) -> None:
    assert ends(before.encode(), after.encode()) is over


def test_half_a_character_ends_nothing() -> None:
    assert not ends("完。".encode()[:-1], b" So")
    assert not ends("完。".encode(), "所".encode()[:2])


# ---- budgets of time ------------------------------------------------------


def timed(seconds: float, steps: Iterable[float], **more: Any) -> tuple[Ran, Clock, list[Any]]:
    """Thoughts whose tokens take so long each; with the limits on the way."""
    clock, durations, limits = Clock(100.0), iter(steps), []
    machine = control(seconds=seconds, prefilled=True, clock=clock, **more)

    def each() -> None:
        if machine.thinking:
            limits.append(machine.limit)
            clock.now += next(durations) if machine.thinking_tokens else 0

    clock.now += 50  # the prompt
    ran = run(machine, varied(999), ANSWER, each)
    clock.now -= 150
    return ran, clock, limits


def test_a_time_ends_the_thoughts() -> None:
    ran, clock, limits = timed(30, [0.25] * 999)
    assert ran.stops == ("budget", "end")
    assert ran.counts == (120, len(TOKENS.stop_text), 2)
    assert clock.now == 30
    assert limits[:2] == [None, None] and set(limits[2:]) == {120}


def test_the_limit_follows_the_speed() -> None:
    ran, clock, limits = timed(30, [0.1] * 100 + [0.5] * 999)
    assert limits[90] == 300
    assert 130 <= limits[-1] == ran.counts[0] <= 140
    assert 29.4 < clock.now <= 30


def test_one_slow_token_changes_no_limit() -> None:
    ran, clock, limits = timed(30, [0.1] * 100 + [5.0] + [0.1] * 999)
    assert min(limits[2:]) >= 250  # the time that is lost, no more
    assert ran.counts[0] in (249, 250, 251) and 29.8 < clock.now < 30.2


def test_it_is_never_late_by_more_than_a_token() -> None:
    r = random.Random(7)
    for _ in range(100):
        steps = [r.choice([0.05, 0.1, 0.1, 0.4, 3.0]) for _ in range(200)]
        seconds = r.uniform(0.2, 9)
        ran, clock, _ = timed(seconds, steps, landing=r.choice(["soft", "hard"]))
        last = steps[max(ran.counts[0] - 1, 0)]
        assert clock.now <= seconds + last + 1e-9
        assert ran.counts[0] > 0


def test_a_time_lands_softly_in_its_last_tenth() -> None:
    text = TOKENIZER.encode("a" * 94 + "\n" + "b" * 99)
    clock = Clock()
    machine = control(seconds=10, landing="soft", prefilled=True, clock=clock)
    ran = run(machine, text, ANSWER, lambda: setattr(clock, "now", machine.thinking_tokens / 10))
    assert ran.counts[0] == 95


def test_what_ends_first_counts() -> None:
    assert timed(30, [0.25] * 999, budget=50)[0].counts[0] == 50
    assert timed(30, [0.25] * 999, budget=500)[0].counts[0] == 120


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("0", (0, None)), ("2048", (2048, None)), ("none", (None, None)), ("30s", (None, 30.0)),
        ("1.5m", (None, 90.0)), ("0.5s", (None, 0.5)), ("0s", (0, None)), ("0.0m", (0, None)),
    ],
)  # fmt: skip
def test_budgets_are_read(text: str, budget: tuple[int | None, float | None]) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize(
    "text", ["", "-1", "-1s", "3h", "1e3s", "2147483648", "s", "1 s", "٣", "1."]
)
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not in the range|is no number of tokens"):
        parse_budget(text)
