"""The one-shot commands, through pipes and on a terminal."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commandline import (
    COMMAND,
    ENDLESS,
    PATIENCE,
    QUESTION,
    ROOT,
    Command,
    environment,
)
from gguf_tiny import tiny_model

from quant.recipes import RECIPES

NANO = ROOT / "qwen3cli" / "models" / "nano-dense-q8_0.gguf"
GREEDY = ("-m", "nano", "--temp", "0")
THOUGHTS = "17 + 48: 7+8=15, 1+4+1=6, 65\n65 - 5: 5-5=0, 6-0=6, 60"
CLEAN = re.compile(r"[^\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]*")


# ---- what goes where -----------------------------------------------------------


def test_a_pipe_gets_the_answer_alone(qwen3: Command) -> None:
    done = qwen3("run", QUESTION, *GREEDY)
    assert (done.returncode, done.stdout, done.stderr) == (0, "60\n", "")


def test_without_a_model_nano_answers_and_says_so(qwen3: Command) -> None:
    done = qwen3("run", QUESTION, "--temp", "0")
    assert (done.returncode, done.stdout) == (0, "60\n")
    assert done.stderr.count("\n") == 1 and "nano" in done.stderr


def test_a_terminal_shows_dim_thoughts_the_answer_and_statistics(qwen3: Command) -> None:
    terminal = qwen3.terminal("run", QUESTION, *GREEDY, "--thoughts", "dim")
    assert terminal.finish() == 0
    shown = terminal.text
    assert shown.startswith(f"{THOUGHTS}\n\n60\nthinking ")
    assert re.search(r"thinking \d+ tokens \(natural\), answer 2 tokens \(end\), \d+ tok/s", shown)
    assert "\x1b[2m" in terminal.raw.partition("60\r\n")[0]
    assert terminal.echoes


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_styles_where_they_are_not_wanted(qwen3: Command, env: dict[str, str]) -> None:
    terminal = qwen3.terminal("run", QUESTION, *GREEDY, "--thoughts", "dim", **env)
    assert terminal.finish() == 0
    assert "\x1b" not in terminal.raw
    assert terminal.text.startswith(f"<think>\n{THOUGHTS}\n</think>\n\n60\n")


def test_thoughts_are_shown_hidden_or_written_where_asked(qwen3: Command) -> None:
    done = qwen3("run", QUESTION, *GREEDY, "--thoughts", "show")
    assert (done.stdout, done.stderr) == ("60\n", f"{THOUGHTS}\n")
    done = qwen3("run", QUESTION, *GREEDY, "--thoughts", "out.txt", "--json")
    assert (qwen3.home / "out.txt").read_text() == f"{THOUGHTS}\n"
    assert json.loads(done.stdout)["thoughts"] == THOUGHTS and done.stderr == ""
    terminal = qwen3.terminal("run", QUESTION, *GREEDY, "--thoughts", "hide")
    assert terminal.finish() == 0
    assert terminal.text.startswith("60\nthinking ")


def test_control_characters_never_reach_a_terminal(qwen3: Command) -> None:
    noise = ["run", "x", "-m", "nano", "--temp", "100", "--top-k", "0", "--threads", "1"]
    hostile = 0
    for seed in ("1", "5"):
        args = [*noise, "--seed", seed, "--max-tokens", "400"]
        terminal = qwen3.terminal(*args)
        terminal.finish()
        assert CLEAN.fullmatch(terminal.text)
        hostile += not CLEAN.fullmatch(qwen3(*args).stdout)
    assert hostile, "no control characters came out at all: nothing was tested"


# ---- budgets -------------------------------------------------------------------


def as_json(qwen3: Command, *args: str) -> dict[str, Any]:
    done = qwen3("run", QUESTION, *GREEDY, "--json", *args)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("\n") == 1
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def natural(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many tokens of thinking the question takes by itself."""
    reply = as_json(Command(tmp_path_factory.mktemp("home")))
    assert (reply["thinking_stop"], reply["budget"]) == ("natural", None)
    return int(reply["thinking_tokens"])


def test_json_holds_the_whole_reply(qwen3: Command) -> None:
    reply = as_json(qwen3, "--seed", "7")
    assert list(reply) == [
        "model", "prompt_tokens", "reused_tokens", "thoughts", "answer", "thinking_tokens",
        "budget", "seconds", "landing", "thinking_stop", "inserted_tokens", "thinking_s",
        "answer_tokens", "answer_stop", "dropped", "seed", "sampling", "prefill_tok_s",
        "decode_tok_s",
    ]  # fmt: skip
    assert Path(reply["model"]).name == NANO.name
    assert (reply["answer"], reply["answer_stop"], reply["answer_tokens"]) == ("60", "end", 2)
    assert (reply["thoughts"], reply["inserted_tokens"], reply["seed"]) == (THOUGHTS, 0, 7)
    assert reply["prefill_tok_s"] > 0 and reply["decode_tok_s"] > 0


@pytest.mark.parametrize(
    ("budget", "stop"), [(0, "off"), (1, "budget"), (16, "budget"), (4000, "natural")]
)
def test_a_budget_is_exact(qwen3: Command, natural: int, budget: int, stop: str) -> None:
    reply = as_json(qwen3, "--budget", str(budget))
    assert reply["budget"] == budget
    assert reply["thinking_tokens"] == min(budget, natural)
    assert reply["thinking_stop"] == stop
    assert (reply["inserted_tokens"] > 0) == (stop == "budget")
    assert reply["answer"]

    terminal = qwen3.terminal("run", QUESTION, *GREEDY, "--budget", str(budget))
    assert terminal.finish() == 0
    unit = "token" if budget == 1 else "tokens"
    used = f"{min(budget, natural)}/{budget} {unit} ({stop})"
    assert f"thinking {used if budget else 'off'}, answer " in terminal.text


def test_no_think_is_a_hard_switch(qwen3: Command) -> None:
    reply = as_json(qwen3, "--no-think")
    assert (reply["thinking_stop"], reply["thinking_tokens"], reply["thoughts"]) == ("off", 0, "")


def test_the_same_seed_gives_the_same_text(qwen3: Command) -> None:
    def text(seed: str) -> str:
        args = ("-m", "nano", "--temp", "2", "--top-k", "0", "--top-p", "1", "--budget", "0")
        return qwen3("run", "hello", *args, "--max-tokens", "40", "--seed", seed).stdout

    assert text("1") == text("1") != text("2")


def test_a_stop_text_ends_the_answer_before_it(qwen3: Command) -> None:
    done = qwen3("run", QUESTION, *GREEDY, "--stop", "0", "--stop", "x")
    assert (done.returncode, done.stdout) == (0, "6\n")


def test_a_q8_cache_answers_too(qwen3: Command) -> None:
    done = qwen3("run", QUESTION, *GREEDY, "--kv", "q8")
    assert (done.returncode, done.stdout) == (0, "60\n")


# ---- errors --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "args", "message"),
    [
        (3, ["run", "hi", "-m", "missing.gguf"], "missing.gguf: there is no such model file"),
        (3, ["run", "hi", "-m", "nanno"], "did you mean nano?"),
        (3, ["show", "0.6b"], "qwen3 pull 0.6b"),
        (3, ["quantize", "0.6b", "--q4"], "qwen3 pull 0.6b --weights`"),
        (2, ["run", "hi", "--no-such-flag"], "--no-such-flag"),
        (2, ["run", "hi", "--budget", "-1"], "--budget"),
        (2, ["run", "hi", "--temp", "nan"], "--temp"),
        (2, ["run", "hi", "--top-p", "0"], "--top-p"),
        (2, ["run", "hi", "--seed", str(2**64)], "range from 0 to 18446744073709551615"),
        (2, ["run", "hi", "--ctx", "16777217"], "range from 1 to 16777216"),
        (2, ["run", "hi", "--threads", "1025"], "range from 0 to 1024"),
        (2, ["run", "hi", "--kv", "q3"], "'q3' is not f16 or q8"),
        (2, ["run", "hi", "--top-k", str(2**31)], "range from 0 to 2147483647"),
        (2, ["run", "hi", "--budget", str(2**31)], "range from 0 to 2147483647"),
        (2, ["run", "hi", "--max-tokens", str(2**63)], "range from 1 to 2147483647"),
        (2, ["quantize", ".", "--q8", "--threads", "99999"], "range from 0 to 1024"),
        (2, ["quantize", ".", "--q8", "-o", ""], "-o takes"),
        (2, ["quantize", ".", "--q8", "-o", "no/"], "no such folder"),
        (2, ["imatrix", "nano", "-o", ""], "-o takes"),
        (2, ["quantize", "nano", "--q8"], "a part of this program"),
        (3, ["quantize", "nothing-like-it", "--q8"], "known: 0.6b, "),
        (2, ["run", "hi", "-m", "nano", "--thoughts", "-"], "--thoughts takes"),
        (2, ["run", "hi", "--thoughts", str(NANO)], "a model; choose another file"),
        (2, ["rnu", "hi"], "rnu"),
        (2, ["run", "-m", "nano"], "no prompt"),
        (2, ["quantize", "0.6b"], "--q4"),
        (2, ["quantize", "0.6b", "--q4", "--q8"], "--q4"),
        (5, ["run", QUESTION, "-m", "nano", "--ctx", "16"], "context of 16"),
        (1, ["run", "hi", "-m", "nano", "--thoughts", "no/such/file"], "no/such/file"),
        (1, ["tokenize", "no-such-file"], "no-such-file: No such file"),
        (2, ["run", "hi", "-m", "."], "quantize"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    qwen3: Command, code: int, args: list[str], message: str
) -> None:
    done = qwen3(*args)
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.startswith("qwen3: ") and done.stderr.count("\n") == 1
    assert message in done.stderr


def test_a_truncated_file_is_an_error(qwen3: Command) -> None:
    (qwen3.home / "cut.gguf").write_bytes(NANO.read_bytes()[:100_000])
    for args in (["run", "hi", "-m", "cut.gguf"], ["show", "cut.gguf"]):
        done = qwen3(*args)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert "cut.gguf" in done.stderr


def test_a_weight_that_is_not_a_number_is_an_error(qwen3: Command) -> None:
    data = bytearray(NANO.read_bytes())
    data[-4:] = b"\0\0\xc0\x7f"  # the end of output_norm.weight, in F32
    (qwen3.home / "nan.gguf").write_bytes(data)
    done = qwen3("run", "hi", "-m", "nan.gguf")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "nan.gguf" in done.stderr and "'output_norm.weight' holds a NaN" in done.stderr


def test_an_answer_cut_at_its_limit_is_told(qwen3: Command) -> None:
    done = qwen3("run", QUESTION, *GREEDY, "--max-tokens", "1")
    assert (done.returncode, done.stdout) == (6, "6\n")
    assert done.stderr == "qwen3: the answer was cut at --max-tokens 1\n"
    done = qwen3("run", "x", *ENDLESS, "--ctx", "64")
    assert done.returncode == 6
    assert done.stderr == "qwen3: the answer was cut at the end of the context, --ctx 64\n"


def test_an_error_leaves_an_older_file_of_thoughts_as_it_was(qwen3: Command) -> None:
    file = qwen3.home / "thoughts"
    file.write_text("old, and longer than the new ones " * 9)
    before = file.read_text()
    assert qwen3("run", "hi", "-m", "missing.gguf", "--thoughts", "thoughts").returncode == 3
    assert file.read_text() == before
    assert qwen3("run", QUESTION, *GREEDY, "--thoughts", "thoughts").returncode == 0
    assert file.read_text() == f"{THOUGHTS}\n"


def test_closed_descriptors_are_errors_or_not_needed(qwen3: Command) -> None:
    ask = f'"$@" run "{QUESTION}" {" ".join(GREEDY)}'
    done = qwen3.shell(f"{ask} <&-")
    assert (done.returncode, done.stdout) == (0, "60\n")
    done = qwen3.shell(f"{ask} </dev/null >&-")
    assert (done.returncode, done.stderr) == (1, "qwen3: cannot write the output: it is closed\n")
    done = qwen3.shell(f"{ask} </dev/null 2>&-")
    assert (done.returncode, done.stdout) == (0, "60\n")
    done = qwen3.shell('"$@" tokenize -m nano <&-')
    assert (done.returncode, done.stderr) == (2, "qwen3: stdin is closed; name a FILE\n")


@pytest.mark.parametrize("args", ["-h", "", "--version", "run -h", "show nano"])
def test_output_that_nobody_reads_is_told_by_the_exit_code_alone(qwen3: Command, args: str) -> None:
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [*COMMAND, *args.split()],
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=subprocess.PIPE,
        env=environment(qwen3.home),
    )
    os.close(write)
    assert (process.returncode, process.stderr) == (141, b"")


def test_without_a_home_nano_answers(qwen3: Command) -> None:
    script = (
        "import sys; from pathlib import Path; from qwen3cli.cli.commands import main\n"
        "def homeless(): raise RuntimeError('Could not determine home directory.')\n"
        "Path.home = homeless\n"
        "sys.exit(main())"
    )
    line = f'unset HOME XDG_DATA_HOME XDG_STATE_HOME HF_HOME; "$1" -c "{script}"'
    done = qwen3.shell(f'{line} run "{QUESTION}" --temp 0 </dev/null')
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (0, "60\n", 1)
    assert "this is nano" in done.stderr
    done = qwen3.shell(f"{line} chat --temp 0 <<< '{QUESTION}'")
    assert (done.returncode, done.stdout) == (0, "60\n")


def test_ctrl_c_is_silent_at_any_time(qwen3: Command) -> None:
    # From the moment the command's own code runs; before it, the interpreter starts.
    script = (
        "import sys; from qwen3cli.__main__ import main; print(flush=True); "
        "sys.argv[1:1] = ['run', 'x']; main()"
    )
    for delay in (0.01, 0.03, 0.06, 0.1, 0.2, 0.4):
        process = subprocess.Popen(
            [sys.executable, "-c", script, *ENDLESS],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(qwen3.home),
        )
        assert process.stdout and process.stderr
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode in (130, -signal.SIGINT)
        assert err == b""


def test_ctrl_c_in_a_callback_of_the_interpreter_is_not_lost(qwen3: Command) -> None:
    script = (
        "import signal, sys\n"
        "from qwen3cli import __main__\n"
        "from qwen3cli.cli import commands\n"
        "class Dying:\n"
        "    def __del__(self): signal.raise_signal(signal.SIGINT)\n"
        "def command(**_):\n"
        "    Dying()\n"
        "    for _ in range(10**7): pass\n"
        "    print('went on')\n"
        "commands.app = command\n"
        "__main__.main()"
    )
    process = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        env=environment(qwen3.home),
        timeout=PATIENCE,
    )
    assert (process.returncode, process.stdout, process.stderr) == (130, b"", b"")


def test_error_texts_are_cleaned(qwen3: Command) -> None:
    done = qwen3("run", "hi", "-m", "a/\x1b]0;title\x07\nb")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert CLEAN.fullmatch(done.stderr)


def test_a_closed_pipe_ends_it_silently(qwen3: Command) -> None:
    process = qwen3.start("run", "x", *ENDLESS)
    assert process.stdout and process.stderr
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(PATIENCE) == 141
    assert process.stderr.read() == b""


def test_ctrl_c_ends_the_answer_and_the_command(qwen3: Command) -> None:
    terminal = qwen3.terminal("run", "x", *ENDLESS)
    terminal.wait_for(r"\w+")
    terminal.press("c")
    assert terminal.finish() == 130
    assert re.search(r"thinking off, answer \d+ tokens \(user\)", terminal.text)


# ---- show, tokenize, quantize, help --------------------------------------------


def test_show_lists_metadata_and_tensors(qwen3: Command) -> None:
    lines = qwen3("show", "nano").stdout.splitlines()
    rows = [line.split("\t") for line in lines]
    assert ["general.architecture", "qwen3"] in rows
    assert ["qwen3.attention.head_count", "4"] in rows
    assert any(row[0] == "tokenizer.ggml.tokens" and row[1].startswith("[4,224 x") for row in rows)
    assert any(row[0] == "token_embd.weight" and row[1:3] == ["4224 x 256", "Q8_0"] for row in rows)
    described = json.loads(qwen3("show", str(NANO), "--json").stdout)
    assert described["metadata"]["qwen3.block_count"] == 4
    assert described["tensors"][0]["bytes"] > 0
    terminal = qwen3.terminal("show", "nano")
    assert terminal.finish() == 0
    assert re.search(r"general\.architecture +qwen3\b", terminal.text)


def test_show_cleans_what_a_file_says(qwen3: Command) -> None:
    image = tiny_model()
    image.put("general.name", "\x1b]0;owned\x07\x1b[2Jnano\u202e\n[red]two[/]")
    image.put("bad\x1b[31m.key", float("nan"))
    image.write(qwen3.home / "hostile.gguf")
    for args in (["show", "hostile.gguf"], ["show", "hostile.gguf", "--json"]):
        done = qwen3(*args)
        assert done.returncode == 0 and "[red]two[/]" in done.stdout
        assert CLEAN.fullmatch(done.stdout)
        terminal = qwen3.terminal(*args)
        assert terminal.finish() == 0
        assert "\x1b]" not in terminal.raw and "\x1b[2J" not in terminal.raw
        assert "\x1b[31m" not in terminal.raw and "[red]two[/]" in terminal.text
    assert json.loads(qwen3(*args).stdout)["metadata"]["general.name"].startswith("\x1b]0;owned")


def test_tokenize_gives_ids_pieces_and_their_count(qwen3: Command) -> None:
    text = "17 + 48 = 65, 안녕 <|im_end|> \n"
    done = qwen3("tokenize", "-m", "nano", input=text)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert done.stderr == f"{len(rows)} tokens\n"
    assert rows[0] == ["16", "'1'"]
    (qwen3.home / "text").write_text(text)
    described = json.loads(qwen3("tokenize", "-m", "nano", "text", "--json").stdout)
    assert described["ids"] == [int(row[0]) for row in rows]
    assert described["count"] == len(rows) == len(described["pieces"])
    added = json.loads(qwen3("tokenize", "-m", "nano", "text", "--json", "--added").stdout)
    assert 4098 in added["ids"] and 4098 not in described["ids"]
    assert "".join(added["pieces"]).endswith(" <|im_end|> \n")


def test_quantize_a_folder_and_answer_with_it(qwen3: Command) -> None:
    source = str(ROOT / "tests" / "data" / "nano-dense")
    done = qwen3("quantize", source, "--q8")
    target = qwen3.home / "nano-dense-q8_0.gguf"
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith(f"{target.name}: Q8_0, ") and done.stderr.count("\n") == 1
    assert qwen3("run", QUESTION, "-m", str(target), "--temp", "0").stdout == "60\n"

    written = target.read_bytes()
    done = qwen3("quantize", source, "--q8")
    assert done.returncode == 2 and "--force" in done.stderr
    assert target.read_bytes() == written
    assert qwen3("quantize", source, "--type", "F16", "-o", target.name, "--force").returncode == 0
    assert target.read_bytes() != written
    (qwen3.home / "folder").mkdir()
    assert qwen3("quantize", source, "--q8", "-o", "folder").returncode == 0
    assert (qwen3.home / "folder" / target.name).read_bytes() == written


def test_quantize_a_name_from_the_hugging_face_cache(qwen3: Command) -> None:
    cached = qwen3.home / "huggingface" / "hub" / "models--Qwen--Qwen3-0.6B"
    shutil.copytree(ROOT / "tests" / "data" / "nano-dense", cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    terminal = qwen3.terminal("quantize", "0.6b", "--q4")
    assert terminal.finish() == 0
    assert (qwen3.home / "data" / "qwen3" / "models" / "0.6b-q4_k_m.gguf").is_file()
    done = qwen3("run", "hello", "-m", "0.6b", "--temp", "0", "--json", "--max-tokens", "200")
    assert done.returncode == 0
    assert json.loads(done.stdout)["model"].endswith("0.6b-q4_k_m.gguf")
    # It is installed now, so it is the default.
    assert qwen3("run", "hello", "--temp", "0", "--max-tokens", "200").stderr == ""


def test_quantize_never_overwrites_its_source(qwen3: Command) -> None:
    source = qwen3.home / "source"
    shutil.copytree(ROOT / "tests" / "data" / "nano-dense", source)
    before = (source / "model.safetensors").read_bytes()
    done = qwen3("quantize", "source", "--q8", "-o", "source/model.safetensors", "--force")
    assert done.returncode == 2
    assert (source / "model.safetensors").read_bytes() == before


def test_every_command_has_help_and_there_is_a_version(qwen3: Command) -> None:
    assert re.fullmatch(r"qwen3 \d+\.\d+\.\d+\n", qwen3("--version").stdout)
    whole = qwen3("-h").stdout
    assert whole == qwen3().stdout
    listed = whole.partition("Commands:")[2]
    assert "..." not in listed, "a command that takes more than a line to describe"
    commands = ["run", "chat", "replay", "fit", "doctor", "bench", "pull", "ls", "rm", "quantize"]
    commands += ["verify", "imatrix", "show", "tokenize", "eval", "config", "session"]
    assert re.findall(r"^  (\w+)  ", listed, re.MULTILINE) == commands
    for command in (*commands, "eval kl", "eval ppl", "session rm"):
        done = qwen3(*command.split(), "-h")
        assert done.returncode == 0 and done.stdout.startswith(f"Usage: qwen3 {command}")
    described = " ".join(qwen3("quantize", "-h").stdout.split())
    assert ", ".join(RECIPES) in described and "one per CPU" in described


@pytest.mark.parametrize("columns", [40, 60])
def test_help_fits_a_narrow_terminal(qwen3: Command, columns: int) -> None:
    for args in (["-h"], ["chat", "-h"], ["session", "rm", "-h"]):
        lines = qwen3(*args, COLUMNS=str(columns)).stdout.splitlines()
        assert max(map(len, lines)) <= columns, lines
        assert any(line.startswith("  -h, --help  ") for line in lines)


def test_help_on_a_terminal_of_a_column(qwen3: Command) -> None:
    assert qwen3("chat", "-h", COLUMNS="1").returncode == 0


def test_a_tiny_model_without_thinking_tokens_is_refused_clearly(qwen3: Command) -> None:
    image = tiny_model()
    tokens = image.get("tokenizer.ggml.tokens")
    image.put("tokenizer.ggml.tokens", [t.replace("think", "thonk") for t in tokens])
    image.write(qwen3.home / "other.gguf")
    done = qwen3("run", "hi", "-m", "other.gguf")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "<think>" in done.stderr
