"""The commands of `session`: the chats that are stored, to list, read, hand on and remove."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, get_args

from qwen3cli.chat import transcripts
from qwen3cli.chat.transcripts import Stored
from qwen3cli.errors import DamagedFile, Qwen3Error, UsageError
from qwen3cli.folders import replace
from qwen3cli.plan.memory import amount
from qwen3cli.screen.sanitize import clean, json_line
from qwen3cli.terminal import Terminal

Format = Literal["markdown", "json", "jsonl", "text"]
_SUFFIXES: dict[str, Format] = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".json": "json",
    ".jsonl": "jsonl",
    ".txt": "text",
}
_SECONDS = {"h": 3600, "d": 86400, "w": 7 * 86400}


def ls(terminal: Terminal, *, as_json: bool) -> None:
    """Every session, the one that was used last first. What cannot be read is listed, too, and
    noted."""
    rows = [_listed(path) for path in transcripts.stored()]
    if as_json:
        terminal.json(rows)
        return
    if not rows and terminal.visible:
        terminal.note("there are no chats yet; `qwen3 chat` begins one")
        return
    head = ("session", "last used", "model", "turns", "kv", "title")
    terminal.table(head, [_row(row) for row in rows], whole=2)
    for row in rows:
        if row["error"]:
            terminal.note(f"qwen3: {row['error']}")


def show(text: str, terminal: Terminal, *, thoughts: bool, as_json: bool) -> None:
    """A session, for people. Raises what transcripts.find and read raise."""
    session = transcripts.read(transcripts.find(text))
    if as_json:
        terminal.json(_described(session))
        return
    terminal.note(_caption(session), dim=True)
    for number, (part, is_answer) in enumerate(_passages(session, thoughts)):
        if number:
            terminal.print("\n")
        if is_answer:  # as the chat showed it
            terminal.answer(clean(part))
            terminal.end_answer()
        else:
            terminal.print(f"{part}\n")


def export(
    text: str,
    out: str | None,
    form: str | None,
    terminal: Terminal,
    *,
    thoughts: bool,
    force: bool,
) -> None:
    """A session in a format, to the file out or to stdout. form None: as the name of the file ends,
    or else markdown. Raises UsageError, and what transcripts.find and read raise."""
    if form is None:
        form = format_of(out) if out else "markdown"
    elif form not in get_args(Format):
        raise UsageError(f"--format {form}: there are {', '.join(get_args(Format))}")
    path = transcripts.find(text)
    session = transcripts.read(path)
    if form == "jsonl":
        text = "".join(map(json_line, transcripts.lines(path)))
    else:
        text = written(session, form, thoughts=thoughts)
    if out is None:
        terminal.print(text)
    elif Path(out).exists() and not force:
        raise UsageError(f"{out}: exists already; --force overwrites it")
    else:
        replace(Path(out), clean(text))


def format_of(name: str) -> Format:
    """The format that a file's name ends in, markdown by default."""
    return _SUFFIXES.get(Path(name).suffix.lower(), "markdown")


def written(session: Stored, form: str, *, thoughts: bool) -> str:
    """A session as text, JSON or else Markdown."""
    if form == "json":
        return json_line(_messages(session, thoughts))
    if form == "text":
        return "\n".join(f"{part}\n" for part, _ in _passages(session, thoughts))
    return _markdown(session, thoughts)


def rm(
    ids: Sequence[str], older: str | None, terminal: Terminal, *, yes: bool, as_json: bool
) -> None:
    """Removes sessions with their kv caches: these, or (older, such as 30d) those that were not
    used for so long. Raises UsageError and Qwen3Error before anything is removed."""
    if bool(ids) == (older is not None):
        raise UsageError("name the sessions to remove, or say --older-than 30d")
    paths = [transcripts.find(each) for each in ids] if older is None else _unused(_age(older))
    with ExitStack() as stack:
        chosen = []
        for path in dict.fromkeys(paths):
            try:
                stack.enter_context(transcripts.held(path))
            except Qwen3Error as error:
                if older is None:
                    raise
                terminal.note(f"{error}; it stays")
                continue
            chosen.append(path)
        files = [file for path in chosen for file in (path.with_suffix(".kv"), path)]
        freed = sum(_size(file) or 0 for file in files)
        if chosen and not _may(chosen, terminal, yes=yes):
            return
        for file in files:  # the session last: by it the other one is found again
            file.unlink(missing_ok=True)
    if as_json:
        terminal.json({"removed": [path.stem for path in chosen], "freed_bytes": freed})
    elif not chosen:
        terminal.note("there is nothing to remove")


def _may(chosen: Sequence[Path], terminal: Terminal, *, yes: bool) -> bool:
    """Tells what goes, and whether it may."""
    for path in chosen:
        row = _listed(path)
        kv = "" if row["kv_bytes"] is None else f", kv cache of {amount(row['kv_bytes'])}"
        said = "" if row["error"] else f", {_turns(row['turns'])}{kv}: {row['title']}"
        terminal.note(f"{path.stem}{said}")
    if yes:
        return True
    if not terminal.can_ask:
        raise UsageError("nothing was removed: --yes says that it may be")
    what = "this session" if len(chosen) == 1 else f"these {len(chosen)} sessions"
    if terminal.ask(f"Remove {what}?", default=False):
        return True
    terminal.note("nothing was removed")
    return False


def _age(text: str) -> int:
    """Seconds."""
    found = re.fullmatch(r"(\d{1,5})([hdw])", text.lower())
    if not found:
        raise UsageError(
            f"--older-than {text}: hours, days or weeks are needed, as in 12h, 30d, 8w"
        )
    return int(found[1]) * _SECONDS[found[2]]


def _unused(seconds: int) -> list[Path]:
    """The sessions that were not used for so long."""
    before = time.time() - seconds
    return [path for path in transcripts.stored() if (_seconds(path) or before) < before]


# ---- a session in a table ---------------------------------------------------


def _listed(path: Path) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": path.stem,
        "path": str(path),
        "used": _used(path),
        "model": None,
        "turns": None,
        "title": None,
        "kv_bytes": _size(path.with_suffix(".kv")),
        "error": None,
    }
    try:
        session = transcripts.read(path)
    except Qwen3Error as error:
        return row | {"error": str(error), "damaged": isinstance(error, DamagedFile)}
    told = {"model": session.model, "turns": len(session.turns), "title": session.title}
    return row | told | {"damaged": False}


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    title = row["title"]
    if row["error"]:
        title = "damaged" if row["damaged"] else "cannot be read"
    return (
        row["id"],
        _day(row["used"]),
        "-" if row["model"] is None else row["model"],
        "-" if row["turns"] is None else str(row["turns"]),
        "-" if row["kv_bytes"] is None else amount(row["kv_bytes"]),
        title,
    )


def _day(used: str | None) -> str:
    """The time of what was today, the date of what was before."""
    if used is None:
        return "-"
    when = datetime.fromisoformat(used).astimezone()
    return f"{when:%H:%M}" if when.date() == datetime.now().date() else f"{when:%Y-%m-%d}"


def _used(path: Path) -> str | None:
    seconds = _seconds(path)
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat() if seconds else None


def _seconds(path: Path) -> int | None:
    """When it was last used, since 1970; None: it was removed a moment ago."""
    try:
        return int(path.stat().st_mtime)
    except OSError:
        return None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


# ---- a session as text ------------------------------------------------------


def _described(session: Stored) -> dict[str, Any]:
    return {
        "id": session.id,
        "path": str(session.path),
        "began": session.began.isoformat(),
        "used": _used(session.path),
        "model": session.model,
        "system": session.system,
        "turns": [vars(turn) | {"time": turn.time.isoformat()} for turn in session.turns],
        "kv_bytes": _size(session.kv_path),
    }


def _caption(session: Stored) -> str:
    began = f"{session.began.astimezone():%Y-%m-%d %H:%M}"
    return f"{session.id}, {session.model}, {began}, {_turns(len(session.turns))}"


def _turns(n: int) -> str:
    return f"{n} turn{'s' * (n != 1)}"


def _passages(session: Stored, thoughts: bool) -> Iterator[tuple[str, bool]]:
    """What was said, in passages with a blank line between them, and whether each is an answer."""
    if session.system is not None:
        yield f"system: {session.system}", False
    for turn in session.turns:
        yield _quoted(str(turn.user["content"])), False
        told = turn.assistant.get("reasoning_content")
        if thoughts and told:
            yield f"<think>\n{told}\n</think>", False
        yield (turn.assistant.get("content") or "(no answer)").rstrip("\n"), True


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.split("\n"))


def _messages(session: Stored, thoughts: bool) -> list[dict[str, Any]]:
    """As OpenAI's API takes them, which knows no thoughts."""
    system: list[dict[str, Any]] = []
    if session.system is not None:
        system = [{"role": "system", "content": session.system}]
    left_out = () if thoughts else ("reasoning_content",)
    said = [
        {key: value for key, value in message.items() if key not in left_out}
        for message in session.messages
    ]
    return system + said


def _markdown(session: Stored, thoughts: bool) -> str:
    """Questions are quotations, so that whatever they hold ends with them."""
    parts = [f"# {session.title or session.id}", f"*{_caption(session)}*"]
    if session.system is not None:
        parts += ["**System**", _quoted(session.system)]
    for turn in session.turns:
        parts.append(_quoted(str(turn.user["content"])))
        told = turn.assistant.get("reasoning_content")
        if thoughts and told:
            fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", told))])
            parts.append(
                "<details>\n<summary>Thoughts</summary>\n\n"
                f"{fence}text\n{told}\n{fence}\n\n</details>"
            )
        parts.append(_closed(turn.assistant.get("content") or "*(no answer)*"))
    return "\n\n".join(parts) + "\n"


def _closed(text: str) -> str:
    """Markdown in which the last block of code is closed, as it is not in an answer that was
    cut."""
    fence = ""
    for line in text.split("\n"):
        mark = re.match(r" {0,3}(`{3,}|~{3,})(.*)", line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence) and not mark[2].strip():
            fence = ""
    return f"{text}\n{fence}" if fence else text
