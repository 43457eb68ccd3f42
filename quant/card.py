"""What a checkpoint is called and whose it is: general.* of a GGUF file.

From the front matter of README.md, the model card, where there is one; the name
else from the directory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from .errors import QuantError

_CARD_BYTES = 65536
# "Qwen3-30B-A3B-Instruct-2507": basename, size label, finetune and version
_NAME = re.compile(
    r"(?P<base>.+?)[- ](?P<size>\d+(\.\d+)?[BM](-A\d+(\.\d+)?[BM])?)"
    r"([- ](?P<finetune>(?!FP8$|\d{4}$).+?))?([- ](?P<version>\d{4}))?([- ]FP8)?"
)


@dataclass(frozen=True)
class ModelCard:
    """name is for people ("Qwen3 0.6B"); base_models are Hugging Face names."""

    name: str
    basename: str | None = None
    size_label: str | None = None
    finetune: str | None = None
    version: str | None = None
    license: str | None = None
    license_link: str | None = None
    base_models: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)


def directory_name(source: Path) -> str:
    """The name of a checkpoint directory; in a Hugging Face cache, which names its
    directories by commit, that of the repository."""
    source = source.resolve()
    repository = source.parent.parent.name
    if source.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.rpartition("--")[2]
    return source.name or "model"


def model_card(source: Path) -> ModelCard:
    """The card of a checkpoint directory."""
    front = _front_matter(source / "README.md")
    name = directory_name(source)
    found = _NAME.fullmatch(name)
    parts = found.groupdict() if found else {}

    def value(key: str) -> str | None:
        return next(iter(_values(front, key)), None)

    return ModelCard(
        name=value("model_name") or name.replace("-", " "),
        basename=parts.get("base"),
        size_label=parts.get("size"),
        finetune=parts.get("finetune"),
        version=parts.get("version"),
        license=value("license"),
        license_link=value("license_link"),
        base_models=_values(front, "base_model"),
        tags=_values(front, "tags") + _values(front, "pipeline_tag"),
        languages=_values(front, "language"),
    )


def _front_matter(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(_CARD_BYTES).decode("utf-8", "replace").replace("\r\n", "\n")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise QuantError(f"{path}: cannot be read: {error.strerror}") from None
    match = re.match(r"---\n(.*?)^---$", text, re.DOTALL | re.MULTILINE)
    return match[1] if match else ""


def _values(front: str, key: str) -> list[str]:
    """The value of a key at the top of the front matter, or the items of its list."""
    match = re.search(rf"^{key}:[ \t]*(.*(?:\n[ \t]*- .*)*)", front, re.MULTILINE)
    lines = match[1].splitlines() if match else []
    if len(lines) == 1 and (flow := re.fullmatch(r"\[(.*)\]", lines[0].strip())):
        lines = flow[1].split(",")
    values = [re.sub(r"^\s*- ", "", line).strip().strip("\"'") for line in lines]
    return [value for value in values if value]
