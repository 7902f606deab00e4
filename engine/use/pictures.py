"""Which pictures a command line names: files, folders, patterns, lists, and paths on standard input."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from engine.config import ConfigError
from engine.data.shards.read import every_image, is_shards
from engine.data.sources.folder import EXTENSIONS
from engine.data.sources.joined import joined
from engine.data.sources.layouts.image_list import listed_paths
from engine.data.sources.layouts.saved_dataset import is_saved_dataset, read_saved
from engine.data.sources.layouts.table_file import ENDINGS
from engine.data.sources.listing import Listing
from engine.data.sources.source import Split
from engine.runs.cache import cache_folder

LISTS = (".txt", ".lst")
"""Endings of a file that names pictures, a path a line."""


def pictures_of(
    given: Sequence[str], standard_input: BinaryIO | None = None, met: list[Listing] | None = None
) -> Split:
    """The pictures that `given` names, without labels: one folder of shards, .tar or saved dataset, or files.

    met  is added what is met in each folder of files

    Raises ConfigError as `named_pictures`, and DataError as the layouts do.
    """
    paths = [Path(one) for one in given]
    inside = [path for path in paths if path.exists() and (is_shards(path) or is_saved_dataset(path))]
    if inside and len(paths) > 1:
        raise ConfigError(f"{inside[0]} holds pictures in larger files; name it alone")
    if not inside:
        named = named_pictures(given, standard_input, met)
        return Split(np.zeros(len(named), dtype=np.int64), named)
    if is_shards(inside[0]):
        stored = every_image(inside[0])
        return Split(np.zeros(len(stored.members), dtype=np.int64), stored.names(), stored=stored)
    found = read_saved(inside[0], cache_folder(None))
    parts = [split for split in (found.splits.get(role) for role in ("train", "val", "test")) if split is not None]
    whole = parts[0]
    for part in parts[1:]:
        whole = joined(whole, part, str(inside[0]))
    return whole


def named_pictures(
    given: Sequence[str], standard_input: BinaryIO | None = None, met: list[Listing] | None = None
) -> list[str]:
    """The paths that `given` names, in its order; `met` as in `pictures_of`.

    A folder is its pictures at any depth, sorted; a pattern (`*`, `?`, `[…]`, `**`) what matches it, sorted; a .txt or
    .lst file, or `@FILE`, a path a line; a .csv, .tsv, .jsonl or .parquet file the paths of its column, relative to it;
    `-` a path a line of standard input. Anything else is a path, whether it is there or not: what cannot be read
    becomes a row with the reason.

    Raises ConfigError for a folder, pattern or list that names nothing, and for a list that cannot be read.
    """
    found = [path for each in given for path in _named_by(each, standard_input, [] if met is None else met)]
    if not found:
        raise ConfigError("no pictures are named: give files, folders, patterns, a list in a .txt file, or -")
    return found


def passed_over(met: Sequence[Listing]) -> str | None:
    """The files below the listed folders that are not called like pictures, in a sentence; None for none.

    They are counted by ending, the most of a kind first; hidden files and system folders are not looked at.
    """
    kinds = sum((listing.others for listing in met), Counter())
    if not kinds:
        return None
    example = next(listing.other for listing in met if listing.other)
    most, count = kinds.most_common(4), kinds.total()
    told = ", ".join(f"{number} {kind or 'without an ending'}" for kind, number in most)
    told += ", …" if len(kinds) > len(most) else ""
    subject = "1 file is no picture and was" if count == 1 else f"{count} files are no pictures and were"
    return f"{subject} passed over ({told}; such as {example})"


def _named_by(given: str, standard_input: BinaryIO | None, met: list[Listing]) -> Iterator[str]:
    path = Path(given)
    if given == "-":
        if standard_input is None and sys.stdin is None:
            raise ConfigError("-: standard input is closed; pipe paths into it, a path a line")
        paths = _lines((standard_input or sys.stdin.buffer).read())
        if not paths:
            raise ConfigError("-: standard input ended before it named a picture")
        yield from paths
    elif path.is_dir():
        met.append(Listing())
        met[-1].enter(str(path))
        below = met[-1].below(str(path))
        if not below:
            files = sum(len(names) for _, _, names in os.walk(path))
            held = f"it has {files} files of other kinds" if files else "it is empty"
            raise ConfigError(f"{given} holds no pictures ({held}; looked for names ending in {' '.join(EXTENSIONS)})")
        yield from below
    elif given.startswith("@") or path.suffix.lower() in LISTS:
        try:
            paths = _lines(Path(given.removeprefix("@")).read_bytes())
        except OSError as error:
            raise ConfigError(f"{given}: the list cannot be read: {error.strerror}") from None
        if not paths:
            raise ConfigError(f"{given}: the list names no pictures")
        yield from paths
    elif path.suffix.lower() in ENDINGS and path.is_file():
        yield from listed_paths(path)
    elif glob.has_magic(given) and not path.exists():
        matches = sorted(match for match in glob.glob(given, recursive=True) if Path(match).is_file())  # noqa: PTH207
        if not matches:
            raise ConfigError(f"{given}: no file matches")
        yield from matches
    else:
        yield given


def _lines(content: bytes) -> list[str]:
    """The paths in a list: one a line, blank lines left out, in the file system's own encoding."""
    return [os.fsdecode(line) for line in content.replace(b"\r\n", b"\n").split(b"\n") if line.strip()]
