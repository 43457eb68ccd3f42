"""One question and its answer, or several; and the reply that `run` and `chat` show alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qwen3cli.engine import Session
from qwen3cli.errors import ANSWER_CUT, INTERRUPTED, ContextOverflow, Qwen3Error, UsageError
from qwen3cli.interrupt import interruptible, stoppable
from qwen3cli.library import obtain
from qwen3cli.opening import Opening
from qwen3cli.opening import open_session as opened
from qwen3cli.options import Options
from qwen3cli.plan.gpu import card
from qwen3cli.prompt import Generation
from qwen3cli.run import receipts
from qwen3cli.run.pieces import gather, joined, overflow
from qwen3cli.run.printer import Form, Printer
from qwen3cli.run.statistics import described, statistics, thought_for
from qwen3cli.session import Answer, Closed, Conversation, Event, Events, Reply, Settings, Thought
from qwen3cli.terminal import Terminal
from qwen3cli.thinking.budgets import parse_budget

if TYPE_CHECKING:
    from qwen3cli.grammar.schema import Schema


@dataclass(frozen=True)
class Order:
    """What is asked of a run, beside the options that it shares with a chat."""

    prompt: str | None
    files: Sequence[str]  # - for stdin
    form: Form
    samples: int = 1
    receipt: str | None = None  # a file
    schema: str | None = None  # a file; the answers keep to it


def run(order: Order, options: Options, terminal: Terminal) -> int:
    """Answers the prompt, files and text from a pipe; returns the exit code."""
    pieces = gather(order.prompt, order.files, terminal.note)
    _check_thoughts(options.thoughts, order)
    terminal.route_thoughts(options.thoughts, default=not order.form.is_json)
    if order.receipt is not None:
        receipts.check_name(order.receipt)
    schema = read_schema(order.schema)
    conversation = open_conversation(options, terminal)
    settings = settings_of(options)
    if schema is not None:
        settings = replace(settings, grammar=conversation.grammar(schema))
    printer = Printer(order.form, terminal)
    samples = _samples(conversation, joined(pieces), settings, order, printer, terminal)
    replies, codes = [], []
    try:
        for reply, code in samples:
            codes.append(code)
            if code != INTERRUPTED:
                replies.append(reply)
    except ContextOverflow as error:
        encode = conversation.session.model.tokenizer.encode
        raise overflow(error, pieces, lambda text: len(encode(text))) from None
    finally:  # an error does not take the answers before it
        printer.finish()
    if order.receipt is not None and replies:
        receipt = receipts.of(conversation, options, settings, schema, replies, terminal)
        receipts.write(receipt, order.receipt)
    return max(codes)


def _check_thoughts(where: str | None, order: Order) -> None:
    """Raises UsageError for a file that holds something else: it would be emptied."""
    if where in (None, "show", "dim", "fold", "hide"):
        return
    needed = [*order.files, *filter(None, (order.receipt, order.schema))]
    if os.path.realpath(str(where)) in map(os.path.realpath, needed):
        raise UsageError(f"--thoughts {where}: is for something else, too; choose another file")


def read_schema(file: str | None) -> Schema | None:
    """Of a file, if one is given. Raises UsageError: ask before a model is opened."""
    if file is None:
        return None
    from qwen3cli.grammar.schema import load

    return load(file)


def _samples(
    conversation: Conversation,
    text: str,
    settings: Settings,
    order: Order,
    printer: Printer,
    terminal: Terminal,
) -> Iterator[tuple[Reply, int]]:
    """The replies and their exit codes, one after the other, with the seeds that follow the
    first; an interrupted one is the last. The prompt is computed once."""
    session = conversation.session
    first = int.from_bytes(os.urandom(4), "little") if settings.seed is None else settings.seed
    for number in range(order.samples):
        seed = (first + number) % 2**64
        settings = replace(settings, seed=seed)
        printer.begin(str(session.model.path), seed)
        if number == 0:
            events = conversation.reply(text, settings)
        else:
            events = conversation.regenerate(settings)
        with stoppable(terminal.aside):
            reply = show(conversation, events, terminal, printer.part)
        there = printer.end(reply, described(reply, settings, session.model))
        code = exit_code(reply)
        if not there and code != INTERRUPTED:
            code = code or Qwen3Error.exit_code
            terminal.note("qwen3: the answer has no fenced block of code; without -x it is shown")
        if not order.form.is_json:
            tell(reply, settings, session, terminal)
            if terminal.interactive:
                terminal.note(statistics(reply, session), dim=True)
        yield reply, code
        if code == INTERRUPTED:
            break


def exit_code(reply: Reply) -> int:
    return {"limit": ANSWER_CUT, "user": INTERRUPTED}.get(reply.answer_stop, 0)


def open_conversation(options: Options, terminal: Terminal) -> Conversation:
    """An empty conversation with the model that the options choose, and a file of thoughts
    that is empty too."""
    conversation = Conversation(open_session(options, terminal), system=options.system)
    if why := objection(conversation, settings_of(options)):
        terminal.note(f"qwen3: {why}")
    terminal.empty_thoughts()
    return conversation


def open_session(options: Options, terminal: Terminal) -> Session:
    """A session of the model that the options choose."""
    path = obtain.choose(options.model, terminal)
    opening = Opening(
        path,
        options.ram,
        card(options.gpu, options.vram),
        options.ctx,
        options.kv,
        options.threads,
    )
    session = opened(opening, terminal.note, expected=True)
    session.model.approximate(prefer=options.prefer_cached, drop=options.drop_misses)
    return session


def objection(conversation: Conversation, settings: Settings) -> str | None:
    """Why the next answer will not come in the mode that was asked for, if it will not."""
    if settings.think in (None, conversation.thinks(settings)):
        return None
    if conversation.generation is Generation.THINKING:
        return "this model always thinks; a budget limits it"
    if conversation.generation is Generation.INSTRUCT:
        return "this model never thinks"
    if settings.budget == 0:
        return "a budget of 0 is no thinking"
    return "the last /no_think in the messages still holds"


def settings_of(options: Options) -> Settings:
    tokens, seconds = parse_budget(options.budget or "none")
    return Settings(
        think=options.think,
        budget=tokens,
        seconds=seconds,
        landing="hard" if options.landing == "hard" else "soft",
        max_tokens=options.max_tokens,
        stop=tuple(options.stop or ()),
        overflow="drop-oldest" if options.overflow == "drop-oldest" else "error",
        seed=options.seed,
        temperature=options.temp,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        presence_penalty=options.presence_penalty,
        repetition_penalty=options.repetition_penalty,
    )


def stream(
    conversation: Conversation, events: Events, settings: Settings, terminal: Terminal
) -> Reply:
    """Shows a reply on the terminal as it comes, and what there is to tell about it."""

    def show_answer(part: Event) -> None:
        if isinstance(part, Answer):
            terminal.answer(part.text)

    before = conversation.dropped
    reply = show(conversation, events, terminal, show_answer)
    if reply.answer or reply.answer_stop != "user":
        terminal.end_answer()
    tell(reply, settings, conversation.session, terminal)
    if new := reply.dropped - before:
        terminal.note(
            f"qwen3: the context was full: the oldest {new} messages are not sent any more"
        )
    return reply


def show(
    conversation: Conversation,
    events: Events,
    terminal: Terminal,
    part: Callable[[Event], None],
) -> Reply:
    """Shows the thoughts of a reply as they come, and hands every event to part. events: asked
    for before, so that Ctrl-C is for this reply and ends it with what there is of it. Where
    somebody watches, the first one among the thoughts ends these alone, and the answer follows."""
    thinking = landed = False

    def interrupt() -> None:
        nonlocal landed
        if thinking and not landed and terminal.interactive:
            landed = True
            conversation.answer_now()
        else:
            conversation.interrupt()

    with interruptible(interrupt):
        for event in events:
            if isinstance(event, Reply):
                break
            if isinstance(event, Thought):
                terminal.thought(event.text, event.tokens, event.limit, before=event.before)
            elif isinstance(event, Closed):
                terminal.end_thoughts(thought_for(event))
            part(event)
            thinking = isinstance(event, Thought)
    assert isinstance(event, Reply)
    if landed or event.answer_stop == "user":
        terminal.interrupted()
    terminal.end_thoughts()
    return event


def tell(reply: Reply, settings: Settings, session: Session, terminal: Terminal) -> None:
    """Notes what a reply lacks, where no statistics say it."""
    if reply.answer_stop == "limit" and not terminal.interactive:
        at_limit = reply.answer_tokens == settings.max_tokens
        end = "--max-tokens" if at_limit else "the end of the context, --ctx"
        size = settings.max_tokens if at_limit else session.n_ctx
        terminal.note(f"qwen3: the answer was cut at {end} {size}")
