"""Budgets of thinking, exactly: every landing, time, answer now, more, schemas, batches and
samples. All is counted anew from the ids of the reply."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from commandline import Command

import qwen3cli
from qwen3cli.engine import Model
from qwen3cli.session import Closed, Conversation, Events, Reply, Settings, Thought
from qwen3cli.thinking import control
from qwen3cli.thinking.budgets import TimeBudget, parse_budget
from qwen3cli.thinking.control import Landing, ThinkTokens

FOLDER = Path(qwen3cli.__file__).parent / "models"
SUM = "What is 17 + 48 - 5?"
SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 999}},
    "required": ["sum"],
    "additionalProperties": False,
}
LANDINGS: tuple[Landing, ...] = ("hard", "soft")
COMPARED = (
    "thoughts",
    "answer",
    "thinking_tokens",
    "thinking_stop",
    "inserted_tokens",
    "answer_tokens",
    "answer_stop",
)


@pytest.fixture(scope="module", params=["nano-dense", "nano-moe"])
def model(request: pytest.FixtureRequest) -> Model:
    return Model(FOLDER / f"{request.param}-q8_0.gguf", threads=1)


@pytest.fixture(scope="module")
def natural(model: Model) -> int:
    """How long it thinks when nothing ends it."""
    reply = ask(model)
    assert (reply.thinking_stop, reply.inserted_tokens) == ("natural", 0)
    return reply.thinking_tokens


def settings(**more: Any) -> Settings:
    return Settings(**({"temperature": 0, "seed": 1, "landing": "hard"} | more))


def ask(model: Model, **more: Any) -> Reply:
    return whole(talk(model).reply(SUM, settings(**more)), model)


def talk(model: Model) -> Conversation:
    return Conversation(model.session(n_ctx=512))


def whole(events: Events, model: Model) -> Reply:
    """The reply at the end, of which everything is true that always is."""
    *parts, reply = events
    assert isinstance(reply, Reply)
    check(reply, model)
    closed = [part for part in parts if isinstance(part, Closed)]
    if reply.thinking_stop == "off":
        assert not closed
    else:
        assert [(each.tokens, each.stop) for each in closed] == [
            (reply.thinking_tokens, reply.thinking_stop)
        ]
    return reply


def check(reply: Reply, model: Model) -> None:
    """The counts, the reasons and the texts of a reply are those of its ids."""
    tokens = ThinkTokens.of(model.tokenizer, model.metadata())
    output, stop = list(reply.output), list(tokens.stop_text)
    decode = model.tokenizer.decode
    assert reply.answer, "a budget never leaves an empty answer"
    if reply.budget is not None:
        assert reply.thinking_tokens <= reply.budget
    if reply.thinking_stop == "off":
        assert tokens.open not in output and tokens.close not in output
        thoughts, inserted, answer = [], [], output
    else:
        assert output[0] == tokens.open
        close = output.index(tokens.close)
        if reply.thinking_stop == "natural":
            behind = output[close + 1 :]
            gap = bool(behind) and not decode(behind[:1]).strip("\r\n")  # one token of it
            thoughts, inserted, answer = output[1:close], [], behind[gap:]
        else:
            end = close + 1 + len(tokens.gap)
            begin = end - len(stop)
            thoughts, inserted, answer = output[1:begin], output[begin:end], output[end:]
            assert inserted == stop
    assert reply.thinking_tokens == len(thoughts)
    assert reply.inserted_tokens == len(inserted)
    assert reply.answer_tokens == len(answer)
    assert reply.thoughts == decode(thoughts).strip("\n")
    assert reply.answer == decode(answer).lstrip("\n")


# ---- tokens --------------------------------------------------------------------


@pytest.mark.parametrize("landing", LANDINGS)
def test_budgets_in_tokens(model: Model, natural: int, landing: Landing) -> None:
    for budget in (0, 1, 7, 16, natural - 1, natural, natural + 1, None):
        reply = ask(model, budget=budget, landing=landing)
        if budget == 0:
            assert reply.thinking_stop == "off"
        elif budget is None or budget > natural:
            early = landing == "soft" and reply.thinking_stop == "budget"
            assert early or (reply.thinking_stop, reply.thinking_tokens) == ("natural", natural)
        elif landing == "hard":
            assert (reply.thinking_stop, reply.thinking_tokens) == ("budget", budget)
        else:
            assert reply.thinking_stop in ("budget", "natural")
            assert reply.thinking_tokens >= budget - budget // 10


# ---- time ----------------------------------------------------------------------


@pytest.mark.parametrize("landing", LANDINGS)
def test_budgets_of_time(
    model: Model, natural: int, landing: Landing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token takes a unit of this clock, of 1/128 s."""

    def budget_of(seconds: float, _clock: object) -> TimeBudget:
        ticks = count()
        return TimeBudget(seconds, lambda: next(ticks) / 128)

    monkeypatch.setattr(control, "TimeBudget", budget_of)
    for seconds, budget, most in (
        (0.0, None, 0),
        (0.001, None, 1),
        (5 / 128, None, 5),
        (16 / 128, 7, 7),
        (16 / 128, 1000, 16),
        (10.0, None, natural),
        (10.0, 16, 16),
        (10.0, 0, 0),
    ):
        reply = ask(model, seconds=seconds, budget=budget, landing=landing)
        assert reply.thinking_tokens <= most
        if landing == "hard":
            assert reply.thinking_tokens == most
            stop = "off" if budget == 0 else "natural" if most == natural else "budget"
            assert reply.thinking_stop == stop


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 0.001, 0.05, 10.0])
def test_times_of_a_real_clock(model: Model, seconds: float) -> None:
    reply = ask(model, seconds=seconds, landing="soft")
    assert reply.thinking_stop in ("budget", "natural")
    if seconds < 1e-6:
        assert reply.thinking_tokens <= 1


# ---- answer now and more ---------------------------------------------------------


def hurried(talker: Conversation, at: int, model: Model, **more: Any) -> Reply:
    """A reply that is told to answer when there are so many tokens of thinking."""
    return whole(hurrying(talker, at, settings(**more)), model)


def hurrying(talker: Conversation, at: int | None, chosen: Settings) -> Events:
    for event in talker.reply(SUM, chosen):
        if isinstance(event, Thought) and event.tokens == at:
            talker.answer_now()
        yield event


@pytest.mark.parametrize("landing", LANDINGS)
def test_answer_now_and_more(model: Model, natural: int, landing: Landing) -> None:
    for at in (0, 1, 7, natural - 1, natural):
        talker = talk(model)
        reply = hurried(talker, at, model, landing=landing)
        assert (reply.thinking_stop, reply.thinking_tokens) == ("user", at)
        for more in (1, 6, natural):
            before = reply.thinking_tokens
            reply = whole(talker.more(more, settings(landing=landing)), model)
            assert reply.thinking_tokens <= before + more
            if reply.thinking_stop == "natural":
                break
            assert reply.thinking_stop == "budget"
            assert reply.thinking_tokens >= before + more - more // 10
        assert (reply.thinking_stop, reply.thinking_tokens) == ("natural", natural)
        assert len(talker.messages) == 2


def test_answer_now_with_a_budget_that_ends_first(model: Model, natural: int) -> None:
    for at, budget in ((7, 6), (7, 7), (7, 8), (1, 0)):
        reply = hurried(talk(model), at, model, budget=budget)
        if budget == 0:
            assert reply.thinking_stop == "off"
        else:
            assert reply.thinking_stop == ("user" if at < budget else "budget")
            assert reply.thinking_tokens == min(at, budget)


@pytest.mark.parametrize("landing", LANDINGS)
def test_more_after_a_budget_is_the_larger_budget(
    model: Model, natural: int, landing: Landing
) -> None:
    for budget, more in ((1, 6), (7, 9), (16, natural - 16), (16, natural - 15)):
        talker = talk(model)
        whole(talker.reply(SUM, settings(budget=budget, landing="hard")), model)
        reply = whole(talker.more(more, settings(landing=landing)), model)
        if landing == "hard":
            assert reply.output == ask(model, budget=budget + more).output
        assert reply.budget == budget + more


# ---- schemas -------------------------------------------------------------------


def constrained(model: Model, budget: int | None, landing: Landing) -> None:
    """A budget, answer now and more, with answers that keep to a schema."""
    talker = talk(model)
    grammar = talker.grammar(SCHEMA)
    keeps = settings(grammar=grammar, landing=landing)
    replies = [whole(talker.reply(SUM, replace(keeps, budget=budget)), model)]
    if replies[0].thinking_stop == "budget":
        replies.append(whole(talker.more(5, keeps), model))
    replies.append(hurried(talk(model), 3, model, grammar=grammar, budget=budget, landing=landing))
    for reply in replies:
        assert reply.answer_stop == "end"
        assert list(json.loads(reply.answer)) == ["sum"]
        # From its first id on the answer is the grammar's.
        matcher = grammar.matcher()
        for token in reply.output[-reply.answer_tokens :]:
            assert not matcher.complete
            matcher.accept(token)
        assert matcher.complete


@pytest.mark.parametrize("landing", LANDINGS)
def test_schemas(model: Model, natural: int, landing: Landing) -> None:
    for budget in (0, 1, 7, 16, natural - 1, natural, natural + 1, None):
        constrained(model, budget, landing)


def test_a_schema_and_no_time(model: Model) -> None:
    grammar = talk(model).grammar(SCHEMA)
    reply = ask(model, grammar=grammar, seconds=0.0)
    assert (reply.thinking_tokens, reply.thinking_stop) == (0, "budget")
    assert json.loads(reply.answer)


# ---- all of it at random ----------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_any_of_it_at_a_higher_temperature(model: Model, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(12):
        chosen = settings(
            temperature=rng.choice([0.6, 1.5, 2]),
            seed=rng.randrange(1000),
            budget=rng.choice([None, 0, 1, 7, 16, 40]),
            seconds=rng.choice([None, None, 0.0, 0.001, 0.05]),
            landing=rng.choice(LANDINGS),
            max_tokens=40,
        )
        talker = talk(model)
        now = rng.choice([None, 0, 1, 7, 20])
        reply = whole(hurrying(talker, now, chosen), model)
        if reply.thinking_stop not in ("natural", "off"):
            whole(talker.more(rng.choice([1, 9, 30]), chosen), model)


# ---- the command ------------------------------------------------------------------


def test_a_batch_has_the_same_replies(tmp_path: Path, model: Model, natural: int) -> None:
    budgets: list[int | str] = [0, 1, 7, 16, natural - 1, natural, natural + 1, "none", "10m"]
    asked = [
        {"prompt": SUM, "seed": 1, "budget": budget, "landing": landing, "temperature": temperature}
        for budget in budgets
        for landing in LANDINGS
        for temperature in (0, 0.6)
    ]
    lines = "".join(json.dumps(each) + "\n" for each in asked)
    (tmp_path / "in.jsonl").write_text(lines)
    args = ("--batch", "in.jsonl", "-o", "out.jsonl", "--ctx", "512")
    done = Command(tmp_path)("run", "-m", str(model.path), *args)
    assert (done.returncode, done.stdout) == (0, "")
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(answers) == len(asked)
    for answer in answers:
        line = asked[answer["line"] - 1]
        tokens, seconds = parse_budget(str(line["budget"]))
        given = {name: line[name] for name in ("landing", "temperature")}
        alone = ask(model, budget=tokens, seconds=seconds, **given)
        for name in COMPARED:
            assert answer[name] == getattr(alone, name), (line, name)


@pytest.mark.parametrize("landing", LANDINGS)
def test_samples_keep_to_the_budget(tmp_path: Path, model: Model, landing: Landing) -> None:
    args = ("-n", "4", "--json", "--seed", "1", "--ctx", "512", "--landing", landing)
    done = Command(tmp_path)("run", SUM, "-m", str(model.path), "--budget", "16", *args)
    assert done.returncode == 0
    samples = json.loads(done.stdout)["samples"]
    for seed, sample in enumerate(samples, 1):
        alone = ask(model, budget=16, landing=landing, seed=seed, temperature=None)
        for name in COMPARED:
            assert sample[name] == getattr(alone, name), (seed, name)
    assert len(samples) == 4
