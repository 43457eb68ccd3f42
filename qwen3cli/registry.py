"""Model names and the files behind them.

A name is an embedded model (nano), a member of the family (0.6b, 30b-a3b, with an
optional :quant) or the name of a file in the models folder.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from quant.shards import forms, model_name, openers
from qwen3cli import hub
from qwen3cli.errors import ModelNotFound, UsageError

EMBEDDED = {"nano": "nano-dense-q8_0.gguf", "nano-moe": "nano-moe-q8_0.gguf"}
FAMILY = {  # name: repository of the weights; the official GGUF files are in <repository>-GGUF
    "0.6b": "Qwen/Qwen3-0.6B",
    "1.7b": "Qwen/Qwen3-1.7B",
    "4b": "Qwen/Qwen3-4B",
    "8b": "Qwen/Qwen3-8B",
    "14b": "Qwen/Qwen3-14B",
    "32b": "Qwen/Qwen3-32B",
    "30b-a3b": "Qwen/Qwen3-30B-A3B",
    "235b-a22b": "Qwen/Qwen3-235B-A22B",
}
# Where several quantizations of a model are installed and none was named.
PREFERRED = ("q4_k_m", "q8_0", "q6_k", "q5_k_m")
_SHORT = {"q4": "q4_k_m", "q8": "q8_0"}


def models_folder() -> Path:
    """Where models are installed: $XDG_DATA_HOME/qwen3/models."""
    return xdg("XDG_DATA_HOME", ".local/share") / "models"


def installed() -> list[Path]:
    """The files in the models folder that open a model; without a home there are none."""
    try:
        return sorted(openers(models_folder().glob("*.gguf")))
    except OSError:
        return []


def xdg(variable: str, fallback: str) -> Path:
    """qwen3's folder below one of the XDG base directories. Raises OSError where the
    user has no home directory."""
    base = Path(os.environ.get(variable, ""))
    if not base.is_absolute():
        try:
            base = Path.home() / fallback
        except RuntimeError:
            raise OSError(errno.ENOENT, "there is no home directory; set it", "HOME") from None
    return base / "qwen3"


def choose(model: str | None, note: Callable[[str], None]) -> Path:
    """The file of a model; of none: of $QWEN3_MODEL, else the one installed last, else
    nano, which note is told."""
    model = model or os.environ.get("QWEN3_MODEL")
    if model:
        return resolve(model)
    if files := installed():
        return max(files, key=lambda path: path.stat().st_mtime)
    note("qwen3: no model chosen or installed: this is nano, a toy (-m MODEL takes another)")
    return resolve("nano")


def resolve(model: str) -> Path:
    """The GGUF file that a path or a name stands for, the first one of a split model; a
    known name before a file of that name. Raises ModelNotFound."""
    name, _, quant = _normalized(model).partition(":")
    quant = _SHORT.get(quant, quant)
    if name in EMBEDDED and not quant:
        return Path(__file__).parent / "models" / EMBEDDED[name]
    path = Path(model)
    if name not in FAMILY:
        if path.is_dir():
            raise UsageError(
                f"{model}: a folder, not a GGUF file; `qwen3 quantize {model} --q4` makes one"
            )
        if file := _opened_by(path):
            return file
        if "/" in name or name.endswith(".gguf"):
            raise ModelNotFound(f"{model}: there is no such model file")
    cached = hub.gguf_files(f"{FAMILY[name]}-GGUF") if name in FAMILY else []
    candidates = _quants([*cached, *installed()], name)
    found = _pick(candidates, quant)
    if found is None:
        raise _missing(model, name, sorted(filter(None, candidates)))
    return found


def source(model: str) -> tuple[Path, Path]:
    """What weights can be read from: a folder, a GGUF file, the first one of a split model, or
    for a family name the folder of its weights in the Hugging Face cache. And what a file made
    of it is named after: the same path, or the name. Raises ModelNotFound."""
    if path := _opened_by(Path(model)):
        return path, path
    name = _normalized(model)
    if name not in FAMILY:
        raise ModelNotFound(
            f"{model}: neither a folder, a file nor a known model{_suggestion(name, FAMILY)}"
        )
    folder = hub.weights(FAMILY[name])
    if folder is None:
        raise ModelNotFound(
            f"{model}: its weights are not all in the Hugging Face cache; "
            f"`hf download {FAMILY[name]}` gets them"
        )
    return folder, Path(name)


def _opened_by(path: Path) -> Path | None:
    """The path if it is there; of NAME.gguf else the first file of the split model NAME."""
    if path.exists():
        return path
    split = openers(forms(path)) if path.suffix == ".gguf" else []
    return split[-1] if split else None


def _normalized(model: str) -> str:
    """A model's name or a file's stem as this module writes it: 0.6b for Qwen/Qwen3-0.6B."""
    return model.lower().removeprefix("qwen/").removeprefix("qwen3-")


def _quants(files: Iterable[Path], name: str) -> dict[str, Path]:
    """The models NAME-QUANT.gguf by quant, and NAME.gguf under an empty one; of two that
    are the same, the last."""
    found = {}
    for path in files:
        stem = _normalized(model_name(path))
        if stem == name:
            found[""] = path
        elif stem.startswith(name + "-") and (quant := stem[len(name) + 1 :]).isidentifier():
            found[quant] = path
    return found


def _pick(candidates: dict[str, Path], quant: str) -> Path | None:
    if quant:
        return candidates.get(quant)
    order = [q for q in ("", *PREFERRED) if q in candidates] or sorted(candidates)
    return candidates[order[0]] if order else None


def _missing(model: str, name: str, quants: list[str]) -> ModelNotFound:
    if quants:
        return ModelNotFound(f"{model}: not on this machine; installed: {', '.join(quants)}")
    if name not in FAMILY:
        known = [*EMBEDDED, *FAMILY]
        return ModelNotFound(f"{model}: neither a file nor a known model{_suggestion(name, known)}")
    repository = FAMILY[name]
    return ModelNotFound(
        f"{model}: not on this machine; `hf download {repository}-GGUF` gets a ready file, "
        f"`hf download {repository}` and `qwen3 quantize {name} --q4` make one"
    )


def _suggestion(name: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
