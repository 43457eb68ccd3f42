"""The machine that enforces budgets and limits, token by token."""

from __future__ import annotations

import random
from itertools import chain

import pytest
from byte_tokenizer import ByteTokenizer
from scripted_model import (
    ANSWER,
    CLOSE,
    END,
    GAP,
    THINK,
    TOKENIZER,
    TOKENS,
    Clock,
    control,
    run,
    script,
    varied,
)

from qwen3cli.errors import FormatError
from qwen3cli.thinking.control import (
    ANSWER_RESERVE,
    LEADING_BLANKS,
    STOP_TEXT,
    ThinkTokens,
)

# ---- the stop text --------------------------------------------------------


def test_the_stop_text_is_the_trained_one_with_the_real_close_token() -> None:
    before, after = f"\n\n{STOP_TEXT}\n", "\n\n"
    assert list(TOKENS.stop_text) == [
        *TOKENIZER.encode(before), CLOSE, *TOKENIZER.encode(after)
    ]  # fmt: skip
    assert TOKENIZER.decode(TOKENS.stop_text) == (
        "\n\nConsidering the limited time by the user, I have to give the solution based on the "
        "thinking directly now.\n</think>\n\n"
    )


def test_every_token_that_ends_a_reply_is_known() -> None:
    tokens = ThinkTokens.of(TOKENIZER, {"tokenizer.ggml.eos_token_id": 7})
    assert tokens.end == {7, END, TOKENIZER.added["<|endoftext|>"]}


@pytest.mark.parametrize("missing", ["<think>", "</think>", "<|im_end|>"])
def test_a_vocabulary_without_the_tokens_is_named(missing: str) -> None:
    tokenizer = ByteTokenizer()
    del tokenizer.added[missing]
    with pytest.raises(FormatError, match="<"):
        ThinkTokens.of(tokenizer, {})


# ---- budgets --------------------------------------------------------------

NATURAL = 40


@pytest.mark.parametrize("prefilled", [False, True], ids=["generated", "prefilled"])
@pytest.mark.parametrize("budget", [0, 1, 2, NATURAL - 1, NATURAL, NATURAL + 1, 10_000, None])
def test_budget_matrix(budget: int | None, prefilled: bool) -> None:
    ran = run(control(budget=budget, prefilled=prefilled), script(NATURAL, prefilled), ANSWER)
    cut = budget is not None and budget <= NATURAL  # a spent budget is not looked beyond
    assert ran.stops == ("budget" if cut else "natural", "end")
    assert ran.counts == (budget if cut else NATURAL, len(TOKENS.stop_text) if cut else 0, 2)
    assert ran.inserted == (list(TOKENS.stop_text) if cut else [])
    assert ran.answer == ANSWER[:-1]
    # exactly: the opening, the counted tokens, what closes them, the answer; nothing dropped
    opening = [] if prefilled else [THINK]
    closing = list(TOKENS.stop_text) if cut else [CLOSE]
    counted = [ord("t")] * (budget if cut and budget is not None else NATURAL)
    assert ran.sequence == opening + counted + closing + ANSWER[:-1]
    assert ran.sampled == len(opening) + len(counted) + (not cut) + len(ANSWER)


def test_the_newline_after_think_counts_only_when_generated() -> None:
    thoughts = [ord("\n"), ord("a"), ord("b"), ord("c")]
    generated = run(control(budget=3), [THINK, *thoughts], ANSWER)
    prefilled = run(control(budget=3, prefilled=True), thoughts[1:], ANSWER)
    assert generated.thoughts == thoughts[:3]
    assert prefilled.thoughts == thoughts[1:]


def test_a_budget_of_zero_with_prefilled_think_samples_no_thought() -> None:
    ran = run(control(budget=0, prefilled=True), [], ANSWER)
    assert ran.sequence == [*TOKENS.stop_text, *ANSWER[:-1]]
    assert ran.stops == ("budget", "end")


@pytest.mark.parametrize("budget", [None, 0, 1, 5])
def test_without_thinking_a_budget_means_nothing(budget: int | None) -> None:
    ran = run(control(thinking=False, budget=budget), ANSWER, [])
    assert ran.counts == (0, 0, 2)
    assert ran.stops == ("off", "end")
    assert ran.control.budget == budget


def test_spelled_out_tags_switch_nothing() -> None:
    spelled = TOKENIZER.encode("a </think> b <think> c <|im_end|>")
    ran = run(control(), [THINK, *spelled, CLOSE], [*spelled, END])
    assert (ran.thoughts, ran.answer) == (spelled, spelled)
    assert ran.stops == ("natural", "end")


def test_tags_in_the_answer_are_answer() -> None:
    answer = [ord("a"), THINK, ord("b"), CLOSE, ord("c")]
    ran = run(control(budget=1), [THINK, ord("t"), ord("t")], [*answer, END])
    assert ran.answer == answer
    ran = run(control(thinking=False), [*answer[:3], END], [])
    assert ran.answer == answer[:3]


def test_think_among_the_thoughts_is_a_thought() -> None:
    ran = run(control(), [THINK, ord("a"), THINK, ord("b"), CLOSE], ANSWER)
    assert ran.thoughts == [ord("a"), THINK, ord("b")]


# ---- landing at once, going on, and grammars ------------------------------


def test_landing_at_once() -> None:
    machine = control(budget=50, prefilled=True)
    machine.accept(ord("t"))
    assert machine.thinking and machine.land("user")
    assert not machine.thinking and machine.answering
    assert not machine.land("user")  # there is nothing left to land
    ran = run(machine, [], ANSWER)
    assert ran.sequence == [*TOKENS.stop_text, *ANSWER[:-1]]
    assert ran.stops == ("user", "end")


def test_landing_before_think_waits_for_it() -> None:
    machine = control()
    machine.accept(ord("\n"))
    assert not machine.thinking and machine.land("user")
    ran = run(machine, [THINK], ANSWER)
    assert ran.sequence == [THINK, *TOKENS.stop_text, *ANSWER[:-1]]
    assert ran.stops == ("user", "end")
    direct = control()
    direct.land("user")
    assert run(direct, ANSWER, []).stops == ("off", "end")  # it never began


@pytest.mark.parametrize("sampled", [[THINK, CLOSE], [THINK, CLOSE, GAP], [THINK, CLOSE, ord("a")]])
def test_there_is_nothing_to_land_behind_the_thoughts(sampled: list[int]) -> None:
    machine = control()
    for token in sampled:
        machine.accept(token)
    assert not machine.land("user")
    assert machine.thinking_stop == "natural"


def test_landing_in_a_room_that_is_nearly_full() -> None:
    for room in range(1, 2 * len(TOKENS.stop_text)):
        machine = control(prefilled=True, room=room)
        machine.land("user")
        ran = run(machine, [], [ord("a")] * 999)
        assert len(ran.sequence) <= room
        assert ran.inserted in ([], list(TOKENS.closing), list(TOKENS.stop_text))


def test_used_tokens_count() -> None:
    ran = run(control(budget=150, prefilled=True, used=100), varied(999), ANSWER)
    assert (len(ran.thoughts), ran.control.thinking_tokens) == (50, 150)
    # the last tenth is that of the new ones
    text = [*varied(40), ord("\n"), *varied(99)]
    soft = control(budget=150, prefilled=True, used=100, landing="soft")
    assert run(soft, text, ANSWER).control.thinking_tokens == 150
    soft = control(budget=150, prefilled=True, used=100, landing="soft")
    assert run(soft, [*varied(46), *[ord("\n")] * 9], ANSWER).control.thinking_tokens == 147


def test_the_limit_is_the_budget_or_what_the_room_allows() -> None:
    assert control(budget=50).limit == 50
    assert control().limit is None
    room = 500
    most = room - len(TOKENS.stop_text) - room // 4
    assert control(budget=5000, prefilled=True, room=room).limit == most
    ran = run(control(budget=5000, prefilled=True, room=room), varied(999), ANSWER)
    assert ran.stops[0] == "limit" and ran.control.thinking_tokens == most


def test_a_constrained_answer_is_all_that_is_sampled_behind_the_thoughts() -> None:
    answer = [GAP, *ANSWER]
    ran = run(control(constrained=True), [ord("t"), CLOSE], answer)
    assert ran.sequence == [THINK, ord("t"), CLOSE, *TOKENS.gap, *answer[:-1]]
    assert ran.answer == answer[:-1]
    assert ran.stops == ("natural", "end")
    soft = control(constrained=True, budget=20, landing="soft")
    ran = run(soft, [*varied(19), CLOSE], answer)
    assert ran.sequence == [THINK, *varied(19), CLOSE, *TOKENS.gap, *answer[:-1]]
    cut = run(control(constrained=True, budget=3), varied(9), answer)
    assert cut.sequence == [THINK, *varied(9)[:3], *TOKENS.stop_text, *answer[:-1]]


# ---- loops ----------------------------------------------------------------


def test_thoughts_that_go_in_circles_are_closed() -> None:
    circle = TOKENIZER.encode("Wait, I have to check this again. The sum is 60. ")
    ran = run(control(prefilled=True), circle * 99, ANSWER)
    assert ran.stops == ("loop", "end")
    assert ran.inserted == list(TOKENS.stop_text)
    assert len(ran.thoughts) <= 6 * len(circle)
    assert run(control(prefilled=True, budget=100), circle * 9, ANSWER).stops[0] == "budget"


# ---- how thinking begins and ends -----------------------------------------


def test_a_model_that_does_not_think_simply_answers() -> None:
    ran = run(control(budget=5), ANSWER, [])
    assert ran.counts == (0, 0, 2)
    assert ran.stops == ("off", "end")


def test_white_space_may_come_before_think() -> None:
    blanks = [ord("\n"), ord(" ")]
    ran = run(control(), [*blanks, *script(3, False)], ANSWER)
    assert ran.counts == (3, 0, 2)
    assert ran.stops == ("natural", "end")


def test_white_space_without_end_is_an_answer() -> None:
    ran = run(control(max_tokens=5), [ord("\n")] * 1000, [])
    assert ran.sampled == LEADING_BLANKS + 5
    assert ran.stops == ("off", "limit")


def test_an_end_token_among_the_thoughts_still_gets_an_answer() -> None:
    ran = run(control(), [THINK, ord("t"), END], ANSWER)
    assert ran.inserted == list(TOKENS.closing)
    assert TOKENIZER.decode(ran.inserted) == "\n</think>\n\n"
    assert ran.sequence == [THINK, ord("t"), *TOKENS.closing, *ANSWER[:-1]]
    assert ran.counts == (1, 4, 2)
    assert ran.stops == ("natural", "end")


def test_one_newline_token_after_the_thoughts_is_structure() -> None:
    ran = run(control(max_tokens=2), script(3, False), [GAP, *ANSWER])
    assert ran.answer == ANSWER[:-1]
    ran = run(control(), script(3, False), [GAP, GAP, *ANSWER])
    assert ran.answer == [GAP, *ANSWER[:-1]]
    ran = run(control(budget=1), script(3, False), [GAP, *ANSWER])  # the stop text has its own
    assert ran.answer == [GAP, *ANSWER[:-1]]


def test_an_end_token_at_once_is_an_empty_answer() -> None:
    for thinking in (True, False):
        ran = run(control(thinking=thinking), [END], [])
        assert ran.counts == (0, 0, 0)
        assert ran.stops == ("off", "end")


# ---- limits ---------------------------------------------------------------


@pytest.mark.parametrize("budget", [0, 1, 5, None])
@pytest.mark.parametrize("limit", [1, 2, 7])
def test_max_tokens_limits_the_answer_alone(limit: int, budget: int | None) -> None:
    ran = run(
        control(budget=budget, max_tokens=limit, prefilled=True), script(20, True), [ord("a")] * 99
    )
    assert ran.answer == [ord("a")] * limit
    assert ran.stops == ("natural" if budget is None else "budget", "limit")


def test_thinking_leaves_the_answer_its_reserve() -> None:
    room, stop = 2000, len(TOKENS.stop_text)
    ran = run(control(room=room), [THINK, *varied(room)], [ord("a")] * room)
    assert ran.stops == ("limit", "limit")
    assert ran.inserted == list(TOKENS.stop_text)
    assert ran.counts == (room - 1 - stop - ANSWER_RESERVE, stop, ANSWER_RESERVE)
    assert len(ran.sequence) == room


def test_the_reserve_is_max_tokens_and_at_most_a_quarter_of_the_room() -> None:
    endless = [THINK, *varied(5000)]
    ran = run(control(room=2000, max_tokens=50), endless, [ord("a")] * 99)
    assert ran.counts == (2000 - 1 - len(TOKENS.stop_text) - 50, len(TOKENS.stop_text), 50)
    ran = run(control(room=400, max_tokens=5000), endless, [ord("a")] * 999)
    assert ran.counts == (400 - 1 - len(TOKENS.stop_text) - 100, len(TOKENS.stop_text), 100)


@pytest.mark.parametrize("prefilled", [False, True])
def test_every_small_room_ends_within_the_context(prefilled: bool) -> None:
    for room in range(2 * len(TOKENS.stop_text)):
        endless = [*script(0, prefilled)[:-1], *[ord("t")] * 999]
        ran = run(control(room=room, prefilled=prefilled), endless, [ord("a")] * 999)
        assert len(ran.sequence) <= room
        assert ran.control.answer_stop == "limit"
        if room > len(TOKENS.closing) + 1:
            assert ran.answer, f"no answer in a room of {room}"
        assert ran.inserted in ([], list(TOKENS.closing), list(TOKENS.stop_text))


def test_a_full_context_ends_the_answer() -> None:
    ran = run(control(thinking=False, room=10), [ord("a")] * 99, [])
    assert (ran.answer, ran.control.answer_stop) == ([ord("a")] * 10, "limit")


# ---- the user, and stop strings -------------------------------------------


def test_an_interrupt_names_the_phase() -> None:
    thinking = control()
    thinking.accept(THINK)
    thinking.accept(ord("t"))
    thinking.interrupt()
    assert thinking.done
    assert (thinking.thinking_stop, thinking.answer_stop) == ("user", "user")

    answering = control()
    for token in (THINK, ord("t"), CLOSE, ord("a")):
        answering.accept(token)
    answering.interrupt()
    assert (answering.thinking_stop, answering.answer_stop) == ("natural", "user")

    off = control(thinking=False)
    off.interrupt()
    assert (off.thinking_stop, off.answer_stop) == ("off", "user")


def test_an_interrupt_before_the_stop_text_inserts_nothing() -> None:
    cut = control(budget=1, prefilled=True)
    cut.accept(ord("t"))
    cut.interrupt()
    assert not cut.take_forced()
    assert cut.inserted_tokens == 0


def test_an_interrupt_after_the_end_changes_nothing() -> None:
    ran = run(control(thinking=False), ANSWER, [])
    ran.control.interrupt()
    assert ran.stops == ("off", "end")


def test_a_stop_string_is_named() -> None:
    stopped = control(thinking=False)
    stopped.accept(ord("a"))
    stopped.stop()
    assert stopped.done
    assert stopped.answer_stop == "stop"


# ---- any model, any limits ------------------------------------------------


def test_no_model_escapes_its_limits() -> None:
    r = random.Random(5)
    kinds = [ord("a")] * 12 + [ord("\n"), GAP, THINK, CLOSE, END]
    for _ in range(3000):
        budget = r.choice([None, 0, 1, 2, 7, 30])
        limit = r.choice([None, 1, 5, 50])
        room = r.choice([1, 20, 200, 2000])
        prefilled = r.random() < 0.5
        thinking = r.random() < 0.8
        endless = iter(lambda: r.choice(kinds), None)
        opening = [THINK] if r.random() < 0.7 else []
        seconds, clock = r.choice([None, None, 9.0]), Clock()
        soft, constrained = r.random() < 0.5, r.random() < 0.3
        machine = control(
            thinking, budget, limit, prefilled, room,
            landing="soft" if soft else "hard", constrained=constrained,
            seconds=seconds, clock=clock,
        )  # fmt: skip
        ran = run(machine, chain(opening, endless), endless, clock.tick)
        assert len(ran.sequence) <= room
        assert len(ran.thoughts) == machine.thinking_tokens
        assert len(ran.answer) == machine.answer_tokens
        own = ran.inserted.count(CLOSE) - (machine.thinking_stop not in ("natural", "off"))
        assert machine.inserted_tokens in (0, len(TOKENS.closing), len(TOKENS.stop_text))
        assert own <= 1
        if limit is not None:
            assert machine.answer_tokens <= limit
        if not thinking:
            assert (machine.thinking_tokens, machine.thinking_stop) == (0, "off")
            assert not ran.inserted
            continue
        if seconds:
            assert machine.thinking_tokens <= 9
        if budget is not None:
            assert machine.thinking_tokens <= budget
        if machine.thinking_stop == "budget":
            if not soft and not seconds:
                assert machine.thinking_tokens == budget
            if room > 200:
                assert ran.inserted[-len(TOKENS.stop_text) :] == list(TOKENS.stop_text)
        # one token that is not appended at most, and each other one belongs somewhere
        assert ran.sampled + len(ran.inserted) - len(ran.sequence) <= 2
