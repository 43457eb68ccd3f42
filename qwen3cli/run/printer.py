"""The answers of a run on stdout: as text as it comes, as code, as JSON, or as events."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from qwen3cli.errors import UsageError
from qwen3cli.run.fences import last_block
from qwen3cli.session import Answer, Closed, Event, Reply
from qwen3cli.terminal import Terminal


@dataclass(frozen=True)
class Form:
    """What comes out of a run."""

    json: bool = False  # one object
    events: bool = False  # a JSON object on a line for each event
    extract: bool = False  # the code of the last fenced block alone
    null: bool = False  # NUL behind every answer, instead of lines between them
    several: bool = False  # answers

    def __post_init__(self) -> None:
        if self.json and self.events:
            raise UsageError("--json and --jsonl do not go together")
        if self.null and self.is_json:
            raise UsageError("-0 does not go with --json and --jsonl")

    @property
    def is_json(self) -> bool:
        return self.json or self.events

    @property
    def streams(self) -> bool:
        """Text goes out as it comes."""
        return not (self.is_json or self.extract or self.null)


class Printer:
    """Writes one sample after the other: begin, part by part, end; and finish behind them."""

    def __init__(self, form: Form, terminal: Terminal) -> None:
        self._form = form
        self._terminal = terminal
        self._sample = -1
        self._samples: list[dict[str, object]] = []
        self._written = False  # an answer, as text

    def begin(self, model: str, seed: int) -> None:
        self._sample += 1
        if self._form.events:
            self._event("start", {"model": model, "seed": seed})
        elif self._form.streams:
            self._separate()

    def part(self, part: Event) -> None:
        if self._form.events:
            if isinstance(part, Closed):
                self._event("closed", asdict(part))
            elif part.text:
                kind = "answer" if isinstance(part, Answer) else "thought"
                self._event(kind, {"text": part.text})
        elif self._form.streams and isinstance(part, Answer):
            self._terminal.answer(part.text)

    def end(self, reply: Reply, described: dict[str, object]) -> bool:
        """The end of a sample. Whether there is what was asked for."""
        form, terminal = self._form, self._terminal
        code = last_block(reply.answer) if form.extract else reply.answer
        if form.extract:
            described = described | {"code": code}
        if form.events:
            self._event("end", described)
        elif form.json:
            self._samples.append(described)
        elif code is None or (reply.answer_stop == "user" and not code):
            return code is not None  # nothing to write
        elif form.streams:
            terminal.end_answer()
        elif form.null:
            terminal.plain(code.replace("\0", "") + "\0")
        else:
            self._separate()
            terminal.plain(code)
        return code is not None

    def finish(self) -> None:
        if self._samples:
            one = self._samples[0]
            self._terminal.json({"samples": self._samples} if self._form.several else one)

    def _separate(self) -> None:
        """A line between two answers."""
        if self._written:
            self._terminal.plain("---\n")
        self._written = True

    def _event(self, event: str, more: dict[str, object]) -> None:
        self._terminal.json({"event": event, "sample": self._sample} | more)
