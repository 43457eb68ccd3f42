"""JSON schemas as grammars: every text of the grammar is a value that the schema allows.

The language is that of draft 2020-12, as far as it can be decided from left to right. What is not
supported is an error that names it: nothing but annotations is ignored. Declared properties come
in their order; others, where they are allowed, behind them.

A value is described by all schemas that apply to it at once, known by their paths in the file: a
$ref and allOf add schemas, anyOf multiplies the ways. What a property or an item has to be is such
a set of paths again, so there are only so many rules, and recursion is a rule that calls itself.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.parse import unquote

from qwen3cli.errors import UsageError
from qwen3cli.jsontext import colon, comma, constant, other_key, quoted, string
from qwen3cli.numerals import Bounds, integer, number
from qwen3cli.pattern import pattern
from qwen3cli.program import Place, Program

Schema = dict[str, Any] | bool
Paths = tuple[str, ...]  # of schemas that apply together

MAX_BYTES = 1 << 20
_MAX_ALTERNATIVES = 20_000  # of all rules
_MAX_COUNT = 1_000_000  # items, characters

_ANNOTATIONS = frozenset(
    "title description default examples example deprecated readOnly writeOnly discriminator "
    "$schema $id $comment $defs definitions".split()  # noqa: SIM905
)
_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")

_YEAR = r"[1-9]\d{3}"
_LEAP = r"(?:(?:[2468][048]|[13579][26])00|[1-9]\d(?:0[48]|[2468][048]|[13579][26]))"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    rf"|02-(?:0[1-9]|1\d|2[0-8]))|{_LEAP}-02-29)"
)
_TIME = (
    r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
)
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


class Compiled(NamedTuple):
    """A program for the engine (qwen3_native.Grammar)."""

    code: bytes
    sets: bytes
    start: int


def load(path: str | Path) -> Schema:
    """The schema in a file. Raises UsageError with the line and column of what is no JSON."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: a schema is a text in UTF-8") from None
    return parse(text, str(path))


def parse(text: str, name: str = "schema") -> Schema:
    """The schema that a text spells; name: where the text is from, for errors."""
    if len(text) > MAX_BYTES:
        raise UsageError(f"{name}: a schema is at most {MAX_BYTES:,} bytes long")

    def refuse(spelled: str) -> NoReturn:
        raise UsageError(f"{name}: {spelled} is not JSON")

    try:
        schema = json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{name}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}"
        ) from None
    except RecursionError:
        raise UsageError(f"{name}: the schema nests too deeply") from None
    except ValueError:  # an integer of thousands of digits
        raise UsageError(f"{name}: a number has too many digits") from None
    if not isinstance(schema, dict | bool):
        raise UsageError(f"{name}: a schema is a JSON object, true or false")
    return schema


def compiled(schema: Schema | str) -> Compiled:
    """The grammar of a schema (str: its JSON). Raises UsageError for what is not supported."""
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        compiler = _Compiler(parse(text))  # a copy, of nothing but JSON
        start = compiler.run()
    except RecursionError:
        raise UsageError("the schema nests too deeply") from None
    except (TypeError, ValueError) as error:
        raise UsageError(f"the schema is no JSON: {error}") from None
    return Compiled(compiler.program.code, compiler.program.sets, start)


class _Compiler:
    def __init__(self, root: Schema) -> None:
        self.program = Program()
        self._root = root
        self._known: dict[str, Schema] = {}  # by path, checked
        self._rules: dict[Paths, Place] = {}
        self._todo: deque[tuple[Paths, Place]] = deque()
        self._alternatives = 0

    def run(self) -> Place:
        start = self._rule(("#",))
        while self._todo:
            paths, place = self._todo.popleft()
            self.program.fill(place, self._value(paths))
        return start

    def _rule(self, paths: Sequence[str]) -> Place:
        """Where the rule of what all the schemas allow begins; it is written later."""
        key = tuple(dict.fromkeys(path for path in paths if self._at(path) not in (True, {})))
        if key not in self._rules:
            self._rules[key] = self.program.reserve()
            self._todo.append((key, self._rules[key]))
        return self._rules[key]

    def _value(self, paths: Paths) -> Place:
        ways = {frozenset(way): way for way in self._expand([(p, frozenset()) for p in paths], ())}
        return self.program.either(*(self._one_way(way) for way in ways.values()))

    # ---- paths -------------------------------------------------------------------

    def _at(self, path: str) -> Schema:
        """The schema at a path."""
        if path not in self._known:
            schema = self._root
            for part in path.split("/")[1:]:
                schema = _child(schema, unquote(part).replace("~1", "/").replace("~0", "~"))
                if schema is None:
                    _refuse(path, "there is nothing in the schema at this path")
            if not isinstance(schema, dict | bool):
                _refuse(path, "a schema is a JSON object, true or false")
            if isinstance(schema, dict):
                _check(path, schema)
            self._known[path] = schema
        return self._known[path]

    def _expand(self, todo: list[tuple[str, frozenset[str]]], way: Paths) -> Iterator[Paths]:
        """The ways in which all of todo can apply: with references followed and a choice made
        in every anyOf. todo: paths, each with those that led to it."""
        self._alternatives += 1
        if self._alternatives > _MAX_ALTERNATIVES:
            raise UsageError("the schema is too large: anyOf in anyOf has too many alternatives")
        if not todo:
            yield way
            return
        (path, above), rest = todo[0], todo[1:]
        schema = self._at(path)
        if path in above:
            _refuse(path, "the schema refers to itself and to nothing else")
        if schema is False:
            return
        if schema is True:
            yield from self._expand(rest, way)
            return
        above |= {path}
        both = [(f"{path}/allOf/{i}", above) for i in range(len(schema.get("allOf", ())))]
        if "$ref" in schema:
            both.append((_target(path, schema["$ref"]), above))
        choices = [
            [(f"{path}/{keyword}/{i}", above) for i in range(len(schema[keyword]))]
            for keyword in ("anyOf", "oneOf")
            if keyword in schema
        ]
        for chosen in product(*choices):
            yield from self._expand([*both, *chosen, *rest], (*way, path))

    # ---- one way, whose schemas are free of choices ---------------------------------

    def _one_way(self, paths: Paths) -> Place:
        schemas = {path: self._dict(path) for path in paths}
        types = set(_TYPES)
        for schema in schemas.values():
            types &= _types(schema)
        if any("enum" in schema or "const" in schema for schema in schemas.values()):
            return self._constants(schemas, types)
        if "number" in types:
            types.discard("integer")
        build: dict[str, Callable[[dict[str, dict[str, Any]]], Place]] = {
            "null": lambda _: self.program.literal("null", self.program.done),
            "boolean": lambda _: self.program.either(
                *(self.program.literal(text, self.program.done) for text in ("true", "false"))
            ),
            "integer": lambda s: integer(self.program, _bounds(s), self.program.done),
            "number": lambda s: number(self.program, _bounds(s), self.program.done),
            "string": self._string,
            "array": self._array,
            "object": self._object,
        }
        return self.program.either(*(build[type_](schemas) for type_ in _TYPES if type_ in types))

    def _dict(self, path: str) -> dict[str, Any]:
        schema = self._at(path)
        assert isinstance(schema, dict)
        return schema

    def _constants(self, schemas: dict[str, dict[str, Any]], types: Collection[str]) -> Place:
        allowed: dict[str, Any] | None = None
        for path, schema in schemas.items():
            for keyword in schema:
                if keyword not in _BESIDE_CONSTANTS:
                    _refuse(f"{path}/{keyword}", "beside enum or const it is not supported")
            for keyword in ("enum", "const"):
                if keyword in schema:
                    values = schema["enum"] if keyword == "enum" else [schema["const"]]
                    named = {json.dumps(v, sort_keys=True): v for v in values}
                    allowed = {k: v for k, v in named.items() if allowed is None or k in allowed}
        assert allowed is not None
        return self.program.either(
            *(
                constant(self.program, value, self.program.done)
                for value in allowed.values()
                if not types.isdisjoint(_types_of(value))
            )
        )

    def _string(self, schemas: dict[str, dict[str, Any]]) -> Place:
        program = self.program
        low, high = _range(schemas, "minLength", "maxLength")
        shapes: dict[str, str] = {}  # the regular expression: where it is from
        for path, schema in schemas.items():
            if "pattern" in schema:
                shapes[schema["pattern"]] = f"{path}/pattern"
            if "format" in schema:
                shapes[f"^(?:{FORMATS[schema['format']]})$"] = f"{path}/format"
        if not shapes:
            return string(program, low, high, program.done)
        if len(shapes) > 1 or low > 0 or high is not None:
            _refuse(
                list(shapes.values())[-1],
                "pattern, format and a length of the same string are supported one at a time",
            )
        [(expression, path)] = shapes.items()
        try:
            inner = pattern(program, expression, program.literal('"', program.done))
        except UsageError as error:
            _refuse(path, str(error))
        return program.literal('"', inner)

    def _object(self, schemas: dict[str, dict[str, Any]]) -> Place:
        program = self.program
        required = {name for schema in schemas.values() for name in schema.get("required", ())}
        declared = [name for schema in schemas.values() for name in schema.get("properties", ())]
        names = list(dict.fromkeys(declared + [n for s in schemas.values() for n in s.get("required", ())]))
        others = [
            f"{path}/additionalProperties"
            for path, schema in schemas.items()
            if "additionalProperties" in schema
        ]
        end = program.literal("}", program.done)
        # Behind a property, and behind the comma or brace before a key, with those from i on left.
        behind, before = end, program.either()
        if not any(self._at(path) is False for path in others):
            behind = program.reserve()
            value = colon(program, program.call(self._rule(others), behind))
            before = other_key(program, names, value)
            program.fill(behind, end, comma(program, before))
        may_end = True
        for name in reversed(names):
            key = quoted(name)
            value = colon(program, program.call(self._rule(_of(schemas, name)), behind))
            with_it = program.literal(key, value)
            may_end = may_end and name not in required
            before = with_it if name in required else program.either(with_it, before)
            behind = comma(program, before)
            if may_end:
                behind = program.either(end, behind)
        return program.literal("{", program.either(end, before) if may_end else before)

    def _array(self, schemas: dict[str, dict[str, Any]]) -> Place:
        program = self.program
        low, high = _range(schemas, "minItems", "maxItems")
        n_fixed = max(len(schema.get("prefixItems", ())) for schema in schemas.values()) if schemas else 0
        end = program.literal("]", program.done)

        def item(i: int, then: Place) -> Place:
            return program.call(self._rule(_item(schemas, i)), then)

        def next_item(then: Place) -> Place:
            return comma(program, item(n_fixed, then))

        if high is not None and high < low:
            return program.either()
        left = (max(low - n_fixed, 0), None if high is None else max(high - n_fixed, 0))
        if n_fixed == 0 and left[1] != 0:  # the first item has no comma before it
            less = (max(left[0] - 1, 0), None if left[1] is None else left[1] - 1)
            some = item(0, program.repeat(next_item, *less, end))
            behind = program.either(end, some) if low == 0 else some
        else:
            behind = program.repeat(next_item, *left, end)
        for i in range(n_fixed - 1, -1, -1):
            more = item(i, behind)
            if i > 0:
                more = comma(program, more)
            ways = [end] if low <= i else []
            if high is None or i < high:
                ways.append(more)
            behind = program.either(*ways)
        return program.literal("[", behind)


# ---- what the schemas of one value say together -----------------------------------


def _of(schemas: dict[str, dict[str, Any]], name: str) -> list[str]:
    """The paths of what a property has to be."""
    paths = []
    for path, schema in schemas.items():
        if name in schema.get("properties", ()):
            paths.append(f"{path}/properties/{_escaped(name)}")
        elif "additionalProperties" in schema:
            paths.append(f"{path}/additionalProperties")
    return paths


def _item(schemas: dict[str, dict[str, Any]], i: int) -> list[str]:
    """The paths of what the i-th item has to be."""
    paths = []
    for path, schema in schemas.items():
        if i < len(schema.get("prefixItems", ())):
            paths.append(f"{path}/prefixItems/{i}")
        elif "items" in schema:
            paths.append(f"{path}/items")
    return paths


def _types(schema: dict[str, Any]) -> set[str]:
    named = schema.get("type", _TYPES)
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


def _range(
    schemas: dict[str, dict[str, Any]], least: str, most: str
) -> tuple[int, int | None]:
    low = max((schema.get(least, 0) for schema in schemas.values()), default=0)
    high = min((schema[most] for schema in schemas.values() if most in schema), default=None)
    return low, high


def _bounds(schemas: dict[str, dict[str, Any]]) -> Bounds:
    """The narrowest bounds; of equal ones the open one."""
    found: dict[str, list[tuple[Decimal, bool]]] = {"inimum": [], "aximum": []}
    for schema in schemas.values():
        for keyword in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
            if keyword in schema:
                value = Decimal(repr(schema[keyword]))
                found[keyword[-6:]].append((value, keyword.startswith("ex")))
    low, low_open = max(found["inimum"], default=(None, False))
    high, high_open = min(
        found["aximum"], key=lambda bound: (bound[0], not bound[1]), default=(None, False)
    )
    return Bounds(low, high, low_open, high_open)


# ---- reading -------------------------------------------------------------------


def _refuse(path: str, why: str) -> NoReturn:
    raise UsageError(f"schema, {path}: {why}")


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1").replace("%", "%25")


def _child(schema: Any, part: str) -> Any:
    if isinstance(schema, list):
        return schema[int(part)] if part.isdecimal() and int(part) < len(schema) else None
    return schema.get(part) if isinstance(schema, dict) else None


def _target(path: str, reference: str) -> str:
    if reference != "#" and not reference.startswith("#/"):
        _refuse(f"{path}/$ref", f"{reference!r} is not in this schema: #/... is supported")
    return reference


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_COUNT


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_type(value: Any) -> bool:
    names = [value] if isinstance(value, str) else value
    return _is_text_list(names) and bool(names) and all(name in _TYPES for name in names)


def _is_some_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


# What the value of a keyword has to be, and how an error names that.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_is_type, f"it is one of {', '.join(_TYPES)}, or a list of them"),
    "nullable": (lambda v: isinstance(v, bool), "it is true or false"),
    "enum": (_is_some_list, "it is a list with something in it"),
    "const": (lambda v: True, ""),
    "properties": (lambda v: isinstance(v, dict), "it is an object of schemas"),
    "required": (_is_text_list, "it is a list of names"),
    "additionalProperties": (lambda v: True, ""),
    "items": (lambda v: not isinstance(v, list), "for a list of schemas use prefixItems"),
    "prefixItems": (_is_some_list, "it is a list with something in it"),
    "uniqueItems": (lambda v: v is False, "true is not supported"),
    "anyOf": (_is_some_list, "it is a list with something in it"),
    "oneOf": (_is_some_list, "it is a list with something in it"),
    "allOf": (_is_some_list, "it is a list with something in it"),
    "$ref": (lambda v: isinstance(v, str), "it is a text such as #/$defs/name"),
    "pattern": (lambda v: isinstance(v, str), "it is a text"),
    "format": (lambda v: v in FORMATS, f"supported are {', '.join(FORMATS)}"),
} | {
    name: (_is_count, f"it is a whole number from 0 to {_MAX_COUNT:,}")
    for name in ("minItems", "maxItems", "minLength", "maxLength")
} | {
    name: (_is_number, "it is a number")
    for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
}  # fmt: skip
_BESIDE_CONSTANTS = _ANNOTATIONS | {
    "type", "nullable", "enum", "const", "$ref", "anyOf", "oneOf", "allOf",
}  # fmt: skip


def _check(path: str, schema: dict[str, Any]) -> None:
    for keyword, value in schema.items():
        at = f"{path}/{_escaped(keyword)}"
        if keyword == "$id" and path != "#":
            _refuse(at, "an $id within a schema is not supported")
        if keyword in _ANNOTATIONS:
            continue
        if keyword not in _RULES:
            _refuse(at, f"the keyword {keyword!r} is not supported")
        good, meaning = _RULES[keyword]
        if not good(value):
            _refuse(at, meaning)
