"""What the tests of `pull` share: the models of a hub on loopback, and a look at the cache."""

from __future__ import annotations

import hashlib
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import constants

from qwen3cli.library.pull import pull
from qwen3cli.terminal import Terminal

GGUF, NAME = "Qwen/Qwen3-0.6B-GGUF", "Qwen3-0.6B-Q8_0.gguf"
MODEL = random.Random(6).randbytes(300_000)
SPLIT = {f"some-model-q8_0-0000{i}-of-00003.gguf": bytes([i]) * 50_000 for i in (1, 2, 3)}
WEIGHTS = {
    "config.json": b'{"model_type": "qwen3"}',
    "tokenizer.json": b"{}",
    "model.safetensors.index.json": b'{"weight_map": {"a": "model-00001-of-00002.safetensors", '
    b'"b": "model-00002-of-00002.safetensors"}}',
    "model-00001-of-00002.safetensors": b"a" * 70_000,
    "model-00002-of-00002.safetensors": b"b" * 60_000,
}
TOKEN = "hf_of_the_tests"


@dataclass(frozen=True)
class Outcome:
    """Of a command."""

    code: int
    out: str
    err: str


Pull = Callable[..., Outcome]


class _Client(httpx2.Client):
    """To read the certificates of the world takes longer than a pull here."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, verify=False)


def leading_elsewhere() -> list[str]:
    """Variables of the environment that name another hub, another cache or a proxy."""
    return [name for name in os.environ if name.lower().endswith("_proxy") or name[:3] == "HF_"]


def set_up(put: Callable[[Any, str, Any], None], url: str, cache: Path) -> None:
    """Where constants that huggingface_hub reads once from the environment point to."""
    put(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    put(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    put(constants, "HF_HUB_CACHE", str(cache))
    put(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
    put(constants, "HF_HUB_OFFLINE", False)
    put(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 60)  # only what hangs takes longer
    put(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # of huggingface_hub's own requests
    put(httpx2, "Client", _Client)


def child(url: str, cache: str) -> None:
    """A pull in a process of its own, by multiprocessing."""
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    set_up(setattr, url, Path(cache))
    for name in leading_elsewhere():
        del os.environ[name]
    os.environ["XDG_STATE_HOME"] = str(Path(cache).parent / "state")
    pull("0.6b", Terminal(), weights=False, revision=None, offline=False, as_json=False)


def cache() -> Path:
    return Path(constants.HF_HUB_CACHE)


def everything(folder: Path) -> list[str]:
    """All files but locks."""
    files = (p for p in folder.rglob("*") if not p.is_dir() and p.suffix != ".lock")
    return sorted(p.relative_to(folder).as_posix() for p in files)


def models() -> list[str]:
    """Files that any tool takes for models."""
    return [name for name in everything(cache()) if "/snapshots/" in name]


def part() -> Path:
    name = hashlib.sha256(MODEL).hexdigest()
    return cache() / "models--Qwen--Qwen3-0.6B-GGUF" / "blobs" / f"{name}.incomplete"
