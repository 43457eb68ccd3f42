"""Many questions from a file, some at a time: `run --batch`.

Each question in work has a session of its own. What is computed for one alone, its prompt above
all, is computed at once; the single tokens of all of them are computed together. So an answer has
the same bits whatever else is in work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qwen3cli.engine import TOGETHER, Cancelled, Grammar, Session, extend_together
from qwen3cli.errors import (
    ANSWER_CUT,
    INTERRUPTED,
    ContextOverflow,
    DoesNotFit,
    Qwen3Error,
    UsageError,
)
from qwen3cli.interrupt import interruptible
from qwen3cli.options import Options
from qwen3cli.plan.memory import available
from qwen3cli.plan.sizes import sizes_of
from qwen3cli.reply import Compute, Run
from qwen3cli.run.batch_lines import Answers, Question, read_questions
from qwen3cli.run.question import open_conversation, read_schema, settings_of
from qwen3cli.screen.streams import reason
from qwen3cli.session import Conversation
from qwen3cli.terminal import Terminal

_SHARE = 0.85  # of the memory that is available
_WORKING_MEMORY = 100_000_000  # bytes of a session beside its kv cache


@dataclass(frozen=True)
class Batch:
    """What is asked of it, beside the options that it shares with a run."""

    source: str
    target: str | None
    parallel: int | None = None  # None: as memory allows
    schema: str | None = None  # a file; the answers keep to it


def batch(order: Batch, options: Options, terminal: Terminal) -> int:
    """Answers what is not answered yet; returns the exit code."""
    if order.target is None:
        raise UsageError("--batch needs a file for the answers: -o FILE")
    if options.prefer_cached or options.drop_misses:
        raise UsageError(
            "--batch: with --prefer-cached or --drop-misses an answer depends on what else was "
            "asked; leave them out"
        )
    source, target = Path(order.source), Path(order.target)
    if target.exists() and source.exists() and target.samefile(source):
        raise UsageError(f"{source}: the answers go to another file than the questions")
    try:
        data = source.read_bytes()
    except OSError as error:
        raise Qwen3Error(f"{source}: {reason(error)}") from None
    schema = read_schema(order.schema)
    first = open_conversation(options, terminal)
    model = first.session.model
    questions = read_questions(data, options, model.path, schema)
    grammar = None if schema is None else first.grammar(schema)
    with closing(Answers(target, questions)) as answers:
        left = [question for question in questions if question.number not in answers.done]
        n = min(order.parallel or _most(first.session, terminal, len(left)), max(1, len(left)))
        lanes = [_Lane(first, grammar)]
        with suppress(DoesNotFit):  # a GPU is asked by trying
            while len(lanes) < n:
                session = model.session(n_ctx=first.session.n_ctx, kv=options.kv)
                lanes.append(_Lane(Conversation(session), grammar))
        if len(lanes) < n:
            _fewer(len(lanes), first.session, terminal)
        driver = _Driver(lanes, left)
        with terminal.progress(f"{source} to {target}") as move, interruptible(driver.stop):
            move(len(answers.done), len(questions))
            for question, answer in driver.answers():
                answers.add(question, answer)
                move(len(answers.done), len(questions))
        return _end(questions, answers, driver.stopped, terminal)


def _most(session: Session, terminal: Terminal, wanted: int) -> int:
    """How many sessions like this one memory holds when they are full, at most TOGETHER."""
    free, sizes = available(), sizes_of(session.model.path)
    if free is None or sizes is None:
        return TOGETHER
    experts = session.model.expert_stats.budget_bytes or sizes.experts
    room = int(free * _SHARE) - sizes.dense - experts
    n = max(1, min(TOGETHER, room // (session.kv_bytes + _WORKING_MEMORY)))
    if n < min(TOGETHER, wanted):
        _fewer(n, session, terminal)
    return n


def _fewer(n: int, session: Session, terminal: Terminal) -> None:
    terminal.note(
        f"qwen3: {n} at a time: memory holds no more contexts of {session.n_ctx:,} tokens; a "
        "smaller one (--ctx N) lets more be computed together"
    )


def _end(questions: Sequence[Question], answers: Answers, stopped: bool, terminal: Terminal) -> int:
    """Tells what came of it; the exit code."""
    records = [answers.done[q.number] for q in questions if q.number in answers.done]
    errors = sum("error" in record for record in records)
    cut = sum(record.get("answer_stop") == "limit" for record in records)
    text = f"qwen3: {len(records)} of {len(questions)} lines are done"
    text += f", {errors} with errors" if errors else ""
    text += f", {cut} with answers that were cut" if cut else ""
    if stopped:
        text += "; the same command goes on from here"
    if stopped or errors or cut or terminal.interactive:
        terminal.note(text)
    return INTERRUPTED if stopped else Qwen3Error.exit_code if errors else ANSWER_CUT if cut else 0


class _Lane:
    """A session, and the question that it answers."""

    def __init__(self, conversation: Conversation, grammar: Grammar | None) -> None:
        self.session = conversation.session
        self.token: int | None = None  # to be computed, then advance; None: it is done
        self.question: Question
        self.run: Run
        self._conversation = conversation
        self._grammar = grammar

    def begin(self, question: Question) -> None:
        """Raises ContextOverflow."""
        conversation = self._conversation
        conversation.clear()
        conversation.system = question.options.system
        conversation.messages = list(question.messages)
        self.question = question
        settings = replace(settings_of(question.options), grammar=self._grammar)
        self.run = conversation.run(settings)
        self._steps = self.run.steps()
        self.advance()

    def advance(self) -> None:
        """To the next token that can be computed together with others, or to the end."""
        self.token = None
        reused: int | None = None
        try:
            while True:
                event = self._steps.send(reused)
                reused = None
                if not isinstance(event, Compute):
                    continue
                if event.prompt:
                    reused = self.session.sync(event.ids)
                elif len(event.ids) > 1:
                    self.session.extend(event.ids)
                else:
                    self.token = event.ids[0]
                    return
        except StopIteration:
            return


class _Driver:
    def __init__(self, lanes: Sequence[_Lane], questions: Sequence[Question]) -> None:
        self.stopped = False
        self._free = list(lanes)
        self._sessions = [lane.session for lane in lanes]
        self._questions = deque(questions)

    def stop(self) -> None:
        """What is in work is given up. From any thread or signal handler."""
        self.stopped = True
        for session in self._sessions:
            session.cancel()

    def answers(self) -> Iterator[tuple[Question, dict[str, Any]]]:
        """One after the other as they come, until all are there or it is stopped."""
        busy: list[_Lane] = []
        try:
            while not self.stopped:
                while self._questions and self._free and not self.stopped:
                    yield from self._begin(self._questions.popleft(), busy)
                if not busy:
                    return
                for lanes in (busy[i : i + TOGETHER] for i in range(0, len(busy), TOGETHER)):
                    tokens = [lane.token for lane in lanes if lane.token is not None]
                    extend_together([lane.session for lane in lanes], tokens)
                for lane in list(busy):
                    lane.advance()
                    if lane.token is None:
                        busy.remove(lane)
                        self._free.append(lane)
                        yield lane.question, _answer(lane.run)
        except Cancelled:
            return

    def _begin(
        self, question: Question, busy: list[_Lane]
    ) -> Iterator[tuple[Question, dict[str, Any]]]:
        """Lets a free session begin; yields what is an answer already."""
        if question.error:
            yield question, {"error": question.error}
            return
        lane = self._free[-1]
        try:
            lane.begin(question)
        except ContextOverflow as error:
            yield question, {"error": f"line {question.number}: {error}"}
            return
        if lane.token is None:
            yield question, _answer(lane.run)
            return
        busy.append(self._free.pop())


def _answer(run: Run) -> dict[str, Any]:
    reply = run.reply
    return {
        "answer": reply.answer,
        "thoughts": reply.thoughts,
        "prompt_tokens": reply.prompt_tokens,
        "thinking_tokens": reply.thinking_tokens,
        "budget": reply.budget,
        "thinking_stop": reply.thinking_stop,
        "inserted_tokens": reply.inserted_tokens,
        "answer_tokens": reply.answer_tokens,
        "answer_stop": reply.answer_stop,
        "seed": reply.seed,
    }
