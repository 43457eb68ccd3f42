"""Model names and the files behind them.

MODEL is the path of a GGUF file, an embedded model (nano), a release of the family
(30b-a3b), a repository of the Hugging Face Hub (OWNER/NAME), or a file in the models folder;
all but a path with an optional :quant.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Literal

from quant.shards import forms, model_name, openers
from qwen3cli.config import lookup
from qwen3cli.errors import ModelNotFound, UsageError
from qwen3cli.folders import xdg as xdg
from qwen3cli.hub import local
from qwen3cli.hub.releases import RELEASES, Release
from qwen3cli.names import check_name as check_name
from qwen3cli.names import check_quant, suggestion
from qwen3cli.names import check_repository as check_repository

EMBEDDED = {"nano": "nano-dense-q8_0.gguf", "nano-moe": "nano-moe-q8_0.gguf"}
# Where several quantizations of a model are to be had and none was named.
PREFERRED = ("q4_k_m", "q8_0", "q6_k", "q5_k_m")
_SHORT = {"q4": "q4_k_m", "q8": "q8_0", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
_QUANT = re.compile(r"[-._]((?:i?q[1-8]|tq[12]|mxfp4)[a-z0-9_]*|b?f16|f32)\Z", re.IGNORECASE)
_WEIGHTS = (  # what `quantize` reads
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "README.md", "model.safetensors.index.json", "model*.safetensors",
)  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """What to fetch for a MODEL."""

    repository: str  # OWNER/NAME
    files: tuple[str, ...] | None  # glob patterns, in any case; None: choose finds the best
    kind: Literal["gguf", "weights"]
    name: str  # the MODEL that it is from then on

    def choose(self, paths: Iterable[str]) -> list[str]:
        """Of the paths in the repository those to fetch, all files of one model. Raises
        ModelNotFound naming what is there instead."""
        return _chosen(self, list(paths))


def wanted(model: str, *, weights: bool = False) -> Wanted:
    """What `pull` fetches: the official GGUF file of a release, by default in Q4_K_M, or what
    a repository has; weights: the safetensors. Raises UsageError and ModelNotFound."""
    name, quant = split(model)
    if quant:
        check_quant(quant)
    if weights and quant:
        raise UsageError(f"{model}: weights come in no quantization; leave out :{quant}")
    if name.lower() in EMBEDDED:
        raise UsageError(f"{model}: is a part of this program")
    release = release_of(name)
    if weights:
        repository = release.weights if release else check_repository(_needs_owner(name))
        return Wanted(repository, _WEIGHTS, "weights", release.name if release else name)
    # A repository of GGUF files is taken as it is: it may have more than the table knows.
    if release is None or ("/" in name and name.lower().endswith("-gguf")):
        repository = check_repository(_needs_owner(name))
        files = _patterns(quant) if quant else None
        return Wanted(repository, files, "gguf", f"{name}:{quant}" if quant else name)
    if release.gguf is None:
        raise ModelNotFound(
            f"{model}: there are no official GGUF files; `qwen3 pull {release.name} --weights` "
            f"and `qwen3 quantize {release.name} --q4` make one"
        )
    quant = quant or release.quants[0]
    if quant not in release.quants:
        from quant.errors import UsageError as NoSuchType
        from quant.recipes import recipe

        has = f"{model}: {release.gguf} has {', '.join(release.quants)}"
        try:
            made = recipe(quant).name
        except NoSuchType:
            raise ModelNotFound(f"{has}, and `qwen3 quantize` makes no {quant}") from None
        raise ModelNotFound(
            f"{has}; `qwen3 pull {release.name} --weights` and "
            f"`qwen3 quantize {release.name} --type {made}` make others"
        )
    return Wanted(release.gguf, _patterns(quant), "gguf", f"{release.name}:{quant}")


def release_of(name: str) -> Release | None:
    """The release that a name without a :quant means: 4b, Qwen3-4B, Qwen/Qwen3-4B-GGUF."""
    return _BY_STEM.get(normalized(name).removesuffix("-gguf"))


def models_folder() -> Path:
    """Where models are installed: $XDG_DATA_HOME/qwen3/models."""
    return xdg("XDG_DATA_HOME", ".local/share") / "models"


def installed() -> list[Path]:
    """The files in the models folder that open a model; without a home there are none."""
    try:
        return sorted(openers(models_folder().glob("*.gguf")))
    except OSError:
        return []


def _pulled() -> list[Path]:
    """The files of releases in the Hugging Face cache that open a model. Whatever else is in it is
    taken when it is asked for: it may be another tool's."""
    repositories = [release.gguf for release in RELEASES.values() if release.gguf]
    return [path for name in repositories for path in local.gguf_files(name)]


def choose(model: str | None, note: Callable[[str], None]) -> Path:
    """The file of a model; of none: of the one that is set, else the one that came last, else
    nano, which note is told."""
    if model := model or default():
        return resolve(model)
    if files := [*installed(), *_pulled()]:
        return max(files, key=lambda path: path.stat().st_mtime)
    note("qwen3: no model chosen or installed: this is nano, a toy (-m MODEL takes another)")
    return resolve("nano")


def default() -> str | None:
    """The model that is set, $QWEN3_MODEL or in config.toml."""
    setting = lookup("model")
    return str(setting.value) if setting else None


def resolve(model: str) -> Path:
    """The GGUF file that a path or a name stands for, the first one of a split model; a
    known name before a file of that name. Raises ModelNotFound."""
    name, quant = split(model)
    if name.lower() in EMBEDDED and not quant:
        return Path(__file__).parent.parent / "models" / EMBEDDED[name.lower()]
    path, release = Path(model), release_of(name)
    if release is None:
        file = _opened_by(path)
        if file and file.is_dir():
            raise UsageError(
                f"{model}: a folder, not a GGUF file; `qwen3 quantize {model} --q4` makes one"
            )
        if file:
            return file
    candidates = _candidates(name, release)
    found = _pick(candidates, quant)
    if found is None:
        raise _missing(model, name, release, sorted(filter(None, candidates)))
    return found


def source(model: str) -> tuple[Path, Path]:
    """What weights can be read from: a folder, a GGUF file, the first one of a split model, or
    for a release or a repository the folder of its weights in the Hugging Face cache. And what
    a file made of it is named after: the same path, or the name. Raises ModelNotFound."""
    if path := _opened_by(Path(model)):
        return path, path
    if model.lower() in EMBEDDED:
        raise UsageError(f"{model}: is a part of this program, and quantized already")
    release = release_of(model)
    if release is None and not _is_repository(model):
        raise ModelNotFound(
            f"{model}: neither a folder, a file nor a known model"
            f"{suggestion(normalized(model), RELEASES)}"
        )
    repository = release.weights if release else model
    name = release.name if release else model.partition("/")[2]
    folder = local.weights(repository)
    if folder is None:
        raise ModelNotFound(
            f"{model}: its weights are not all in the Hugging Face cache; "
            f"`qwen3 pull {release.name if release else model} --weights` gets them"
        )
    return folder, Path(name)


def known(*, quants: bool = False) -> list[str]:
    """Names that MODEL can be: the installed ones, with their quants, then the others; quants:
    with those that are published."""
    published = [f"{r.name}:{quant}" for r in RELEASES.values() for quant in r.quants if quants]
    here = map(installed_name, installed())
    return list(dict.fromkeys([*here, *EMBEDDED, *RELEASES, *published]))


# ---- what a name means ------------------------------------------------------


def split(model: str) -> tuple[str, str]:
    """Name and quant of NAME:QUANT; the quant as this module writes it."""
    name, _, quant = model.partition(":")
    quant = quant.lower()
    return name, _SHORT.get(quant, quant)


def normalized(model: str) -> str:
    """A model's name or a file's stem as this module writes it: 0.6b for Qwen/Qwen3-0.6B."""
    return model.lower().removeprefix("qwen/").removeprefix("qwen3-")


_BY_STEM = {
    stem: release
    for release in RELEASES.values()
    for stem in (release.name, normalized(release.weights))
}


def _is_repository(name: str) -> bool:
    """Whether it can be OWNER/NAME, as it is no path of a file that is there."""
    try:
        return check_repository(name) == name and not name.endswith(".gguf")
    except UsageError:
        return False


def _needs_owner(name: str) -> str:
    if "/" not in name:
        check_name(name)
        raise ModelNotFound(f"{name}: not a known model{suggestion(normalized(name), RELEASES)}")
    return name


# ---- which file -------------------------------------------------------------


def _opened_by(path: Path) -> Path | None:
    """The path if it is there; of NAME.gguf else the first file of the split model NAME."""
    try:
        if path.exists():
            return path
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return None  # no file has such a name
    split = openers(forms(path)) if path.suffix == ".gguf" else []
    return split[-1] if split else None


def _candidates(name: str, release: Release | None) -> dict[str, Path]:
    """The files of a model on this machine by quant; the models folder before the cache."""
    if release:
        cached = local.gguf_files(release.gguf) if release.gguf else []
        stems = {release.name, normalized(release.weights)}
        return _quants([*cached, *installed()], stems)
    if _is_repository(name):
        return {quant_of(path.as_posix()): path for path in local.gguf_files(name)}
    return _quants(installed(), {normalized(name)})


def _quants(files: Iterable[Path], names: set[str]) -> dict[str, Path]:
    """The models NAME-QUANT.gguf by quant, and NAME.gguf under an empty one; of two that
    are the same, the last."""
    found = {}
    for path in files:
        stem = normalized(model_name(path))
        for name in names:
            if stem == name:
                found[""] = path
            elif stem.startswith(name + "-") and (quant := stem[len(name) + 1 :]).isidentifier():
                found[quant] = path
    return found


def quant_of(path: str) -> str:
    """q4_k_m of a GGUF file's path in a repository, and of each of its shards; "" if its name
    has none."""
    found = _QUANT.search(model_name(Path(path)))
    return found[1].lower() if found else ""


def _pick(candidates: dict[str, Path], quant: str) -> Path | None:
    if quant:
        return candidates.get(quant)
    best = _preferred(candidates)
    return None if best is None else candidates[best]


def _preferred(quants: Iterable[str]) -> str | None:
    there = set(quants)
    return next((q for q in ("", *PREFERRED, *sorted(there)) if q in there), None)


def _patterns(quant: str) -> tuple[str, ...]:
    return f"*[-._]{quant}.gguf", f"*[-._]{quant}-?????-of-?????.gguf"


def _chosen(wish: Wanted, paths: list[str]) -> list[str]:
    there = sorted(path for path in paths if not is_beside(path))
    patterns = wish.files
    if wish.kind == "gguf":
        there = [path for path in there if path.lower().endswith(".gguf")]
        if patterns is None and (best := _preferred(map(quant_of, there))):
            patterns = _patterns(best)
    if patterns is None:
        found = there if len({model_name(Path(path)) for path in there}) == 1 else []
    else:
        lowered = [pattern.lower() for pattern in patterns]
        found = [p for p in there if any(fnmatchcase(p.lower(), each) for each in lowered)]
    if wish.kind == "weights" and not any(path.endswith(".safetensors") for path in found):
        raise ModelNotFound(f"{wish.repository}: has no safetensors weights")
    if not found:
        quants = sorted(set(filter(None, map(quant_of, there))))
        what = f"there are {', '.join(quants)}" if quants else "it has no GGUF files"
        if there and not quants:
            what = (
                f"of {', '.join(there)} no name tells a quantization: download the one you mean, "
                "and give its path"
            )
        raise ModelNotFound(f"{wish.name}: not in {wish.repository}; {what}")
    folders = {PurePosixPath(path).parent for path in found}
    first = min(folders, key=lambda folder: (len(folder.parts), str(folder)))
    return [path for path in found if PurePosixPath(path).parent == first]


def is_beside(path: str) -> bool:
    """Whether a file only accompanies models: projectors, importances."""
    return any(word in path.lower() for word in ("mmproj", "imatrix"))


# ---- what to tell -----------------------------------------------------------


def installed_name(path: Path) -> str:
    """The shortest name of a file in the models folder: 4b:q4_k_m."""
    stem = normalized(model_name(path))
    quant = quant_of(path.name)
    name = stem[: -len(quant) - 1] if quant else stem
    release = _BY_STEM.get(name)
    name = release.name if release else name
    return f"{name}:{quant}" if quant else name


def _missing(model: str, name: str, release: Release | None, quants: list[str]) -> ModelNotFound:
    here = f"; installed: {', '.join(quants)}" if quants else ""
    if release or (quants and _is_repository(name)):
        return ModelNotFound(f"{model}: not on this machine; {_way_to(model, release)}{here}")
    if _is_repository(name):
        return ModelNotFound(
            f"{model}: there is no such model file, and nothing of such a repository is in the "
            f"Hugging Face cache; `qwen3 pull {model}` gets it"
        )
    if "/" in name or name.endswith(".gguf"):
        return ModelNotFound(f"{model}: there is no such model file")
    if quants:
        return ModelNotFound(f"{model}: not on this machine{here}")
    return ModelNotFound(
        f"{model}: neither a file nor a known model"
        f"{suggestion(normalized(name), [*EMBEDDED, *RELEASES])}"
    )


def _way_to(model: str, release: Release | None) -> str:
    """The commands that get a release or a repository."""
    try:
        wanted(model)
    except ModelNotFound as error:
        return str(error).removeprefix(f"{model}: ")
    if release is None:
        return f"`qwen3 pull {model}` gets it"
    made = f"`qwen3 pull {release.name} --weights` and `qwen3 quantize {release.name} --q4`"
    return f"`qwen3 pull {model.lower()}` gets a ready file, {made} make one"
