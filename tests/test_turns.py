"""Turns that are taken back, answered anew, hurried or thought about longer; full contexts; and
what is computed while the user types."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from test_session import SUM, FakeSession, conversation

import qwen3cli
from qwen3cli.engine import Model
from qwen3cli.errors import ContextOverflow, UsageError
from qwen3cli.prompt import Generation
from qwen3cli.session import Answer, Conversation, Events, Reply, Settings, Thought
from qwen3cli.thinking.control import STOP_TEXT

NANO = Path(qwen3cli.__file__).parent / "models/nano-dense-q8_0.gguf"
GREEDY = Settings(temperature=0, landing="hard")


@pytest.fixture(scope="module")
def nano() -> Model:
    return Model(NANO)


def last(events: Events) -> Reply:
    *_, reply = events
    assert isinstance(reply, Reply)
    return reply


# ---- answer now -------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 1, 5])
def test_answer_now_closes_the_thoughts_and_answers(after: int) -> None:
    session = FakeSession().says("<think>" + "t" * after + "60")
    talker = conversation(session)
    text = ""
    for event in talker.reply("Q"):
        if isinstance(event, Thought):
            text += event.text
            if event.tokens == after:
                talker.answer_now()
    assert isinstance(event, Reply)
    assert (text, event.thinking_stop, event.thinking_tokens) == ("t" * after, "user", after)
    assert (event.answer, event.answer_stop) == ("60", "end")
    assert session.text.endswith(f"{STOP_TEXT}\n</think>\n\n60")


def test_answer_now_changes_nothing_while_it_answers_or_does_not_think() -> None:
    for settings in (Settings(), Settings(think=False)):
        talker = conversation(
            FakeSession().says("<think>t</think>60" if settings.think is None else "60")
        )
        for event in talker.reply("Q", settings):
            if isinstance(event, Answer):
                talker.answer_now()
        assert isinstance(event, Reply)
        assert (event.answer, event.answer_stop) == ("60", "end")
        assert event.thinking_stop != "user"


def test_an_answer_now_of_one_reply_does_not_hurry_the_next() -> None:
    session = FakeSession().says("60")
    talker = conversation(session)
    for _ in talker.reply("Q", Settings(think=False)):
        talker.answer_now()
    session.says("<think>ttt</think>61")
    assert last(talker.reply("Q")).thinking_stop == "natural"


# ---- more -------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 8, 20])
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_more_is_as_if_the_budget_had_been_larger(
    nano: Model, budget: int, prepared: bool, seed: int
) -> None:
    settings = Settings(temperature=0.6, landing="hard", budget=budget, seed=seed)
    talker = Conversation(nano.session(n_ctx=1024))
    last(talker.reply("hello", Settings(temperature=0)))
    first = last(talker.reply(SUM, settings))
    assert first.thinking_stop == "budget"
    messages = len(talker.messages)
    if prepared:
        talker.prepare()
        talker.settle(finish=True)
    longer = last(talker.more(12, settings))

    other = Conversation(nano.session(n_ctx=1024))
    other.messages = talker.messages[:-2]
    at_once = last(
        other.reply(SUM, Settings(temperature=0.6, landing="hard", budget=budget + 12, seed=seed))
    )
    assert (longer.thoughts, longer.answer) == (at_once.thoughts, at_once.answer)
    assert (longer.output, longer.thinking_tokens) == (at_once.output, at_once.thinking_tokens)
    assert len(talker.messages) == messages
    # All but the last token of the thoughts is there; its logits are computed anew.
    assert longer.reused_tokens == first.prompt_tokens + 1 + budget - 1


def test_more_can_be_said_again_and_after_answer_now(nano: Model) -> None:
    talker = Conversation(nano.session(n_ctx=1024))
    for event in talker.reply(SUM, GREEDY):
        if isinstance(event, Thought) and event.tokens == 5:
            talker.answer_now()
    for tokens in (5, 10, 1000):
        first, *rest, reply = talker.more(tokens, GREEDY)
        assert isinstance(first, Thought) and isinstance(reply, Reply) and first.before
        shown = [event.text for event in rest if isinstance(event, Thought)]
        assert first.before + "".join(shown) == reply.thoughts
    assert reply.thinking_stop == "natural"
    assert (
        reply.thoughts == last(Conversation(nano.session(n_ctx=1024)).reply(SUM, GREEDY)).thoughts
    )
    assert reply.answer == "60"
    with pytest.raises(UsageError, match="came to their end"):
        talker.more(5)


def test_more_needs_thoughts_that_were_closed() -> None:
    session = FakeSession().says("<think>t</think>60")
    talker = conversation(session)
    with pytest.raises(UsageError, match="no reply yet"):
        talker.more(5)
    last(talker.reply("Q"))
    with pytest.raises(UsageError, match="came to their end"):
        talker.more(5)
    session.says("60")
    last(talker.reply("Q", Settings(think=False)))
    with pytest.raises(UsageError, match="there are none"):
        talker.more(5)
    session.says("<think>tt60")
    last(talker.reply("Q", Settings(budget=2)))
    talker.undo()
    with pytest.raises(UsageError, match="taken up or changed"):
        talker.more(5)


def test_more_that_is_interrupted_leaves_the_reply_as_it_was() -> None:
    session = FakeSession().says("<think>tt60")
    talker = conversation(session)
    last(talker.reply("Q", Settings(budget=2)))
    before = list(talker.messages)
    session.says("tttt")
    for event in talker.more(10):
        if isinstance(event, Thought) and event.tokens == 4:
            talker.interrupt()
    assert talker.messages == before
    session.says("t</think>61")
    assert last(talker.more(10)).answer == "61"


# ---- undo and regenerate --------------------------------------------------------------------


def test_undo_takes_back_a_turn_and_returns_its_question() -> None:
    session = FakeSession()
    talker = conversation(session)
    assert talker.undo() is None
    for question in ("Q1", "Q2"):
        session.says("A")
        last(talker.reply(question, Settings(think=False)))
    assert talker.undo() == "Q2"
    assert [message["content"] for message in talker.messages] == ["Q1", "A"]
    assert talker.undo() == "Q1"
    assert (talker.messages, talker.undo()) == ([], None)


def test_regenerate_answers_the_last_question_anew() -> None:
    session = FakeSession().says("A")
    talker = conversation(session)
    with pytest.raises(UsageError, match="no message"):
        talker.regenerate()
    last(talker.reply("Q", Settings(think=False)))
    session.says("B")
    assert last(talker.regenerate(Settings(think=False))).answer == "B"
    assert [message["content"] for message in talker.messages] == ["Q", "B"]
    session.at_call[session.calls] = talker.interrupt
    assert last(talker.regenerate(Settings(think=False))).answer == ""
    assert [message["content"] for message in talker.messages] == ["Q", "B"]


# ---- what the next turn begins with -----------------------------------------------------------


@pytest.mark.parametrize("generation", Generation)
def test_what_was_said_begins_every_next_prompt(generation: Generation, nano: Model) -> None:
    talker = Conversation(nano.session(n_ctx=1024))
    talker.generation = generation
    assert talker.said() == []
    talker.system = "Be brief."
    for question in ("hello", SUM):
        last(talker.reply(question, Settings(temperature=0, budget=8)))
        said = talker.said()
        for following in ("", "x", "\n\n1", "<think>"):
            other = Conversation(talker.session, system=talker.system)
            other.generation = generation
            other.messages = [*talker.messages, {"role": "user", "content": following}]
            prompt = other.prompt()
            assert prompt[: len(said)] == said
            assert len(prompt) - len(said) < 40
    assert talker.used() == len(said)


def test_the_next_turn_computes_only_what_is_new(nano: Model) -> None:
    talker, plain = (Conversation(nano.session(n_ctx=1024)) for _ in range(2))
    for question in ("hello", SUM, "thanks"):
        talker.prepare()
        reply, other = (last(t.reply(question, GREEDY)) for t in (talker, plain))
        assert (reply.thoughts, reply.answer) == (other.thoughts, other.answer)
        assert reply.reused_tokens >= other.reused_tokens
        prepared = reply.reused_tokens - len(talker.said()[: reply.reused_tokens])
        assert prepared == 0
    assert reply.reused_tokens > other.reused_tokens


def test_whatever_the_user_does_while_it_prepares(nano: Model) -> None:
    """The background never shows: not in the text, and not as an error."""
    plain = Conversation(nano.session(n_ctx=1024))
    expected = [last(plain.reply(q, GREEDY)).answer for q in ("hello", SUM)]
    for at in range(20):
        talker = Conversation(nano.session(n_ctx=1024))
        assert last(talker.reply("hello", GREEDY)).answer == expected[0]
        talker.prepare()
        if at % 4 == 1:
            talker.interrupt()  # nothing runs that it could be for
        if at % 4 == 2:
            talker.settle()
        if at % 4 == 3:
            assert talker.undo() == "hello"
            last(talker.reply("hello", GREEDY))
            talker.prepare()
        assert last(talker.reply(SUM, GREEDY)).answer == expected[1]


# ---- a context that is full -------------------------------------------------------------------


def turns(talker: Conversation, n: int) -> Iterator[Reply]:
    for turn in range(n):
        talker.session.says("A" * 10)  # type: ignore[attr-defined]
        yield last(
            talker.reply(f"Q{turn}" + "x" * 10, Settings(think=False, overflow="drop-oldest"))
        )


def test_the_oldest_turns_are_dropped_when_the_context_is_nearly_full() -> None:
    session = FakeSession(n_ctx=400)
    talker = conversation(session, system="S")
    dropped = [reply.dropped for reply in turns(talker, 12)]
    assert dropped == sorted(dropped)
    assert dropped[0] == 0 < dropped[-1]
    assert len(set(dropped)) < 6  # not at every turn: that computes everything anew
    assert all(number % 2 == 0 for number in dropped)
    assert len(talker.messages) == 24  # they are kept, but not sent
    assert "Q0" not in session.text
    assert "<|im_start|>system\nS<|im_end|>" in session.text
    assert "Q11" in session.text


def test_undo_brings_back_what_was_dropped_where_all_of_it_fits() -> None:
    session = FakeSession(n_ctx=400)
    talker = conversation(session)
    while not talker.dropped:
        list(turns(talker, 1))
    many, dropped = len(talker.messages), talker.dropped
    list(turns(talker, 1))
    talker.undo()
    assert (len(talker.messages), talker.dropped) == (many, dropped)  # all of them do not fit
    while talker.dropped:
        talker.undo()
    assert len(talker.messages) > dropped
    assert 200 < talker.used() <= 300
    assert next(turns(talker, 1)).dropped == 0
    assert "Q0" in session.text


def test_dropping_does_not_help_a_message_that_is_too_long_by_itself() -> None:
    session = FakeSession(n_ctx=400)
    talker = conversation(session)
    list(turns(talker, 3))
    before = list(talker.messages)
    with pytest.raises(ContextOverflow, match="too many"):
        last(talker.reply("x" * 500, Settings(overflow="drop-oldest")))
    assert (talker.messages, talker.dropped) == (before, 0)
    assert next(turns(talker, 1)).answer == "A" * 10


def test_by_default_nothing_is_dropped() -> None:
    session = FakeSession(n_ctx=100)
    talker = conversation(session)
    session.says("A" * 60)
    last(talker.reply("Q", Settings(think=False)))
    with pytest.raises(ContextOverflow, match="--overflow drop-oldest"):
        last(talker.reply("Q", Settings(think=False)))
