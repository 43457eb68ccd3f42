"""What goes into `qwen3 run` through files and pipes, and what comes out of it for them."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from typing import Any

import pytest
from commandline import ENDLESS, PATIENCE, QUESTION, THINKING, Command

from qwen3cli.errors import Qwen3Error
from qwen3cli.options import Options
from qwen3cli.run.printer import Form
from qwen3cli.run.question import Order, run
from qwen3cli.session import Conversation
from qwen3cli.terminal import Terminal

GREEDY = ("-m", "nano", "--temp", "0")
DRAWN = ("-m", "nano", "--temp", "100", "--top-k", "0", "--top-p", "1", "--no-think")


def asked(qwen3: Command, *args: str, input: str | bytes = b"") -> tuple[int, str]:
    """How many tokens the prompt is, and what stderr says."""
    done = qwen3("run", *args, *GREEDY, "--json", "--no-think", "--max-tokens", "1", input=input)
    assert done.returncode in (0, 6), done.stderr
    return int(json.loads(done.stdout)["prompt_tokens"]), done.stderr


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# ---- what goes in --------------------------------------------------------------


def test_the_prompt_files_and_a_pipe_are_pieces_of_one_message(qwen3: Command) -> None:
    (qwen3.home / "a.txt").write_text("1 2 3\n")
    (qwen3.home / "b.txt").write_text("4 5\n")
    message = (
        'Which?\n\nFile "a.txt":\n```\n1 2 3\n```\n\nText from a pipe:\n```\n9 9\n```\n\n'
        'File "b.txt":\n```\n4 5\n```'
    )
    files = ["-f", "a.txt", "-f", "-", "--file", "b.txt"]
    assert asked(qwen3, "Which?", *files, input="9 9\n") == asked(qwen3, message)
    last = message.replace("\n\nText from a pipe:\n```\n9 9\n```", "")
    last += "\n\nText from a pipe:\n```\n9 9\n```"
    files = ["-f", "a.txt", "-f", "b.txt"]
    assert asked(qwen3, "Which?", *files, input="9 9\n") == asked(qwen3, last)


def test_one_piece_alone_is_the_prompt(qwen3: Command) -> None:
    (qwen3.home / "question").write_text(QUESTION)
    expected = asked(qwen3, QUESTION)
    assert asked(qwen3, input=f"{QUESTION}\n") == expected
    assert asked(qwen3, "-f", "question") == expected
    assert asked(qwen3, "-f", "-", input=f"{QUESTION}\r\n") == expected
    done = qwen3.shell(f'"$@" run -m nano --temp 0 -f <(printf %s "{QUESTION}") </dev/null')
    assert (done.returncode, done.stdout, done.stderr) == (0, "60\n", "")


def test_an_empty_file_is_a_piece_and_an_empty_pipe_none(qwen3: Command) -> None:
    (qwen3.home / "empty").touch()
    assert asked(qwen3, "Hi", "-f", "empty") == asked(qwen3, 'Hi\n\nFile "empty":\n```\n```')
    assert asked(qwen3, "Hi", input="\n") == asked(qwen3, "Hi")
    done = qwen3("run", "-f", "empty", *GREEDY)
    assert (done.returncode, done.stdout) == (2, "") and "no prompt" in done.stderr


def test_bad_bytes_of_a_pipe_are_replaced_and_noted(qwen3: Command) -> None:
    count, told = asked(qwen3, input=b"ab\xff\xfe\n")
    assert count == asked(qwen3, "ab\ufffd\ufffd")[0]
    assert told.count("\n") == 1 and "stdin: is no UTF-8 from byte 3 on" in told


@pytest.mark.parametrize(
    ("code", "args", "message"),
    [
        (1, ["-f", "missing"], "missing: No such file"),
        (1, ["-f", "."], ".: Is a directory"),
        (1, ["-f", "latin1"], "latin1: is no UTF-8 text: byte 4 is 0xe9"),
        (1, ["-f", "model"], "model: is no text: byte 5 is 0"),
        (2, ["-f", "-", "-f", "-"], "give -f - once"),
        (2, ["--json", "--jsonl"], "--json and --jsonl"),
        (2, ["-0", "--jsonl"], "-0 does not go with"),
        (2, ["-n", "0"], "'-n'"),
        (2, ["there", "you"], "the prompt ends before 'there': put quotes around all of it"),
        (2, ["--overflow", "truncate"], "'truncate' is not error or drop-oldest"),
        (2, ["--receipt", "latin1"], "latin1: is there, and no receipt"),
        (1, ["--receipt", "no/such/file"], "cannot write the receipt to no/such/file: No such"),
        (1, ["--receipt", "."], "cannot write the receipt to .: Is a directory"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_computed(
    qwen3: Command, code: int, args: list[str], message: str
) -> None:
    (qwen3.home / "latin1").write_bytes(b"caf\xe9")
    (qwen3.home / "model").write_bytes(b"GGUF\0\0\0")
    done = qwen3("run", "hi", *args, "-m", "missing.gguf")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert message in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_file_is_an_error(qwen3: Command) -> None:
    (qwen3.home / "secret").touch(0)
    done = qwen3("run", "hi", "-f", "secret", *GREEDY)
    assert (done.returncode, done.stdout) == (1, "") and "secret: Permission" in done.stderr


@pytest.mark.parametrize("flag", ["-f", "--receipt", "--schema"])
def test_thoughts_never_take_the_place_of_what_is_read_or_kept(qwen3: Command, flag: str) -> None:
    (qwen3.home / "mine").write_text("true")
    done = qwen3("run", "hi", "-m", "nano", flag, "./mine", "--thoughts", "mine")
    assert done.returncode == 2 and "for something else, too" in done.stderr
    assert (qwen3.home / "mine").read_text() == "true"


def test_a_misspelt_place_for_thoughts_is_no_file(qwen3: Command) -> None:
    done = qwen3("run", "hi", "-m", "nano", "--thoughts", "shwo")
    assert done.returncode == 2 and "did you mean show?" in done.stderr
    assert not (qwen3.home / "shwo").exists()
    for name in ("./shwo", "shown.txt", "thoughts"):
        assert qwen3("run", "hi", "-m", "nano", "--thoughts", name, *GREEDY[2:]).returncode == 0
        assert (qwen3.home / name).exists()
    assert qwen3("run", "hi", "-m", "nano", "--thoughts", "shwo", *GREEDY[2:]).returncode == 0


def test_a_context_longer_than_the_model_was_made_for_is_told(qwen3: Command) -> None:
    (qwen3.home / "long.txt").write_text("1 2 3 4 5 6 7 8 9\n" * 230)
    args = ("-f", "long.txt", *GREEDY, "--ctx", "8192", "--max-tokens", "1")
    terminal = qwen3.terminal("run", "Sum up", *args)
    assert terminal.finish() == 6
    assert re.search(
        r", 4,[1-9]\d\d tokens of context where the model was made for\s4,096", terminal.text
    )


def test_an_overflow_says_how_many_tokens_each_piece_has(qwen3: Command) -> None:
    (qwen3.home / "long.txt").write_text("1 2 3 4 5 6 7 8 9\n" * 1000)
    done = qwen3("run", "Sum up", "-f", "long.txt", *GREEDY, input="in short\n")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (5, "", 1)
    found = re.search(r"is (\d+) tokens, (\d+) too many for a context of (\d+)", done.stderr)
    assert found
    total, over, context = map(int, found.groups())
    assert over == total - context + 1
    sizes = re.search(r"the prompt ([\d,]+), long.txt ([\d,]+), stdin ([\d,]+)$", done.stderr)
    assert sizes
    counts = [int(size.replace(",", "")) for size in sizes.groups()]
    assert total - 40 < sum(counts) < total
    assert counts[1] > 10_000 > 100 > counts[0] + counts[2]
    done = qwen3("run", *GREEDY, "-f", "long.txt", "--jsonl")
    assert done.returncode == 5 and "; tokens:" not in done.stderr
    assert [event["event"] for event in objects(done.stdout)] == ["start"]


# ---- what comes out ------------------------------------------------------------


def test_samples_have_the_texts_of_their_seeds(qwen3: Command) -> None:
    args = (*DRAWN, "--max-tokens", "12")
    alone = []
    for seed in ("7", "8", "9"):
        alone.append(qwen3("run", "hello", *args, "--seed", seed, "--json"))
    answers = [json.loads(done.stdout)["answer"] for done in alone]
    assert len(set(answers)) == 3
    args = (*args, "-n", "3", "--seed", "7")
    done = qwen3("run", "hello", *args)
    assert done.stdout == "---\n".join(a if a.endswith("\n") else f"{a}\n" for a in answers)
    assert done.returncode == max(each.returncode for each in alone)
    assert qwen3("run", "hello", *args, "-0").stdout == "".join(f"{a}\0" for a in answers)
    samples = json.loads(qwen3("run", "hello", *args, "--json").stdout)["samples"]
    assert [(s["seed"], s["answer"]) for s in samples] == list(zip((7, 8, 9), answers, strict=True))
    assert list(samples[0]) == list(json.loads(alone[0].stdout))


def test_the_last_seed_is_followed_by_the_first(qwen3: Command) -> None:
    done = qwen3("run", "hello", *DRAWN, "-n", "2", "--seed", str(2**64 - 1), "--json",
                 "--max-tokens", "1")  # fmt: skip
    assert [s["seed"] for s in json.loads(done.stdout)["samples"]] == [2**64 - 1, 0]


def test_the_prompt_of_samples_is_computed_once(qwen3: Command) -> None:
    (qwen3.home / "long").write_text("12 " * 1200)
    done = qwen3("run", *DRAWN, "-f", "long", "-n", "3", "--json", "--max-tokens", "1")
    samples = json.loads(done.stdout)["samples"]
    prompt = samples[0]["prompt_tokens"]
    assert prompt > 2000 and samples[0]["reused_tokens"] == 0
    assert all(prompt - 1 <= sample["reused_tokens"] <= prompt for sample in samples[1:])


@pytest.mark.parametrize("form", [Form(several=True), Form(several=True, json=True)])
def test_an_error_leaves_the_answers_before_it(
    form: Form, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise Qwen3Error("the device is lost")

    monkeypatch.setattr(Conversation, "regenerate", fail)
    monkeypatch.setattr(sys, "stdin", None)
    options = Options(model="nano", temp=0.0, gpu="off")
    with pytest.raises(Qwen3Error, match="lost"):
        run(Order(QUESTION, (), form, samples=3), options, Terminal())
    out = capfd.readouterr().out
    if form.json:
        assert [sample["answer"] for sample in json.loads(out)["samples"]] == ["60"]
    else:
        assert out.startswith("60\n")


def test_thoughts_of_samples_go_where_they_are_asked(qwen3: Command) -> None:
    done = qwen3("run", QUESTION, *GREEDY, "-n", "2", "--thoughts", "file", "--budget", "8")
    assert (qwen3.home / "file").read_text() == "17 + 48:\n17 + 48:\n"
    assert done.stdout.count("---\n") == 1 and done.stderr == ""


def test_events_come_one_by_one_and_the_end_has_all(qwen3: Command) -> None:
    done = qwen3("run", QUESTION, *GREEDY, "--jsonl", "--budget", "8", "--seed", "3")
    assert (done.returncode, done.stderr) == (0, "")
    start, *parts, end = objects(done.stdout)
    assert (start["event"], start["sample"], start["seed"]) == ("start", 0, 3)
    assert start["model"] == end["model"]
    for kind, whole in (("thought", end["thoughts"]), ("answer", end["answer"])):
        texts = [part["text"] for part in parts if part["event"] == kind]
        assert "".join(texts) == whole and all(texts) and len(texts) > 1
    whole = json.loads(
        qwen3("run", QUESTION, *GREEDY, "--json", "--budget", "8", "--seed", "3").stdout
    )
    for name in ("prefill_tok_s", "decode_tok_s", "thinking_s"):
        del whole[name], end[name]
    assert end == {"event": "end", "sample": 0} | whole
    many = objects(qwen3("run", QUESTION, *GREEDY, "--jsonl", "--budget", "8", "-n", "2").stdout)
    assert [e["sample"] for e in many if e["event"] == "end"] == [0, 1]


def test_every_event_is_written_at_once(qwen3: Command) -> None:
    process = qwen3.start("run", "x", *ENDLESS, "--jsonl")
    assert process.stdout and process.stderr
    seen = [json.loads(process.stdout.readline())["event"] for _ in range(3)]
    assert seen == ["start", "answer", "answer"]
    process.send_signal(signal.SIGINT)
    *_, end = process.stdout.read().splitlines()
    assert process.wait(PATIENCE) == 130
    assert json.loads(end)["answer_stop"] == "user"
    assert process.stderr.read() == b""


@pytest.mark.parametrize("form", ["--jsonl", "-n9"])
def test_nobody_reading_ends_every_form_silently(qwen3: Command, form: str) -> None:
    done = qwen3.shell(f'"$@" run x {" ".join(ENDLESS)} {form} </dev/null | head -c 1 >/dev/null')
    assert (done.returncode, done.stderr) == (141, "")


def test_an_answer_without_code_is_an_error(qwen3: Command) -> None:
    done = qwen3("run", QUESTION, *GREEDY, "-x")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "no fenced block" in done.stderr
    done = qwen3("run", QUESTION, *GREEDY, "-x", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["code"] is None and json.loads(done.stdout)["answer"] == "60"


def test_a_context_that_is_nearly_full_is_told(qwen3: Command) -> None:
    terminal = qwen3.terminal("run", "x", *ENDLESS, "--ctx", "64")
    assert terminal.finish() == 6
    assert re.search(r"6[0-4] of 64 tokens of context: (9\d|100)% full", terminal.text)
    terminal = qwen3.terminal("run", QUESTION, *GREEDY)
    assert terminal.finish() == 0 and "of context" not in terminal.text


# ---- stop texts ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("stops", "answer"),
    [
        (["60"], ""),  # at the beginning
        (["0"], "6"),
        (["0", "60"], ""),  # the one that begins first
        (["60x", "0y"], "60"),  # beginnings of stop texts that end differently
        (["x", ""], "60"),  # an empty one is none
    ],
)
def test_stop_texts(qwen3: Command, stops: list[str], answer: str) -> None:
    flags = [part for stop in stops for part in ("--stop", stop)]
    done = qwen3("run", QUESTION, *GREEDY, *flags, "--json")
    told = json.loads(done.stdout)
    assert (told["answer"], told["answer_stop"]) == (answer, "end" if answer == "60" else "stop")


# ---- Ctrl-C --------------------------------------------------------------------


def test_ctrl_c_answers_now_where_somebody_watches(qwen3: Command) -> None:
    args = (*THINKING, "--thoughts", "thoughts")
    terminal = qwen3.terminal("run", "hello", *args, "--max-tokens", "5")
    terminal.wait_for_file(qwen3.home / "thoughts", 40)
    terminal.press("c")
    assert terminal.finish() == 6
    assert re.search(r"thinking \d+ tokens \(user\), answer 5 tokens \(limit\)", terminal.text)


def test_a_second_ctrl_c_ends_it(qwen3: Command) -> None:
    terminal = qwen3.terminal("run", "hello", *THINKING, "--thoughts", "thoughts")
    terminal.wait_for_file(qwen3.home / "thoughts", 40)
    terminal.press("c")
    terminal.wait_for(r"(\w+\W+){5}")
    terminal.press("c")
    assert terminal.finish() == 130


def test_ctrl_c_ends_it_at_once_where_nobody_watches(qwen3: Command) -> None:
    process = qwen3.start("run", "hello", *THINKING, "--thoughts", "show")
    assert process.stdout and process.stderr
    process.stderr.read(40)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    assert process.stdout.read() == b""
