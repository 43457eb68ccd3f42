"""The keywords of JSON schemas: which are supported, what their values have to be, and what they
say of a value.

Nothing but annotations is ignored: any other keyword that is not supported is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any, NoReturn

from qwen3cli.errors import UsageError
from qwen3cli.grammar.numerals import Bounds

Schemas = dict[str, dict[str, Any]]  # that apply to the same value, by their paths

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_MAX_COUNT = 1_000_000  # items, characters

_ANNOTATIONS = frozenset(
    (
        *("title", "description", "default", "examples", "example", "deprecated", "readOnly"),
        *("writeOnly", "discriminator", "$schema", "$id", "$comment", "$defs", "definitions"),
    )
)
_STRUCTURE = frozenset(
    (
        *("properties", "required", "additionalProperties"),
        *("items", "prefixItems", "minItems", "maxItems"),
    )
)

_YEAR = r"[1-9]\d{3}"
_LEAP = r"(?:(?:[2468][048]|[13579][26])00|[1-9]\d(?:0[48]|[2468][048]|[13579][26]))"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    rf"|02-(?:0[1-9]|1\d|2[0-8]))|{_LEAP}-02-29)"
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_ATOM = r"[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]{1,32}"
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "email": rf"{_ATOM}(?:\.{_ATOM}){{0,3}}@{_LABEL}(?:\.{_LABEL}){{1,4}}",
    "ipv4": rf"{_OCTET}(?:\.{_OCTET}){{3}}",
}


def refuse(path: str, why: str) -> NoReturn:
    raise UsageError(f"schema, {path}: {why}")


def escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1").replace("%", "%25")


# ---- what the keywords of a value say -----------------------------------------------


def allowed_types(schema: dict[str, Any]) -> set[str]:
    named = schema.get("type", TYPES)
    types = {named} if isinstance(named, str) else set(named)
    if "number" in types:
        types.add("integer")
    if schema.get("nullable"):
        types.add("null")
    return types


def _types_of(value: Any) -> set[str]:
    if isinstance(value, float) and value.is_integer():
        return {"number", "integer"}
    names: dict[type, str] = {
        type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string",
        list: "array", dict: "object",
    }  # fmt: skip
    return {names[type(value)]}


def holding(schemas: Schemas, values: Iterable[Any]) -> list[Any]:
    """Those of the values that all the schemas, but for their enums and choices, allow."""
    types = set.intersection(*map(allowed_types, schemas.values()))
    low, high = limits(schemas, "minLength", "maxLength")
    within = bounds(schemas)
    formats = {schema["format"] for schema in schemas.values() if "format" in schema}
    patterns = [f"{path}/pattern" for path, schema in schemas.items() if "pattern" in schema]
    structure = [f"{path}/{k}" for path, schema in schemas.items() for k in _STRUCTURE & {*schema}]

    def holds(value: Any) -> bool:
        if types.isdisjoint(_types_of(value)):
            return False
        if isinstance(value, str):
            if patterns:
                refuse(patterns[0], "beside an enum or const it is not supported")
            fits = low <= len(value) and (high is None or len(value) <= high)
            return fits and all(re.fullmatch(FORMATS[f], value, re.ASCII) for f in formats)
        if isinstance(value, list | dict):
            if structure:
                refuse(min(structure), "beside an enum or const like this it is not supported")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            return within.hold(Decimal(repr(value)))
        return True

    return [value for value in values if holds(value)]


def limits(schemas: Schemas, least: str, most: str) -> tuple[int, int | None]:
    low = max((schema.get(least, 0) for schema in schemas.values()), default=0)
    high = min((schema[most] for schema in schemas.values() if most in schema), default=None)
    return low, high


def bounds(schemas: Schemas) -> Bounds:
    """The narrowest bounds; of equal ones the open one."""

    def named(closed: str, opened: str) -> list[tuple[Decimal, bool]]:
        return [
            (Decimal(repr(schema[keyword])), keyword == opened)
            for schema in schemas.values()
            for keyword in (closed, opened)
            if keyword in schema
        ]

    lows, highs = named("minimum", "exclusiveMinimum"), named("maximum", "exclusiveMaximum")
    low, low_open = max(lows, default=(None, False))
    high, high_open = min(highs, key=lambda bound: (bound[0], not bound[1]), default=(None, False))
    return Bounds(low, high, low_open, high_open)


# ---- what the value of a keyword has to be -------------------------------------------


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_COUNT


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_type(value: Any) -> bool:
    names = [value] if isinstance(value, str) else value
    return _is_text_list(names) and bool(names) and all(name in TYPES for name in names)


def _is_some_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_anything(value: Any) -> bool:
    return True


_SOME_LIST = (_is_some_list, "it is a list with something in it")
_COUNT = (_is_count, f"it is a whole number from 0 to {_MAX_COUNT:,}")
_NUMBER = (_is_number, "it is a number")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {  # what an error says it is
    "type": (_is_type, f"it is one of {', '.join(TYPES)}, or a list of them"),
    "nullable": (lambda value: isinstance(value, bool), "it is true or false"),
    "enum": _SOME_LIST,
    "const": (_is_anything, ""),
    "properties": (_is_object, "it is an object of schemas"),
    "required": (_is_text_list, "it is a list of names"),
    "additionalProperties": (_is_anything, ""),  # a schema: checked when it is used
    "items": (lambda value: not isinstance(value, list), "for a list of schemas use prefixItems"),
    "prefixItems": _SOME_LIST,
    "minItems": _COUNT,
    "maxItems": _COUNT,
    "uniqueItems": (lambda value: value is False, "true is not supported"),
    "anyOf": _SOME_LIST,
    "oneOf": _SOME_LIST,
    "allOf": _SOME_LIST,
    "$ref": (_is_text, "it is a text such as #/$defs/name"),
    "pattern": (_is_text, "it is a text"),
    "format": (
        lambda value: isinstance(value, str) and value in FORMATS,
        f"supported are {', '.join(FORMATS)}",
    ),
    "minLength": _COUNT,
    "maxLength": _COUNT,
    "minimum": _NUMBER,
    "maximum": _NUMBER,
    "exclusiveMinimum": _NUMBER,
    "exclusiveMaximum": _NUMBER,
}


def check(path: str, schema: dict[str, Any]) -> None:
    for keyword, value in schema.items():
        at = f"{path}/{escaped(keyword)}"
        if keyword == "$id" and path != "#":
            refuse(at, "an $id within a schema is not supported")
        if keyword in _ANNOTATIONS:
            continue
        if keyword not in _RULES:
            refuse(at, f"the keyword {keyword!r} is not supported")
        good, meaning = _RULES[keyword]
        if not good(value):
            refuse(at, meaning)
