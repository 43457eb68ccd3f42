"""Models split into several files: read, written, named, and wrong in every way."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import gguf_files
import numpy as np
import pytest
from checkpoint_tiny import DATA, DENSE, MOE, write_checkpoint
from commandline import QUESTION, Command
from gguf_tiny import Image, split, tiny_model, write_shards

from quant.errors import QuantError, UsageError
from quant.quantize import quantize
from qwen3cli.engine import Model, ModelFile
from qwen3cli.errors import FormatError, Qwen3Error
from qwen3cli.errors import UsageError as CliUsageError
from qwen3cli.plan.memory import parse_bytes


def logits(path: Path) -> Any:
    session = Model(path, threads=1).session()
    session.sync([1, 2, 3])
    return session.logits()


def tensors(path: Path) -> dict[str, tuple[tuple[int, ...], str, bytes]]:
    """Shape, type and data of every tensor of a model, by the ecosystem's reader."""
    last = path.name.rpartition("-of-")[2].removesuffix(".gguf")
    names = [path.name]
    if last.isdigit():
        names = [path.name.replace("-00001-of-", f"-{i + 1:05}-of-") for i in range(int(last))]
    return {
        tensor.name: (tuple(tensor.shape), tensor.tensor_type.name, tensor.data.tobytes())
        for name in names
        for tensor in gguf_files.read(path.with_name(name)).tensors
    }


# ---- reading ----------------------------------------------------------------


@pytest.mark.parametrize("image", [tiny_model(layers=2), tiny_model(experts=4, experts_used=2)])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_shards_are_the_model(tmp_path: Path, image: Image, count: int) -> None:
    whole = image.write(tmp_path / "whole.gguf")
    first = write_shards(split(image, count), tmp_path)
    np.testing.assert_array_equal(logits(first), logits(whole))
    file = ModelFile(first)
    assert file.tensors() == ModelFile(whole).tensors()
    assert file.shards() == sorted(file.shards()) and set(file.shards()) == {*range(1, count + 1)}
    assert file.metadata()["general.architecture"] == image.get("general.architecture")


def test_each_file_has_its_own_alignment(tmp_path: Path) -> None:
    parts = split(tiny_model(), 3)
    parts[1].alignment = 4096
    for part in parts[1:]:
        part.put("general.alignment", part.alignment)
    np.testing.assert_array_equal(
        logits(write_shards(parts, tmp_path)), logits(tiny_model().write(tmp_path / "whole.gguf"))
    )


def test_links_into_a_cache_are_followed_by_their_names(tmp_path: Path) -> None:
    first = write_shards(split(tiny_model(), 2), tmp_path)
    links = tmp_path / "snapshot"
    links.mkdir()
    for i, file in enumerate(sorted(tmp_path.glob("*.gguf"))):
        (links / file.name).symlink_to(file.rename(tmp_path / f"blob{i}"))
    assert np.isfinite(logits(links / first.name)).all()


def test_the_ecosystem_s_writer(tmp_path: Path) -> None:
    whole = DATA.parent.parent / "qwen3cli" / "models" / "nano-dense-q8_0.gguf"
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "qwen3", split_max_size=1_000_000)
    reader = gguf_files.read(whole)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        subtype = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(key, field.contents(), field.types[0], subtype)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first = min(tmp_path.glob("theirs-*.gguf"))
    assert len(list(tmp_path.iterdir())) > 3
    np.testing.assert_array_equal(logits(first), logits(whole))


Edit = Callable[[list[Image]], object]
U16, U32 = gguf.GGUFValueType.UINT16, gguf.GGUFValueType.UINT32
I32, U64 = gguf.GGUFValueType.INT32, gguf.GGUFValueType.UINT64
STRING = gguf.GGUFValueType.STRING


def drop_last_tensor(parts: list[Image]) -> None:
    parts[2].tensors.pop()


WRONG: dict[str, tuple[Edit, str]] = {
    "another number": (
        lambda p: p[1].put("split.no", 2),
        r"tiny-00002-of-00003\.gguf is part 3 of its model, not part 2",
    ),
    "no number": (lambda p: p[2].drop("split.no"), r"00003-of-00003\.gguf is not a part of"),
    "whole": (lambda p: p[2].drop("split.count"), r"00003-of-00003\.gguf is not a part of"),
    "another count": (
        lambda p: p[1].put("split.count", 4),
        r"00002-of-00003\.gguf is a part of another model: its 'split\.count'",
    ),
    "another total": (
        lambda p: p[1].put("split.tensors.count", 7),
        r"00002-of-00003\.gguf is a part of another model: its 'split\.tensors\.count'",
    ),
    "another model": (
        lambda p: p[1].put("general.architecture", "qwen3moe"),
        r"00002-of-00003\.gguf is a part of another model: its 'general\.architecture'",
    ),
    "a tensor twice": (
        lambda p: p[2].tensors.append(p[0].tensors[0]),
        "tensor 'token_embd.weight' stands twice",
    ),
    "a tensor less": (drop_last_tensor, "hold 12 tensors together, not 13 as they announce"),
    "no total": (lambda p: p[0].drop("split.tensors.count"), r"'split\.tensors\.count' is missing"),
    "a shape": (
        lambda p: setattr(p[1].tensors[0], "shape", (2**31, 1)),
        r"00002-of-00003\.gguf: tensor '.*' has a dimension of",
    ),
    "not GGUF": (lambda p: setattr(p[1], "magic", b"PK\3\4"), r"00002-of-00003\.gguf: not a GGUF"),
    "count of 65536": (lambda p: p[0].put("split.count", 65536, U32), r"'split\.count' is not a"),
    "count of 2^63": (lambda p: p[0].put("split.count", 2**63, U64), r"'split\.count' is not a"),
    "negative count": (lambda p: p[0].put("split.count", -2, I32), r"'split\.count' is not a"),
    "count is a text": (lambda p: p[0].put("split.count", "3", STRING), r"'split\.count' is not"),
    "number of 2^64": (lambda p: p[0].put("split.no", 2**64 - 1, U64), r"'split\.no' is not the"),
    "number too high": (lambda p: p[0].put("split.no", 3), r"'split\.no' is not the number of one"),
}


@pytest.mark.parametrize(("edit", "says"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("opener", [Model, ModelFile])
def test_shards_that_do_not_belong_together(
    tmp_path: Path, opener: type, edit: Edit, says: str
) -> None:
    parts = split(tiny_model(), 3)
    edit(parts)
    with pytest.raises(FormatError, match=says):
        opener(write_shards(parts, tmp_path))


def test_a_weight_that_is_not_a_number_in_a_later_shard(tmp_path: Path) -> None:
    parts = split(tiny_model(), 3)
    bad = parts[2].tensors[1]
    bad.data = b"\0\0\xc0\x7f" + bad.data[4:]
    with pytest.raises(FormatError, match=f"tensor '{bad.name}' holds a NaN .* in row 0, block 0"):
        Model(write_shards(parts, tmp_path))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    first = write_shards(split(tiny_model(), 3), tmp_path)
    missing = first.with_name("tiny-00003-of-00003.gguf")
    missing.unlink()
    with pytest.raises(Qwen3Error, match=r"cannot open .*tiny-00003-of-00003\.gguf.*all its 3"):
        Model(first)
    missing.mkdir()
    with pytest.raises(Qwen3Error, match=r"tiny-00003-of-00003\.gguf: .*not a regular file"):
        Model(first)


def test_another_part_names_the_first(tmp_path: Path) -> None:
    first = write_shards(split(tiny_model(), 3), tmp_path)
    for part in (2, 3):
        with pytest.raises(Qwen3Error, match=rf"part {part} of 3 .* open .*{first.name}"):
            Model(first.with_name(f"tiny-0000{part}-of-00003.gguf"))


def test_a_part_under_another_name(tmp_path: Path) -> None:
    first = write_shards(split(tiny_model(), 3), tmp_path)
    for name in ("tiny.gguf", "tiny-00001-of-00002.gguf"):
        with pytest.raises(FormatError, match=r"must end in -00001-of-00003\.gguf"):
            Model(first.rename(tmp_path / name))
        first = tmp_path / name


def test_shards_truncated_anywhere(tmp_path: Path) -> None:
    first = write_shards(split(tiny_model(), 2), tmp_path)
    second = first.with_name("tiny-00002-of-00002.gguf")
    whole = second.read_bytes()
    header = len(split(tiny_model(), 2)[1].header())
    for cut in [*range(header), *range(header, len(whole) - 31, 1000)]:
        os.truncate(second, cut)
        with pytest.raises(FormatError, match="tiny-00002-of-00002"):
            ModelFile(first)
        second.write_bytes(whole)
    ModelFile(first)


# ---- writing ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["nano-dense", "nano-moe"])
def test_the_shards_hold_what_the_whole_file_holds(tmp_path: Path, name: str) -> None:
    whole = quantize(DATA / name, tmp_path / "whole.gguf", "q8_0").paths[0]
    done = quantize(DATA / name, tmp_path / "out.gguf", "q8_0", split_size=1_000_000)
    count = len(done.paths)
    assert count > 2 and sorted(tmp_path.iterdir()) == sorted([whole, *done.paths])
    assert done.paths[0].name == f"out-00001-of-{count:05}.gguf"
    assert done.file_bytes == sum(path.stat().st_size for path in done.paths)
    held = tensors(whole)
    assert list(tensors(done.paths[0]).items()) == list(held.items())
    np.testing.assert_array_equal(logits(done.paths[0]), logits(whole))
    for number, path in enumerate(done.paths):
        reader = gguf_files.read(path)
        sizes = [-(-tensor.n_bytes // 32) * 32 for tensor in reader.tensors]
        assert sum(sizes) <= 1_000_000 or len(sizes) == 1
        keys = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        wanted = {"split.no": number, "split.count": count, "split.tensors.count": len(held)}
        assert {key: keys[key].contents() for key in wanted} == wanted
        assert [keys[key].types for key in wanted] == [[U16], [U16], [I32]]
        assert number == 0 or keys.keys() == wanted.keys()
    wanted["split.no"] = 0
    assert ModelFile(done.paths[0]).metadata() == ModelFile(whole).metadata() | wanted


def test_what_fits_stays_whole(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", DENSE)
    whole = quantize(source, tmp_path / "whole.gguf", "q8_0").paths[0]
    done = quantize(source, tmp_path / "out.gguf", "q8_0", split_size=10**9)
    assert done.paths == [tmp_path / "out.gguf"]
    assert done.paths[0].read_bytes() == whole.read_bytes()


def test_a_tensor_larger_than_a_shard_has_one_for_itself(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", MOE)
    done = quantize(source, tmp_path / "out.gguf", "q8_0", split_size=1)
    assert len(done.paths) == len(ModelFile(done.paths[0]).tensors())


def test_a_new_form_replaces_the_old_ones(tmp_path: Path) -> None:
    """And nothing else: names that only look alike stay."""
    source = write_checkpoint(tmp_path / "source", DENSE)
    place = tmp_path / "place"
    place.mkdir()
    others = {place / "out2.gguf", place / "out-x-00001-of-00009.gguf", place / "out-00001.gguf"}
    for other in others:
        other.write_bytes(b"GGUF")
    out = place / "out.gguf"
    for size in (0, 60_000, 20_000, 40_000, 20_000, 20_000, 0):
        done = quantize(source, out, "q8_0", split_size=size)
        assert set(place.iterdir()) == others | set(done.paths)
        assert len(done.paths) > 1 or size == 0
        Model(done.paths[0])


def test_leftovers_of_killed_processes_go(tmp_path: Path) -> None:
    source, place = write_checkpoint(tmp_path / "source", DENSE), tmp_path / "place"
    place.mkdir()
    out = place / "out.gguf"
    for leftover in (".out.gguf.part", ".out.gguf.part1", ".out.gguf.part77"):
        (place / leftover).write_bytes(b"GGUF" * 1000)
    (place / "out-00002-of-00003.gguf").write_bytes(b"GGUF")  # of a set without its first
    for size in (0, 60_000):
        assert set(quantize(source, out, "q8_0", split_size=size).paths) == set(place.iterdir())
        (place / ".out.gguf.part1").write_bytes(b"GGUF" * 1000)


def test_the_name_of_a_part_is_no_name_for_a_model(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", DENSE)
    with pytest.raises(UsageError, match="leave the numbers out"):
        quantize(source, tmp_path / "x-00001-of-00002.gguf", "q8_0")


def test_another_kind_of_file_in_the_place_of_a_shard(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", DENSE)
    count = len(quantize(source, tmp_path / "a.gguf", "q8_0", split_size=60_000).paths)
    mine = tmp_path / f"b-00002-of-{count:05}.gguf"
    mine.write_text("my notes")
    with pytest.raises(QuantError, match=f"{mine.name}: exists and is no GGUF file"):
        quantize(source, tmp_path / "b.gguf", "q8_0", split_size=60_000)
    assert mine.read_text() == "my notes"


# ---- the command ------------------------------------------------------------


def test_the_command_writes_runs_and_shows_shards(tmp_path: Path) -> None:
    qwen3 = Command(tmp_path)
    source = str(DATA / "nano-dense")
    command = ("quantize", source, "--q8", "-o", "out.gguf", "--split-size")
    done = qwen3(*command, "2M")
    assert done.returncode == 0, done.stderr
    first = min(tmp_path.glob("out-*.gguf"))
    count = len(list(tmp_path.glob("out-*.gguf")))
    assert count > 1 and f"{first.name} and {count - 1} more" in done.stderr
    for model in ("out.gguf", first.name):
        answer = qwen3("run", "-m", model, "--temp", "0", "--budget", "64", QUESTION)
        assert answer.stdout == "60\n", answer.stderr
    table = qwen3("show", "out.gguf").stdout
    assert "split.count\t" in table and f"output_norm.weight\t256\tF32\t1,024\t{count}\n" in table
    assert qwen3("quantize", source, "--q8", "-o", "out.gguf").returncode == 2
    again = qwen3(*command, "1M")
    assert again.returncode == 2 and f"{first.name}: exists already" in again.stderr
    assert qwen3(*command, "").returncode == 2
    again = qwen3("quantize", "out.gguf", "--type", "F16", "--allow-requantize", "-o", "f16.gguf")
    assert again.returncode == 0, again.stderr
    assert qwen3("verify", "out.gguf", "--source", "f16.gguf").returncode == 0
    assert qwen3(*command, "1M", "--force").returncode == 0
    assert not first.exists()
    second = min(tmp_path.glob("out-00002-*.gguf"))
    refused = qwen3("show", second.name)
    assert refused.returncode == 2 and "open the first part, out-00001-of-" in refused.stderr


def test_sizes_are_decimal() -> None:
    sizes = {"4G": 4 * 10**9, "500M": 5 * 10**8, "7k": 7000, "123": 123, "1.5G": 15 * 10**8}
    assert {text: parse_bytes(text, "--split-size") for text in sizes} == sizes
    for wrong in ("0", "-1", "4T", "1.5.5G", "1e9", "0.5", "0.0001K", "G", "", "4 G", "4GB"):
        with pytest.raises(CliUsageError, match=r"--split-size .*a number of bytes is needed"):
            parse_bytes(wrong, "--split-size")


# ---- the ecosystem ----------------------------------------------------------


@pytest.mark.llama
@pytest.mark.parametrize("name", ["nano-dense", "nano-moe"])
def test_llama_cpp_loads_our_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    defaults = llama_cpp.llama_model_default_params

    def plain() -> Any:  # the file's own layout: some machines lack what repacking needs
        params = defaults()
        params.use_extra_bufts = False
        return params

    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", plain)
    done = quantize(DATA / name, tmp_path / "out.gguf", "q8_0", split_size=1_000_000)
    model = llama_cpp.Llama(str(done.paths[0]), n_ctx=512, verbose=False)
    prompt = "<|im_start|>user\nWhat is 17 + 48 - 5?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    answer = model(prompt, max_tokens=120, temperature=0)["choices"][0]["text"]
    model.close()
    assert answer.endswith("65 - 5: 5-5=0, 6-0=6, 60\n</think>\n\n60")
