"""The three generations of Qwen3 through the command line: which one a file is stands in
its chat template; the weights here are nano's each time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commandline import QUESTION, Command

from quant.quantize import quantize

SOURCE = Path(__file__).parent / "data" / "nano-dense"
TEMPLATES = {
    "thinking": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}",
    "instruct": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
}


TEMPLATES["coder"] = TEMPLATES["instruct"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """nano once more for each template."""
    made = {}
    for generation, template in TEMPLATES.items():
        folder = tmp_path_factory.mktemp("models") / f"nano-{generation}"
        shutil.copytree(SOURCE, folder)
        (folder / "README.md").unlink()  # the name is now the folder's
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
        made[generation] = folder.with_suffix(".gguf")
        quantize(folder, made[generation], "Q8_0")
    return made


def as_json(qwen3: Command, model: Path, *args: str) -> dict[str, Any]:
    done = qwen3("run", QUESTION, "-m", str(model), "--temp", "0", "--json", *args)
    assert done.returncode == 0, done.stderr
    reply: dict[str, Any] = json.loads(done.stdout)
    return reply


@pytest.fixture
def natural(qwen3: Command, models: dict[str, Path]) -> int:
    """How long nano thinks about the question when <think> stands in the prompt."""
    reply = as_json(qwen3, models["thinking"])
    assert (reply["answer"], reply["thinking_stop"], reply["budget"]) == ("60", "natural", None)
    return int(reply["thinking_tokens"])


def statistics(used: int, budget: int, stop: str) -> str:
    unit = "token" if budget == 1 else "tokens"
    return f"thinking {used}/{budget} {unit} ({stop}), answer "


@pytest.mark.parametrize(
    ("budget", "stop"), [(0, "budget"), (1, "budget"), (16, "budget"), (4000, "natural")]
)
def test_a_budget_is_exact_where_the_prompt_opens_the_thoughts(
    qwen3: Command, models: dict[str, Path], natural: int, budget: int, stop: str
) -> None:
    used = min(budget, natural)
    reply = as_json(qwen3, models["thinking"], "--budget", str(budget))
    assert (reply["thinking_tokens"], reply["thinking_stop"]) == (used, stop)
    assert (reply["inserted_tokens"] > 0) == (stop == "budget")
    assert reply["answer"] and reply["answer_stop"] == "end"

    args = ("-m", str(models["thinking"]), "--temp", "0", "--budget", str(budget))
    terminal = qwen3.terminal("run", QUESTION, *args)
    assert terminal.finish() == 0
    assert statistics(used, budget, stop) in terminal.text

    chat = qwen3.terminal("chat", *args)
    chat.wait_for_prompt()
    chat.type(QUESTION + "\r")
    chat.wait_for("tok/s")
    chat.wait_for_prompt()
    chat.press("d")
    assert chat.finish() == 0
    assert statistics(used, budget, stop) in chat.text


def test_a_template_that_was_cut_down_does_not_hide_the_thoughts(
    qwen3: Command, models: dict[str, Path], tmp_path: Path
) -> None:
    """Its name does not say instruct either: nano's thoughts are thoughts, and budgeted."""
    folder = tmp_path / "nano-chatml"
    shutil.copytree(SOURCE, folder)
    path = folder / "tokenizer_config.json"
    template = {"chat_template": TEMPLATES["instruct"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | template))
    quantize(folder, tmp_path / "chatml.gguf", "Q8_0")
    reply = as_json(qwen3, tmp_path / "chatml.gguf", "--budget", "16")
    assert (reply["thinking_tokens"], reply["thinking_stop"]) == (16, "budget")
    assert "<think>" not in reply["answer"]


def test_an_instruct_model_never_thinks(qwen3: Command, models: dict[str, Path]) -> None:
    reply = as_json(qwen3, models["instruct"], "--budget", "50", "--max-tokens", "400")
    assert (reply["thinking_tokens"], reply["thinking_stop"]) == (0, "off")
    assert reply["thoughts"] == ""


def test_a_coder_has_the_repetition_penalty_of_its_card(
    qwen3: Command, models: dict[str, Path]
) -> None:
    def answer(*args: str) -> str:
        flat = ("--temp", "9", "--top-k", "0", "--top-p", "1", "--max-tokens", "40")
        done = qwen3("run", QUESTION, "--seed", "1", *flat, *args)
        return done.stdout

    ours = answer("-m", str(models["coder"]))
    assert ours == answer("-m", str(models["instruct"]), "--repetition-penalty", "1.05")
    assert ours != answer("-m", str(models["coder"]), "--repetition-penalty", "1")
