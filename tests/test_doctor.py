"""`qwen3 doctor`: the facts of a machine, from faked trees, and what is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commandline import Command
from huggingface_hub import constants

from qwen3cli import doctor
from qwen3cli.doctor import findings, gpu_rows
from qwen3cli.plan import system

GB = 10**9


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_processor_and_the_memory(tmp_path: Path) -> None:
    cpus = {
        f"sys/devices/system/cpu/cpu{i}/topology/{name}": f"{value}\n"
        for i in range(8)
        for name, value in (("core_id", i // 2), ("physical_package_id", 0))
    }
    tree(
        tmp_path,
        {
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: Abacus 9\n",
            "proc/meminfo": "MemTotal: 16 kB\nSwapTotal: 8 kB\nSwapFree: 3 kB\n",
            "etc/os-release": 'NAME=x\nPRETTY_NAME="Some Linux 1"\n',
            **cpus,
        },
    )
    assert system.cpu_name(tmp_path) == "Abacus 9" and system.physical_cores(tmp_path) == 4
    assert system.memory(tmp_path) == {"total": 16384, "swap": 8192, "swap_used": 5120}
    if "Linux" in system.system_name():
        assert system.system_name(tmp_path).startswith("Some Linux 1, Linux ")


def test_the_limits_of_control_groups(tmp_path: Path) -> None:
    second = tree(
        tmp_path / "v2",
        {
            "proc/self/cgroup": "0::/user/app\n",
            "sys/fs/cgroup/user/memory.max": "8000000000\n",
            "sys/fs/cgroup/user/app/memory.max": "max\n",
            "sys/fs/cgroup/user/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/user/app/cpu.max": "max 100000\n",
        },
    )
    assert system.memory_limit(second) == 8 * GB and system.cpu_quota(second) == 1.5
    first = tree(
        tmp_path / "v1",
        {
            "proc/self/cgroup": "4:memory:/job\n2:cpu,cpuacct:/job\n0::/\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "2000000000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert system.memory_limit(first) == 2 * GB and system.cpu_quota(first) == 0.5
    assert system.memory_limit(tmp_path) is None and system.cpu_quota(tmp_path) is None


def test_the_file_system_of_a_folder(tmp_path: Path) -> None:
    mounts = (
        "/dev/sda / ext4 rw 0 0\ns:/x /home nfs4 rw 0 0\ntmpfs /home/my\\040disk tmpfs rw 0 0\n"
    )
    tree(tmp_path, {"proc/self/mounts": mounts})
    assert system.mount_of(Path("/usr/lib"), tmp_path) == ("/", "ext4")
    assert system.mount_of(Path("/home/me"), tmp_path) == ("/home", "nfs4")
    assert system.mount_of(Path("/homes"), tmp_path) == ("/", "ext4")
    assert system.mount_of(Path("/home/my disk/a"), tmp_path) == ("/home/my disk", "tmpfs")
    assert system.mount_of(Path("/"), tmp_path / "none") is None
    assert system.on_network("nfs4") and not system.on_network("ext4")


def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tree(
        tmp_path,
        {
            "proc/driver/nvidia/version": "NVRM version: UNIX x86_64 Kernel Module  550.5.1  x",
            "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t Quick 4\nIRQ: 5\n",
        },
    )
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    assert system.gpus(tmp_path) == ["Quick 4, driver 550.5.1"]
    tool = tools / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Quick 5, 8192 MiB, 560.1'\n")
    tool.chmod(0o755)
    assert system.gpus(tmp_path) == ["Quick 5, 8192 MiB, driver 560.1"]
    tool.write_text("#!/bin/sh\necho 'no devices'; exit 9\n")
    assert system.gpus(tmp_path) == ["Quick 4, driver 550.5.1"]


def sound() -> dict[str, Any]:
    """The report of a machine with nothing to say about."""
    return {
        "cpu": {"quota": None, "threads": 4, "isa": "avx2"},
        "speed": {"read_gb_s": 40.0},
        "memory": {"total": 16 * GB, "available": 12 * GB, "limit": None, "swap_used": 0},
        "disk": {"folder": "/c", "type": "ext4", "free_bytes": 90 * GB, "read_gb_s": 2.0},
        "packages": {"numpy": "2.0"},
        "folders": {"models": {"path": "/m", "there": True, "writable": True}},
        "settings": [],
        "gpus": [],
        "gpu": {"devices": [], "why": "it was built without one", "failed": False},
        "model": {"path": "/m/x.gguf", "least_bytes": 5 * GB},
    }


def test_a_gpu_that_is_not_used_is_told_with_the_reason() -> None:
    report = sound() | {"gpus": ["Quick 5, 8192 MiB, driver 560.1"]}
    (found,) = findings(report)
    assert found["text"].startswith("Quick 5") and "built without one" in found["text"]
    used = {
        "devices": [{"name": "Quick 5", "rates": {"read_gb_s": 400.0}}], "why": "", "failed": False
    }  # fmt: skip
    assert findings(report | {"gpu": used}) == []
    broken = {"devices": [], "why": "x.so does not load", "failed": True}
    for gpus in ([], report["gpus"]):  # where the system lists none, too
        (found,) = findings(sound() | {"gpus": gpus, "gpu": broken})
        assert "x.so does not load" in found["text"] and not found["broken"]


def test_a_gpu_slower_than_the_cpu_is_told() -> None:
    def told(read_gb_s: float | None) -> list[str]:
        device = {"name": "Slow 1", "rates": {"read_gb_s": read_gb_s}}
        report = sound() | {"gpu": {"devices": [device], "why": "", "failed": False}}
        return [found["text"] for found in findings(report)]

    (slow,) = told(20.0)
    assert slow.startswith("Slow 1 reads its memory at 20.0 GB/s, the CPU reads at 40.0")
    assert "`qwen3 config set gpu off`" in slow
    assert told(39.0) == told(400.0) == told(None) == []


def test_a_line_for_each_gpu_or_why_there_is_none() -> None:
    device = {
        "name": "Quick 5", "backend": "cuda", "total_bytes": 8 * GB, "free_bytes": 7 * GB,
        "unified": False, "driver": "560.1", "rates": {"read_gb_s": None},
    }  # fmt: skip
    rates = {"read_gb_s": 400.0, "upload_gb_s": 12.5, "int8_gmac_s": 90_000.0}
    rows = gpu_rows({"devices": [device, device | {"rates": rates}], "why": ""})
    assert rows[0] == rows[1] == ("gpu", "Quick 5 (cuda): 7.0 of 8.0 GB free, driver 560.1")
    assert rows[2][1].startswith("reads 400.0 GB/s, is filled at 12.5 GB/s, 90,000 billion int8")
    assert gpu_rows({"devices": [], "why": "no driver"}) == [("gpu", "none: no driver")]


@pytest.mark.parametrize(
    ("part", "change", "says", "broken"),
    [
        ("memory", {"limit": 8 * GB}, "may use 8.0 GB of the machine's 16.0 GB", False),
        ("memory", {"available": 4 * GB}, "needs 5.0 GB of memory, 4.0 GB", False),
        ("memory", {"swap_used": 2 * GB}, "2.0 GB of memory are swapped out", False),
        ("cpu", {"quota": 1.5}, "`qwen3 config set threads 1`", False),
        ("cpu", {"isa": "scalar"}, "QWEN3_ISA", False),
        ("disk", {"type": "nfs4"}, "HF_HOME", False),
        ("disk", {"read_gb_s": 0.1}, "reads 0.10 GB/s", False),
        ("disk", {"free_bytes": GB}, "has room for 1.0 GB", False),
        ("packages", {"numpy": None}, "pip install numpy", True),
        ("folders", {"models": {"path": "/m", "writable": False}}, "cannot be written", True),
    ],
)
def test_what_looks_wrong(part: str, change: dict[str, Any], says: str, broken: bool) -> None:
    report = sound()
    assert findings(report) == []
    report[part] |= change
    (found,) = findings(report)
    assert says in found["text"] and found["broken"] == broken


def test_unknown_figures_are_no_findings() -> None:
    report = sound() | {"model": None}
    report["memory"] |= {"total": None, "available": None, "limit": None, "swap_used": None}
    report["disk"] |= {"type": None, "read_gb_s": None}
    assert findings(report) == []


def test_a_token_that_is_never_sent_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for kept in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", kept)
        assert doctor._has_token() is not kept


def test_the_command(tmp_path: Path) -> None:
    qwen3 = Command(tmp_path)
    done = qwen3("doctor", "--json", HF_TOKEN="hf_secret")
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["token"] is True and "hf_secret" not in done.stdout
    assert report["cpu"]["isa"] in report["cpu"]["isas"] and report["cpu"]["threads"] >= 1
    assert report["speed"]["read_gb_s"] > 0 and report["packages"]["numpy"]
    assert report["model"]["path"].endswith("nano-dense-q8_0.gguf")
    assert not list(tmp_path.rglob(".qwen3-*"))
    (tmp_path / ".config/qwen3").mkdir(parents=True)
    (tmp_path / ".config/qwen3/config.toml").write_text("budgets = 3\n")
    shown = qwen3.terminal("doctor", COLUMNS="80", NO_COLOR="1")
    assert shown.finish() == 1
    assert "broken: " in shown.text and "budgets" in shown.text
    table = shown.text.partition("broken: ")[0]
    assert max(map(len, table.splitlines())) <= 80
