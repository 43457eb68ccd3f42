"""The slash commands of chat, in one table: what each takes, what it does, how it is completed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from qwen3cli.chat.archive import format_of, written
from qwen3cli.chat.completion import Choice, Choices, nothing, paths, words
from qwen3cli.chat.talk import Talk
from qwen3cli.config import KEYS, Setting, check_key, parse
from qwen3cli.errors import UsageError
from qwen3cli.folders import replace as write
from qwen3cli.interrupt import uninterrupted
from qwen3cli.options import check_setting, complete_models
from qwen3cli.prompt import Message, render_prompt
from qwen3cli.run import pieces
from qwen3cli.run.question import objection
from qwen3cli.run.statistics import experts, gpu
from qwen3cli.screen.sanitize import clean
from qwen3cli.session import Settings
from qwen3cli.thinking.budgets import parse_budget


@dataclass(frozen=True)
class Command:
    run: Callable[[Talk, str], None]  # with its argument
    takes: str  # as the help shows it
    about: str
    choices: Choices
    slow: bool  # it may take its time, and Ctrl-C ends it


COMMANDS: dict[str, Command] = {}
_Run = Callable[[Talk, str], None]


def _command(
    name: str, takes: str, about: str, choices: Choices = nothing, *, slow: bool = False
) -> Callable[[_Run], _Run]:
    def register(run: _Run) -> _Run:
        COMMANDS[name] = Command(run, takes, about, choices, slow)
        return run

    return register


def execute(talk: Talk, line: str) -> bool:
    """Does what a line says if it is a command; else it is a message, and nothing is done. Raises
    Qwen3Error and OSError, and then nothing has changed."""
    word, _, argument = line.partition(" ")
    argument = argument.strip()
    soft_switch = word in ("/think", "/no_think") and argument
    if soft_switch or not re.fullmatch(r"/\w+", word):
        return False
    if word not in COMMANDS:
        close = get_close_matches(word, COMMANDS, 1)
        hint = f"did you mean {close[0]}?" if close else "/help lists them."
        raise UsageError(f"unknown command {word}; {hint} A space before it makes it a message")
    command = COMMANDS[word]
    with nullcontext() if command.slow else uninterrupted():
        command.run(talk, argument)
    return True


def choices(typed: str) -> Iterable[Choice]:
    """How a line that begins so may go on."""
    word, space, argument = typed.partition(" ")
    if not word.startswith("/") or "\n" in typed:
        return ()
    if space:
        return COMMANDS[word].choices(argument.lstrip()) if word in COMMANDS else ()
    return (
        Choice(name + " " * bool(command.takes), len(word), command.about)
        for name, command in COMMANDS.items()
        if name.startswith(word)
    )


def _one_of(*known: str) -> Choices:
    return lambda typed: words(((word, "") for word in known), typed)


def _models(typed: str) -> Iterator[Choice]:
    if typed.startswith(("/", "~", ".")):
        yield from paths(typed)
    else:
        yield from words(((name, "") for name in complete_models(typed)), typed)


# ---- thinking ---------------------------------------------------------------


@_command("/think", "", "think before the answers; inside a message: for one")
def _think(talk: Talk, _argument: str) -> None:
    talk.settings = replace(talk.settings, think=True)
    _mode(talk)


@_command("/no_think", "", "answer at once")
def _no_think(talk: Talk, _argument: str) -> None:
    talk.settings = replace(talk.settings, think=False)
    _mode(talk)


@_command("/budget", "[N|30s|none]", "the most that thinking takes", _one_of("none"))
def _budget(talk: Talk, argument: str) -> None:
    if argument:
        _set_to(talk, "budget", argument)
    _mode(talk)


@_command(
    "/landing",
    "[soft|hard]",
    "a budget ends at a sentence, or to the token",
    _one_of("soft", "hard"),
)
def _landing(talk: Talk, argument: str) -> None:
    if argument:
        _set_to(talk, "landing", argument)
    talk.terminal.note(f"landing {talk.settings.landing}")


@_command("/more", "N", "think up to N tokens more, and answer anew")
def _more(talk: Talk, argument: str) -> None:
    if not re.fullmatch(r"[1-9]\d{0,8}", argument):
        raise UsageError("/more takes a number of tokens, such as /more 1000")
    talk.more(int(argument))


def _mode(talk: Talk) -> None:
    """Notes how the next message will be answered, if it has no switch of its own."""
    settings = talk.settings
    limits = [] if settings.budget is None else [str(settings.budget)]
    limits += [] if settings.seconds is None else [f"{settings.seconds:g} s"]
    thinking = "on" if talk.conversation.thinks(settings) else "off"
    why = objection(talk.conversation, settings)
    budget = " or ".join(limits) or "none"
    talk.terminal.note(f"thinking {thinking}, budget {budget}" + (f": {why}" if why else ""))


# ---- turns ------------------------------------------------------------------


@_command("/regen", "", "answer the last message anew")
def _regen(talk: Talk, _argument: str) -> None:
    talk.regenerate()


@_command("/undo", "", "take back the last message and its answer")
def _undo(talk: Talk, _argument: str) -> None:
    before = talk.conversation.dropped
    text = talk.conversation.undo()
    if text is None:
        raise UsageError("there is no message to take back")
    talk.store(lambda transcript: transcript.undo())
    talk.terminal.note(f"taken back: {beginning(text)}")
    if before and talk.conversation.messages and not talk.conversation.dropped:
        talk.terminal.note("all that was said before is sent again")


@_command("/edit", "[TEXT]", "change the last message and answer it anew")
def _edit(talk: Talk, argument: str) -> None:
    """With a text that is the message; else it is on the next line, to be changed."""
    messages = [m for m in talk.conversation.messages if m["role"] == "user"]
    if not messages:
        raise UsageError("there is no message to change")
    if argument:
        talk.say_instead(argument)
    elif not (talk.typed and talk.terminal.draws):
        raise UsageError("/edit takes the new text here: /edit TEXT")
    else:
        talk.editing = messages[-1].get("content") or ""


@_command("/system", "[TEXT|none]", "the system message from now on", _one_of("none"))
def _system(talk: Talk, argument: str) -> None:
    conversation = talk.conversation
    if argument:
        conversation.settle()
        conversation.system = None if argument == "none" else argument
        talk.store(lambda transcript: transcript.set_system(conversation.system))
    system = conversation.system
    talk.terminal.note("no system message" if system is None else f"system message: {system}")


@_command("/file", "[PATH...|none]", "send files with the next message", paths, slow=True)
def _file(talk: Talk, argument: str) -> None:
    if argument == "none":
        talk.files.clear()
    else:
        read = {name: pieces.read(str(_path(name))) for name in _words(argument)}
        talk.files |= read
    encode = talk.conversation.session.model.tokenizer.encode
    for name, text in talk.files.items():
        count = len(encode(pieces.delimited(name, text)))
        talk.terminal.note(f"{name}: {count:,} tokens, goes with the next message")
    if not talk.files:
        talk.terminal.note("no file goes with the next message")


@_command("/clear", "", "forget the conversation")
def _clear(talk: Talk, _argument: str) -> None:
    talk.conversation.clear()
    talk.files.clear()
    talk.store(lambda transcript: transcript.clear())
    talk.terminal.note("conversation forgotten")


# ---- files ------------------------------------------------------------------


@_command(
    "/save",
    "[-f] [FILE]",
    "write the conversation: FILE.md, FILE.json; -f: over one",
    paths,
    slow=True,
)
def _save(talk: Talk, argument: str) -> None:
    names = _words(argument)
    force = names[:1] == ["-f"]
    names = names[force:] or [f"chat-{datetime.now():%Y%m%d-%H%M%S}.md"]
    if len(names) > 1:
        raise UsageError("/save takes one FILE; a space in its name is written '\\ '")
    if not talk.conversation.messages:
        raise UsageError("there is nothing to save yet")
    path, form = _path(names[0]), format_of(names[0])
    if form == "jsonl":
        raise UsageError("/save writes Markdown, .json or .txt")
    if path.exists() and not (force and path.is_file()):
        hint = "; -f writes over it" if path.is_file() else ", and no file"
        raise UsageError(f"{path}: exists already{hint}")
    write(path, clean(written(talk.as_stored(), form, thoughts=True)))
    talk.terminal.note(f"saved as {path}")


@_command("/load", "FILE", "take up a conversation that was saved as FILE.json", paths, slow=True)
def _load(talk: Talk, argument: str) -> None:
    names = _words(argument)
    if len(names) != 1:
        raise UsageError("/load takes one FILE; a space in its name is written '\\ '")
    messages, system = _loaded(pieces.read(str(_path(names[0]))), names[0])
    talk.replace(messages, system)
    turns = len(messages) // 2
    talk.terminal.note(f"{turns} turn{'s' * (turns != 1)} loaded from {names[0]}")


def _loaded(text: str, name: str) -> tuple[list[Message], str | None]:
    """The messages in a JSON text and their system message. Raises UsageError that names what is
    wrong with them."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name}: is no JSON: {error}") from None
    if isinstance(value, dict):
        value = value.get("messages")
    if not isinstance(value, list) or not value:
        raise UsageError(f"{name}: holds no messages")
    system: str | None = None
    messages: list[Message] = []
    for number, message in enumerate(value, 1):
        role = message.get("role") if isinstance(message, dict) else None
        if role == "system" and number == 1:
            system = _text(message, "content", f"{name}: message {number}")
            continue
        expected = ("user", "assistant")[len(messages) % 2]
        if role != expected:
            raise UsageError(
                f"{name}: message {number} is of the role {role!r}, not {expected!r}: a chat is "
                "messages and answers in turn, behind a system message at most"
            )
        kept: dict[str, str] = {"role": role, "content": _text(message, "content", name)}
        if message.get("reasoning_content") is not None:
            kept["reasoning_content"] = _text(message, "reasoning_content", name)
        messages.append(cast(Message, kept))
    if len(messages) % 2:
        raise UsageError(f"{name}: the last message has no answer")
    return messages, system


def _text(message: dict[str, Any], key: str, name: str) -> str:
    found = message.get(key)
    if not isinstance(found, str):
        raise UsageError(f"{name}: the {key} of a message is no text")
    return found


def _words(argument: str) -> list[str]:
    """The words of an argument, as a shell reads them. Raises UsageError."""
    try:
        return shlex.split(argument)
    except ValueError as error:
        raise UsageError(
            f"{argument}: {str(error).lower()}; \\ stands before what is no end"
        ) from None


def _path(name: str) -> Path:
    if "\0" in name:
        raise UsageError(f"{name}: a file's name has no NUL in it")
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UsageError(f"{name}: there is no such home directory") from None


# ---- what there is ----------------------------------------------------------


@_command("/ctx", "", "the tokens of the context, message by message")
def _ctx(talk: Talk, _argument: str) -> None:
    conversation, note = talk.conversation, talk.terminal.note
    tokenizer, n_ctx = conversation.session.model.tokenizer, conversation.session.n_ctx

    def count(messages: list[Message]) -> int:
        return len(
            render_prompt(
                tokenizer,
                messages,
                generation=conversation.generation,
                add_generation_prompt=False,
            )
        )

    nobody: Message = {"role": "user", "content": ""}
    if conversation.system is not None:
        system: Message = {"role": "system", "content": conversation.system}
        note(f"{'system':<10}{count([system]):>8,}  {beginning(conversation.system)}", hang=20)
    for index, message in enumerate(conversation.messages):
        # Between others: what was said before the last message goes without its thoughts.
        tokens = count([nobody, message, nobody]) - count([nobody, nobody])
        who = "you" if message["role"] == "user" else "answer"
        sent = "" if index >= conversation.dropped else "(not sent any more) "
        note(f"{who:<10}{tokens:>8,}  {sent}{beginning(message.get('content') or '')}", hang=20)
    used, held = conversation.used(), conversation.held()
    note(f"{used:,} of {n_ctx:,} tokens are used ({used / n_ctx:.0%}), {n_ctx - used:,} are left")
    note(f"the next prompt begins with these {used:,}, of which {held:,} are computed already")


@_command("/stats", "", "turns, settings, the last reply, experts, the GPU")
def _stats(talk: Talk, _argument: str) -> None:
    conversation, note = talk.conversation, talk.terminal.note
    turns = sum(message["role"] == "user" for message in conversation.messages)
    used, n_ctx = conversation.used(), conversation.session.n_ctx
    note(f"{turns} turn{'s' * (turns != 1)}, {used:,} of {n_ctx:,} tokens of context")
    _mode(talk)
    if talk.last is not None:
        note(f"last reply: {talk.last_statistics}")
    for line in (experts(conversation.session.model), gpu(conversation.session.model)):
        if line:
            note(line)
    if talk.transcript and talk.transcript.turns:
        note(f"session {talk.transcript.id}")


@_command("/model", "[NAME]", "talk to another model about the same", _models, slow=True)
def _model(talk: Talk, argument: str) -> None:
    if argument:
        names = _words(argument)
        talk.switch(str(_path(names[0])) if len(names) == 1 else argument)
    talk.terminal.note(talk.plan())


# ---- settings ---------------------------------------------------------------


_FIELDS = {key: {"temp": "temperature"}.get(key, key.replace("-", "_")) for key in KEYS}
_SETTABLE = [key for key, name in _FIELDS.items() if name in {f.name for f in fields(Settings)}]
_ABOUT = {"budget": "N, 30s or none", "seed": "none: a new one each time"}


def _complete_set(typed: str) -> Iterable[Choice]:
    name, space, value = typed.partition(" ")
    if not space:
        return words(((key, _ABOUT.get(key, "")) for key in _SETTABLE), name, " ")
    known = {
        "think": ("on", "off"),
        "landing": ("soft", "hard"),
        "overflow": ("error", "drop-oldest"),
    }
    return words(((each, "") for each in (*known.get(name, ()), "none")), value.lstrip())


@_command(
    "/set", "[NAME VALUE]", "a setting, such as temp 0.7; none: as the model has it", _complete_set
)
def _set(talk: Talk, argument: str) -> None:
    key, _, text = argument.partition(" ")
    names = _SETTABLE
    if key:
        key = check_key(key)
        if key not in _SETTABLE:
            raise UsageError(_elsewhere(key))
        if text := text.strip():
            _set_to(talk, key, text)
        names = [key]
    for name in names:
        talk.terminal.note(f"{name:<19}{_shown(talk, name)}")


def _set_to(talk: Talk, key: str, text: str) -> None:
    """Raises UsageError for what the setting cannot be."""
    if key == "budget":
        tokens, seconds = parse_budget(text)
        talk.settings = replace(talk.settings, budget=tokens, seconds=seconds)
        return
    name = _FIELDS[key]
    if text.lower() == "none":
        value = getattr(Settings(), name)
    else:
        value = check_setting(key, Setting(parse(key, text, key), ""))
    talk.settings = replace(talk.settings, **{name: value})


def _shown(talk: Talk, key: str) -> str:
    """The value of a setting, as it is for the next message."""
    settings, name = talk.settings, _FIELDS[key]
    if key == "budget" and settings.seconds is not None:
        tokens = "" if settings.budget is None else f"{settings.budget} or "
        return f"{tokens}{settings.seconds:g}s"
    value = getattr(settings, name)
    if value is None and key not in ("seed", "budget", "max-tokens", "think"):
        thinking = talk.conversation.thinks(settings)
        value = getattr(settings.sampling(thinking, coder=talk.conversation.coder), name)
        return f"{value:g} (the model's)"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


def _elsewhere(key: str) -> str:
    """Why a setting is not one of those, and where it is."""
    if key in ("model", "system"):
        return f"/{key} sets the {key}"
    return f"{key} cannot change in a chat: end it, and begin one with --{key}"


# ---- the chat itself --------------------------------------------------------


@_command("/fold", "", "show the last thoughts, or fold them; Ctrl-T does")
def _fold(talk: Talk, _argument: str) -> None:
    talk.terminal.toggle_fold()


@_command("/help", "", "this list")
def _help(talk: Talk, _argument: str) -> None:
    for name, command in COMMANDS.items():
        talk.terminal.note(f"{f'{name} {command.takes}':<22} {command.about}", hang=23)
    talk.terminal.note("Alt-Enter, or a \\ at the end: a new line. Ctrl-G: your editor.")
    talk.terminal.note("Ctrl-R: search. Ctrl-C: drops the line; while it thinks: answer now.")


@_command("/exit", "", "leave, as Ctrl-D and /quit do")
def _exit(talk: Talk, _argument: str) -> None:
    talk.left = True


COMMANDS["/quit"] = replace(COMMANDS["/exit"], about="leave")


def beginning(text: str, most: int = 50) -> str:
    """Of a text, on a line, as far as that many characters."""
    line = " ".join(text[: 8 * most].split())
    return line if len(line) <= most else line[: most - 3] + "..."
