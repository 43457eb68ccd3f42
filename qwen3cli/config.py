"""Settings: what a flag is when it is not given.

From the environment, QWEN3_BUDGET, or else from config.toml. The file is read when a command
asks for its first setting: help, completion and `qwen3 config` work with a broken one.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from qwen3cli.errors import UsageError
from qwen3cli.folders import xdg
from qwen3cli.names import suggestion

Value = bool | int | float | str

Kind = type | UnionType
KEYS: dict[str, Kind] = {  # the flags of `run`, but --stop
    "model": str,
    "system": str,
    "think": bool,
    "budget": int | str,
    "landing": str,
    "max-tokens": int,
    "temp": float,
    "top-k": int,
    "top-p": float,
    "min-p": float,
    "presence-penalty": float,
    "repetition-penalty": float,
    "seed": int,
    "overflow": str,
    "ctx": int,
    "kv": str,
    "ram": str,
    "gpu": int | str,
    "vram": str,
    "prefer-cached": float,
    "drop-misses": float,
    "threads": int,
    "thoughts": str,
}
_KINDS: dict[Kind, str] = {
    str: "a text", bool: "true or false", int: "a whole number", float: "a number",
    int | str: "a whole number or a text",
}  # fmt: skip
_TRUTH = {"true": True, "yes": True, "on": True, "1": True} | {
    "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    value: Value
    origin: str  # the variable, or the file and the line


def config_path() -> Path:
    """$XDG_CONFIG_HOME/qwen3/config.toml. Raises OSError without a home."""
    return xdg("XDG_CONFIG_HOME", ".config") / "config.toml"


def variable(key: str) -> str:
    """The environment variable of a setting."""
    return "QWEN3_" + key.upper().replace("-", "_")


def lookup(key: str) -> Setting | None:
    """What a setting is, None if it is not set. Raises UsageError that names the variable or
    the line of the file."""
    if setting := from_environment(key):
        return setting
    try:
        path = config_path()
    except OSError:
        return None
    return _settings(path).get(key)


def from_environment(key: str) -> Setting | None:
    """What the environment says. Raises UsageError."""
    name = variable(key)
    text = os.environ.get(name)
    return Setting(parse(key, text, name), name) if text else None


def check_key(key: str) -> str:
    """The name of a setting as this module writes it. Raises UsageError."""
    name = key.replace("_", "-")
    if name not in KEYS:
        raise UsageError(_unknown(key))
    return name


def parse(key: str, text: str, origin: str) -> Value:
    """The value that a text stands for. Raises UsageError naming its origin."""
    kind = KEYS[key]
    if isinstance(kind, UnionType):
        kind = int if re.fullmatch("-?[0-9]{1,99}", text) else str
    try:
        value: Value = _TRUTH[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise UsageError(f"{origin}: {text!r} is not {_KINDS[kind]}") from None
    return value


def read(path: Path) -> tuple[dict[str, Setting], list[str]]:
    """The settings in a file and what is wrong with the others, with their lines. A file that
    is not there has none."""
    try:
        text = path.read_text("utf-8-sig")  # some editors begin a file with U+FEFF
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError) as error:
        return {}, [f"{path}: cannot be read: {error}"]
    try:
        table = _toml(text)
    except ValueError as error:
        return {}, [f"{path}: {error}"]
    settings: dict[str, Setting] = {}
    problems = []
    for name, value in table.items():
        origin, key = f"{path}:{_line_of(text, name)}", name.replace("_", "-")
        if isinstance(value, dict) or key not in KEYS:
            problems.append(f"{origin}: {_unknown(name)}")
        elif key in settings:
            problems.append(f"{origin}: {key} is set twice")
        elif not _is_a(value, KEYS[key]):
            problems.append(f"{origin}: {name} is {value!r}, not {_KINDS[KEYS[key]]}")
        else:
            settings[key] = Setting(value, origin)
    return settings, problems


def edited(text: str, key: str, value: Value | None) -> str:
    """The text of a config file in which key has another value, or with None is not set; all
    else stays, the comment behind it, too. Raises UsageError where that cannot be."""
    lines = text.splitlines(keepends=True)
    name = key if _line_of(text, key) else key.replace("-", "_")
    at = _line_of(text, name)
    if at and value is not None:
        lines[at - 1] = f"{name} = {_literal(value)}{_comment(lines[at - 1])}"
    elif at:
        del lines[at - 1]
    elif value is not None:
        name = key
        tables = (i for i, line in enumerate(lines) if line.lstrip().startswith("["))
        end = next(tables, len(lines))
        if end and not lines[end - 1].endswith("\n"):
            lines[end - 1] += "\n"
        lines.insert(end, f"{name} = {_literal(value)}\n")
    new = "".join(lines)
    try:
        wanted = _toml(text)
    except ValueError:  # nothing can be made worse
        return new
    wanted.pop(name, None)
    try:
        if _toml(new) == (wanted if value is None else wanted | {name: value}):
            return new
    except ValueError:
        pass
    raise UsageError(f"line {at}: {name} cannot be edited by this program, only by hand")


@cache
def _settings(path: Path) -> dict[str, Setting]:
    settings, problems = read(path)
    if problems:
        raise UsageError(problems[0])
    return settings


def _toml(text: str) -> dict[str, Any]:
    """Raises ValueError, with the line."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        table: dict[str, Any] = tomllib.loads(text)
    except RecursionError:
        raise ValueError("values are nested too deeply") from None
    return table


def _is_a(value: object, kind: Kind) -> bool:
    if kind is float:
        return type(value) in (int, float)
    return type(value) in (get_args(kind) or (kind,))


def _line_of(text: str, name: str) -> int:
    """The line that sets name, from 1; 0: there is none."""
    setting = rf"[ \t]*(?:\[+[ \t]*)?[\"']?{re.escape(name)}[\"']?[ \t]*[\]=.]"
    lines = text.splitlines()
    return next((i for i, line in enumerate(lines, 1) if re.match(setting, line)), 0)


def _comment(line: str) -> str:
    """What follows the value on a line, its end included."""
    for at in (*(found.start() for found in re.finditer("#", line)), len(line)):
        try:
            _toml(line[:at])
        except ValueError:
            continue
        return line[len(line[:at].rstrip()) :]
    return "\n"


def _literal(value: Value) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        import json

        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _unknown(key: str) -> str:
    return f"there is no setting {key}{suggestion(key, KEYS)}"
