"""Every way in which quantizing can fail: a clear error, and nothing left behind."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_tiny import (
    DATA,
    DENSE,
    MOE,
    edited,
    shapes_of,
    tensors_of,
    write_checkpoint,
    write_hollow,
)
from numpy.typing import NDArray

from quant.errors import FormatError, QuantError, SourceNotFound, UsageError
from quant.quantize import quantize


def refused(
    source: Path, out: Path, says: str, recipe: str = "q8_0", kind: type[Exception] = FormatError
) -> None:
    """quantize must raise, saying so, and leave the directory of out as it was."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(kind, match=says) as error:
        quantize(source, out, recipe)
    assert isinstance(error.value, QuantError)
    assert sorted(out.parent.iterdir()) == before


def with_tensors(directory: Path, config: dict[str, Any], **changes: NDArray[np.float32]) -> Path:
    """A checkpoint whose tensors differ: _ for . in names, None leaves one out."""
    tensors = tensors_of(config)
    for name, values in changes.items():
        if values is None:
            del tensors[name]
        else:
            tensors[name] = values
    return write_checkpoint(directory, config, tensors)


@pytest.mark.parametrize(
    ("config", "changes", "says"),
    [
        (DENSE, {"model.norm.weight": None}, "lacks the tensor model.norm.weight"),
        (DENSE, {"lm_head.weight": None}, "lacks the tensor lm_head.weight"),
        (
            MOE,
            {"model.layers.1.mlp.experts.3.up_proj.weight": None},
            "lacks the tensor model.layers.1.mlp.experts.3.up_proj.weight",
        ),
        (
            DENSE,
            {"model.layers.0.mlp.up_proj.weight": np.zeros((64, 96), np.float32)},
            r"model.layers.0.mlp.up_proj.weight has shape \[64, 96\], but .* \[96, 64\]",
        ),
        (
            DENSE,
            {"model.layers.2.mlp.up_proj.weight": np.zeros((96, 64), np.float32)},
            "holds 'model.layers.2.mlp.up_proj.weight', which is no part of qwen3 with 2 layers",
        ),
        (
            DENSE,
            {"model.layers.1.self_attn.q_proj.bias": np.zeros(128, np.float32)},
            "holds 'model.layers.1.self_attn.q_proj.bias'",
        ),
        (
            DENSE,
            {"model.norm.weight": np.full(64, np.nan, np.float32)},
            "model.norm.weight holds NaN or infinite",
        ),
        (
            MOE,
            {"model.layers.1.mlp.experts.2.up_proj.weight": np.full((32, 64), np.inf, np.float32)},
            "model.layers.1.mlp.experts.2.up_proj.weight holds NaN or infinite",
        ),
        (
            DENSE,
            {"lm_head.weight": np.full((352, 64), 2.0**17, np.float32)},
            "lm_head.weight holds a weight of 131072, more than Q8_0 can hold",
        ),
    ],
)
def test_a_wrong_tensor_is_named(
    tmp_path: Path, config: dict[str, Any], changes: dict[str, Any], says: str
) -> None:
    source = with_tensors(tmp_path / "source", config, **changes)
    refused(source, tmp_path / "out.gguf", says)


def test_sources_that_are_none(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    refused(tmp_path / "absent", out, "there is no such checkpoint", kind=SourceNotFound)
    source = write_checkpoint(tmp_path / "source", DENSE)
    refused(source, out, "no type 'q3'", "q3", UsageError)
    (source / "tokenizer.json").unlink()
    refused(source, out, r"there is no tokenizer\.json")
    (source / "model.safetensors").unlink()
    refused(source, out, "only safetensors")
    (source / "config.json").unlink()
    refused(source, out, r"there is no config\.json")


def test_a_truncated_source(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", DENSE)
    weights = source / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    refused(source, tmp_path / "out.gguf", "truncated; download it again")


def test_destinations_that_are_none(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", DENSE)
    with pytest.raises(QuantError, match="there is no directory"):
        quantize(source, tmp_path / "absent" / "out.gguf", "q8_0")
    refused(source, source, "exists and is no GGUF file", kind=UsageError)
    weights = source / "model.safetensors"
    before = weights.read_bytes()
    refused(source, weights, "exists and is no GGUF file", kind=UsageError)
    assert weights.read_bytes() == before


def test_an_unwritable_directory(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir(mode=0o500)
    if os.access(place, os.W_OK):
        pytest.skip("this user may write anywhere")
    refused(DATA / "nano-dense", place / "out.gguf", "cannot be written", kind=QuantError)


def test_a_replaced_file_changes_only_at_the_end(tmp_path: Path) -> None:
    source, out = write_checkpoint(tmp_path / "source", DENSE), tmp_path / "out.gguf"
    quantize(source, out, "q4_0")
    before = out.read_bytes()
    nan = with_tensors(
        tmp_path / "nan", DENSE, **{"model.norm.weight": np.full(64, np.nan, np.float32)}
    )
    refused(nan, out, "NaN")
    assert out.read_bytes() == before
    quantize(source, out, "q8_0", progress=lambda *_: check(out.read_bytes() == before))
    assert out.read_bytes() != before


def check(condition: bool) -> None:
    assert condition


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(DATA / "nano-dense", tmp_path / "out.gguf", "q8_0", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_two_at_once(tmp_path: Path) -> None:
    out, part = tmp_path / "out.gguf", tmp_path / ".out.gguf.part"
    with part.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(QuantError, match="another process is writing"):
            quantize(DATA / "nano-dense", out, "q8_0")
        assert part.exists() and not out.exists()
    quantize(DATA / "nano-dense", out, "q8_0")
    assert out.exists() and not part.exists()


SCRIPT = """
import resource, sys
from pathlib import Path
from quant.quantize import quantize
source, out, limit = sys.argv[1:]
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
print("ready", flush=True)
quantize(Path(source), Path(out), "q8_0", progress=lambda *_: print(flush=True))
"""


def child(
    source: Path, out: Path, *, limit: int = 0, script: str = SCRIPT
) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, str(source), str(out), str(limit)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.parametrize("limit", [1000, 1_000_000])
def test_a_full_disk(tmp_path: Path, limit: int) -> None:
    """In the header and in the tensors, by the system's limit on the size of a file."""
    run = child(DATA / "nano-dense", tmp_path / "out.gguf", limit=limit)
    _, errors = run.communicate()
    assert "out.gguf: cannot be written: File too large; free some space" in errors
    assert list(tmp_path.iterdir()) == []


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    quantize(
        DATA / "nano-moe", tmp_path / "out.gguf", "f16", progress=lambda *step: seen.append(step)
    )
    assert len(seen) > 10 and seen == sorted(seen)
    assert len({total for _, total in seen}) == 1 and seen[-1][0] == seen[-1][1]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """200 MB of weights in a process that may take far less."""
    config = DENSE | {"hidden_size": 512, "num_hidden_layers": 1, "intermediate_size": 1 << 16}
    source = write_checkpoint(tmp_path / "source", config, {})
    write_hollow(source / "model.safetensors", shapes_of(config))
    run = child(source, tmp_path / "out.gguf", script=SCRIPT + PEAK)
    output, errors = run.communicate()
    assert run.returncode == 0, errors
    assert (tmp_path / "out.gguf").stat().st_size > 100_000_000
    assert int(output.split()[-2]) < 100_000  # kB


PEAK = """
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))  # in kB
"""


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("tokenizer.json", {"model": {"type": "Unigram"}}, "not a byte-level BPE"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "ByteLevel"}}, "does not split text"),
        ("tokenizer.json", {"added_tokens": [{"id": 352, "content": "x"}]}, "'x' has id 352, but"),
        ("tokenizer.json", {"added_tokens": [{"id": 0, "content": "x"}]}, "id 0 is given to both"),
        ("tokenizer.json", {"added_tokens": [{"id": "0"}]}, "must map texts to ids"),
        ("tokenizer_config.json", {"eos_token": "<end>"}, "'<end>', is not in the vocabulary"),
        ("tokenizer_config.json", {"eos_token": None}, "no eos_token in"),
    ],
)
def test_a_wrong_tokenizer(tmp_path: Path, name: str, changes: dict[str, Any], says: str) -> None:
    source = write_checkpoint(tmp_path / "source", DENSE)
    edited(source, name, **changes)
    refused(source, tmp_path / "out.gguf", says)
