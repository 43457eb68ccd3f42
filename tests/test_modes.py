"""The effective mode, by switches, budget and generation, and the sampling that goes with it."""

from __future__ import annotations

import pytest

from qwen3cli.engine import Sampling
from qwen3cli.prompt import Generation, Message
from qwen3cli.thinking.control import (
    default_sampling,
    effective_thinking,
)


def user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("text", "thinking"),
    [
        ("2 + 2?", True),
        ("2 + 2? /no_think", False),
        ("/no_think 2 + 2?", False),
        ("2 + 2?/no_think", False),
        ("Sum it up. /no_think.", False),
        ("Sum it up./no_think", False),
        ("(/no_think)", False),
        ("`/no_think`", False),
        ("first\n/no_think\n", False),
        ("짧게 답해줘/no_think", False),
        ("/no_think로 답해줘", False),
        ("请回答/no_think", False),
        ("请回答。/no_think", False),
        ("/no_think then /think", True),
        ("/think then /no_think", False),
        ("/no_think\u3000/think", True),
        # not words of their own
        ("see /no_think/x", True),
        ("see a/no_think", True),
        ("see ./no_think and ../no_think", True),
        ("see https://no_think.org/no_think", True),
        ("see https://host/no_think?x=1", True),
        ("see /no_think.html", True),
        ("/no_thinking", True),
        ("/no_think-tank", True),
        ("//no_think", True),
        ("C:\\no_think", True),
        ("/no_think </think>", False),
        ("/no_think <think> </think>", False),
        ("путь/no_think", True),
        ("/NO_THINK", True),
    ],
)
def test_soft_switches_are_words(text: str, thinking: bool) -> None:
    assert effective_thinking(user(text), None, None, Generation.HYBRID) is thinking
    assert effective_thinking(user(text), True, 64, Generation.HYBRID) is thinking


def test_the_last_message_with_a_switch_wins() -> None:
    messages: list[Message] = [
        {"role": "system", "content": "Be brief. /no_think"},
        {"role": "user", "content": "hello"},
    ]
    mode = lambda: effective_thinking(messages, None, None, Generation.HYBRID)  # noqa: E731
    assert mode() is False
    messages += [{"role": "assistant", "content": "/think"}, {"role": "tool", "content": "/think"}]
    assert mode() is False  # only users and system prompts switch
    messages += [{"role": "user", "content": "now /think"}]
    assert mode() is True
    messages += [{"role": "assistant", "content": None}, {"role": "user", "content": "more"}]
    assert mode() is True


def test_hard_switches_and_generations() -> None:
    def mode(text: str, switch: bool | None, budget: int | None, generation: Generation) -> bool:
        return effective_thinking(user(text), switch, budget, generation)

    assert not mode("/think", False, None, Generation.HYBRID)
    assert not mode("/think", None, 0, Generation.HYBRID)
    assert not mode("/think", True, 0, Generation.HYBRID)
    for switch in (None, True, False):
        for budget in (None, 0, 5):
            assert mode("/no_think", switch, budget, Generation.THINKING)
            assert not mode("/think", switch, budget, Generation.INSTRUCT)


def test_sampling_follows_the_mode() -> None:
    assert default_sampling(True) == Sampling(temperature=0.6, top_p=0.95, top_k=20, min_p=0)
    assert default_sampling(False) == Sampling(temperature=0.7, top_p=0.8, top_k=20, min_p=0)
