"""The commands of chat, through a pipe: what each changes, and what is left when it fails."""

from __future__ import annotations

import json
import re

import pytest
from commandline import QUESTION, Command
from gguf_tiny import tiny_model

GREEDY = ("-m", "nano", "--temp", "0")


def talk(
    qwen3: Command, *lines: str, args: tuple[str, ...] = GREEDY
) -> tuple[list[str], list[str]]:
    """Answers and notes."""
    done = qwen3("chat", *args, input="\n".join(lines))
    failed = any(note.startswith("qwen3: ") for note in done.stderr.splitlines())
    assert failed or done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr.splitlines()


def test_regen_answers_the_last_message_anew(qwen3: Command) -> None:
    answers, notes = talk(qwen3, "/regen", QUESTION, "/regen", "/stats")
    assert answers == ["60", "60"]
    assert notes[0] == "qwen3: there is no message to answer yet"
    assert notes[1].startswith("1 turn,")


def test_undo_takes_back_turn_by_turn(qwen3: Command) -> None:
    _, notes = talk(qwen3, "hi", QUESTION, "/undo", "/stats", "/undo", "/undo", "/stats")
    assert notes[0] == f"taken back: {QUESTION}"
    assert notes[1].startswith("1 turn,")
    assert notes[-5:-3] == ["taken back: hi", "qwen3: there is no message to take back"]
    assert notes[-3].startswith("0 turns,")


def test_edit_answers_another_text_in_place_of_the_last_message(qwen3: Command) -> None:
    answers, notes = talk(qwen3, "/edit", QUESTION, "/edit What is 2 + 2?", "/ctx", "/edit")
    assert answers == ["60", "4"]
    assert notes[0] == "qwen3: there is no message to change"
    assert any("What is 2 + 2?" in note for note in notes)
    assert not any(QUESTION in note for note in notes)
    assert "/edit takes the new text here" in notes[-1]


def test_an_edit_that_does_not_fit_changes_nothing(qwen3: Command) -> None:
    args = (*GREEDY, "--ctx", "128")
    _, notes = talk(qwen3, QUESTION, f"/edit {'x ' * 200}", "/ctx", args=args)
    assert "too many for a context of 128" in notes[0] and "/ctx" in notes[0]
    assert QUESTION in notes[1]


def test_thoughts_can_go_on_after_an_edit_that_failed(qwen3: Command) -> None:
    args = (*GREEDY, "--ctx", "128", "--budget", "4", "--landing", "hard")
    answers, notes = talk(qwen3, QUESTION, f"/edit {'x ' * 200}", "/more 50", args=args)
    assert len(answers) == 2 and len(notes) == 1 and "too many" in notes[0]


def test_more_goes_on_with_thoughts_that_a_budget_ended(qwen3: Command) -> None:
    lines = ["/budget 8", QUESTION, "/stats", "/more 500", "/stats", "/more", "/more 0", "/more 5"]
    answers, notes = talk(qwen3, *lines)
    replies = [note for note in notes if note.startswith("last reply")]
    assert re.search(r"thinking [1-8]/8 tokens \((budget|natural)\)", replies[0])
    assert "(natural)" in replies[1] and answers[-1] == "60"
    assert notes.count("qwen3: /more takes a number of tokens, such as /more 1000") == 2
    assert notes[-1].startswith("qwen3: the thoughts cannot go on")
    assert any(note.startswith("1 turn,") for note in notes)


def test_a_budget_can_be_a_time(qwen3: Command) -> None:
    _, notes = talk(qwen3, "/budget 30s", "/set budget", "/budget none", "/landing",
                    "/landing hard", "/landing middle", "/set landing")  # fmt: skip
    assert notes[0] == "thinking on, budget 30 s"
    assert notes[1].split() == ["budget", "30s"]
    assert notes[2:5] == ["thinking on, budget none", "landing soft", "landing hard"]
    assert "landing" in notes[5] and notes[6].split() == ["landing", "hard"]


def test_files_go_with_the_next_message_alone(qwen3: Command) -> None:
    (qwen3.home / "a b.txt").write_text("red\n")
    (qwen3.home / "c.txt").write_text("blue\n")
    (qwen3.home / "d.bin").write_bytes(b"\0\1")
    lines = ["/file", r"/file a\ b.txt c.txt", "/file d.bin", "/file none.txt", "/file 'c.txt",
             "/file", "Which?", "/file", "/save out.json", "/file c.txt", "/file none"]  # fmt: skip
    _, notes = talk(qwen3, *lines, args=(*GREEDY, "--no-think", "--max-tokens", "4"))
    assert notes[0] == "no file goes with the next message"
    attached = [note for note in notes if "goes with the next message" in note]
    assert [note.partition(":")[0] for note in attached[1:5]] == ["a b.txt", "c.txt"] * 2
    assert any("d.bin: is no text" in note for note in notes)
    assert any("none.txt: No such file" in note for note in notes)
    assert any("no closing quotation" in note for note in notes)
    sent = json.loads((qwen3.home / "out.json").read_text())[0]["content"]
    assert re.fullmatch(r'File "a b.txt":\n```\nred\n```\n\nFile "c.txt":.*\n\nWhich\?', sent, re.S)
    assert notes[-1] == "no file goes with the next message"


def test_a_file_stays_attached_to_a_message_that_failed(qwen3: Command) -> None:
    (qwen3.home / "long.txt").write_text("word " * 300)
    done = qwen3("chat", *GREEDY, "--ctx", "128", input="/file long.txt\nhi")
    assert done.returncode == 5


def test_what_was_saved_can_be_loaded(qwen3: Command) -> None:
    lines = ["/save", "/system Be kind.", QUESTION, "/save out.json", "/save out.md",
             "/save out.json", "/save -f out.json", "/save", "/save .", "/save a b",
             "/save x.jsonl", "/save no/x.md", "/clear", "/load out.json",
             "/stats", "/system"]  # fmt: skip
    _, notes = talk(qwen3, *lines)
    assert notes[0] == "qwen3: there is nothing to save yet"
    assert notes[2:5] == [
        "saved as out.json",
        "saved as out.md",
        "qwen3: out.json: exists already; -f writes over it",
    ]
    assert notes[5] == "saved as out.json"
    assert re.fullmatch(r"saved as chat-[\d-]+\.md", notes[6])
    assert len(list(qwen3.home.glob("chat-*.md"))) == 1
    assert all(note.startswith("qwen3: ") for note in notes[7:11])
    assert notes[12] == "1 turn loaded from out.json"
    assert notes[13].startswith("1 turn, ") and notes[-1] == "system message: Be kind."
    saved = json.loads((qwen3.home / "out.json").read_text())
    assert [message["role"] for message in saved] == ["system", "user", "assistant"]
    text = (qwen3.home / "out.md").read_text()
    assert f"> {QUESTION}" in text and text.rstrip().endswith("60")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "is no JSON"),
        ("[" * 100000, "is no JSON"),
        ("[]", "holds no messages"),
        ('{"messages": 3}', "holds no messages"),
        ("[3]", "message 1 is of the role None"),
        ('[{"role": "assistant", "content": "x"}]', "not 'user'"),
        ('[{"role": "user", "content": "x"}]', "has no answer"),
        ('[{"role": "user", "content": ["x"]}]', "is no text"),
        ('[{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]', "not 'assistant'"),
    ],
)
def test_what_is_no_conversation_is_not_loaded(qwen3: Command, content: str, problem: str) -> None:
    (qwen3.home / "in.json").write_text(content)
    _, notes = talk(qwen3, QUESTION, "/load in.json", "/stats")
    assert notes[0].startswith("qwen3: in.json: ") and problem in notes[0]
    assert notes[1].startswith("1 turn, ")


def test_a_conversation_that_does_not_fit_is_not_loaded(qwen3: Command) -> None:
    messages = [{"role": "user", "content": "x " * 300}, {"role": "assistant", "content": "y"}]
    (qwen3.home / "in.json").write_text(json.dumps(messages))
    _, notes = talk(qwen3, QUESTION, "/load in.json", "/stats", args=(*GREEDY, "--ctx", "256"))
    assert "too many for a context of 256" in notes[0]
    assert notes[1].startswith("1 turn, ")


def test_ctx_counts_every_message(qwen3: Command) -> None:
    _, notes = talk(qwen3, "/system Be kind.", QUESTION, "/ctx", "/stats")
    rows = [re.fullmatch(r"(system|you|answer) +(\d+)  (.*)", note) for note in notes[1:4]]
    assert [row[1] for row in rows if row] == ["system", "you", "answer"]
    total = re.match(r"(\d+) of 4,096 tokens are used", notes[4])
    assert total and int(total[1]) == sum(int(row[2]) for row in rows if row) + 1  # <|im_start|>
    assert f"begins with these {total[1]}" in notes[5]
    assert f"{total[1]} of 4,096" in notes[6]


def test_model_keeps_the_messages_and_the_old_one_where_it_fails(qwen3: Command) -> None:
    (qwen3.home / "bad.gguf").write_bytes(b"GGUF")
    tiny_model().write(qwen3.home / "a tiny.gguf")
    lines = [QUESTION, "/model", "/model nano-moe", "/stats", "/model no-such", "/model bad.gguf",
             "/model", r"/model ./a\ tiny.gguf", QUESTION]  # fmt: skip
    done = qwen3("chat", *GREEDY, "--max-tokens", "4", input="\n".join(lines))
    notes = done.stderr.splitlines()
    plans = [note.partition(":")[0] for note in notes if "of weights, a context of" in note]
    assert plans == ["nano-dense-q8_0", "nano-moe-q8_0", "nano-moe-q8_0", "a tiny"]
    assert any(note.startswith("1 turn, ") for note in notes)
    assert any(note.startswith("qwen3: no-such: ") for note in notes)
    assert any(note.startswith("qwen3: bad.gguf: ") for note in notes)


def test_a_model_with_too_small_a_context_is_refused(qwen3: Command) -> None:
    image = tiny_model()
    image.put("qwen3.context_length", 16)
    image.write(qwen3.home / "small.gguf")
    _, notes = talk(qwen3, QUESTION, "/model small.gguf", "/model", "/stats")
    assert "too many for a context of 16" in notes[-5]
    assert notes[-4].startswith("nano-dense") and notes[-3].startswith("1 turn, ")


def test_every_sampling_setting_can_be_set(qwen3: Command) -> None:
    values = {
        "temp": "0.5", "top-p": "0.9", "top-k": "7", "min-p": "0.1", "max-tokens": "3", "seed": "5",
        "presence-penalty": "1", "repetition-penalty": "1.5", "think": "off", "budget": "9",
        "landing": "hard", "overflow": "drop-oldest",
    }  # fmt: skip
    lines = [f"/set {name} {value}" for name, value in values.items()]
    _, notes = talk(qwen3, *lines, "/set", *(f"/set {name} none" for name in values))
    assert [note.split() for note in notes[: len(values)]] == [[*item] for item in values.items()]
    assert {tuple(note.split()) for note in notes[len(values) : -len(values)]} == set(
        values.items()
    )
    shown = dict(note.split(maxsplit=1) for note in notes[-len(values) :])
    assert shown["temp"] == "0.7 (the model's)" and shown["seed"] == "none"


def test_a_seed_that_is_set_repeats_the_answer(qwen3: Command) -> None:
    lines = ["/set temp 5", "/set seed 1", "/set max-tokens 5", "/no_think", "hi", "/regen"]
    answers, _ = talk(qwen3, *lines, args=("-m", "nano"))
    assert len(answers) == 2 and answers[0] == answers[1]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("/set temp 300", "temp: 300.0 is not in the range"),
        ("/set temp warm", "temp: 'warm' is not a number"),
        ("/set tempo 3", "there is no setting tempo; did you mean temp?"),
        ("/set ctx 3", "ctx cannot change in a chat"),
        ("/set model x", "/model sets the model"),
        ("/set budget soon", "'soon' is no number of tokens"),
        ("/regne", "unknown command /regne; did you mean /regen?"),
    ],
)
def test_mistakes_are_told(qwen3: Command, line: str, problem: str) -> None:
    _, notes = talk(qwen3, line, "/set temp")
    assert notes[0].startswith("qwen3: ") and problem in notes[0]
    assert notes[1].split() == ["temp", "0"]


@pytest.mark.parametrize("command", ["/load", "/save", "/file", "/model"])
def test_a_name_with_a_nul_is_a_mistake(qwen3: Command, command: str) -> None:
    _, notes = talk(qwen3, "hi", f"{command} x\0y", "/stats")
    assert notes[0] == "qwen3: xy: a file's name has no NUL in it"
    assert notes[1].startswith("1 turn,")


def test_a_folder_that_is_not_there_is_named_as_it_was_typed(qwen3: Command) -> None:
    _, notes = talk(qwen3, "hi", "/save nowhere/x.md")
    assert notes == ["qwen3: nowhere/x.md: No such file or directory"]


def test_a_chat_that_drops_the_oldest_loads_what_is_too_long(qwen3: Command) -> None:
    turn = [
        {"role": "user", "content": "How are you? " * 4},
        {"role": "assistant", "content": "60"},
    ]
    (qwen3.home / "long.json").write_text(json.dumps(turn * 20))
    args = (*GREEDY, "--no-think", "--ctx", "256")
    _, notes = talk(qwen3, "/load long.json", args=args)
    assert "too many" in notes[0]
    answers, notes = talk(
        qwen3, "/load long.json", QUESTION, args=(*args, "--overflow", "drop-oldest")
    )
    assert len(answers) == 1 and notes[0] == "20 turns loaded from long.json"
