"""Receipts: what has to be known of a run to repeat it, in a file.

One JSON object, a line for each of its keys. The ids of the prompt and of what was generated are
in it, and all that decided between them: the model by its sha256, the sampling, the budget, the
type of the kv cache, the size of the context. Of the versions of qwen3, Python, system and
instruction set it tells what may explain a difference.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from quant.shards import files
from qwen3cli import __version__, hub
from qwen3cli.checksums import checksums
from qwen3cli.engine import Model, Sampling
from qwen3cli.errors import FormatError, Qwen3Error, UsageError
from qwen3cli.prompt import Generation, Message, template_text
from qwen3cli.session import Conversation, Reply, Settings
from qwen3cli.terminal import Terminal, reason
from qwen3cli.thinking import AnswerStop, ThinkingStop

FORMAT = 1
_MOST = 1 << 28  # bytes of a receipt


@dataclass(frozen=True)
class Origin:
    """What a text came from, and what may explain that another one comes."""

    files: dict[str, str]  # of the model: sha256 by name
    template: str  # sha256
    versions: dict[str, str]

    @classmethod
    def of(cls, model: Model, generation: Generation, terminal: Terminal) -> Origin:
        digests = checksums(files(model.path), terminal)
        return cls(
            files={path.name: digest for path, digest in digests.items()},
            template=digest_of(template_text(generation)),
            versions={
                "qwen3": __version__,
                "isa": model.isa,
                "python": platform.python_version(),
                "platform": f"{sys.platform}-{platform.machine()}",
            },
        )


@dataclass(frozen=True)
class Sample:
    """One reply."""

    thinking: bool  # the effective mode
    sampling: Sampling
    prompt: list[int]
    output: list[int]  # all ids behind the prompt, the inserted ones too
    thinking_tokens: int
    thinking_stop: ThinkingStop
    inserted_tokens: int
    answer_tokens: int
    answer_stop: AnswerStop
    answer: str
    answer_sha256: str

    @classmethod
    def of(cls, reply: Reply, thinking: bool) -> Sample:
        names = {field.name for field in fields(cls)} - {"thinking", "answer_sha256"}
        told = {name: getattr(reply, name) for name in names}
        told |= {"prompt": list(reply.prompt), "output": list(reply.output)}
        return cls(thinking=thinking, answer_sha256=digest_of(reply.answer), **told)


@dataclass(frozen=True)
class Receipt:
    """Of one run."""

    model: str  # as it was asked for, or its path
    path: str
    origin: Origin
    generation: Generation
    n_ctx: int
    kv: str
    expert_bytes: int  # held in memory; 0: all, or in the mapping
    prefer_cached: float
    drop_misses: float
    messages: list[Message]
    settings: dict[str, Any]
    samples: list[Sample]

    @property
    def exact(self) -> bool:
        """Whether the model was computed as it is."""
        return not (self.prefer_cached or self.drop_misses)


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
