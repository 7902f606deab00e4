"""Which layout lies at a path, by what is there."""

from __future__ import annotations

from pathlib import Path

from engine.data.sources.folder import read_folder
from engine.data.sources.found import Found, Wanted
from engine.data.sources.source import DataError


def read_layout(root: Path, wanted: Wanted, cache: Path, flag: str = "--data.root") -> Found:
    """What lies at `root`: folders of images.

    Raises DataError for what is missing or none of these.
    """
    if not root.exists():
        raise DataError(f"{flag} {root}: no such file or folder; expected images in class folders, a list, or shards")
    if not root.is_dir():
        raise DataError(f"{flag} {root}: a file of no kind that is read")
    return read_folder(root)
