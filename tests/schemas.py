"""Random JSON schemas, values that they allow, and texts drawn from grammars."""

from __future__ import annotations

import random
import string
from typing import Any

import numpy as np

from qwen3cli.engine import Matcher, Tokenizer

NAMES = ["a", "name", "näme", 'quo"te', "naming", "x/y", "~t", "", "日本", "😀", "50 %"]
TEXTS = [
    "",
    "a",
    "ab",
    "hello world",
    "naïve",
    '"',
    "\\",
    "\n",
    "日本語",
    "😀👍🏽",
    "\u007f\u0001",
]
PATTERNS = {  # with texts that match
    r"^[a-z]{2,4}$": ["ab", "wxyz"],
    r"^(foo|ba[rz])+$": ["foo", "barbazfoo"],
    r"^\d-\d": ["1-2", "1-2b", '0-9"\\'],
    r"^[^\u0000-\u007f]?é$": ["é", "日é"],
    r"^\w+@\w+\.(?:com|org)$": ["me@there.org"],
    r"^.{0,3}$": ["", "😀😀😀", "a\tb"],
    r"^(a?b?){3}$": ["", "abab", "bbb"],
}
FORMATS = {
    "date": ["2024-02-29", "1999-12-31"],
    "time": ["23:59:00Z", "00:00:00.125+01:30"],
    "date-time": ["2026-11-22T16:00:00Z"],
    "uuid": ["123e4567-e89b-12d3-a456-426614174000"],
    "email": ["first.last@mail.example.com"],
    "ipv4": ["127.0.0.1", "255.250.9.10"],
}


def random_schema(rng: random.Random, depth: int = 3) -> Any:
    kinds = [_null, _boolean, _integer, _number, _string, _shaped, _enum, _const]
    if depth > 0:
        kinds += [_array, _object, _object, _tuple, _any_of, _all_of, _types, _anything]
    return rng.choice(kinds)(rng, depth - 1)


def _null(rng: random.Random, depth: int) -> Any:
    return {"type": "null"}


def _boolean(rng: random.Random, depth: int) -> Any:
    return {"type": "boolean", "title": "yes or no"}


def _bounded(rng: random.Random, type_: str, low: float, high: float) -> Any:
    schema: dict[str, Any] = {"type": type_}
    if rng.random() < 0.6:
        schema[rng.choice(["minimum", "exclusiveMinimum"])] = low
    if rng.random() < 0.6:
        schema[rng.choice(["maximum", "exclusiveMaximum"])] = high
    return schema


def _integer(rng: random.Random, depth: int) -> Any:
    low = rng.choice([-1000, -17, -1, 0, 5, 99, 12345])
    return _bounded(rng, "integer", low, low + rng.choice([2, 3, 10, 1001, 123456]))


def _number(rng: random.Random, depth: int) -> Any:
    low = rng.choice([-1000.5, -0.25, 0, 0.1, 3, 99.125])
    return _bounded(rng, "number", low, low + rng.choice([0.5, 1, 12.75, 1000]))


def _string(rng: random.Random, depth: int) -> Any:
    schema: dict[str, Any] = {"type": "string"}
    if rng.random() < 0.4:
        schema["minLength"] = rng.randrange(4)
    if rng.random() < 0.4:
        schema["maxLength"] = rng.choice([3, 4, 10, 40])
    return schema


def _shaped(rng: random.Random, depth: int) -> Any:
    if rng.random() < 0.5:
        return {"type": "string", "pattern": rng.choice(list(PATTERNS))}
    return {"type": "string", "format": rng.choice(list(FORMATS))}


def _enum(rng: random.Random, depth: int) -> Any:
    values = [*TEXTS, 1, -2.5, True, None, [], {}, {"k": [1, "two"]}, "abc", "abd"]
    return {"enum": rng.sample(values, rng.randrange(1, 6))}


def _const(rng: random.Random, depth: int) -> Any:
    return {"const": rng.choice([{"a": {"b": [None]}}, "x", 0, [1, 2], 'é"\n'])}


def _array(rng: random.Random, depth: int) -> Any:
    schema: dict[str, Any] = {"type": "array", "items": random_schema(rng, depth)}
    if rng.random() < 0.4:
        schema["minItems"] = rng.randrange(4)
    if rng.random() < 0.4:
        schema["maxItems"] = rng.randrange(3, 6)
    return schema


def _tuple(rng: random.Random, depth: int) -> Any:
    n = rng.randrange(1, 4)
    schema = {"type": "array", "prefixItems": [random_schema(rng, depth) for _ in range(n)]}
    if rng.random() < 0.7:
        schema["items"] = rng.choice([False, {"type": "integer"}])
    if rng.random() < 0.5:
        schema["minItems"] = rng.randrange(n + 1)
    return schema


def _object(rng: random.Random, depth: int) -> Any:
    names = rng.sample(NAMES, rng.randrange(5))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: random_schema(rng, depth) for name in names},
        "required": [name for name in names if rng.random() < 0.5],
    }
    if rng.random() < 0.6:
        schema["additionalProperties"] = rng.choice([False, False, {"type": "integer"}, True])
    return schema


def _any_of(rng: random.Random, depth: int) -> Any:
    return {"anyOf": [random_schema(rng, depth) for _ in range(rng.randrange(1, 4))]}


def _all_of(rng: random.Random, depth: int) -> Any:
    return {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 3}},
        "allOf": [
            {"properties": {"a": {"maximum": 30}, "name": random_schema(rng, depth)}},
            {"required": ["name"]},
        ],
        "additionalProperties": random_schema(rng, 0),
        "required": ["a"],
    }


def _types(rng: random.Random, depth: int) -> Any:
    return {
        "type": rng.sample(["null", "boolean", "integer", "string", "array"], 3),
        "items": random_schema(rng, 0),
        "maxLength": 5,
    }


def _anything(rng: random.Random, depth: int) -> Any:
    return rng.choice([True, {}, {"description": "anything"}])


# ---- texts -----------------------------------------------------------------------


def draw_text(
    rng: random.Random, tokenizer: Tokenizer, matcher: Matcher, end: int, most: int = 40
) -> list[int]:
    """Tokens drawn from a matcher up to its end: any for a while, then those that close."""
    ids: list[int] = []
    while True:
        allowed = np.flatnonzero(matcher.mask())
        assert len(allowed) > 0
        assert (end in allowed) == matcher.complete
        assert not matcher.finished or allowed.tolist() == [end]
        token = int(rng.choice(allowed))
        if len(ids) > most or rng.random() < 0.3:
            token = _closing(rng, tokenizer, allowed, end)
        matcher.accept(token)
        if token == end:
            assert matcher.finished
            return ids
        ids.append(token)
        assert len(ids) < 5000, "this does not close"


def _closing(rng: random.Random, tokenizer: Tokenizer, allowed: Any, end: int) -> int:
    """The end, a closing byte, or else any byte."""
    if allowed[-1] >= end and end in allowed:
        return end
    single = {}
    for token in allowed[:512].tolist():  # the bytes are the first tokens
        text = tokenizer.token_bytes(token)
        if len(text) == 1:
            single[text] = token
    order = [b'"'] if len(single) > 40 else [b"}", b"]", b'"']  # in a string, outside
    closing = [single[text] for text in order if text in single]
    if closing and rng.random() < 0.9:
        return closing[0]
    plain = [t for text, t in single.items() if text.decode("latin1") in string.ascii_letters]
    return rng.choice(plain if plain and rng.random() < 0.5 else list(single.values()))


def random_value(rng: random.Random, schema: Any) -> Any:
    """A value of one of the schemas of `random_schema`, or LookupError: try again."""
    if schema in (True, {}) or set(schema) == {"description"}:
        return rng.choice([None, True, -1.5e-7, "ü", [], {"k": [1, {}]}])
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if "anyOf" in schema:
        return random_value(rng, rng.choice(schema["anyOf"]))
    if "allOf" in schema:
        name = random_value(rng, schema["allOf"][0]["properties"]["name"])
        return {"a": rng.randrange(3, 31), "name": name}
    type_ = schema["type"] if isinstance(schema["type"], str) else rng.choice(schema["type"])
    if type_ in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", -50))
        high = schema.get("maximum", schema.get("exclusiveMaximum", low + 1000))
        inside = rng.uniform(low, high)
        return round(inside) if type_ == "integer" else round(inside, 6)
    if type_ == "string":
        texts = PATTERNS.get(schema.get("pattern", ""), TEXTS)
        return rng.choice(FORMATS.get(schema.get("format", ""), texts))
    if type_ == "array":
        fixed = schema.get("prefixItems", [])
        value = [random_value(rng, item) for item in fixed]
        if schema.get("items", True) is not False:
            rest = schema.get("items", True)
            value += [random_value(rng, rest) for _ in range(rng.randrange(4))]
        return value
    if type_ == "object":
        value = {}
        for name, of in schema["properties"].items():
            if name in schema["required"] or rng.random() < 0.5:
                value[name] = random_value(rng, of)
        if schema.get("additionalProperties", True) is not False and rng.random() < 0.5:
            value["other"] = 7
        return value
    return rng.choice([True, False]) if type_ == "boolean" else None
