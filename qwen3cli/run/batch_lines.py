"""The files of a batch: questions in, a JSON object a line, and answers out, likewise.

A question is {"prompt": TEXT} or {"messages": [{"role", "content"}, ...]}, with an "id" and
settings of its own if wanted. An answer says which line it answers and, in "input", a digest of
all that it depends on: that line, the settings of the command and the model.
"""

from __future__ import annotations

import codecs
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from qwen3cli.config import Setting
from qwen3cli.errors import Qwen3Error, UsageError
from qwen3cli.options import Options, check_setting
from qwen3cli.prompt import Message
from qwen3cli.screen.sanitize import json_line
from qwen3cli.screen.streams import reason

_NUMBER = (int, float)
_SETTINGS: dict[str, tuple[type[Any], ...]] = {
    "system": (str,),
    "think": (bool,),
    "budget": (int, str),
    "landing": (str,),
    "max_tokens": (int,),
    "seed": (int,),
    "temperature": _NUMBER,
    "top_k": (int,),
    "top_p": _NUMBER,
    "min_p": _NUMBER,
    "presence_penalty": _NUMBER,
    "repetition_penalty": _NUMBER,
    "stop": (list,),
}
_FIELDS = {"temperature": "temp"}  # of Options, where they have another name
_INDIFFERENT = ("model", "threads", "ram", "gpu", "vram", "thoughts")  # to what is answered


@dataclass(frozen=True)
class Question:
    """A line of the input."""

    number: int  # of the line, from 1 on
    id: str | int | None
    digest: str
    messages: Sequence[Message]
    options: Options  # those of the command with its own
    error: str = ""  # why it cannot be asked

    @property
    def named(self) -> dict[str, Any]:
        """What its answer begins with."""
        name = {} if self.id is None else {"id": self.id}
        return {"line": self.number, **name, "input": self.digest}


def read_questions(
    data: bytes, options: Options, model: Path, schema: object = None
) -> list[Question]:
    """Those of a file, with errors for lines that are none; empty lines are skipped. A line
    without a seed gets one that follows from --seed (0) and its number."""
    common = {key: value for key, value in asdict(options).items() if key not in _INDIFFERENT}
    context = json.dumps([common, schema, model.name, model.stat().st_size]).encode()
    data = data.removeprefix(codecs.BOM_UTF8)
    return [
        _question(number, line, options, hashlib.sha256(b"%d\n%b\n" % (number, context) + line))
        for number, line in enumerate(data.split(b"\n"), 1)
        if line.strip()
    ]


def _question(number: int, line: bytes, options: Options, digest: Any) -> Question:
    question = Question(number, None, digest.hexdigest()[:16], (), options)
    try:
        value = _object(line)
        name = value.pop("id", None)
        if name is not None and (not isinstance(name, str | int) or isinstance(name, bool)):
            raise UsageError("id: a text or a whole number is expected")
        question = replace(question, id=name)
        for key in value:
            if key not in (*_SETTINGS, "prompt", "messages"):
                keys = ", ".join(["id", "prompt", "messages", *_SETTINGS])
                raise UsageError(f"{key}: there is no such key, but {keys}")
        messages = _messages(value)
        own = _with_settings(options, value)
    except UsageError as error:
        return replace(question, error=f"line {number}: {error}")
    if messages[0]["role"] == "system":
        if "system" in value:
            return replace(question, error=f"line {number}: system: the messages have one, too")
        own = replace(own, system=messages[0]["content"])
        messages = messages[1:]
    if "seed" not in value:
        own = replace(own, seed=_seed(options.seed or 0, number))
    return replace(question, messages=messages, options=own)


def _object(line: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise UsageError(f"{key}: it is there twice")
        return dict(pairs)

    try:
        value = json.loads(line.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"no JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError("a JSON object is expected")
    return value


def _messages(value: dict[str, Any]) -> list[Message]:
    """Takes them out of the object."""
    if ("prompt" in value) == ("messages" in value):
        raise UsageError('either "prompt" or "messages" is expected')
    if "prompt" in value:
        prompt = value.pop("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            raise UsageError("prompt: a text is expected")
        return [{"role": "user", "content": prompt}]
    messages = value.pop("messages")
    if not isinstance(messages, list) or not messages:
        raise UsageError("messages: a list of objects is expected")
    for index, message in enumerate(messages):
        _check_message(message, index)
    if messages[-1]["role"] != "user":
        raise UsageError("messages: the last one is to be of the user")
    return messages


def _check_message(message: Any, index: int) -> None:
    where = f"messages: number {index + 1}"
    if not isinstance(message, dict) or set(message) != {"role", "content"}:
        raise UsageError(f'{where}: an object of "role" and "content" is expected')
    roles = ["user", "assistant"] if index else ["system", "user", "assistant"]
    if message["role"] not in roles:
        raise UsageError(f"{where}: role: {', '.join(roles[:-1])} or {roles[-1]} is expected")
    if not isinstance(message["content"], str):
        raise UsageError(f"{where}: content: a text is expected")


def _with_settings(options: Options, value: Mapping[str, Any]) -> Options:
    """The options with those of a line; they are checked as flags are."""
    given: dict[str, Any] = {}
    for key, item in value.items():
        kinds = _SETTINGS[key]
        if not isinstance(item, kinds) or (type(item) is bool and bool not in kinds):
            raise UsageError(f"{key}: {json.dumps(item)} is no {_described(kinds)}")
        if key == "stop" and not all(isinstance(text, str) and text for text in item):
            raise UsageError("stop: a list of texts is expected")
        field = _FIELDS.get(key, key)
        given[field] = check_setting(field.replace("_", "-"), Setting(item, ""))
    return replace(options, **given)


def _described(kinds: tuple[type[Any], ...]) -> str:
    names = {str: "text", bool: "true or false", int: "whole number", list: "list of texts"}
    return "number" if kinds == _NUMBER else " or ".join(names[kind] for kind in kinds)


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(b"%d %d" % (seed, number)).digest()[:4], "little")


class Answers:
    """The output, which is added to line by line. One batch at a time has it open."""

    def __init__(self, path: Path, questions: Sequence[Question]) -> None:
        """Goes on with what is there; a last line that is not whole is cut off. Raises UsageError
        for a file that is not the output of these questions."""
        self.path = path
        self.done: dict[int, dict[str, Any]] = {}  # by number of the question's line
        try:
            if path.exists() and not path.is_file():
                raise OSError(errno.EINVAL, "is no regular file, which a batch can go on with")
            self._file: BinaryIO = path.open("a+b", buffering=0)
            self._lock()
            self._file.seek(0)
            data = self._file.read()
        except OSError as error:
            raise Qwen3Error(f"{path}: {reason(error)}") from None
        whole = data[: data.rfind(b"\n") + 1]
        digests = {question.number: question.digest for question in questions}
        for number, line in enumerate(whole.split(b"\n")[:-1], 1):
            self._take(number, line, digests)
        if whole != data:
            if not data[len(whole) :].startswith(b'{"line": '[: len(data) - len(whole)]):
                raise self._foreign(whole.count(b"\n") + 1)
            self._file.truncate(len(whole))

    def add(self, question: Question, answer: Mapping[str, Any]) -> None:
        """It is on the disk when this returns."""
        record = {**question.named, **answer}
        try:
            self._write(json_line(record).encode())
        except OSError as error:
            raise Qwen3Error(f"{self.path}: {reason(error)}") from None
        self.done[question.number] = record

    def close(self) -> None:
        self._file.close()

    def _write(self, data: bytes) -> None:
        while data:
            data = data[self._file.write(data) :]
        os.fsync(self._file.fileno())

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
                raise Qwen3Error(f"{self.path}: another batch is writing it") from None
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
                raise

    def _take(self, number: int, line: bytes, digests: Mapping[int, str]) -> None:
        try:
            record = json.loads(line)
            of, digest = record["line"], record["input"]
            known = digests.get(of)
        except (ValueError, RecursionError, KeyError, TypeError):
            raise self._foreign(number) from None
        if known is None or known != digest:
            raise UsageError(
                f"{self.path}: line {number} answers line {of} of another input, or it was asked "
                "with other settings or of another model: choose another -o FILE"
            )
        self.done[of] = record

    def _foreign(self, number: int) -> UsageError:
        return UsageError(f"{self.path}: line {number} is no answer of a batch: choose another "
                          "-o FILE")  # fmt: skip
