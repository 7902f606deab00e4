"""A folder of shards as splits, and any image of them by its number."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from engine.data.shards.index import ShardIndex, index_of
from engine.data.shards.names import name_of
from engine.data.sources.folder import ROLES
from engine.data.sources.found import Found
from engine.data.sources.layouts.labels import coded
from engine.data.sources.listing import EXTENSIONS, is_aside
from engine.data.sources.reading import Unreachable, Unreadable
from engine.data.sources.source import DataError, Split, Stored
from engine.data.sources.texts import Texts

logger = logging.getLogger("hcr")

MANIFEST = "shards.json"
MOST_OPEN = 256
"""Shards that a process keeps open; more are opened for each image."""
THREADS = 8


@dataclass(frozen=True)
class Manifest:
    """What `launch/shard.py` wrote beside the shards that it made."""

    classes: list[str]
    shards: dict[str, dict[str, Any]]
    """File, relative to the folder, to its images, bytes and sha256."""


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None where there is none. Raises DataError for a damaged one."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        classes, shards = found["classes"], {shard["file"]: shard for shard in found["shards"]}
        if not all(isinstance(name, str) for name in classes):
            raise TypeError("classes are no names")
        for shard in shards.values():
            if not (isinstance(shard["images"], int) and isinstance(shard["bytes"], int)):
                raise TypeError("a shard without its counts")
        return Manifest(classes, shards)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); make the shards again, or delete it") from None


def shards_in(root: Path) -> list[Path]:
    """The .tar files of a folder and of the folders in it, sorted; one .tar alone."""
    if root.is_file():
        return [root]
    below = [entry for entry in root.iterdir() if entry.is_dir() and not is_aside(entry.name)]
    found = [path for folder in (root, *below) for path in folder.iterdir() if path.suffix.lower() == ".tar"]
    return sorted(path for path in found if not path.name.startswith(".") and path.is_file())


def is_shards(root: Path) -> bool:
    """Whether a path is a .tar, or a folder of them: an archive that was left beside its images makes no shards."""
    if not root.is_dir():
        return root.suffix.lower() == ".tar"
    if (root / MANIFEST).is_file():
        return True
    shards = shards_in(root)
    folders = {path.parent for path in shards}
    return bool(shards) and not any(
        entry not in folders if entry.is_dir() else entry.suffix.lower() in EXTENSIONS
        for entry in root.iterdir()
        if not is_aside(entry.name)
    )


def every_image(root: Path) -> TarShards:
    """All images of the shards at `root`, in order, labelled or not. Raises DataError as `index_of`."""
    shards = shards_in(root)
    with ThreadPoolExecutor(THREADS) as pool:
        indexes = list(pool.map(index_of, shards))
    return TarShards.of(shards, indexes, root, read_manifest(root) if root.is_dir() else None)


def split_of(shard: Path, root: Path) -> str | None:
    """The split that a shard's folder or name says, as it is called there: `train` of imagenet-train-000012.tar."""
    names = [] if root.is_file() else [*shard.relative_to(root).parts[:-1]]
    for word in [*names, *re.split(r"[^A-Za-z]+", shard.stem)]:
        if word.lower() in ROLES:
            return word
    return None


def read_shards(root: Path) -> Found:
    """The splits of a folder of shards, or of one shard.

    Raises DataError for shards of which only some name a split, and as `index_of`.
    """
    shards, manifest = shards_in(root), read_manifest(root) if root.is_dir() else None
    if manifest is not None:
        _refuse_missing(root, shards, manifest)
    with ThreadPoolExecutor(THREADS) as pool:
        indexes = list(pool.map(index_of, shards))
    names = [split_of(shard, root) for shard in shards]
    named = {name for name in names if name is not None}
    if named and None in names:
        odd = shards[names.index(None)]
        raise DataError(f"{root}: {odd.name} names no split, and others do ({', '.join(sorted(named))})")
    every, classes = _labels(root, shards, indexes, manifest)
    starts = np.cumsum([0, *map(len, indexes)])
    called: dict[str, str] = {}
    splits: dict[str, Split] = {}
    for role in ("train", "val", "test"):
        own = [place for place, name in enumerate(names) if (ROLES[name.lower()] if name else "train") == role]
        if not own:
            continue
        stored = TarShards.of([shards[place] for place in own], [indexes[place] for place in own], root, manifest)
        labels = np.concatenate([every[starts[place] : starts[place + 1]] for place in own])
        word = names[own[0]] or ""
        called |= {role: f"the {word} shards"} if word else {}
        splits[role] = Split(labels, stored.names(), stored=stored, place=f"the {word or 'tar'} shards of {root}")
    _tell_repeated(root, splits)
    return Found("shards", root, classes, splits, called)


def _refuse_missing(root: Path, shards: list[Path], manifest: Manifest) -> None:
    there = {path.relative_to(root).as_posix(): path for path in shards}
    for name, shard in manifest.shards.items():
        if name not in there:
            raise DataError(f"{root / name} is missing, which {MANIFEST} names; fetch it, or make the shards again")
        if (size := there[name].stat().st_size) != shard["bytes"]:
            kind = "cut" if size < shard["bytes"] else "another one"
            raise DataError(
                f"{root / name} is {kind}: it has {size} bytes where {MANIFEST} says {shard['bytes']}; fetch it again"
            )
    if extra := sorted(set(there) - set(manifest.shards)):
        raise DataError(f"{root / extra[0]} is not in {MANIFEST}; move it elsewhere, or delete {MANIFEST}")


def _labels(
    root: Path, shards: list[Path], indexes: list[ShardIndex], manifest: Manifest | None
) -> tuple[np.ndarray, list[str]]:
    """(int64 [N] over all shards, class names); numbers are those of the manifest's classes where there is one."""
    import pyarrow as pa

    starts = np.cumsum([0, *map(len, indexes)])
    column = pa.chunked_array([pa.array(list(index.labels), pa.string()) for index in indexes]).combine_chunks()

    def place(row: int) -> str:
        shard = int(np.searchsorted(starts, row, side="right")) - 1
        return f"{shards[shard].name}, {indexes[shard].members[row - int(starts[shard])]}"

    labels, values = coded(column, str(root), place, "label")  # of a .cls, a .json or a folder
    if manifest is None:
        return labels, values
    numbers = np.array([int(value) if value.isdecimal() else -1 for value in values], dtype=np.int64)
    wrong = np.flatnonzero((numbers < 0) | (numbers >= len(manifest.classes)))
    if len(wrong):
        row = int(np.flatnonzero(labels == wrong[0])[0])
        raise DataError(
            f"{root}, {place(row)}: label {values[wrong[0]]} is out of range: {MANIFEST} names "
            f"{len(manifest.classes)} classes, counted from 0"
        )
    return numbers[labels], manifest.classes


def _tell_repeated(root: Path, splits: dict[str, Split]) -> None:
    """Say how many keys several shards have: they are different images, unless a shard was copied."""
    for split in splits.values():
        keys = split.stored.members if isinstance(split.stored, TarShards) else ()
        if repeated := len(keys) - len(set(keys)):
            logger.info("note: %s: %d keys are in several shards; was one of them copied?", root, repeated)


@dataclass
class TarShards(Stored):
    """Images in shards, read at random by threads and processes alike (pread moves no shared position)."""

    shards: list[str]
    """Paths."""
    folders: list[str]
    """What comes before a member's name in its key; empty where the manifest's names are the data's own."""
    members: Texts
    shard: np.ndarray
    """int32 [N], which shard each image is in."""
    offsets: np.ndarray
    lengths: np.ndarray
    own: bool = False
    """Whether the names are those of images that `launch/shard.py` put there."""
    _open: dict[int, int] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, shards: list[Path], indexes: list[ShardIndex], root: Path, manifest: Manifest | None) -> TarShards:
        """The images of several shards, one shard's behind the other's."""
        members = Texts.of(name for index in indexes for name in index.members)
        counts = [len(index) for index in indexes]
        base = root if root.is_dir() else root.parent
        return cls(
            [str(path) for path in shards],
            [path.relative_to(base).as_posix() for path in shards],
            members,
            np.repeat(np.arange(len(shards), dtype=np.int32), counts),
            np.concatenate([index.offsets for index in indexes]),
            np.concatenate([index.sizes for index in indexes]),
            manifest is not None,
        )

    def names(self) -> ShardNames:
        """For messages: `train-000.tar:cat/1.jpg` with the shard's path."""
        return ShardNames(self)

    @property
    def keys(self) -> Sequence[str]:
        if self.own:
            return [name_of(member) for member in self.members]
        return [
            f"{self.folders[shard]}/{member}" for shard, member in zip(self.shard.tolist(), self.members, strict=True)
        ]

    def sizes(self) -> Sequence[int]:
        return self.lengths.tolist()

    def take(self, places: np.ndarray) -> TarShards:
        return TarShards(
            self.shards,
            self.folders,
            self.members.take(places),
            self.shard[places],
            self.offsets[places],
            self.lengths[places],
            self.own,
        )

    def read(self, index: int) -> bytes:
        shard, length = int(self.shard[index]), int(self.lengths[index])
        if not length:
            raise Unreadable("the file is empty")
        try:
            data = self._read(shard, length, int(self.offsets[index]))
        except OSError as error:
            raise Unreachable(f"{self.shards[shard]}: {error.strerror or error}") from None
        if len(data) < length:
            raise Unreachable(f"{self.shards[shard]} ends before it: it was cut")
        return data

    def _read(self, shard: int, length: int, offset: int) -> bytes:
        if len(self.shards) > MOST_OPEN:
            with open(self.shards[shard], "rb", buffering=0) as file:  # noqa: PTH123 (a string)
                return os.pread(file.fileno(), length, offset)
        descriptor = self._open.get(shard)
        if descriptor is None:
            with self._lock:
                descriptor = self._open.get(shard)
                if descriptor is None:
                    descriptor = self._open[shard] = os.open(self.shards[shard], os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(descriptor, length, offset)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_open", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_open": {}, "_lock": threading.Lock()}

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


class ShardNames(Sequence[str]):
    """N names, made when they are asked for."""

    def __init__(self, stored: TarShards) -> None:
        self.stored = stored

    def __len__(self) -> int:
        return len(self.stored.members)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        return f"{self.stored.shards[int(self.stored.shard[index])]}:{self.stored.members[index]}"

    def take(self, places: np.ndarray) -> ShardNames:
        """Those at `places`, int64 [M]."""
        return ShardNames(self.stored.take(places))
