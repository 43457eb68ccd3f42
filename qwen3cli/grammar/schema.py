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
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar
from urllib.parse import unquote

from qwen3cli.errors import UsageError
from qwen3cli.grammar.jsontext import colon, comma, constant, other_key, quoted, string
from qwen3cli.grammar.keywords import (
    FORMATS,
    TYPES,
    Schemas,
    allowed_types,
    bounds,
    check,
    escaped,
    holding,
    limits,
    refuse,
)
from qwen3cli.grammar.numerals import integer, number
from qwen3cli.grammar.pattern import pattern
from qwen3cli.grammar.program import Place, Program

Schema = dict[str, Any] | bool
Paths = tuple[str, ...]  # of schemas that apply together
_Text = TypeVar("_Text", str, bytes)

MAX_BYTES = 1 << 20
_MAX_ALTERNATIVES = 20_000  # of all rules


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
        text = _short(data, str(path)).decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: a schema is a text in UTF-8") from None
    return parse(text, str(path))


def _short(text: _Text, name: str) -> _Text:
    if len(text) > MAX_BYTES:
        raise UsageError(f"{name}: a schema is at most {MAX_BYTES:,} bytes long")
    return text


def parse(text: str, name: str = "schema") -> Schema:
    """The schema that a text spells; name: where the text is from, for errors."""
    _short(text, name)

    def no_number(spelled: str) -> NoReturn:
        raise UsageError(f"{name}: {spelled} is no number of JSON, or too large")

    def real(spelled: str) -> float:
        return value if math.isfinite(value := float(spelled)) else no_number(spelled)

    try:
        schema = json.loads(text, parse_constant=no_number, parse_float=real)
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
        compiler = _Compiler(parse(schema if isinstance(schema, str) else _spelled(schema)))
        start = compiler.run()
    except RecursionError:
        raise UsageError("the schema nests too deeply") from None
    except UnicodeEncodeError:
        raise UsageError("the schema has half of a surrogate pair, which is no text") from None
    return Compiled(compiler.program.code, compiler.program.sets, start)


def _spelled(schema: Schema) -> str:
    """As it would be in a file, so that only what JSON knows comes in."""
    try:
        return json.dumps(schema)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the schema is no JSON: {error}") from None


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
                    refuse(path, "there is nothing in the schema at this path")
            if not isinstance(schema, dict | bool):
                refuse(path, "a schema is a JSON object, true or false")
            if isinstance(schema, dict):
                check(path, schema)
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
            refuse(path, "the schema refers to itself and to nothing else")
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
        if any("enum" in schema or "const" in schema for schema in schemas.values()):
            return self._constants(schemas)
        types = set(TYPES)
        for schema in schemas.values():
            types &= allowed_types(schema)
        if "number" in types:
            types.discard("integer")
        build: dict[str, Callable[[Schemas], Place]] = {
            "null": lambda _: self.program.literal("null", self.program.done),
            "boolean": lambda _: self.program.either(
                *(self.program.literal(text, self.program.done) for text in ("true", "false"))
            ),
            "integer": lambda s: integer(self.program, bounds(s), self.program.done),
            "number": lambda s: number(self.program, bounds(s), self.program.done),
            "string": self._string,
            "array": self._array,
            "object": self._object,
        }
        return self.program.either(*(build[type_](schemas) for type_ in TYPES if type_ in types))

    def _dict(self, path: str) -> dict[str, Any]:
        schema = self._at(path)
        assert isinstance(schema, dict)
        return schema

    def _constants(self, schemas: Schemas) -> Place:
        lists = [schema["enum"] for schema in schemas.values() if "enum" in schema]
        lists += [[schema["const"]] for schema in schemas.values() if "const" in schema]
        allowed = {json.dumps(value, sort_keys=True): value for value in lists[0]}
        for values in lists[1:]:
            others = {json.dumps(value, sort_keys=True) for value in values}
            allowed = {text: value for text, value in allowed.items() if text in others}
        values = holding(schemas, allowed.values())
        return self.program.either(*(constant(self.program, v, self.program.done) for v in values))

    def _string(self, schemas: Schemas) -> Place:
        program = self.program
        low, high = limits(schemas, "minLength", "maxLength")
        shapes: dict[str, str] = {}  # the regular expression: where it is from
        for path, schema in schemas.items():
            if "pattern" in schema:
                shapes[schema["pattern"]] = f"{path}/pattern"
            if "format" in schema:
                shapes[f"^(?:{FORMATS[schema['format']]})$"] = f"{path}/format"
        if not shapes:
            return string(program, low, high, program.done)
        if len(shapes) > 1 or low > 0 or high is not None:
            refuse(
                list(shapes.values())[-1],
                "pattern, format and a length of the same string are supported one at a time",
            )
        [(expression, path)] = shapes.items()
        try:
            inner = pattern(program, expression, program.literal('"', program.done))
        except UsageError as error:
            refuse(path, str(error))
        return program.literal('"', inner)

    def _object(self, schemas: Schemas) -> Place:
        program = self.program
        required = {name for schema in schemas.values() for name in schema.get("required", ())}
        declared = [name for schema in schemas.values() for name in schema.get("properties", ())]
        names = list(dict.fromkeys([*declared, *sorted(required)]))
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

    def _array(self, schemas: Schemas) -> Place:
        program = self.program
        low, high = limits(schemas, "minItems", "maxItems")
        n_fixed = max((len(s.get("prefixItems", ())) for s in schemas.values()), default=0)
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


def _of(schemas: Schemas, name: str) -> list[str]:
    """The paths of what a property has to be."""
    paths = []
    for path, schema in schemas.items():
        if name in schema.get("properties", ()):
            paths.append(f"{path}/properties/{escaped(name)}")
        elif "additionalProperties" in schema:
            paths.append(f"{path}/additionalProperties")
    return paths


def _item(schemas: Schemas, i: int) -> list[str]:
    """The paths of what the i-th item has to be."""
    paths = []
    for path, schema in schemas.items():
        if i < len(schema.get("prefixItems", ())):
            paths.append(f"{path}/prefixItems/{i}")
        elif "items" in schema:
            paths.append(f"{path}/items")
    return paths


# ---- paths ----------------------------------------------------------------------


def _child(schema: Any, part: str) -> Any:
    if isinstance(schema, list):
        known = part.isdecimal() and len(part) < 9 and int(part) < len(schema)
        return schema[int(part)] if known else None
    return schema.get(part) if isinstance(schema, dict) else None


def _target(path: str, reference: str) -> str:
    if reference != "#" and not reference.startswith("#/"):
        refuse(f"{path}/$ref", f"{reference!r} is not in this schema: #/... is supported")
    return reference
