"""Messages to token ids, so that no text can forge control.

Control tokens come from the templates only. Every '<' of every string that goes into a
template is followed by a mark; in the rendered text a control token without marks can then
only be the template's own. The text is split on those, unmarked and encoded as plain text:
a message that spells <|im_end|> or </think> is text about them. For every message that
spells none of them the ids are those of the official template and tokenizer.

Thoughts are therefore never looked for in the content of an assistant message: they belong
into its reasoning_content.

The templates are ours (templates/); the one in a model file is read, never executed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, get_args

from qwen3cli.errors import UsageError

if TYPE_CHECKING:
    import jinja2

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)
Tool = Mapping[str, Any]  # a JSON schema: {"type": "function", "function": {...}}


class _Speaker(TypedDict):
    role: Role


class Message(_Speaker, total=False):
    """One message, in the form that OpenAI's API and transformers share."""

    content: str | None
    reasoning_content: str | None  # an assistant's thoughts
    tool_calls: Sequence[Mapping[str, Any]] | None  # {"name": ..., "arguments": {...} or JSON text}
    name: str  # of the tool that answers; the templates do not use it


class Tokenizer(Protocol):
    """What a prompt needs of engine.Tokenizer."""

    def encode(self, text: str) -> list[int]: ...
    @property
    def added(self) -> Mapping[str, int]: ...


class Generation(Enum):
    """The three prompt formats of the family, by their template."""

    HYBRID = "hybrid"  # April 2025: thinks or not
    INSTRUCT = "instruct-2507"  # never thinks
    THINKING = "thinking-2507"  # always thinks


def detect_generation(metadata: Mapping[str, Any]) -> Generation:
    """The generation of a GGUF file, from the text of its template or else from its name."""
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        if "enable_thinking" in template:
            return Generation.HYBRID
        if "<think>" in template.rpartition("add_generation_prompt")[2]:
            return Generation.THINKING
        # A template that opens no thoughts decides nothing: in some files it was cut down. And
        # an unnamed model that does not think answers as well when it is taken for a hybrid.
    name = _name(metadata)
    if "thinking" in name:
        return Generation.THINKING
    if "instruct" in name or "coder" in name:
        return Generation.INSTRUCT
    return Generation.HYBRID


def is_coder(metadata: Mapping[str, Any]) -> bool:
    """Whether a GGUF file is a Qwen3-Coder, by its name."""
    return "coder" in _name(metadata)


def _name(metadata: Mapping[str, Any]) -> str:
    return " ".join(str(metadata.get(f"general.{key}", "")) for key in ("name", "finetune")).lower()


def render_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    generation: Generation,
    thinking: bool = True,
    tools: Sequence[Tool] | None = None,
    add_generation_prompt: bool = True,
) -> list[int]:
    """The ids of a conversation. thinking matters to the hybrid generation only.
    Raises UsageError for a role that does not exist."""
    text = _render_marked(messages, generation, thinking, tools, add_generation_prompt)
    added = tokenizer.added
    tokens = [token for token in CONTROL_TOKENS if token in added]
    ids: list[int] = []
    start = 0
    for match in re.finditer("|".join(map(re.escape, tokens)) or r"(?!)", text):
        ids += _encode_text(tokenizer, text[start : match.start()])
        ids.append(added[match.group()])
        start = match.end()
    return ids + _encode_text(tokenizer, text[start:])


# The added tokens that the templates write.
CONTROL_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)

# A lone surrogate is no character: cleaned text holds none, so this one is free to be a mark.
_MARK = "\ud800"
_SURROGATES = re.compile("[\ud800-\udfff]")


def _mark(value: Any) -> Any:
    """The value with every string in it cleaned and marked, dictionary keys included."""
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value).replace("<", "<" + _MARK)
    if isinstance(value, Mapping):
        return {_mark(key): _mark(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mark(item) for item in value]
    return value


def _unmark(text: str) -> str:
    return text.replace(_MARK, "")


def _encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(_unmark(text)) if text else []


def _template_message(message: Message) -> dict[str, Any]:
    """The message as the templates take it: marked, without None."""
    role = message.get("role")
    if role not in ROLES:
        raise UsageError(f"a message has the role {role!r}; it must be one of {', '.join(ROLES)}")
    content, thoughts = message.get("content") or "", message.get("reasoning_content") or ""
    if not isinstance(content, str) or not isinstance(thoughts, str):
        raise UsageError(f"a message of the {role} has content that is not text")
    return {
        "role": role,
        "content": _mark(content),
        "reasoning_content": _mark(thoughts),
        "tool_calls": _mark(message.get("tool_calls") or []),
    }


def _render_marked(
    messages: Sequence[Message],
    generation: Generation,
    thinking: bool,
    tools: Sequence[Tool] | None,
    add_generation_prompt: bool,
) -> str:
    import jinja2  # here: only a command that talks to a model waits for it

    template = _template(generation)
    try:
        return template.render(
            messages=[_template_message(message) for message in messages],
            tools=_mark(tools or []),
            enable_thinking=thinking,
            add_generation_prompt=add_generation_prompt,
        )
    except (TypeError, ValueError, jinja2.TemplateError) as error:
        raise UsageError(f"the messages or tools do not have the chat format: {error}") from None


@cache
def _template(generation: Generation) -> jinja2.Template:
    return _environment().get_template(f"{generation.value}.jinja")


@cache
def _environment() -> jinja2.Environment:
    from jinja2 import FileSystemLoader
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    package = Path(__file__).parent  # the templates are inside it once installed
    folders = [package / "templates", package.parent / "templates"]
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(folders), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment


def template_text(generation: Generation) -> str:
    """What the prompts of a generation are written by: its template, with those it includes."""
    from jinja2.meta import find_referenced_templates

    environment = _environment()
    assert environment.loader
    texts, names = "", [f"{generation.value}.jinja"]
    for name in names:
        text, _, _ = environment.loader.get_source(environment, name)
        texts += text
        names += filter(None, find_referenced_templates(environment.parse(text)))
    return texts
