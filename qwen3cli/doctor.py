"""The command `doctor`: what this machine is, what looks wrong with it, and what to do."""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from qwen3cli import __version__
from qwen3cli.config import config_path
from qwen3cli.configure import effective
from qwen3cli.engine import Device, Model, backends, devices
from qwen3cli.errors import Qwen3Error
from qwen3cli.folders import xdg
from qwen3cli.hub import local, registry
from qwen3cli.plan import system
from qwen3cli.plan.fit import CLEARLY, describe, describe_gpu
from qwen3cli.plan.gpu import Card
from qwen3cli.plan.machine import gpu_rates, nearest, peaks, rates_of_folder, reads_directly
from qwen3cli.plan.memory import amount, available, part
from qwen3cli.plan.sizes import sizes_of
from qwen3cli.terminal import Terminal

_SLOW_DISK = 0.3  # GB/s: 8 GB are read for half a minute
_LITTLE_SPACE = 10e9  # 8b:q8_0 takes 8.7 GB
_MUCH_SWAP = 1e9


def doctor(terminal: Terminal, *, as_json: bool) -> int:
    """Prints the report; returns the exit code, 1 if something is broken."""
    report = _report()
    report["findings"] = findings(report)
    if as_json:
        terminal.json(report)
    else:
        _show(report, terminal)
    broken = any(found["broken"] for found in report["findings"])
    return Qwen3Error.exit_code if broken else 0


def _report() -> dict[str, Any]:
    model = Model(registry.resolve("nano"))
    cache = local.cache()
    at = nearest(cache)
    mount = system.mount_of(at)
    speed = describe(rates_of_folder(cache, 0, fresh=True), peaks(0, fresh=True))
    disk = speed.pop("disk_gb_s")
    return {
        "qwen3": __version__,
        "python": platform.python_version(),
        "system": system.system_name(),
        "cpu": {
            "name": system.cpu_name(),
            "cores": system.physical_cores(),
            "cpus": system.usable_cpus(),
            "quota": system.cpu_quota(),
            "threads": model.threads,
            "isa": model.isa,
            "isas": backends(),
        },
        "memory": {
            **system.memory(),
            "available": available(),
            "limit": system.memory_limit(),
        },
        "speed": speed,
        "disk": {
            "folder": str(at),
            "mount": mount and mount[0],
            "type": mount and mount[1],
            "free_bytes": shutil.disk_usage(at).free,
            "read_gb_s": disk,
            "direct": reads_directly(at),
        },
        "gpus": system.gpus(),
        "gpu": _gpu(),
        "packages": _packages(),
        "folders": _folders(cache),
        "token": _has_token(),
        "settings": _problems(),
        "model": _default_model(),
    }


def _gpu() -> dict[str, Any]:
    """The devices of the engine, with the driver; why there is none, and whether that is a
    failure: of a GPU that cannot be asked, or a backend that cannot be used."""
    failed = False
    try:
        found, why = devices()
    except Qwen3Error as error:
        found, why, failed = [], str(error), True
    driver = system.nvidia_driver()
    return {
        "devices": [
            {
                **device._asdict(),
                "driver": driver if device.backend == "cuda" else None,
                "rates": _rates(index, device),
            }
            for index, device in enumerate(found)
        ],
        "why": why,
        "failed": failed,
    }


def _rates(index: int, device: Device) -> dict[str, float | None]:
    card = Card(device.name, device.free_bytes, index, device.backend)
    return describe_gpu(gpu_rates(card, fresh=True))


def findings(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What looks wrong, and what to do about it; broken: nothing works as long as it is so."""
    cpu, memory, disk = report["cpu"], report["memory"], report["disk"]
    found: list[dict[str, Any]] = []

    def add(text: str, *, broken: bool = False) -> None:
        found.append({"text": text, "broken": broken})

    for problem in report["settings"]:
        add(f"{problem}: `qwen3 config list` shows all settings", broken=True)
    for name, version in report["packages"].items():
        if version is None:
            add(f"the package {name} is missing: `pip install {name}`", broken=True)
    for name, folder in report["folders"].items():
        if not folder["writable"]:
            add(f"{folder['path']} ({name}): cannot be written: change its owner", broken=True)
    total, limit, free = memory["total"], memory["limit"], memory["available"]
    if limit and total and limit < total:
        add(
            f"this container may use {amount(limit)} of the machine's {amount(total)} of memory: "
            "raise its limit for larger models"
        )
    model = report["model"]
    if model and free is not None and model["least_bytes"] > free:
        add(
            f"{model['path']} needs {amount(model['least_bytes'], math.ceil)} of memory, "
            f"{amount(free, math.floor)} are available: `qwen3 fit` shows what fits"
        )
    if (memory["swap_used"] or 0) >= _MUCH_SWAP:
        add(f"{amount(memory['swap_used'])} of memory are swapped out: close other programs")
    if cpu["quota"] and cpu["quota"] < cpu["threads"]:
        add(
            f"this container may use {cpu['quota']:g} CPUs, the engine takes {cpu['threads']} "
            f"threads: `qwen3 config set threads {max(1, int(cpu['quota']))}`"
        )
    gpu = report["gpu"]
    if report["gpus"] and not gpu["devices"]:
        add(f"{report['gpus'][0]}: is there, and not used: {gpu['why']}")
    elif gpu["failed"]:
        add(f"no GPU can be used: {gpu['why']}")
    for device in gpu["devices"]:
        there, here = device["rates"]["read_gb_s"], report["speed"]["read_gb_s"]
        if there and here > CLEARLY * there:
            add(
                f"{device['name']} reads its memory at {there:.1f} GB/s, the CPU reads at "
                f"{here:.1f}: without it replies may be faster; `qwen3 fit MODEL` compares, "
                "`qwen3 config set gpu off` leaves models to the CPU"
            )
    if cpu["isa"] == "scalar":
        add("the engine computes without vectors, many times slower: see QWEN3_ISA in the README")
    if disk["type"] and system.on_network(disk["type"]):
        add(f"{disk['folder']} is on a network ({disk['type']}): set HF_HOME to a local folder")
    if disk["read_gb_s"] is not None and disk["read_gb_s"] < _SLOW_DISK:
        add(
            f"the disk of {disk['folder']} reads {disk['read_gb_s']:.2f} GB/s: models open slowly, "
            "and experts in the file are no choice; HF_HOME can lie on another one"
        )
    if disk["free_bytes"] < _LITTLE_SPACE:
        add(f"{disk['folder']} has room for {amount(disk['free_bytes'])}: remove what is not used")
    return found


def _packages() -> dict[str, str | None]:
    """What qwen3 requires, with the versions that are there."""
    try:
        required = metadata.requires("qwen3") or []
    except metadata.PackageNotFoundError:  # run from its source
        required = []
    versions: dict[str, str | None] = {}
    for line in required:
        name = re.match(r"[\w.-]+", line)
        if name and ";" not in line:
            try:
                versions[name[0]] = metadata.version(name[0])
            except metadata.PackageNotFoundError:
                versions[name[0]] = None
    return versions


def _folders(cache: Path) -> dict[str, dict[str, Any]]:
    """Those that qwen3 writes; one that is not there counts as the folder that it would be in."""
    found = {
        "settings": config_path().parent,
        "rates": xdg("XDG_CACHE_HOME", ".cache"),
        "models": registry.models_folder(),
        "hub": cache,
    }
    return {
        name: {
            "path": str(path),
            "there": path.is_dir(),
            "writable": os.access(nearest(path), os.W_OK | os.X_OK),
        }
        for name, path in found.items()
    }


def _has_token() -> bool:
    from huggingface_hub import constants, get_token

    return not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN and get_token() is not None


def _problems() -> list[str]:
    return effective()[1]


def _default_model() -> dict[str, Any] | None:
    """What a run without -m takes, and the memory that it needs at least."""
    try:
        path = registry.choose(None, lambda _: None)
        sizes = sizes_of(path)
    except (Qwen3Error, OSError):
        return None
    if sizes is None:
        return None
    return {"path": str(path), "least_bytes": sizes.least(min(2048, sizes.n_ctx))}


# ---- for people ----------------------------------------------------------------------


def _show(report: dict[str, Any], terminal: Terminal) -> None:
    cpu, memory, disk, speed = (report[key] for key in ("cpu", "memory", "disk", "speed"))
    packages = report["packages"].items()
    rows = [
        ("qwen3", f"{report['qwen3']}, Python {report['python']}"),
        ("system", report["system"]),
        ("processor", cpu["name"]),
        (
            "cores",
            f"{cpu['cores'] or '?'} physical, {cpu['cpus']} threads may be used{_quota(cpu)}",
        ),
        ("engine", f"{cpu['isa']}, {cpu['threads']} threads; there are {', '.join(cpu['isas'])}"),
        ("int8", f"{speed['int8_gmac_s']:.0f} billion products a second"),
        ("memory", _memory(memory)),
        ("", f"reads {speed['read_gb_s']:.1f} GB/s"),
        ("disk", f"{disk['folder']}: {disk['type'] or '?'}, {amount(disk['free_bytes'])} free"),
        ("", _disk(disk)),
        *gpu_rows(report["gpu"]),
        *[(name, _folder(folder)) for name, folder in report["folders"].items()],
        ("token", "yes" if report["token"] else "no: private and gated repositories are closed"),
        ("packages", ", ".join(f"{name} {version or 'missing'}" for name, version in packages)),
    ]
    terminal.table(("doctor", ""), rows)
    for found in report["findings"]:
        terminal.note(f"{'broken' if found['broken'] else 'look'}: {found['text']}")
    if not report["findings"]:
        terminal.note("all is well")


def gpu_rows(gpu: dict[str, Any]) -> list[tuple[str, str]]:
    """Of the devices, or why there is none."""
    rows = []
    for device in gpu["devices"]:
        text = f"{device['name']} ({device['backend']}): "
        text += f"{part(device['free_bytes'], device['total_bytes'])} free"
        text += ", which is the machine's memory" if device["unified"] else ""
        text += f", driver {device['driver']}" if device["driver"] else ""
        rows.append(("gpu", text))
        rates = device["rates"]
        if rates["read_gb_s"]:
            rows.append(("", _gpu_rates(rates)))
    return rows or [("gpu", f"none: {gpu['why']}")]


def _gpu_rates(rates: dict[str, float]) -> str:
    text = f"reads {rates['read_gb_s']:.1f} GB/s, is filled at {rates['upload_gb_s']:.1f} GB/s"
    if rates["int8_gmac_s"]:
        text += f", {rates['int8_gmac_s']:,.0f} billion int8 products a second"
    return text


def _quota(cpu: dict[str, Any]) -> str:
    return f", {cpu['quota']:g} CPUs' time" if cpu["quota"] else ""


def _memory(memory: dict[str, int | None]) -> str:
    parts = [
        f"{amount(size)} {what}"
        for what in ("total", "available", "limit", "swap")
        if (size := memory[what])
    ]
    return ", ".join(parts) or "not known here"


def _disk(disk: dict[str, Any]) -> str:
    rate = disk["read_gb_s"]
    if rate is None:
        return "its rate is not known"
    return f"reads {rate:.2f} GB/s, {'past' if disk['direct'] else 'not past'} the page cache"


def _folder(folder: dict[str, Any]) -> str:
    state = "" if folder["there"] else ", not there yet"
    return f"{folder['path']}{state}{'' if folder['writable'] else ', cannot be written'}"
