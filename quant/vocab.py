"""The tokenizer of a Hugging Face directory as GGUF metadata (tokenizer.ggml.*)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf

from .errors import FormatError, QuantError
from .jsonfile import MAX_BYTES, read_json

# What "qwen2" in tokenizer.ggml.pre stands for: a file may claim it only if its
# tokenizer splits text this way.
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def add_tokenizer(writer: gguf.GGUFWriter, directory: Path, n_vocab: int) -> None:
    """Adds the tokenizer of directory (tokenizer.json, tokenizer_config.json) to writer.

    The vocabulary is padded to n_vocab, the rows of the embedding, with unused
    tokens. Raises FormatError when it is not a byte-level BPE of the Qwen family
    or does not fit into n_vocab.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise FormatError(
            f"{directory}: there is no tokenizer.json; download it into this directory, "
            "it belongs to every Qwen3 checkpoint"
        )
    tokenizer = read_json(path)
    _check_kind(tokenizer, path)
    tokens, types = _tokens(tokenizer, n_vocab, path)

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(_merges(tokenizer["model"], path))

    special = _SpecialTokens(directory, tokens)
    eos = special.find("eos")
    if eos is None:
        raise FormatError(
            f"{directory}: no eos_token in tokenizer_config.json, no eos_token_id in config.json"
        )
    writer.add_eos_token_id(eos)
    if (pad := special.find("pad")) is not None:
        writer.add_pad_token_id(pad)
    if (bos := special.find("bos")) is not None:
        writer.add_bos_token_id(bos)
    writer.add_add_bos_token(False)
    if template := _chat_template(directory, special.config):
        writer.add_chat_template(template)


def _check_kind(tokenizer: dict[str, Any], path: Path) -> None:
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise FormatError(f"{path}: not a byte-level BPE tokenizer, as Qwen3 has")
    if _QWEN2_SPLIT not in _regexes(tokenizer.get("pre_tokenizer")):
        raise FormatError(f"{path}: its pre-tokenizer does not split text as Qwen3 does")


def _regexes(node: Any) -> Iterator[str]:
    """Every {"Regex": pattern} of a pre-tokenizer, whatever it is nested in."""
    if isinstance(node, dict):
        if isinstance(pattern := node.get("Regex"), str):
            yield pattern
        node = list(node.values())
    if isinstance(node, list):
        yield from itertools.chain.from_iterable(map(_regexes, node))


def _tokens(tokenizer: dict[str, Any], n_vocab: int, path: Path) -> tuple[list[str], list[int]]:
    """The text and the GGUF type of every id below n_vocab."""
    tokens = [f"[PAD{i}]" for i in range(n_vocab)]
    types = [int(gguf.TokenType.UNUSED)] * n_vocab

    def put(token: Any, text: Any, kind: gguf.TokenType) -> None:
        if not isinstance(text, str) or type(token) is not int:
            raise FormatError(f"{path}: the vocabulary must map texts to ids")
        if not 0 <= token < n_vocab:
            raise FormatError(
                f"{path}: token {text[:200]!r} has id {token}, "
                f"but the model has {n_vocab} embeddings (vocab_size)"
            )
        if types[token] != gguf.TokenType.UNUSED and tokens[token] != text:
            raise FormatError(
                f"{path}: id {token} is given to both {tokens[token][:200]!r} and {text[:200]!r}"
            )
        tokens[token], types[token] = text, int(kind)

    vocab, added = tokenizer["model"].get("vocab"), tokenizer.get("added_tokens", [])
    if not isinstance(vocab, dict) or not isinstance(added, list):
        raise FormatError(f"{path}: model.vocab must be an object and added_tokens a list")
    for text, token in vocab.items():
        put(token, text, gguf.TokenType.NORMAL)
    for entry in added:
        if not isinstance(entry, dict):
            raise FormatError(f"{path}: an added token must be an object")
        kind = gguf.TokenType.CONTROL if entry.get("special") else gguf.TokenType.USER_DEFINED
        put(entry.get("id"), entry.get("content"), kind)
    return tokens, types


def _merges(model: dict[str, Any], path: Path) -> list[str]:
    """The merges, "left right" each; tokenizer.json spells them so or as pairs."""
    merges = model.get("merges")
    if not isinstance(merges, list) or not merges:
        raise FormatError(f"{path}: model.merges is missing or empty")
    result = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(part, str) and part and " " not in part for part in pair)
        ):
            raise FormatError(f"{path}: {str(merge)[:200]!r} is not a merge of two tokens")
        result.append(" ".join(pair))
    return result


class _SpecialTokens:
    """Where a checkpoint names its eos, bos and pad tokens: tokenizer_config.json by
    text, generation_config.json and config.json by id; the first of them counts."""

    def __init__(self, directory: Path, tokens: list[str]) -> None:
        def optional(name: str) -> dict[str, Any]:
            return read_json(directory / name) if (directory / name).is_file() else {}

        self._directory = directory
        self._ids = {text: token for token, text in enumerate(tokens)}
        self.config = optional("tokenizer_config.json")
        self._by_id = [optional("generation_config.json"), optional("config.json")]

    def find(self, name: str) -> int | None:
        text = self.config.get(f"{name}_token")
        if isinstance(text, dict):
            text = text.get("content")
        if text is not None:
            if not isinstance(text, str) or text not in self._ids:
                raise FormatError(
                    f"{self._directory}: the {name}_token of tokenizer_config.json, "
                    f"{str(text)[:200]!r}, is not in the vocabulary"
                )
            return self._ids[text]
        for source in self._by_id:
            token = source.get(f"{name}_token_id")
            if isinstance(token, list) and token:  # several ends; the first is the main one
                token = token[0]
            if token is None:
                continue
            if type(token) is not int or not 0 <= token < len(self._ids):
                raise FormatError(f"{self._directory}: {name}_token_id is {str(token)[:40]}")
            return token
        return None


def _chat_template(directory: Path, config: dict[str, Any]) -> str | None:
    """chat_template.jinja, or else the (default) template of tokenizer_config.json."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            with path.open("rb") as file:
                return file.read(MAX_BYTES).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise QuantError(f"{path}: cannot be read: {error}") from None
    template = config.get("chat_template")
    if isinstance(template, list):
        named = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
        template = named[0].get("template") if named else None
    return template if isinstance(template, str) else None
