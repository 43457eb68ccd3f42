"""Writes tests/data/prompt_vectors.json.gz: conversations, their prompts, their token ids.

The text is rendered by transformers from the official chat templates, the ids come from
tokenizers with the official Qwen3 tokenizer and with that of the nano models.

The hybrid template is the one in tests/data/qwen3-tokenizer/tokenizer_config.json. Those of
the 2507 releases differ from it in the places given below, and only there (besides taking
content that is no text for empty); instruct drops the whole machinery of thoughts.

    python tests/vectors/make_prompts.py        # needs transformers and tokenizers
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import _compile_jinja_template

DATA = Path(__file__).parent.parent / "data"
CONVERSATIONS = 400

WORDS = r"""
hello world What is 17 + 48 - 5? 질문 하나 할게요 你好，世界 こんにちは мир שלום مرحبا नमस्ते ไทย
naïve café Zürich 𝒳𝒴 🙂👩‍👩‍👧 < > << <tag> a<b </div> <|x|> {"k": [1, 2.5e-3]} `code` $x^2$ \n
"quoted" 'single' 3.14159 1234567890 don't we'll Å ﬁ ½ ² /think /no_think https://qwen.ai/a?b=c#d
""".split()  # noqa: SIM905
WORDS += ["e\u0301", "\u200b", "\ufeff", "\u00a0", "\t", "\u2028", "<\u0338"]
EDGES = ["", " ", "\n", "\n\n", "  leading", "trailing  ", "\ttab", "a\nb", "\n\nx\n\n"]
EDGES += ["\r\n", "<", "<|", "|>", "{{ 7 * 7 }}", "{% if %}"]


def official_templates() -> dict[str, str]:
    config = json.loads((DATA / "qwen3-tokenizer/tokenizer_config.json").read_text())
    hybrid = config["chat_template"]

    def swap(template: str, start: str, end: str, new: str) -> str:
        """The template with new in place of what runs from start up to end."""
        head, found, rest = template.partition(start)
        _, found_end, tail = rest.partition(end)
        assert found and found_end, (start, end)
        return head + new + end + tail

    opening, last = "    {{- '<|im_start|>assistant\\n' }}\n    {%- if enable", "\n{%- endif %}"
    thinking = swap(hybrid, opening, last, "    {{- '<|im_start|>assistant\\n<think>\\n' }}")
    instruct = swap(hybrid, opening, last, "    {{- '<|im_start|>assistant\\n' }}")
    instruct = swap(instruct, "{%- set ns = namespace", "{%- for message in messages %}", "")
    instruct = swap(
        instruct,
        "        {%- set reasoning_content = '' %}",
        "        {%- if message.tool_calls %}",
        "        {{- '<|im_start|>' + message.role + '\\n' + content }}\n",
    )
    return {"hybrid": hybrid, "instruct-2507": instruct, "thinking-2507": thinking}


def text(r: random.Random, longest: int = 12) -> str:
    if r.random() < 0.12:
        return r.choice(EDGES)
    words = (r.choice(WORDS) for _ in range(r.randint(1, longest)))
    return "".join(word + r.choice([" ", " ", " ", "\n", "  ", "", ". "]) for word in words)


def value(r: random.Random, depth: int = 0) -> Any:
    kind = r.randrange(7 if depth < 2 else 5)
    if kind < 2:
        return text(r, 4)
    if kind < 5:
        return r.choice([0, -3, 2.5, 1e-7, 10**18, True, False, None])
    if kind == 5:
        return [value(r, depth + 1) for _ in range(r.randrange(3))]
    return {text(r, 2): value(r, depth + 1) for _ in range(r.randrange(3))}


def tool(r: random.Random) -> dict[str, Any]:
    names = [f"{r.choice(['get', 'set', '查'])}_{i}" for i in range(r.randrange(3))]
    function = {
        "name": r.choice(["get_weather", "search", "계산기", "run"]),
        "description": text(r, 6),
        "parameters": {
            "type": "object",
            "properties": {name: {"type": "string", "description": text(r, 3)} for name in names},
            "required": names,
        },
    }
    return {"type": "function", "function": function}


def call(r: random.Random) -> dict[str, Any]:
    arguments: Any = {r.choice(["city", "数", "q"]): value(r) for _ in range(r.randrange(3))}
    if r.random() < 0.3:
        arguments = json.dumps(arguments, ensure_ascii=r.random() < 0.5)
    function = {"name": r.choice(["get_weather", "search"]), "arguments": arguments}
    return function if r.random() < 0.4 else {"type": "function", "function": function}


def assistant(r: random.Random) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text(r)}
    kind = r.random()
    if kind < 0.5:
        message["reasoning_content"] = text(r)
    elif kind < 0.6:
        message["reasoning_content"] = None
    return message


def conversation(r: random.Random) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if r.random() < 0.4:
        messages.append({"role": "system", "content": text(r)})
    for turn in range(r.choice([1, 1, 1, 2, 3])):
        if turn and r.random() < 0.1:
            messages.append({"role": "system", "content": text(r)})
        messages.append({"role": "user", "content": text(r)})
        for _ in range(r.choice([0, 0, 1, 2])):
            step = assistant(r) | {"tool_calls": [call(r) for _ in range(r.randint(1, 2))]}
            if r.random() < 0.3:
                step["content"] = r.choice([None, ""])
            messages.append(step)
            for _ in step["tool_calls"]:
                messages.append({"role": "tool", "name": "search", "content": text(r)})
        if r.random() < 0.85:
            messages.append(assistant(r))
    if messages[-1]["role"] == "assistant" and r.random() < 0.7:
        messages.pop()
    return messages


def main() -> None:
    r = random.Random(3)
    templates = {name: _compile_jinja_template(t) for name, t in official_templates().items()}
    raw = gzip.decompress((DATA / "qwen3-tokenizer/tokenizer.json.gz").read_bytes())
    tokenizers = {
        "qwen3": Tokenizer.from_str(raw.decode()),
        "nano": Tokenizer.from_file(str(DATA / "nano-dense/tokenizer.json")),
    }
    added = {token["content"] for token in json.loads(raw)["added_tokens"]}
    vectors = []
    for i in range(CONVERSATIONS):
        messages = conversation(r)
        assert not any(token in json.dumps(messages, ensure_ascii=False) for token in added)
        vector: dict[str, Any] = {
            "messages": messages,
            "tools": [tool(r) for _ in range(r.randint(1, 2))] if r.random() < 0.3 else None,
            "generation": ["hybrid", "hybrid", "instruct-2507", "thinking-2507"][i % 4],
            "thinking": r.random() < 0.5,
            "add_generation_prompt": messages[-1]["role"] != "assistant" or r.random() < 0.5,
        }
        # The official templates stop at content that is null; their later versions take "".
        given = [m | {"content": m["content"] or ""} for m in messages]
        vector["text"] = templates[vector["generation"]].render(
            messages=given,
            tools=vector["tools"],
            enable_thinking=vector["thinking"],
            add_generation_prompt=vector["add_generation_prompt"],
        )
        for name, tokenizer in tokenizers.items():
            vector[name] = tokenizer.encode(vector["text"], add_special_tokens=False).ids
        vectors.append(vector)
    out = DATA / "prompt_vectors.json.gz"
    lines = json.dumps(vectors, ensure_ascii=False, separators=(",", ":"))
    out.write_bytes(gzip.compress(lines.encode(), mtime=0))


if __name__ == "__main__":
    main()
