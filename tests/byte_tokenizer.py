"""A tokenizer small enough to read: a token per byte, and Qwen3's added tokens from 1000 on."""

from __future__ import annotations

from collections.abc import Iterable

ADDED = """
<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|>
<|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|>
<|image_pad|> <|video_pad|> <tool_call> </tool_call> <|fim_prefix|> <|fim_middle|>
<|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> <tool_response> </tool_response> <think>
</think>
""".split()  # noqa: SIM905

PIECES = 2000  # ids from here on stand for whole texts, see ByteTokenizer.piece


class ByteTokenizer:
    def __init__(self) -> None:
        self.added = {text: 1000 + i for i, text in enumerate(ADDED)}
        self._bytes = {1000 + i: text.encode() for i, text in enumerate(ADDED)}

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token: int) -> bytes:
        return self._bytes.get(token) or bytes([token])

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def piece(self, text: str | bytes) -> int:
        """A new token that stands for text, which may be part of a character."""
        token = PIECES + len(self._bytes)
        self._bytes[token] = text.encode() if isinstance(text, str) else text
        return token
