"""A measurement's file under profiles/: figures, and everything that one needs to take them again."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from engine.runfolder import atomic_file

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "torchvision", "nvidia-dali-cuda120", "accelerate", "deepspeed")


def machine() -> dict[str, Any]:
    """What measured: a short key for the folder name, and the facts behind it."""
    cores = len(os.sched_getaffinity(0))
    facts: dict[str, Any] = {"cores": cores, "python": platform.python_version()}
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return facts | {"key": name.lower().removeprefix("nvidia ").replace(" ", "-"), "gpu": name}
    capability = torch.backends.cpu.get_cpu_capability().lower()
    matrix = "-amx" if torch.cpu._is_amx_tile_supported() else ""
    return facts | {"key": f"cpu{cores}-{capability}{matrix}", "cpu": f"x86-64 {capability}{matrix}"}


def versions() -> dict[str, str]:
    """Installed versions of the packages that speed depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str:
    """The source's commit, marked where the tree differs from it."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(asked, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def record(suite: str, figures: dict[str, Any], output: Path | None = None) -> Path:
    """Write profiles/<machine>/<suite>.json (or below `output`); returns its path."""
    here = machine()
    folder = (output or ROOT / "profiles") / here["key"]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{suite}.json"
    command = shlex.join(["python", *sys.argv])
    written = {
        "suite": suite,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "command": command,
        "machine": here,
        "versions": versions(),
        "figures": figures,
    }
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return path
