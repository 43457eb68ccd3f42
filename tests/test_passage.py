"""Stop texts: found wherever they lie, never shown in part."""

from __future__ import annotations

import random

from byte_tokenizer import ByteTokenizer

from qwen3cli.passage import Passage


def shown(pieces: list[bytes], stops: list[str]) -> tuple[str, bool]:
    """What a passage shows of a text in pieces, which may end within characters."""
    tokenizer = ByteTokenizer()
    passage = Passage(tokenizer, stop=stops)  # type: ignore[arg-type]
    text = ""
    for piece in pieces:
        text += passage.push(tokenizer.piece(piece))
        assert text == passage.text
        if passage.stopped:
            return text, True
    return text + passage.finish(cut=False), passage.stopped


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """Character by character."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


def test_stop_texts_are_found_however_the_text_is_cut_into_tokens() -> None:
    rng = random.Random(7)

    def letters(least: int, most: int) -> str:
        return "".join(rng.choice("ab한🙂") for _ in range(rng.randint(least, most)))

    stopped = 0
    for _ in range(3000):
        text, stops = letters(1, 12), [letters(1, 4) for _ in range(rng.randint(1, 3))]
        data, pieces = text.encode(), []
        while data:
            n = rng.randint(1, 5)
            pieces.append(data[:n])
            data = data[n:]
        assert shown(pieces, stops) == expected(text, stops), (text, stops, pieces)
        stopped += expected(text, stops)[1]
    assert 1000 < stopped < 2900
