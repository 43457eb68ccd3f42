"""Grammars from schemas: what is drawn is allowed by the schema, and what it allows is accepted."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from schemas import draw_text, random_schema, random_value
from vocabulary import real_tokenizer

from qwen3cli.engine import Grammar, Model, Tokenizer
from qwen3cli.errors import UsageError

IM_END, ENDOFTEXT, N_ORDINARY = 151645, 151643, 151643
NANO = Path(__file__).parent.parent / "qwen3cli" / "models" / "nano-dense-q8_0.gguf"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return real_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def nano() -> Model:
    return Model(NANO, threads=1)


def possible(tokenizer: Tokenizer, schema: Any) -> Grammar | None:
    """The grammar of a random schema, which may allow nothing."""
    try:
        return Grammar(tokenizer, schema, [IM_END])
    except UsageError as error:
        if "beside" in str(error):
            pytest.skip("this combination is not supported")
        assert "no answer can keep to the schema" in str(error)
        return None


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
    schema = random_schema(rng)
    if (grammar := possible(tokenizer, schema)) is None:
        return
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
        schema = random_schema(rng)
        value = random_value(rng, schema)
        separators = rng.choice([(",", ":"), (", ", ": ")])
        text = json.dumps(value, ensure_ascii=False, separators=separators)
        grammar = possible(tokenizer, schema)
        accepted = grammar is not None and accepts(tokenizer, grammar, text)
        assert accepted == valid(schema, value), (schema, text)
