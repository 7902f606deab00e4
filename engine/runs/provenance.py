"""What made a result: the commit of the sources, the versions of the packages, the command, the day."""

from __future__ import annotations

import functools
import hashlib
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "triton", "torchvision", "timm", "nvidia-dali-cuda120", "accelerate", "deepspeed")


def versions() -> dict[str, str]:
    """Installed versions of the packages that speed depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


@functools.cache
def commit() -> str:
    """The source's commit; where the tree differs from it, with a hash of the difference ("96aab52+1f3c9a").

    What lies under profiles/ does not count: writing a result does not change what is measured. Without git it is a
    hash of the sources ("tree-1f3c9a").
    """
    head = _git("rev-parse", "--short", "HEAD")
    if head is None:
        digest = hashlib.sha256()
        for path in sorted(ROOT.glob("[aekl]*/**/*.py")):
            digest.update(path.read_bytes())
        return f"tree-{digest.hexdigest()[:6]}"
    difference = _git("diff", "HEAD", "--", ".", ":(exclude)profiles") or ""
    return head if not difference else f"{head}+{hashlib.sha256(difference.encode()).hexdigest()[:6]}"


@functools.cache
def sources_digest() -> str:
    """A hash of this project's Python files, their names included: the same wherever the same code lies."""
    digest = hashlib.sha256()
    for path in sorted(ROOT.glob("[aekl]*/**/*.py")):
        digest.update(f"{path.relative_to(ROOT)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def command() -> str:
    """The command line of this process, as one would type it in the source tree."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.startswith(("engine.", "tests.")):
        return shlex.join(["python", "-m", spec.name, *sys.argv[1:]])
    script = Path(sys.argv[0])
    if script.is_absolute() and script.is_relative_to(ROOT):
        script = script.relative_to(ROOT)
    return shlex.join(["python", str(script), *sys.argv[1:]])


def today() -> str:
    """The date in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d")
