"""Grammars from schemas: what is drawn is allowed by the schema, and what it allows is accepted."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from gguf_tiny import tiny_model
from schemas import draw_text, random_schema, random_value
from vocabulary import real_tokenizer

from qwen3cli.engine import Grammar, Model, Sampling, Tokenizer
from qwen3cli.errors import Qwen3Error, UsageError
from qwen3cli.grammar import keywords
from qwen3cli.grammar.keywords import bounds
from qwen3cli.grammar.program import Program
from qwen3cli.grammar.schema import compiled, load

IM_END, ENDOFTEXT, N_ORDINARY = 151645, 151643, 151643
NANO = Path(__file__).parent.parent / "qwen3cli" / "models" / "nano-dense-q8_0.gguf"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return real_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def nano() -> Model:
    return Model(NANO, threads=1)


def supported(tokenizer: Tokenizer, rng: random.Random) -> tuple[Any, Grammar | None]:
    """A random schema and its grammar, which is None where nothing can keep to it."""
    while True:
        schema = random_schema(rng)
        try:
            return schema, Grammar(tokenizer, schema, [IM_END])
        except UsageError as error:
            if "beside" in str(error):  # keywords that do not go together
                continue
            assert "no answer can keep to the schema" in str(error)
            return schema, None


def accepts(tokenizer: Tokenizer, grammar: Grammar, text: str | bytes) -> bool:
    """Whether a text is a whole answer, token by token as the tokenizer has it."""
    data = text.encode() if isinstance(text, str) else text
    matcher = grammar.matcher()
    for token in tokenizer._native.encode(data, False):
        allowed = bool(matcher.mask()[token])
        try:
            matcher.accept(token)
        except UsageError:
            assert not allowed
            return False
        assert allowed
    return matcher.complete


def valid(schema: Any, value: Any) -> bool:
    return bool(
        jsonschema.Draft202012Validator(
            schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
        ).is_valid(value)
    )


# ---- what is drawn is valid, what is valid is accepted ------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_what_is_drawn_from_a_random_schema_is_valid(tokenizer: Tokenizer, seed: int) -> None:
    rng = random.Random(seed)
    grammar = None
    while grammar is None:
        schema, grammar = supported(tokenizer, rng)
    for _ in range(3):
        ids = draw_text(rng, tokenizer, grammar.matcher(), IM_END)
        text = b"".join(map(tokenizer.token_bytes, ids)).decode()  # which is UTF-8
        assert valid(schema, json.loads(text)), (schema, text)


@pytest.mark.parametrize("seed", range(60))
def test_values_are_accepted_as_they_are_tokenized_if_valid(
    tokenizer: Tokenizer, seed: int
) -> None:
    rng = random.Random(seed)
    for _ in range(4):
        schema, grammar = supported(tokenizer, rng)
        value = random_value(rng, schema)
        separators = rng.choice([(",", ":"), (", ", ": ")])
        text = json.dumps(value, ensure_ascii=False, separators=separators)
        accepted = grammar is not None and accepts(tokenizer, grammar, text)
        assert accepted == valid(schema, value), (schema, text)


# ---- the letter of it ---------------------------------------------------------------

NODE = {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#"}}}
TEXTS: list[tuple[Any, list[str], list[str]]] = [  # a schema, texts it allows, texts it does not
    ({"type": "boolean"}, ["true", "false"], ["True", "tru", "truefalse", " true", "true "]),
    ({"type": "integer"}, ["0", "-1", "120"], ["01", "-0", "1.0", "1e3", "+1", "-", ""]),
    (
        {"type": "number"},
        ["0", "-0.0", "12.25", "1e-07", "1.5E+300", "5e-299", "-3e5"],
        ["1.", ".5", "01.5", "1e", "1e400", "10e3", "Infinity", "NaN", "0x1", "1" * 21],
    ),
    ({"type": "integer", "minimum": -3, "maximum": 120}, ["-3", "0", "120"], ["-4", "121", "1000"]),
    ({"exclusiveMinimum": 1.5, "type": "integer"}, ["2", "10"], ["1", "-2"]),
    ({"type": "number", "minimum": 0, "maximum": 1}, ["0", "0.37", "1", "1.0"], ["1.01", "-0.1"]),
    ({"type": "number", "exclusiveMaximum": 0}, ["-0.5", "-12"], ["0", "-0", "0.0", "1"]),
    ({"type": "number", "minimum": 0.1, "maximum": 0.25}, ["0.1", "0.2", "0.250"], ["0.09", "0.3"]),
    (
        {"type": "string"},
        ['""', '"é😀"', r'"\"\\\/\b\f\n\r\t"', r'"\u00e9\uD83D\uDE00"', '"\x7f"'],
        ['"a', '"\n"', '"\t"', r'"\x41"', r'"\uD83D"', r'"\uDE00"', r'"\uD83Dx"', r'"\u12"'],
    ),
    (
        {"type": "string", "minLength": 2, "maxLength": 3},
        ['"ab"', '"😀😀"', r'"\n\u0041é"', r'"\uD83D\uDE00x"'],
        ['"a"', '"abcd"', r'"\uD83D\uDE00"'],
    ),
    ({"type": "array", "items": {"type": "null"}, "minItems": 2, "maxItems": 3},
     ["[null,null]", "[null, null, null]"], ["[]", "[null]", "[null,null,null,null]", "[null,]"]),
    ({"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": False},
     ["[]", "[1]", "[1,2]"], ["[2]", "[1,2,3]"]),
    (
        {"properties": {"a": {"const": 1}, "b": {"const": 2}}, "required": ["b"],
         "type": "object", "additionalProperties": False},
        ['{"b":2}', '{"a": 1, "b": 2}', '{"a":1, "b":2}'],
        ["{}", '{"a":1}', '{"b":2,"a":1}', '{"b":2,}', '{ "b":2}', '{"b" :2}', '{"b":2,"c":1}'],
    ),
    (
        {"type": "object", "properties": {"name": {"type": "null"}}},  # others are allowed
        ["{}", '{"name":null,"names":1}', '{"nam":{"name":2}}', '{"x":1,"y":[true]}'],
        ['{"name":1}', '{"x":1,"name":1}', r'{"\u006eame":1}', '{"nämé":1,"name":null}'],
    ),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, ['{"a":1}'], ['{"a":"b"}']),
    ({"type": "object", "required": ["a"]}, ['{"a":[]}'], ["{}", '{"b":1}']),
    ({"enum": ["a\"é", 1, None]}, [r'"a\"é"', "1", "null"], ['"a"', "2", r'"a\"\u00e9"']),
    ({"enum": ["a", "bcd", 3, 30], "minLength": 2, "maximum": 10}, ['"bcd"', "3"], ['"a"', "30"]),
    ({"enum": ["a", 1, 1.5], "type": ["integer", "null"]}, ["1"], ['"a"', "1.5", "null"]),
    (
        {"enum": [2, 5, 7, "2024-01-01", "2024-01-٠١"], "format": "date",
         "allOf": [{"minimum": 3}, {"maximum": 6}]},
        ["5", '"2024-01-01"'],
        ["2", "7", '"2024-01-٠١"'],  # those are digits, too
    ),
    ({"type": "string", "nullable": True, "maxLength": 1}, ['"a"', "null"], ["1"]),
    (
        {"anyOf": [{"type": "integer"}, {"const": "x"}], "minimum": 5},
        ["5", '"x"'],
        ["4", '"y"'],
    ),
    ({"oneOf": [{"type": "integer"}, {"type": "null"}]}, ["7", "null"], ["true"]),
    ({"allOf": [{"minimum": 3}, {"maximum": 5}], "type": "integer"}, ["3", "5"], ["2", "6"]),
    ({**NODE, "required": ["v"], "additionalProperties": False},
     ['{"v":1}', '{"v":1,"next":{"v":2,"next":{"v":3}}}'], ['{"next":{"v":1}}', '{"v":null}']),
    (
        {"$defs": {"a/b~c %": {"type": "null"}}, "$ref": "#/$defs/a~1b~0c%20%25"},
        ["null"],
        ["1"],
    ),
    ({"pattern": "b+", "type": "string"}, ['"abbc"', '"b"'], ['""', '"ac"']),
    ({"pattern": r"^[^a-y\\]\u00e9?$", "type": "string"},
     ['"zé"', '"日"', r'"\""'], ['"a"', r'"\\"']),
    ({"pattern": r"^(?:a|b{2,})?$", "type": "string"}, ['""', '"a"', '"bbb"'], ['"b"', '"ab"']),
    ({"pattern": r"^[\w-]+\.\D$|^x$", "type": "string"}, ['"a-b.c"', '"x"'], ['"a.1"', '"xx"']),
    ({"format": "date", "type": "string"}, ['"2024-02-29"'], ['"2023-02-29"', '"2024-04-31"']),
    (True, ['{"a":[1,{"b":null}]}', "[]", '"x"', "-1.5e10"], ["", "[1", "{1:2}", "[1 ,2]"]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "good", "bad"), TEXTS, ids=[json.dumps(t[0]) for t in TEXTS])
def test_texts_that_a_schema_allows(
    tokenizer: Tokenizer, schema: Any, good: list[str], bad: list[str]
) -> None:
    grammar = Grammar(tokenizer, schema, [IM_END])
    assert [text for text in good if not accepts(tokenizer, grammar, text)] == []
    assert [text for text in bad if accepts(tokenizer, grammar, text)] == []


def test_characters_may_be_split_over_tokens_and_never_left_broken(tokenizer: Tokenizer) -> None:
    matcher = Grammar(tokenizer, {"type": "string"}, [IM_END]).matcher()
    single = {tokenizer.token_bytes(token): token for token in range(256)}
    for byte in b'"\xf0\x9f\x98':
        matcher.accept(single[bytes([byte])])
    allowed = np.flatnonzero(matcher.mask())
    assert all(0x80 <= tokenizer.token_bytes(int(t))[0] < 0xC0 for t in allowed)
    matcher.accept(single[b"\x80"])
    for wrong in (b"\xff", b"\xc0", b"\x80", b"\x00", b"\x1f"):
        assert not matcher.mask()[single[wrong]]
    matcher.accept(single[b"\xed"])  # a surrogate would follow with A0 or more
    assert not matcher.mask()[single[b"\xa0"]] and matcher.mask()[single[b"\x9f"]]


def test_end_tokens_are_allowed_where_the_value_is_complete(tokenizer: Tokenizer) -> None:
    matcher = Grammar(tokenizer, {"type": "integer"}, [IM_END, ENDOFTEXT]).matcher()
    assert not matcher.complete and not matcher.mask()[N_ORDINARY:].any()
    with pytest.raises(UsageError, match=f"{IM_END}"):
        matcher.accept(IM_END)
    matcher.accept(tokenizer.encode("7")[0])
    assert matcher.complete and not matcher.finished, "more digits may follow"
    assert np.flatnonzero(matcher.mask()[N_ORDINARY:]).tolist() == [0, IM_END - N_ORDINARY]
    matcher.accept(IM_END)
    assert matcher.complete and matcher.finished and not matcher.mask().any()
    with pytest.raises(UsageError):
        matcher.accept(IM_END)


def test_added_tokens_are_never_part_of_a_text(tokenizer: Tokenizer) -> None:
    matcher = Grammar(tokenizer, {"type": "string"}, [IM_END]).matcher()
    matcher.accept(tokenizer.encode('"')[0])
    for token in tokenizer.added.values():
        assert not matcher.mask()[token]
        with pytest.raises(UsageError):
            matcher.accept(token)


def test_a_refused_token_leaves_the_matcher_where_it_was(tokenizer: Tokenizer) -> None:
    matcher = Grammar(tokenizer, {"enum": ["yes", "no"]}, [IM_END]).matcher()
    matcher.accept(tokenizer.encode('"')[0])
    before = matcher.mask()
    for token in (tokenizer.encode("maybe")[0], -1, 10**6):
        with pytest.raises(UsageError, match="not allow"):
            matcher.accept(token)
    np.testing.assert_array_equal(matcher.mask(), before)


def test_masks_near_a_bound_are_those_of_single_tokens(tokenizer: Tokenizer) -> None:
    """A bounded string far from its bound shares a mask; which tokens fit must not change."""
    grammar = Grammar(tokenizer, {"type": "string", "minLength": 25, "maxLength": 60}, [IM_END])
    rng = random.Random(1)
    written, ids = 0, tokenizer.encode('"')
    while written < 60:
        matcher = grammar.matcher()
        for token in ids:
            matcher.accept(token)
        mask = matcher.mask()
        for token in [*rng.sample(range(N_ORDINARY), 300), *tokenizer.encode('" "')]:
            fresh = grammar.matcher()
            for before in ids:
                fresh.accept(before)
            try:
                fresh.accept(token)
            except UsageError:
                assert not mask[token], (written, tokenizer.token_bytes(token))
            else:
                assert mask[token], (written, tokenizer.token_bytes(token))
        step = rng.choice(["a", "abc", " hello", "日本"])
        written += len(step)
        ids += tokenizer.encode(step)


def test_nesting_turns_back_before_it_is_too_deep(tokenizer: Tokenizer) -> None:
    matcher = Grammar(tokenizer, True, [IM_END]).matcher()
    bracket = tokenizer.encode("[")[0]
    depth = 0
    while matcher.mask()[bracket]:
        matcher.accept(bracket)
        depth += 1
    assert 50 < depth < 200
    for _ in range(depth):
        matcher.accept(tokenizer.encode("]")[0])
    assert matcher.finished


def test_a_long_answer_forgets_states_and_goes_on(tokenizer: Tokenizer) -> None:
    """More states than are kept: each item of a counted list is in a state of its own."""
    schema = {"type": "array", "items": {"enum": list(range(10))}, "maxItems": 20_000}
    matcher = Grammar(tokenizer, schema, [IM_END]).matcher()
    text = "[" + ",".join(str(i % 10) for i in range(20_000)) + "]"
    for token in tokenizer.encode(text):
        matcher.accept(token)
    assert matcher.finished


# ---- drawing ----------------------------------------------------------------------

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["new", "old"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 0.7, 5.0])
def test_a_model_that_knows_no_json_writes_it(nano: Model, temperature: float) -> None:
    end = nano.tokenizer.added["<|im_end|>"]
    grammar = Grammar(nano.tokenizer, PERSON, [end])
    session = nano.session(n_ctx=400)
    for seed in range(3):
        session.sync(nano.tokenizer.encode("<|im_start|>user\n2 + 2 = ?", added=True))
        matcher, ids = grammar.matcher(), []
        sampling = Sampling(temperature=temperature, top_k=20, top_p=0.9, seed=seed)
        while not matcher.finished:
            token = session.sample(sampling, matcher=matcher)
            matcher.accept(token)
            session.extend([token])
            ids.append(token)
        text = nano.tokenizer.decode([token for token in ids if token != end])
        assert valid(PERSON, json.loads(text)), text


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tiny_model(n_ctx=256).write(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


def test_the_distribution_is_that_of_the_allowed_tokens(tiny: Model) -> None:
    """Forbidden tokens take no part in top-k: what is left is renormalized."""
    session = tiny.session()
    session.sync([12, 80, 3, 250])
    matcher = Grammar(tiny.tokenizer, {"type": "integer"}, []).matcher()
    allowed = np.flatnonzero(matcher.mask())
    logits = session.logits().astype(np.float64)[allowed] / 2
    best = np.argsort(-logits)[:5]
    expected = np.zeros(len(allowed))
    expected[best] = np.exp(logits[best]) / np.exp(logits[best]).sum()
    draws = 5000
    counts = dict.fromkeys(allowed.tolist(), 0)
    for seed in range(draws):
        counts[session.sample(Sampling(temperature=2.0, top_k=5, seed=seed), matcher=matcher)] += 1
    seen = np.array(list(counts.values()))
    sigma = np.sqrt(draws * expected * (1 - expected))
    assert (np.abs(seen - draws * expected) <= 4 * sigma).all()
    greedy = session.sample(Sampling(), matcher=matcher)
    assert greedy == allowed[session.logits()[allowed].argmax()]


def test_a_matcher_that_allows_all_that_counts_changes_no_draw(nano: Model) -> None:
    end = nano.tokenizer.added["<|im_end|>"]
    session = nano.session(n_ctx=64)
    session.sync(nano.tokenizer.encode("2 + 2"))
    matcher = Grammar(nano.tokenizer, {"type": "string"}, [end]).matcher()
    mask = matcher.mask()
    agreed = 0
    for seed in range(300):
        sampling = Sampling(temperature=3.0, top_k=0, seed=seed)
        free = session.sample(sampling)
        held = session.sample(sampling, matcher=matcher)
        assert mask[held]
        agreed += free == held
    assert agreed < 300


def test_no_token_at_all_is_an_error_with_a_sentence(tiny: Model) -> None:
    session = tiny.session()
    session.sync([12, 80])
    matcher = Grammar(tiny.tokenizer, {"const": 7}, []).matcher()
    matcher.accept(session.sample(matcher=matcher))
    assert matcher.finished
    with pytest.raises(UsageError, match="allows no token here"):
        session.sample(matcher=matcher)


# ---- what is refused ------------------------------------------------------------------

REFUSED: list[tuple[Any, str]] = [  # a schema, and what its error says
    ({"properties": {"a": {"not": {}}}, "type": "object"}, "#/properties/a/not: the keyword 'not'"),
    ({"type": "array", "uniqueItems": True}, "#/uniqueItems: true is not supported"),
    ({"type": "object", "patternProperties": {}}, "patternProperties"),
    ({"type": "integer", "multipleOf": 2}, "multipleOf"),
    ({"if": True}, "'if'"),
    ({"tpye": "string"}, "'tpye'"),
    ({"type": "text"}, "#/type: it is one of null, boolean"),
    ({"type": "string", "format": "iri"}, "#/format: supported are date"),
    ({"type": "string", "format": ["date"]}, "#/format: supported are date"),
    ({"type": "string", "pattern": "(?=a)b"}, "#/pattern: .*looking ahead"),
    ({"type": "string", "pattern": r"(a)\1"}, r"#/pattern: .*\\1"),
    ({"type": "string", "pattern": r"\bword"}, "pattern"),
    ({"type": "string", "pattern": "(a"}, "'\\(' without its '\\)'"),
    ({"type": "string", "pattern": "a**"}, "repetition of a repetition"),
    ({"type": "string", "pattern": "a{9999999}"}, "count"),
    ({"type": "string", "pattern": "a", "maxLength": 3}, "one at a time"),
    ({"enum": ["a"], "pattern": "a"}, "beside"),
    ({"enum": []}, "#/enum: it is a list with something in it"),
    ({"minLength": -1}, "#/minLength: it is a whole number"),
    ({"minimum": True}, "#/minimum: it is a number"),
    ({"items": [{}], "type": "array"}, "prefixItems"),
    ({"items": 3, "type": "array"}, "#/items: a schema is a JSON object"),
    ({"$ref": "other.json"}, "is not in this schema"),
    ({"$ref": "#/$defs/none"}, "nothing in the schema at this path"),
    ({"$ref": "#/allOf/" + "9" * 5000, "allOf": [{}]}, "nothing in the schema at this path"),
    ({"$ref": "#"}, "refers to itself"),
    ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "refers to itself"),
    ({"properties": {"a": {"$id": "x"}}, "type": "object"}, r"#/properties/a/\$id"),
    (False, "no answer can keep to the schema"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "no answer can keep to the schema"),
    ({"type": "array", "minItems": 3, "maxItems": 2}, "no answer can keep to the schema"),
    ({"allOf": [{"type": "string"}, {"type": "null"}]}, "no answer can keep to the schema"),
    ({**NODE, "required": ["next"]}, "no answer can keep to the schema"),
    ('{"type": "string",}', "line 1, column"),
    ('{"minimum": NaN}', "NaN"),
    ('{"minimum": 1e999}', "1e999"),
    ('{"minimum": ' + "1" * 5000 + "}", "digits"),
    ("[]", "a schema is a JSON object, true or false"),
    ('{"const": "\\ud800"}', "surrogate"),
    ({"const": object()}, "no JSON"),
    ("[" * 100_000, "nests too deeply"),
    ('{"items":' * 900 + "{}" + "}" * 900, "deep|too large"),
    ({"enum": [str(i) * 8 for i in range(20_000)]}, "too large"),
    ({"type": "string", "pattern": "^" + "(a|b)" * 40 + "(" * 60}, "groups within groups"),
    ({"type": "string", "pattern": "^((a{1000}){1000}){1000}{2}$"}, "repetition"),
    ({"allOf": [{"anyOf": [{"title": str(i)} for i in range(9)]}] * 9}, "too many alternatives"),
    ({"type": "object", "required": [chr(0x4E00 + i) * 40 for i in range(2000)]}, "too large"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "says"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_not_supported_is_named(tokenizer: Tokenizer, schema: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Grammar(tokenizer, schema, [IM_END])


def test_too_many_ways_at_once_are_an_error(tokenizer: Tokenizer) -> None:
    schema = {"type": "string", "pattern": "^(?:(?:a{0,300}){0,300}){0,300}b$"}
    with pytest.raises(UsageError, match="may be empty"):
        Grammar(tokenizer, schema, [IM_END])
    schema = {"type": "string", "pattern": "^(?:a{1,3000}){1,3000}b$"}
    matcher = Grammar(tokenizer, schema, [IM_END]).matcher()
    with pytest.raises(Qwen3Error, match="too many alternatives"):
        for _ in range(2000):
            matcher.accept(tokenizer.encode('"a')[0] if not _ else tokenizer.encode("aaaa")[0])


def test_a_long_name_takes_memory_for_its_length_alone() -> None:
    tracemalloc.start()
    try:
        compiled({"type": "object", "properties": {"x" * 12_000: True}})  # 72 MB of beginnings
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()


def test_nothing_is_not_repeated() -> None:
    program, calls = Program(), []

    def nothing(then: int) -> int:
        calls.append(then)
        return then

    assert program.repeat(nothing, 0, 100, program.done, empty=True) == program.done
    assert len(calls) == 1  # or 100 ** n for n repetitions within each other


def test_many_constants_under_many_schemas(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def counted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return bounds(*args)

    monkeypatch.setattr(keywords, "bounds", counted)
    compiled({"enum": list(range(100)), "allOf": [{"minimum": i} for i in range(100)]})
    assert calls < 100


def test_parts_that_are_written_again_and_again_have_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schema = {
        "type": "object",
        "allOf": [{"properties": {str(i): True for i in range(20)}, "additionalProperties": False}],
        "anyOf": [{"title": str(i)} for i in range(100)],  # each the same instructions
    }
    assert len(compiled(schema).code) < 2000 * 20
    monkeypatch.setattr("qwen3cli.grammar.program.MAX_ASKED", 5000)
    with pytest.raises(UsageError, match="too large"):
        compiled(schema)


def test_annotations_are_no_keywords(tokenizer: Tokenizer) -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://x.y/z",
        "title": "t", "description": "d", "default": 1, "examples": [2], "deprecated": False,
        "$comment": "c", "type": "null",
    }  # fmt: skip
    assert accepts(tokenizer, Grammar(tokenizer, schema, [IM_END]), "null")


def test_a_file_says_where_it_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_bytes(b'\xef\xbb\xbf{"type":\n "null"}')
    assert load(path) == {"type": "null"}
    path.write_text('{"type":\n nul}')
    with pytest.raises(UsageError, match=r"schema\.json, line 2, column 2"):
        load(path)
    path.write_bytes(b'{"title": "\xff"}')
    with pytest.raises(UsageError, match="UTF-8"):
        load(path)
    path.write_text('{"title": "' + "a" * (1 << 20) + '"}')
    with pytest.raises(UsageError, match="at most"):
        load(path)
    path.write_text('{"title":  "' + "é" * (1 << 20) + '"}')  # what is read ends within one
    with pytest.raises(UsageError, match="at most"):
        load(path)
    with pytest.raises(UsageError, match="No such file"):
        load(tmp_path / "none.json")
