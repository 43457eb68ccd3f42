"""The screenshots of the README can be taken, and show what they are there for."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

from commandline import ROOT

SCRIPT = ROOT / "docs" / "screenshots.py"
STORED = ROOT / "docs" / "screenshots"
TAGS = {"svg", "title", "rect", "g", "text"}
SVG = "{http://www.w3.org/2000/svg}"
SHOWN = {
    "thinking": [r"\$ qwen3 run .*--budget 192", r"▾ thinking \d\d/192 tokens", r"17 \+ 48: 7"],
    "folded": [r"▸ thought for 103 of 192 tokens, \d+ s \(natural\)", r"^42$", r"seed \d+"],
    "chat": [r"\(budget\).*\n55\n", r"> /more 64\n.*\(natural\).*\n60\n", r"> /\n +/think +think"],
    "markdown": [r"^Tea, hot", r"^oolong │ 烏龍茶 +│ 90 °C │ +3$", r"^def brew"],
}


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


def check(folder: Path) -> None:
    """That the pictures show what they are there for, and load nothing from anywhere."""
    for name, patterns in SHOWN.items():
        file = folder / f"{name}.svg"
        shown = text(file)
        for pattern in patterns:
            assert re.search(pattern, shown, re.MULTILINE), f"{pattern} is not in\n{shown}"
        elements = list(xml.parse(file).getroot().iter())
        assert {each.tag.removeprefix(SVG) for each in elements} <= TAGS
        values = [value for each in elements for value in each.attrib.values()]
        assert not [value for value in values if "url" in value or "http" in value]


def test_the_script_takes_the_screenshots(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], check=True, timeout=120)
    assert {file.stem for file in tmp_path.iterdir()} == SHOWN.keys()
    check(tmp_path)


def test_the_readme_shows_them() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = set(re.findall(r"\(docs/screenshots/(\w+)\.svg\)", readme))
    assert shown == SHOWN.keys() == {file.stem for file in STORED.iterdir()}
    assert max(file.stat().st_size for file in STORED.iterdir()) < 40_000
    check(STORED)
