"""Settings: which one counts, what is wrong with it, and how the file is edited."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from commandline import QUESTION, Command

from qwen3cli.config import KEYS, edited
from qwen3cli.errors import UsageError
from qwen3cli.options import Options

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def config(qwen3: Command, text: str) -> Path:
    path = qwen3.home / ".config" / "qwen3" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def budget(qwen3: Command, *args: str, **env: str) -> int:
    done = qwen3("run", QUESTION, "-m", "nano", "--json", "--temp", "0", *args, **env)
    assert done.stderr == ""
    return int(json.loads(done.stdout)["budget"])


def test_the_settings_are_the_flags() -> None:
    hints = get_type_hints(Options)
    flags = {}
    for field in fields(Options):
        kind = hints[field.name]
        flags[field.name.replace("_", "-")] = next(iter(get_args(kind)), kind)
    assert flags.pop("stop") == list[str]
    assert flags["budget"] is flags["gpu"] is str
    flags["budget"] = flags["gpu"] = int | str  # in the file a number need not be quoted
    assert flags == KEYS


def test_a_flag_comes_before_the_environment_and_that_before_the_file(qwen3: Command) -> None:
    config(qwen3, "budget = 3\n")
    assert budget(qwen3) == 3
    assert budget(qwen3, QWEN3_BUDGET="") == 3
    assert budget(qwen3, QWEN3_BUDGET="5") == 5
    assert budget(qwen3, "--budget", "7", QWEN3_BUDGET="5") == 7


def test_a_budget_is_a_number_or_a_time(qwen3: Command) -> None:
    path = config(qwen3, "")
    for text, written in (("30s", "30s"), ("1.5m", "1.5m"), ("none", "none"), ("64", 64)):
        assert qwen3("config", "set", "budget", text).returncode == 0
        assert tomllib.loads(path.read_text()) == {"budget": written}
        assert qwen3("config", "get", "budget").stdout == f"{text}\n"
        assert qwen3("run", QUESTION, "-m", "nano").returncode == 0
    assert budget(qwen3, "--landing", "hard", QWEN3_BUDGET="5") == 5
    done = qwen3("run", QUESTION, "-m", "nano", "--json", QWEN3_BUDGET="30s")
    assert json.loads(done.stdout)["thinking_stop"] == "natural"


def test_the_model_is_a_setting(qwen3: Command) -> None:
    config(qwen3, 'model = "nano-moe"\n')
    run = ("run", QUESTION, "--json", "--budget", "0")
    assert "nano-moe" in json.loads(qwen3(*run).stdout)["model"]
    assert "nano-dense" in json.loads(qwen3(*run, QWEN3_MODEL="nano").stdout)["model"]
    assert "nano-dense" in json.loads(qwen3(*run, "-m", "nano").stdout)["model"]


def test_every_kind_of_setting_is_taken(qwen3: Command) -> None:
    config(qwen3, 'think = false\ntemp = 0\nthreads = 1\nmax_tokens = 5\nthoughts = "hide"\n')
    done = qwen3("run", QUESTION, "-m", "nano", "--json")
    reply = json.loads(done.stdout)
    assert (reply["thinking_stop"], done.returncode) == ("off", 0)
    assert json.loads(qwen3("run", QUESTION, "-m", "nano", "--json", QWEN3_THINK="yes").stdout)[
        "thinking_tokens"
    ]


def test_settings_are_not_taken_where_the_flag_means_something_else(qwen3: Command) -> None:
    config(qwen3, "ctx = 1\nbudget = 1\n")
    done = qwen3("eval", "ppl", "nano", "--json", input="one two three four five six\n" * 9)
    assert done.returncode == 0 and json.loads(done.stdout)


WRONG = [
    ("bugdet = 3", "there is no setting bugdet; did you mean budget?"),
    ('ctx = "3"', "ctx is '3', not a whole number"),
    ("budget = true", "budget is True, not a whole number"),
    ("think = 1", "think is 1, not true or false"),
    ("seed = -1", "seed: -1 is not in the range from 0"),
    ("temp = nan", "temp: nan is not in the range"),
    ('landing = "crash"', "landing: 'crash' is not soft or hard"),
    ('kv = "q3"', "kv: 'q3' is not f16 or q8"),
    ('ram = "much"', "a number of bytes is needed"),
    ("top_k = 1\ntop-k = 2", "top-k is set twice"),
    ("[run]\nbudget = 1", "there is no setting run"),
]


def test_wrong_settings_are_named_with_their_lines(qwen3: Command) -> None:
    path = config(qwen3, "# mine\n\n" + "\n".join(line for line, _ in WRONG))
    done = qwen3("run", "hi")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"{path}:3: {WRONG[0][1]}" in done.stderr
    listed = qwen3("config", "list", "--json")
    assert listed.returncode == 2
    problems = json.loads(listed.stdout)["problems"]
    assert len(problems) == len(WRONG)
    text = path.read_text().split("\n")
    for line, message in WRONG:
        at = text.index(line.split("\n")[-1 if "top" in line else 0]) + 1
        assert any(p.startswith(f"{path}:{at}: ") and message in p for p in problems), line


def test_a_value_out_of_range_stops_a_command_with_its_line(qwen3: Command) -> None:
    path = config(qwen3, 'budget = -1\nmodel = "nano"\n')
    done = qwen3("run", "hi")
    assert done.returncode == 2
    assert done.stderr.startswith(f"qwen3: {path}:1: budget: -1 is not in the range from 0")


def test_a_wrong_variable_is_named(qwen3: Command) -> None:
    for value, message in (("abc", "'abc' is no number of tokens"), ("-1", "range from 0")):
        done = qwen3("run", "hi", QWEN3_BUDGET=value)
        assert done.returncode == 2 and done.stderr.startswith("qwen3: QWEN3_BUDGET: ")
        assert message in done.stderr


@pytest.mark.parametrize("content", [b"budget = \n", b"\xff\xfe", b"a=" + b"[" * 9999])
def test_a_broken_file_stops_neither_help_nor_config(qwen3: Command, content: bytes) -> None:
    path = config(qwen3, "")
    path.write_bytes(content)
    done = qwen3("run", "hi")
    assert done.returncode == 2 and str(path) in done.stderr
    assert qwen3("run", "-h").returncode == 0
    done = qwen3("config", "list")
    assert done.returncode == 2 and str(path) in done.stderr and "budget\t-\n" in done.stdout
    assert qwen3("config", "get", "budget", QWEN3_BUDGET="4").stdout == "4\n"


def test_list_tells_where_a_setting_comes_from(qwen3: Command) -> None:
    path = config(qwen3, "# mine\nbudget = 3\ntemp = 0.5\n")
    env = {"QWEN3_TEMP": "0.25"}
    rows = [
        row.split("\t") for row in qwen3("config", "list", "--origin", **env).stdout.split("\n")
    ]
    shown = {row[0]: row[1:] for row in rows[:-1]}
    assert list(shown) == list(KEYS)
    assert shown["budget"] == ["3", f"{path}:2"]
    assert shown["temp"] == ["0.25", "QWEN3_TEMP"]
    assert shown["kv"] == ["-", "default"]
    known = json.loads(qwen3("config", "list", "--json", **env).stdout)
    assert known["settings"]["budget"] == {"value": 3, "origin": f"{path}:2"}
    assert known["settings"]["kv"] is None and known["problems"] == []


def test_set_get_unset(qwen3: Command) -> None:
    path = qwen3.home / "else" / "qwen3" / "config.toml"
    env = {"XDG_CONFIG_HOME": str(qwen3.home / "else")}
    for key, value in (("budget", "64"), ("think", "no"), ("top_p", "0.5"), ("kv", "q8"),
                       ("presence-penalty", "-1.5"), ("system", 'Say "hi"\n# é\x7f')):  # fmt: skip
        done = qwen3("config", "set", key, value, **env)
        assert (done.returncode, done.stderr) == (0, "")
    assert tomllib.loads(path.read_text()) == {
        "budget": 64, "think": False, "top-p": 0.5, "kv": "q8", "presence-penalty": -1.5,
        "system": 'Say "hi"\n# é\x7f',
    }  # fmt: skip
    assert qwen3("config", "get", "top-p", **env).stdout == "0.5\n"
    assert qwen3("config", "get", "think", **env).stdout == "false\n"
    assert qwen3("config", "unset", "kv", **env).returncode == 0
    done = qwen3("config", "get", "kv", **env)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert [file.name for file in path.parent.iterdir()] == ["config.toml"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("set", "bugdet", "1"), "did you mean budget?"),
        (("set", "budget", "many"), "'many' is no number of tokens, no time such as 30s"),
        (("set", "budget", "-1"), "budget: -1 is not in the range"),
        (("set", "kv", "q3"), "is not f16 or q8"),
        (("set", "ram", "x"), "a number of bytes"),
        (("get", "nothing"), "there is no setting nothing"),
    ],
)
def test_what_cannot_be_set_is_not_written(
    qwen3: Command, args: tuple[str, ...], message: str
) -> None:
    path = config(qwen3, "budget = 3 # mine\n")
    done = qwen3("config", *args)
    assert done.returncode == 2 and message in done.stderr
    assert path.read_text() == "budget = 3 # mine\n"


def test_what_is_no_unicode_is_not_written(qwen3: Command) -> None:
    done = qwen3("config", "set", "system", os.fsdecode(b"caf\xe9"))
    assert done.returncode == 2 and "has bytes that are no UTF-8" in done.stderr
    path = config(qwen3, "")
    path.write_bytes(b"# caf\xe9\n")
    done = qwen3("config", "set", "budget", "3")
    assert done.returncode == 2 and f"{path}: cannot be read" in done.stderr
    assert path.read_bytes() == b"# caf\xe9\n"


def test_a_wrong_line_is_mended_by_setting_or_unsetting_it(qwen3: Command) -> None:
    path = config(qwen3, 'bugdet = 1\nbudget = "x" # y\nctx = \n')
    done = qwen3("config", "set", "budget", "3")
    assert done.returncode == 2 and str(path) in done.stderr  # ctx is still wrong
    assert qwen3("config", "set", "ctx", "512").returncode == 2
    assert qwen3("config", "unset", "bugdet").returncode == 0
    assert path.read_text() == "budget = 3 # y\nctx = 512\n"


def test_a_byte_order_mark(qwen3: Command) -> None:
    path = config(qwen3, "")
    path.write_bytes(b"\xef\xbb\xbfbudget = 3\r\n")
    assert budget(qwen3) == 3
    for command in (("set", "ctx", "512"), ("set", "budget", "4"), ("unset", "ctx")):
        assert (done := qwen3("config", *command)).returncode == 0 and done.stderr == ""
    assert tomllib.loads(path.read_text("utf-8")) == {"budget": 4}
    assert budget(qwen3) == 4


def test_a_link_to_the_file_stays_one(qwen3: Command) -> None:
    path = config(qwen3, "")
    real = qwen3.home / "dotfiles.toml"
    path.unlink()
    real.write_text("# shared\n")
    path.symlink_to(real)
    assert qwen3("config", "set", "budget", "3").returncode == 0
    assert path.is_symlink() and real.read_text() == "# shared\nbudget = 3\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "budget = 9\n"),
        ("# all\n", "# all\nbudget = 9\n"),
        ("a = 1", "a = 1\nbudget = 9\n"),
        ("budget=1#x\n", "budget = 9#x\n"),
        ('  "budget" = 1 # x # y\nb = "#"\n', 'budget = 9 # x # y\nb = "#"\n'),
        ("a = 1\n\n[b]\nbudget2 = 1\n", "a = 1\n\nbudget = 9\n[b]\nbudget2 = 1\n"),
        ("budget2 = 1\r\nbudget = 1\r\n", "budget2 = 1\r\nbudget = 9\r\n"),
    ],
)
def test_an_edit_changes_one_line(before: str, after: str) -> None:
    assert edited(before, "budget", 9) == after
    assert tomllib.loads(edited(after, "budget", None)) == {
        key: value for key, value in tomllib.loads(before).items() if key != "budget"
    }


@pytest.mark.parametrize("text", ['system = """\nbudget = 1\n"""\n', "[a]\nbudget = 1\n"])
def test_what_only_looks_like_the_line_is_left_alone(text: str) -> None:
    with pytest.raises(UsageError, match="by hand"):
        edited(text, "budget", 9)


@pytest.mark.parametrize(
    ("shell", "line", "expected"),
    [
        ("bash", "show cod", ["coder-30b-a3b"]),
        ("bash", "run --th", ["--think", "--threads", "--thoughts"]),
        ("bash", "config get max", ["max-tokens"]),
        ("bash", "quanti", ["quantize"]),
        ("bash", "run -m ./x", []),
        ("fish", "run -m 32b:q", ["32b:q4_k_m", "32b:q5_0", "32b:q5_k_m", "32b:q6_k", "32b:q8_0"]),
        ("fish", "quantize 235b-a22b-t", ["235b-a22b-thinking-2507"]),
    ],
)
def test_completion(qwen3: Command, shell: str, line: str, expected: list[str]) -> None:
    config(qwen3, "broken")
    words = f"qwen3 {line}"
    env = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    env |= {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = qwen3(_QWEN3_COMPLETE=f"complete_{shell}", **env)
    assert (done.returncode, done.stderr) == (0, "")
    assert [found.split("\t")[0] for found in done.stdout.split("\n")[:-1] if found] == expected


def test_an_installed_model_is_completed_with_its_quant(qwen3: Command) -> None:
    models = qwen3.home / "data" / "qwen3" / "models"
    models.mkdir(parents=True)
    (models / "Qwen3-8B-Q4_K_M.gguf").write_text("its name is enough")
    done = qwen3(_QWEN3_COMPLETE="complete_bash", COMP_WORDS="qwen3 run -m 8b", COMP_CWORD="3")
    assert done.stdout.split() == ["8b:q4_k_m", "8b", "8b-base"]
