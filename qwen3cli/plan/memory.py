"""How much memory a program may take without disturbing the others."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

from qwen3cli.errors import UsageError

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def parse_bytes(text: str, flag: str) -> int:
    """Bytes of "8G", "7.5G", "500M": powers of 1000, as gguf-split and disks have them. Raises
    UsageError naming the flag."""
    found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?)([KMG]?)", text.upper())
    n = int(Decimal(found[1]) * _UNITS[found[2]]) if found else 0
    if n == 0:
        raise UsageError(f"{flag} {text}: a number of bytes is needed, such as 8G or 500M")
    return n


def amount(n: float, to: Callable[[float], int] = round) -> str:
    """Bytes for people: 17.6 GB, 805 MB, 345 KB. to: math.ceil for what is needed and math.floor
    for what is there, where the one is more than the other and must not read the same."""
    if n >= 1e9:
        return f"{to(n / 1e8) / 10:.1f} GB"
    return f"{to(n / 1e6)} MB" if n >= 1e6 else f"{to(n / 1e3)} KB"


def part(n: float, whole: float) -> str:
    """6.1 of 17.6 GB, 805 MB of 17.6 GB."""
    some, every = amount(n), amount(whole)
    number, unit = some.split()
    return f"{number if every.endswith(unit) else some} of {every}"


def available(proc: Path = _PROC, cgroup: Path = _CGROUP) -> int | None:
    """Bytes that can be had now: what the system calls available, and within the limit of the
    control group (v1 or v2) that the process is in. None where neither can be told."""
    found = [_meminfo(proc), *_left_in_groups(proc, cgroup)]
    known = [n for n in found if n is not None]
    return min(known) if known else None


def _meminfo(proc: Path) -> int | None:
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", (proc / "meminfo").read_text(), re.M)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _left_in_groups(proc: Path, cgroup: Path) -> list[int | None]:
    """For the group and every one above it: its limit less what cannot be reclaimed."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    left: list[int | None] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current")
            root = cgroup
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            root = cgroup / "memory"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            left.append(_left(folder, *names))
            if folder == root:
                break
    return left


def _left(folder: Path, limit: str, usage: str) -> int | None:
    """The page cache counts as used, but gives way."""
    try:
        most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
        stat = (folder / "memory.stat").read_text()
    except (OSError, ValueError):  # no such group, or "max"
        return None
    cached = re.findall(r"^(?:total_)?(?:in)?active_file (\d+)$", stat, re.M)
    both = sum(map(int, cached[-2:]))
    return max(0, most - max(0, used - both))
