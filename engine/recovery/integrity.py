"""Whether a checkpoint is whole: torch's reader lets a flipped bit pass, so its files carry checksums.

`checksums.json` beside trainer.pt has the size and SHA-256 of every file of the checkpoint, DeepSpeed's shards too. A
checkpoint without it (of an earlier version) is held to the CRC that its zip archives have.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

from engine.runs.door import atomic_file

NAME = "checksums.json"


def digest(path: Path) -> str:
    """SHA-256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """Write checksums.json for all files in `folder`. Raises CannotWrite."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != NAME
    }
    with atomic_file(folder / NAME) as temporary:
        temporary.write_text(json.dumps(files, indent=1) + "\n", encoding="utf-8")


def damage(folder: Path) -> str | None:
    """What is wrong with the checkpoint in `folder`, in words; None for a whole one."""
    if not (folder / "trainer.pt").is_file():
        return "trainer.pt is missing"
    try:
        return _by_checksums(folder) if (folder / NAME).exists() else _by_archives(folder)
    except OSError as error:
        return error.strerror or str(error)


def _by_checksums(folder: Path) -> str | None:
    try:
        files = json.loads((folder / NAME).read_text(encoding="utf-8"))
        wanted = {str(name): (int(about["bytes"]), str(about["sha256"])) for name, about in files.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{NAME} is damaged"
    if "trainer.pt" not in wanted:
        return f"{NAME} is damaged"
    for name, (size, sha256) in wanted.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes and should have {size:,}"
        if digest(path) != sha256:
            return f"{name} does not match its checksum"
    return None


def _by_archives(folder: Path) -> str | None:
    for path in [folder / "trainer.pt", *sorted((folder / "zero").rglob("*.pt"))]:
        name = path.relative_to(folder)
        if not path.stat().st_size:
            return f"{name} is empty"
        try:
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
        except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
            return f"{name} is cut or damaged ({error})"
        if bad is not None:
            return f"{name} is damaged (its part {bad} does not match its checksum)"
    return None
