"""Names of images inside a shard, and which of them a shard may have.

WebDataset takes what stands before the first dot of a file's name for its key, so the dots of a stem are written %2E
here. Members that lead out of a folder are refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import PurePosixPath
from urllib.parse import unquote

from engine.data.sources.listing import EXTENSIONS
from engine.data.sources.source import DataError


def members_of(names: Iterable[str]) -> list[str]:
    """What each image is called in a shard: its relative name with the stem's dots escaped, no key twice."""
    taken: set[str] = set()
    found = []
    for name in names:
        folder, _, file = name.replace(os.sep, "/").rpartition("/")
        stem, ending = os.path.splitext(file)  # noqa: PTH122 (many names)
        before = f"{folder}/" if folder else ""
        key = _escaped(before + stem)
        if ending.lower() not in EXTENSIONS:  # readers go by the ending
            key, ending = _escaped(f"{before}{file}."), ".jpg"
        elif key in taken or stem.endswith((ending, ".")):  # cat/1.jpg beside cat/1.png
            key = _escaped(before + file)
        taken.add(key)
        found.append(key + ending)
    return found


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace(".", "%2E")


def name_of(member: str) -> str:
    """The name that `members_of` was given."""
    key, ending = os.path.splitext(member)  # noqa: PTH122 (as above)
    name = unquote(key, errors="surrogateescape")
    if name.endswith("."):
        return name[:-1]
    return name if name.endswith(ending) else name + ending


def refuse_outside(name: str, where: str) -> None:
    """Raise DataError for a member that is no path inside a folder."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or ".." in parts or name.startswith(("/", "\\")) or (len(name) > 1 and name[1] == ":") or "\0" in name:
        raise DataError(f"{where}: member {name!r} leads out of the folder; such an archive is not read")
