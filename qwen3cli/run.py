"""One question, one answer; and the reply that `run` and `chat` stream alike."""

from __future__ import annotations

import sys
from pathlib import Path

from qwen3cli import obtain
from qwen3cli.engine import Model, Session
from qwen3cli.errors import ANSWER_CUT, INTERRUPTED, UsageError
from qwen3cli.interrupt import interruptible
from qwen3cli.options import Options
from qwen3cli.placement import Placement, place
from qwen3cli.prompt import Generation
from qwen3cli.session import Answer, Conversation, Events, Reply, Settings, Thought
from qwen3cli.terminal import Terminal


def run(prompt: str | None, options: Options, terminal: Terminal, *, as_json: bool) -> int:
    """Answers the prompt, or the text from a pipe, or both; returns the exit code."""
    text = _question(prompt)
    terminal.route_thoughts(options.thoughts, default=not as_json)
    conversation = open_conversation(options, terminal)
    settings = settings_of(options)
    events = conversation.reply(text, settings)
    reply = stream(conversation, events, settings, terminal, silent=as_json)
    if as_json:
        terminal.json(_json(conversation.session.model, reply))
    elif terminal.interactive:
        terminal.note(statistics(reply, conversation.session.model), dim=True)
    return exit_code(reply)


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
    placement = place(path, options.ram, n_ctx=options.ctx, kv=options.kv)
    if note := _expected(placement, path, options):
        terminal.note(note)
    model = Model(path, threads=options.threads, expert_bytes=placement.expert_bytes)
    model.approximate(prefer=options.prefer_cached, drop=options.drop_misses)
    return model.session(n_ctx=placement.n_ctx, kv=options.kv)


def _expected(placement: Placement, path: Path, options: Options) -> str | None:
    """What to tell of a model that is not all in memory, and how fast it will be."""
    sizes, ram = placement.sizes, placement.ram
    if sizes is None or ram is None or placement.where == "resident":
        return None
    from qwen3cli.machine import rates
    from qwen3cli.predict import at_best, predict

    machine = rates(path, options.threads)
    if placement.where == "mapped":
        return placement.warning(path.name, at_best(sizes, ram, machine))
    return placement.describe(path.stem, predict(sizes, placement.expert_bytes, machine))


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
    return Settings(
        think=options.think,
        budget=options.budget,
        max_tokens=options.max_tokens,
        stop=tuple(options.stop or ()),
        seed=options.seed,
        temperature=options.temp,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        presence_penalty=options.presence_penalty,
        repetition_penalty=options.repetition_penalty,
    )


def stream(
    conversation: Conversation,
    events: Events,
    settings: Settings,
    terminal: Terminal,
    *,
    silent: bool = False,
) -> Reply:
    """Shows a reply on the terminal as it comes; silent: without the answer. Where somebody
    watches, the first Ctrl-C among the thoughts asks for the answer; any other one ends the reply
    with what there is of it."""
    thinking = landing = False

    def stop() -> None:
        nonlocal landing
        if thinking and not landing and terminal.interactive:
            landing = True
            conversation.answer_now()
        else:
            conversation.interrupt()

    with interruptible(stop):
        for event in events:
            thinking = isinstance(event, Thought)
            if isinstance(event, Thought):
                terminal.thought(event.text)
            elif isinstance(event, Answer) and not silent:
                terminal.answer(event.text)
    assert isinstance(event, Reply)
    if event.answer_stop == "user":
        terminal.interrupted()
    terminal.end_thoughts()
    if not silent and (event.answer or event.answer_stop != "user"):
        terminal.end_answer()
    if event.answer_stop == "limit" and not silent and not terminal.interactive:
        at_limit = event.answer_tokens == settings.max_tokens
        end = "--max-tokens" if at_limit else "the end of the context, --ctx"
        size = settings.max_tokens if at_limit else conversation.session.n_ctx
        terminal.note(f"qwen3: the answer was cut at {end} {size}")
    return event


def statistics(reply: Reply, model: Model) -> str:
    """One line: what the reply took, why its parts ended, and what became of the experts, all in
    all, if not all of them are in memory."""
    thinking = "thinking off"
    if reply.thinking_stop != "off":
        budget = "" if reply.budget is None else f"/{reply.budget}"
        thinking = f"thinking {reply.thinking_tokens}{budget} tokens ({reply.thinking_stop})"
    answer = f"answer {reply.answer_tokens} tokens ({reply.answer_stop})"
    speed = f"{reply.decode_tok_s:.{0 if reply.decode_tok_s >= 10 else 2}f} tok/s"
    line = f"{thinking}, {answer}, {speed}, seed {reply.seed}"
    if (experts := model.expert_stats).budget_bytes:
        line += f", {experts.hit_rate:.1%} of experts in memory, {experts.bytes_read / 1e9:.2f} GB "
        line += f"read, {experts.stall_s:.1f} s waited"
    return line


def experts(model: Model) -> str | None:
    """What became of the experts of a model that are not all in memory, place by place."""
    stats = model.expert_stats
    if not stats.budget_bytes:
        return None
    return (
        f"experts: {stats.used_bytes / 1e9:.2f} of {stats.budget_bytes / 1e9:.2f} GB of memory in "
        f"use; {stats.hits:,} were in memory, {stats.misses:,} came from the file, "
        f"{stats.right_guesses:,} of them ahead by {stats.guesses:,} guesses "
        f"({stats.bytes_read / 1e9:.2f} GB read, {stats.stall_s:.1f} s waited)"
    )


def _question(prompt: str | None) -> str:
    """The prompt, a blank line, and the text from a pipe, as far as there are both."""
    piped = ""
    if sys.stdin is not None and not sys.stdin.isatty():
        piped = sys.stdin.buffer.read().decode("utf-8", "replace").rstrip("\r\n")
    text = "\n\n".join(part for part in (prompt, piped) if part)
    if not text.strip():
        raise UsageError("there is no prompt: give one as an argument or through a pipe")
    return text


def _json(model: Model, reply: Reply) -> dict[str, object]:
    return {
        "model": str(model.path),
        "prompt_tokens": reply.prompt_tokens,
        "thoughts": reply.thoughts,
        "answer": reply.answer,
        "thinking_tokens": reply.thinking_tokens,
        "budget": reply.budget,
        "thinking_stop": reply.thinking_stop,
        "inserted_tokens": reply.inserted_tokens,
        "answer_tokens": reply.answer_tokens,
        "answer_stop": reply.answer_stop,
        "seed": reply.seed,
        "prefill_tok_s": round(reply.prefill_tok_s, 1),
        "decode_tok_s": round(reply.decode_tok_s, 2),
    } | _experts(model)


def _experts(model: Model) -> dict[str, object]:
    """Nothing for a model that is in memory as a whole."""
    stats = model.expert_stats
    if not stats.budget_bytes:
        return {}
    return {
        "experts": {
            "budget_bytes": stats.budget_bytes,
            "hit_rate": round(stats.hit_rate, 4),
            "bytes_read": stats.bytes_read,
            "stall_s": round(stats.stall_s, 3),
            "used_bytes": stats.used_bytes,
            "hits": stats.hits,
            "misses": stats.misses,
            "guesses": stats.guesses,
            "right_guesses": stats.right_guesses,
        }
    }
