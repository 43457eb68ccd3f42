"""qwen3 with a model that says what a file tells it, at the pace of a test.

    python tests/scripted.py chat -m nano

Beside the real program, in the working directory: script.json, for each message what is thought
and what is answered; a message that is not in it is answered by itself. At each ⏸ in a text the
model waits until the file `steps` holds another byte, or until Ctrl-C hurries it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

from qwen3cli import __main__, engine, session

PAUSE = "⏸"
_hurry = Event()
_passed: list[tuple[int, int]] = []  # of a reply that begins there, the token behind a pause


def _sample(self: engine.Session, *_sampling: object, **_more: object) -> int:
    """In place of Session.sample: the next token of the script."""
    tokenizer, ids = self.model.tokenizer, self.ids
    added = tokenizer.added
    turn = _last(ids, added["<|im_start|>"])
    reply = ids[turn:]
    said = tokenizer.decode(ids[_last(ids[:turn], added["<|im_start|>"]) :], skip_control=True)
    message = said.partition("user\n")[2].rpartition("assistant\n")[0].strip()
    path = Path("script.json")
    script = json.loads(path.read_text("utf-8")) if path.exists() else {}
    thoughts, answer = script.get(message, (f"They say: {message}", message))
    if added["</think>"] in reply:
        done = reply[reply.index(added["</think>"]) + 1 :]
        texts = ["\n\n", answer]
        end = added["<|im_end|>"]
    else:
        done = reply[len(tokenizer.encode("<|im_start|>assistant\n", added=True)) :]
        texts = ["<think>", f"\n{thoughts}\n"]
        end = added["</think>"]
    tokens: list[int] = []
    for text in texts:
        for number, part in enumerate(text.split(PAUSE)):
            if number and len(tokens) == len(done):
                _wait((turn, len(ids)))
            tokens += tokenizer.encode(part, added=part == "<think>")
    return [*tokens, end][min(len(done), len(tokens))]


def _last(ids: list[int], token: int) -> int:
    return len(ids) - 1 - ids[::-1].index(token)


def _wait(place: tuple[int, int]) -> None:
    if place in _passed[-1:]:  # asked twice
        return
    if _passed and _passed[-1][0] != place[0]:
        _hurry.clear()
    _passed.append(place)
    steps = Path("steps")
    while not steps.exists() or steps.stat().st_size < len(_passed):
        if _hurry.wait(0.005):
            with steps.open("a") as file:
                file.write(".")
            _hurry.clear()


def _hurried(wish: Callable[[Any], None]) -> Callable[[Any], None]:
    def wished(conversation: Any) -> None:
        wish(conversation)
        _hurry.set()

    return wished


if __name__ == "__main__":
    setattr(engine.Session, "sample", _sample)  # noqa: B010
    for name in ("interrupt", "answer_now"):
        setattr(session.Conversation, name, _hurried(getattr(session.Conversation, name)))
    __main__.main()
