"""The screenshots of the README can be taken, and show what they are there for."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest
from commandline import ROOT

SCRIPT = ROOT / "docs" / "screenshots.py"
STORED = ROOT / "docs" / "screenshots"
SVG = "{http://www.w3.org/2000/svg}"
SHOWN = {
    "thinking": [r"\$ qwen3 run .*--budget 192", r"▾ thinking \d\d/192 tokens", r"17 \+ 48: 7"],
    "folded": [r"▸ thought for 103 of 192 tokens, \d+ s \(natural\)", r"^42$", r"seed \d+"],
    "chat": [r"\(budget\)\n55\n", r"> /more 64\n.*\(natural\)\n60\n", r"> /\n +/think +think"],
    "markdown": [r"^Tea, hot", r"^oolong │ 烏龍茶 +│ 90 °C │ +3$", r"^def brew"],
}


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("screenshots")
    subprocess.run([sys.executable, str(SCRIPT), str(folder)], check=True, timeout=120)
    return folder


def text(file: Path) -> str:
    """The rows of a picture, its text put together as it stands."""
    picture = xml.parse(file).getroot()
    cell = 8.4
    rows: dict[float, str] = {}
    for run in picture.iter(f"{SVG}text"):
        y, x = float(run.attrib["y"]), round((float(run.attrib["x"]) - 14) / cell)
        row = rows.get(y, "")
        wide = sum(ord(c) > 0x2FFF for c in row)
        rows[y] = row + " " * (x - len(row) - wide) + (run.text or "")
    return "\n".join(rows[y] for y in sorted(rows))


@pytest.mark.parametrize("name", SHOWN)
def test_a_screenshot_shows_what_it_is_for(taken: Path, name: str) -> None:
    shown = text(taken / f"{name}.svg")
    for pattern in SHOWN[name]:
        assert re.search(pattern, shown, re.MULTILINE), f"{pattern} is not in\n{shown}"


@pytest.mark.parametrize("name", SHOWN)
def test_the_screenshots_of_the_readme_are_those_of_the_script(name: str) -> None:
    file = STORED / f"{name}.svg"
    assert f"(docs/screenshots/{name}.svg)" in (ROOT / "README.md").read_text("utf-8")
    assert file.stat().st_size < 40_000
    for pattern in SHOWN[name]:
        assert re.search(pattern, text(file), re.MULTILINE)


def test_pictures_load_nothing_from_anywhere(taken: Path) -> None:
    for file in taken.iterdir():
        picture = xml.parse(file).getroot()
        tags = {element.tag.removeprefix(SVG) for element in picture.iter()}
        assert tags <= {"svg", "title", "rect", "g", "text"}
        attributes = {value for element in picture.iter() for value in element.attrib.values()}
        assert not [value for value in attributes if "url" in value or "http" in value]
