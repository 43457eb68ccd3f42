"""Facts about this machine, from the files and tools of its system. What cannot be told is None.

root is the folder that /proc, /sys and /etc are looked for in.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/")
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "glusterfs", "lustre", "9p",
            "fuse.sshfs", "fuse.s3fs", "fuse.rclone", "afpfs", "webdav")  # fmt: skip


def system_name(root: Path = _ROOT) -> str:
    """Debian GNU/Linux 12 (bookworm), Linux 6.1.0."""
    kernel = f"{platform.system()} {platform.release()}"
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}, {kernel}"
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', _text(root / "etc/os-release"), re.M)
    return f"{found[1]}, {kernel}" if found else kernel


def cpu_name(root: Path = _ROOT) -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _text(root / "proc/cpuinfo"), re.M)
    return found[1] if found else _sysctl("machdep.cpu.brand_string") or platform.machine()


def physical_cores(root: Path = _ROOT) -> int | None:
    """Of the whole machine."""
    seen = set()
    for folder in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/topology"):
        core, package = (_text(folder / name) for name in ("core_id", "physical_package_id"))
        if core:
            seen.add((package, core))
    text = _sysctl("hw.physicalcpu")
    return len(seen) or (int(text) if text else None)


def usable_cpus() -> int:
    """The hardware threads that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory(root: Path = _ROOT) -> dict[str, int | None]:
    """Bytes: total, swap, and how much of swap is in use."""
    text = _text(root / "proc/meminfo")

    def of(name: str) -> int | None:
        found = re.search(rf"^{name}:\s*(\d+) kB", text, re.M)
        return int(found[1]) * 1024 if found else None

    total, swap, free = of("MemTotal"), of("SwapTotal"), of("SwapFree")
    if total is None and (size := _sysctl("hw.memsize")):
        total = int(size)
    used = None if swap is None or free is None else swap - free
    return {"total": total, "swap": swap, "swap_used": used}


def memory_limit(root: Path = _ROOT) -> int | None:
    """Bytes that the control groups of this process allow, the least of all."""
    limits = []
    for group in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(ValueError):
                limits.append(int(_text(group / name)))
    least = min(limits, default=None)
    return None if least is None or least >= 1 << 60 else least  # v1 writes "none" as a number


def cpu_quota(root: Path = _ROOT) -> float | None:
    """CPUs that the control groups of this process allow, the least of all."""
    quotas = []
    for group in _groups(root, "cpu"):
        both = _text(group / "cpu.max") or (
            f"{_text(group / 'cpu.cfs_quota_us')} {_text(group / 'cpu.cfs_period_us')}"
        )
        with suppress(ValueError, ZeroDivisionError):
            time, period = map(int, both.split())
            if time > 0:
                quotas.append(time / period)
    return min(quotas, default=None)


def mount_of(path: Path, root: Path = _ROOT) -> tuple[str, str] | None:
    """Where the file system of a folder is mounted, and its type: ("/", "ext4")."""
    found = None
    for line in _text(root / "proc/self/mounts").splitlines():
        at, kind = (re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), s) for s in line.split()[1:3])
        if path.is_relative_to(at) and (found is None or len(at) >= len(found[0])):
            found = at, kind
    return found


def on_network(kind: str) -> bool:
    """Whether a type of file systems is one that comes over a network."""
    return kind in _NETWORK


def gpus(root: Path = _ROOT) -> list[str]:
    """Name, memory and driver of each; NVIDIA's and Apple's alone are known."""
    query = "--query-gpu=name,memory.total,driver_version"
    if text := _output("nvidia-smi", query, "--format=csv,noheader"):
        rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
        return [f"{row[0]}, {row[1]}, driver {row[2]}" for row in rows if len(row) == 3]
    version = nvidia_driver(root)
    driver = f", driver {version}" if version else ""
    found = []
    for file in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        if name := re.search(r"^Model:\s*(.+)$", _text(file), re.M):
            found.append(name[1] + driver)
    if sys.platform == "darwin" and platform.machine() == "arm64":
        found.append(f"{cpu_name(root)}, Metal")
    return found


def nvidia_driver(root: Path = _ROOT) -> str | None:
    """Its version."""
    text = _text(root / "proc/driver/nvidia/version")
    found = re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", text)
    return found[1] if found else None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The control groups of this process that may have this controller, and those above them."""
    top = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = top
        elif controller in controllers.split(","):
            base = top / controller
        else:
            continue
        group = base / path.lstrip("/")
        yield group
        while group != base:
            group = group.parent
            yield group


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def _sysctl(name: str) -> str:
    return _output("sysctl", "-n", name) if sys.platform == "darwin" else ""


def _output(*command: str) -> str:
    """What a tool prints; nothing where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout.strip()
