"""Batches: the same answers however many are in work, a file that is gone on with, lines that are
no questions."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from commandline import PATIENCE, QUESTION, Command

from qwen3cli.engine import TOGETHER, Cancelled, Model, Session, extend_together
from qwen3cli.errors import ContextOverflow, UsageError

NANO = Path(__file__).parent.parent / "qwen3cli/models/nano-dense-q8_0.gguf"
QUESTIONS: list[dict[str, Any]] = [
    {"prompt": QUESTION},
    {"id": "greedy", "prompt": "What is 9 + 4?", "temperature": 0},
    {"id": 7, "prompt": "What is 31 - 8 + 2?", "budget": 8, "landing": "hard"},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "5 + 5?"},
                  {"role": "assistant", "content": "10"}, {"role": "user", "content": "2 + 6?"}]},
    {"prompt": "What is 8 - 3?", "think": False, "system": "Be brief.", "seed": 3},
    {"prompt": "What is 20 + 30 - 1?", "top_k": 5, "top_p": 0.9, "stop": ["9"]},
]  # fmt: skip


def ask(qwen3: Command, questions: list[Any], *args: str, code: int = 0) -> dict[int, Any]:
    """The answers by line."""
    lines = [line if isinstance(line, str) else json.dumps(line) for line in questions]
    (qwen3.home / "in.jsonl").write_text("\n".join(lines) + "\n")
    done = qwen3("run", "-m", "nano", "--batch", "in.jsonl", "-o", "out.jsonl", *args)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    return answers(qwen3)


def answers(qwen3: Command) -> dict[int, Any]:
    records = [json.loads(line) for line in (qwen3.home / "out.jsonl").read_text().splitlines()]
    found = {record["line"]: record for record in records}
    assert len(found) == len(records)
    return found


def test_an_answer_does_not_depend_on_what_else_is_in_work(qwen3: Command) -> None:
    together = ask(qwen3, QUESTIONS, "--seed", "5")
    assert set(together) == set(range(1, len(QUESTIONS) + 1))
    for parallel in ("1", "3"):
        (qwen3.home / "out.jsonl").unlink()
        assert ask(qwen3, QUESTIONS, "--seed", "5", "--parallel", parallel) == together
    assert together[2]["id"] == "greedy" and together[3]["id"] == 7 and "id" not in together[1]
    assert (together[3]["thinking_tokens"], together[3]["thinking_stop"]) == (8, "budget")
    assert together[5]["thinking_stop"] == "off" and together[5]["seed"] == 3
    assert together[1]["seed"] != together[4]["seed"]


def test_answers_keep_to_a_schema(qwen3: Command) -> None:
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    schema["additionalProperties"] = False
    (qwen3.home / "schema.json").write_text(json.dumps(schema))
    found = ask(qwen3, QUESTIONS, "--schema", "schema.json")
    for record in found.values():
        assert list(json.loads(record["answer"])) == ["sum"]
    assert any(record["thoughts"] for record in found.values())
    ask(qwen3, QUESTIONS, code=2)  # without the schema these are not the answers


def test_an_answer_is_that_of_run(qwen3: Command) -> None:
    found = ask(qwen3, QUESTIONS)
    for number, flags in ((1, []), (2, ["--temp", "0"]), (3, ["--budget", "8"])):
        prompt, seed = QUESTIONS[number - 1]["prompt"], str(found[number]["seed"])
        more = ["--landing", "hard", "-m", "nano", "--json"]
        alone = json.loads(qwen3("run", prompt, "--seed", seed, *flags, *more).stdout)
        for key in ("answer", "thoughts", "thinking_tokens", "thinking_stop", "answer_tokens"):
            assert found[number][key] == alone[key]


BAD = [
    ("{", "no JSON"),
    ("[]", "a JSON object"),
    ('{"prompt": "a", "prompt": "b"}', "prompt: it is there twice"),
    ({"promt": "x"}, "promt: there is no such key"),
    ({"prompt": "x", "messages": []}, 'either "prompt" or "messages"'),
    ({}, 'either "prompt" or "messages"'),
    ({"prompt": " "}, "prompt: a text"),
    ({"prompt": "x", "id": [1]}, "id: a text or a whole number"),
    ({"prompt": "x", "temperature": "hot"}, 'temperature: "hot" is no number'),
    ({"prompt": "x", "temperature": 1000}, "temp: 1000 is not in the range"),
    ({"prompt": "x", "top_k": True}, "top_k: true is no whole number"),
    ({"prompt": "x", "budget": "soon"}, "budget: 'soon'"),
    ({"prompt": "x", "stop": "x"}, 'stop: "x" is no list of texts'),
    ({"messages": []}, "messages: a list"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages: number 1: role"),
    ({"messages": [{"role": "user", "content": 1}]}, "messages: number 1: content"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "the last one is to be of the user"),
    ({"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}],
      "system": "c"}, "system: the messages have one"),
    ({"prompt": "many words " * 90}, "shorten it"),
]  # fmt: skip


def test_a_byte_order_mark_is_no_error(qwen3: Command) -> None:
    (qwen3.home / "in").write_text('{"prompt": "hi"}\n', "utf-8-sig")
    done = qwen3("run", "--batch", "in", "-o", "out", "-m", "nano", "--max-tokens", "1")
    assert done.returncode == 6 and "error" not in (qwen3.home / "out").read_text()


@pytest.mark.parametrize("target", ["/dev/full", "/dev/zero", "/dev/stdout", "fifo"])
def test_answers_go_to_a_file_that_can_be_gone_on_with(qwen3: Command, target: str) -> None:
    (qwen3.home / "in").write_text('{"prompt": "hi"}\n')
    os.mkfifo(qwen3.home / "fifo")
    done = qwen3("run", "--batch", "in", "-o", target, "-m", "nano")
    assert done.returncode == 1 and f"{target}: is no regular file" in done.stderr


def test_a_bad_line_is_an_error_of_its_own(qwen3: Command) -> None:
    good = {"prompt": "What is 1 + 2?", "temperature": 0}
    found = ask(qwen3, [line for line, _ in BAD] + ["", good], "--ctx", "128", code=1)
    for number, (_, text) in enumerate(BAD, 1):
        error = found.pop(number)["error"]
        assert error.startswith(f"line {number}: ") and text in error
    assert [record["answer"] for record in found.values()] == ["3"]
    assert set(found) == {len(BAD) + 2}  # the empty line is none


def test_a_cut_answer_tells_the_exit_code(qwen3: Command) -> None:
    questions = [{"prompt": QUESTION}, {"prompt": QUESTION, "max_tokens": 1}]
    found = ask(qwen3, questions, code=6)
    assert [found[1]["answer_stop"], found[2]["answer_stop"]] == ["end", "limit"]


def test_a_second_start_answers_what_is_not_answered_whole(qwen3: Command) -> None:
    whole = ask(qwen3, QUESTIONS)
    path = qwen3.home / "out.jsonl"
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    for kept in (data, b"".join(lines[:3]) + lines[3][:40], lines[0][:5]):
        path.write_bytes(kept)
        assert ask(qwen3, QUESTIONS) == whole
        n = kept.count(b"\n")
        assert path.read_bytes().splitlines(keepends=True)[:n] == lines[:n]
    more = ask(qwen3, [*QUESTIONS, {"prompt": "What is 3 + 3?"}])  # appended to meanwhile
    assert len(more) == len(whole) + 1 and {n: more[n] for n in whole} == whole


def test_answers_to_something_else_are_not_gone_on_with(qwen3: Command) -> None:
    ask(qwen3, QUESTIONS[:2])
    before = (qwen3.home / "out.jsonl").read_bytes()
    ask(qwen3, QUESTIONS[:1], code=2)
    ask(qwen3, QUESTIONS[1:3], code=2)
    ask(qwen3, QUESTIONS[:2], "--temp", "0.1", code=2)
    done = qwen3("run", "-m", "nano-moe", "--batch", "in.jsonl", "-o", "out.jsonl")
    assert done.returncode == 2 and "choose another -o FILE" in done.stderr
    assert (qwen3.home / "out.jsonl").read_bytes() == before
    ask(qwen3, QUESTIONS[:2], "--threads", "1", "--parallel", "1")
    assert (qwen3.home / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize("text", ["notes of mine", "notes\nof mine\n", '{"line": 1}\n', "5\n"])
def test_another_file_is_never_written_to(qwen3: Command, text: str) -> None:
    path = qwen3.home / "notes"
    path.write_text(text)
    (qwen3.home / "in.jsonl").write_text(json.dumps(QUESTIONS[0]))
    done = qwen3("run", "-m", "nano", "--batch", "in.jsonl", "-o", "notes")
    assert done.returncode == 2 and "no answer of a batch" in done.stderr
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--batch", "in.jsonl"], 2),
        (["--batch", "in.jsonl", "-o", "in.jsonl"], 2),
        (["--batch", "in.jsonl", "-o", "out.jsonl", "a question"], 2),
        (["--batch", "in.jsonl", "-o", "out.jsonl", "--json"], 2),
        (["--batch", "in.jsonl", "-o", "out.jsonl", "--drop-misses", "0.1"], 2),
        (["--batch", "in.jsonl", "-o", "out.jsonl", "--parallel", "0"], 2),
        (["-o", "out.jsonl", "a question"], 2),
        (["--batch", "nowhere.jsonl", "-o", "out.jsonl"], 1),
        (["--batch", "in.jsonl", "-o", "no/where"], 1),
    ],
)
def test_what_means_nothing_is_refused(qwen3: Command, args: list[str], code: int) -> None:
    (qwen3.home / "in.jsonl").write_text(json.dumps(QUESTIONS[0]))
    done = qwen3("run", "-m", "nano", *args)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("qwen3: ")
    assert not (qwen3.home / "out.jsonl").exists()


def test_ctrl_c_keeps_what_is_finished(qwen3: Command) -> None:
    endless = {"prompt": "x", "think": False, "temperature": 0, "presence_penalty": -100}
    lines = [{"prompt": "1 + 1?", "think": False, "max_tokens": 1}, endless, endless, endless]
    (qwen3.home / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out = qwen3.home / "out.jsonl"
    flags = ["--batch", "in.jsonl", "-o", "out.jsonl", "--ctx", "16384"]
    process = qwen3.start("run", "-m", "nano", *flags)
    while not (out.exists() and out.read_bytes()):
        assert process.poll() is None
        time.sleep(0.01)
    again = qwen3("run", "-m", "nano", *flags)
    assert again.returncode == 1 and "another batch is writing it" in again.stderr
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert b"1 of 4 lines are done" in err and b"goes on from here" in err
    assert set(answers(qwen3)) == {1}


def test_a_bar_on_a_terminal(qwen3: Command) -> None:
    (qwen3.home / "in.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    terminal = qwen3.terminal("run", "-m", "nano", "--batch", "in.jsonl", "-o", "out.jsonl")
    assert terminal.finish() == 0
    assert "in.jsonl to out.jsonl" in terminal.raw
    assert terminal.screen.endswith("qwen3: 6 of 6 lines are done")
    assert terminal.echoes and len(answers(qwen3)) == 6


# ---- the engine ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(NANO)


def begun(model: Model, n: int, n_ctx: int = 32) -> list[Session]:
    sessions = [model.session(n_ctx=n_ctx, kv=("f16", "q8")[i % 2]) for i in range(n)]
    for i, session in enumerate(sessions):
        session.sync([5 + i] * (i + 1))
    return sessions


def test_sessions_together_have_the_bits_of_each_alone(model: Model) -> None:
    together, alone = begun(model, TOGETHER), begun(model, TOGETHER)
    for step in range(3):
        tokens = [100 + step * TOGETHER + i for i in range(TOGETHER)]
        extend_together(together, tokens)
        for one, other, token in zip(together, alone, tokens, strict=True):
            other.extend([token])
            assert one.ids == other.ids
            assert one.logits().tobytes() == other.logits().tobytes()


def test_all_sessions_get_their_token_or_none(model: Model) -> None:
    sessions = begun(model, 3, n_ctx=3)
    with pytest.raises(ContextOverflow, match="session 2"):
        extend_together(sessions, [1, 2, 3])
    with pytest.raises(UsageError, match="session 1 is session 0"):
        extend_together([sessions[0], sessions[0]], [1, 2])
    with pytest.raises(ValueError, match="a token for each"):
        extend_together(sessions, [1, 2])
    with pytest.raises(UsageError):
        extend_together([], [])
    sessions[1].cancel()
    with pytest.raises(Cancelled):
        extend_together(sessions[:2], [1, 2])
    assert [len(session) for session in sessions] == [1, 2, 3]
    extend_together(sessions[:2], [1, 2])
    assert [len(session) for session in sessions] == [2, 3, 3]
