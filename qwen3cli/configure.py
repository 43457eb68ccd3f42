"""The command `config`: what is set, where it comes from, and changing the file."""

from __future__ import annotations

import os

from qwen3cli.config import (
    KEYS,
    Setting,
    check_key,
    config_path,
    edited,
    from_environment,
    parse,
    read,
    variable,
)
from qwen3cli.errors import Qwen3Error, UsageError
from qwen3cli.folders import replace
from qwen3cli.options import check_setting
from qwen3cli.terminal import Terminal


def effective() -> tuple[dict[str, Setting], list[str]]:
    """The settings that count, and what is wrong in the file and the environment."""
    settings, problems = read(config_path())
    for key in KEYS:
        try:
            if setting := from_environment(key):
                settings[key] = setting
            if key in settings:
                check_setting(key, settings[key])
        except UsageError as error:
            problems.append(str(error))
            settings.pop(key, None)
    return settings, problems


def show_settings(terminal: Terminal, *, origin: bool, as_json: bool) -> int:
    """Every setting; what is wrong is told, and then the exit code is 2."""
    settings, problems = effective()
    if as_json:
        shown = {key: vars(settings[key]) if key in settings else None for key in KEYS}
        terminal.json({"path": str(config_path()), "settings": shown, "problems": problems})
    else:
        terminal.table(
            ("setting", "value", "origin") if origin else ("setting", "value"),
            [_row(key, settings.get(key), origin) for key in KEYS],
        )
    for problem in problems:
        terminal.note(f"qwen3: {problem}")
    return UsageError.exit_code if problems else 0


def show_setting(key: str, terminal: Terminal) -> int:
    """Exit code 1: it is not set."""
    key = check_key(key)
    settings, problems = read(config_path())
    setting = from_environment(key) or settings.get(key)
    if setting is None:
        for problem in problems:
            terminal.note(f"qwen3: {problem}")
        return Qwen3Error.exit_code
    terminal.print(f"{_text(setting)}\n")
    return 0


def change(key: str, text: str | None, terminal: Terminal) -> int:
    """Sets a key in the file, or with None unsets it; where something else in the file is wrong
    that is told, and the exit code is 2. Raises UsageError and leaves the file as it was for a
    value that is none, or where the file cannot be edited by this program."""
    path = config_path().resolve()  # what a link leads to is edited, the link stays
    if text is None:
        key, value = key.replace("_", "-"), None  # one that there is not can be unset, too
    else:
        key = check_key(key)
        value = parse(key, text, key)
        check_setting(key, Setting(value, ""))
    try:
        old = path.read_text("utf-8-sig") if path.exists() else ""
    except UnicodeError as error:
        raise UsageError(f"{path}: cannot be read: {error}; mend or remove it") from None
    try:
        new = edited(old, key, value)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    try:
        new.encode()
    except UnicodeError:
        raise UsageError(f"{key}: {text!r} has bytes that are no UTF-8") from None
    if new != old:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, new)
    if os.environ.get(variable(key)):
        terminal.note(f"qwen3: {variable(key)} is set, too, and comes first")
    problems = read(path)[1]
    for problem in problems:
        terminal.note(f"qwen3: {problem}")
    return UsageError.exit_code if problems else 0


def show_path(terminal: Terminal) -> None:
    terminal.print(f"{config_path()}\n")


def _row(key: str, setting: Setting | None, origin: bool) -> tuple[str, ...]:
    value, where = (_text(setting), setting.origin) if setting else ("-", "default")
    return (key, value, where) if origin else (key, value)


def _text(setting: Setting) -> str:
    value = setting.value
    return str(value).lower() if isinstance(value, bool) else str(value)
