"""The effective mode: whether the next answer is thought about, and how it is sampled."""

from __future__ import annotations

import re
from collections.abc import Sequence

from qwen3cli.engine import Sampling
from qwen3cli.prompt import Generation, Message

# A soft switch is a word of its own. Before it: nothing, space, opening or closing
# punctuation, the end of a sentence, or a letter of a script that writes no spaces between
# words (what is not Latin, Greek or Cyrillic). So none in a/think, ./think, </think>,
# https://think or /think/x.
_SWITCH = re.compile(
    r"""(?: ^ | (?<=[\s"'`(\[{)\]},;!?]) | (?<=\w\.) | (?<=[^\u0000-\u052f\u1e00-\u1fff]) )
        / (no_)? think
        (?! [A-Za-z0-9_/\\>-] | [.:?&=\#@][A-Za-z0-9_] )""",
    re.VERBOSE,
)


def effective_thinking(
    messages: Sequence[Message], switch: bool | None, budget: int | None, generation: Generation
) -> bool:
    """Whether the next answer is to be thought about. switch and a budget of 0 are hard;
    otherwise the last /think or /no_think in user or system text decides."""
    if generation is not Generation.HYBRID:
        return generation is Generation.THINKING
    if switch is False or budget == 0:
        return False
    for message in reversed(messages):
        if message["role"] in ("user", "system"):
            switches = list(_SWITCH.finditer(message.get("content") or ""))
            if switches:
                return switches[-1].group(1) is None
    return True


def default_sampling(thinking: bool, *, coder: bool = False) -> Sampling:
    """The values that the model cards recommend for the mode, and for the coder models."""
    if thinking:
        return Sampling(temperature=0.6, top_p=0.95, top_k=20, min_p=0.0)
    penalty = 1.05 if coder else 1.0
    return Sampling(temperature=0.7, top_p=0.8, top_k=20, min_p=0.0, repetition_penalty=penalty)
