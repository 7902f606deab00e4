"""Whether a place can be written to, asked before the work whose result goes there; nothing is made."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from pathlib import Path

from engine.config import ConfigError
from engine.runs.door import reason


def as_file_name(arch: str) -> str:
    """A network's name within that of a folder: timm:NAME and FILE.py:FACTORY have signs that lead elsewhere."""
    return re.sub(r"[^\w.-]+", "-", arch).strip("-")


def refuse_folder(folder: Path, flag: str = "--output") -> None:
    """Raise ConfigError, with the flag and the cause, where `folder` is none and cannot be made one to write into."""
    if (why := obstacle(folder)) is not None:
        raise ConfigError(f"{flag} {folder}: cannot be made a folder: {why}")


def refuse_file(path: Path, flag: str = "--output") -> None:
    """Raise ConfigError, with the flag and the cause, where `path` is there already, or cannot be."""
    if os.path.lexists(path):
        raise ConfigError(f"{flag} {path} exists; remove it, or give another name")
    if (why := obstacle(path.parent)) is not None:
        raise ConfigError(f"{flag} {path}: cannot be written: {why}")
    if not path.parent.is_dir():
        raise ConfigError(f"{flag} {path}: there is no folder {path.parent}")
    if (why := _name(path)) is not None:
        raise ConfigError(f"{flag} {path}: cannot be written: {why}")


def obstacle(folder: Path) -> str | None:
    """Why there can be no folder to write into at `folder`, in words; None where there can.

    A file is made in what is there of it, and removed.
    """
    for place in (folder, *folder.parents):
        if (why := _name(place)) is not None:
            return why
        if os.path.lexists(place):
            return _within(place)
    return _within(Path())


def _name(path: Path) -> str | None:
    """Why nothing can be called so; also where a folder above it may not be looked into."""
    try:
        os.lstat(path)
    except ValueError as error:
        return str(error)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        if error.errno == errno.ENAMETOOLONG:
            return "a name in it is too long for this disk"
        return reason(path, error)
    return None


def _within(place: Path) -> str | None:
    if not place.exists():
        return f"{place} is a link to {place.readlink()}, which is not there"
    if not place.is_dir():
        return f"{place} is a file, not a folder"
    try:
        tempfile.TemporaryFile(dir=place).close()
    except FileNotFoundError:  # of /proc and its like
        return f"no file can be made in {place}"
    except OSError as error:
        return f"{place}: {reason(place / 'file', error)}"
    return None
