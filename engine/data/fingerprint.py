"""What data a run is trained on, in a few values: class names in order, counts, a hash of relative paths and sizes.

It goes into every checkpoint and weights file. Files are not opened: a picture that was repainted without changing its
size in bytes is not noticed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.data.sources.source import Source, Split
from engine.data.sources.texts import Texts

THREADS = 16
"""For sizes: on a network's disk each question waits for an answer."""
CHUNK = 1024


@dataclass(frozen=True)
class Fingerprint:
    """Plain values; equal for the same data wherever it lies."""

    classes: list[str]
    """Names in label order."""
    train_images: int
    val_images: int
    digest: str
    """Of both splits' relative paths and sizes in bytes; of the pixels for data that is held as arrays."""

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint or a file's metadata."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Fingerprint | None:
        """What `as_dict` gave; None for anything else, as older files hold nothing."""
        try:
            found = cls(**values)
        except TypeError:
            return None
        counts = isinstance(found.train_images, int) and isinstance(found.val_images, int)
        return found if counts and isinstance(found.classes, list) and isinstance(found.digest, str) else None


def fingerprint_of(source: Source) -> Fingerprint:
    """The fingerprint of a source's data. A file that has gone counts as one of no size: reading it will tell."""
    digest = hashlib.sha256()
    for name, split in (("train", source.train), ("val", source.val)):
        digest.update(f"{name} {len(split)}\n".encode())
        digest.update(memoryview(split.labels))
        _add_images(digest, split)
    return Fingerprint(list(source.classes), len(source.train), len(source.val), digest.hexdigest()[:32])


def _add_images(digest: Any, split: Split) -> None:
    if split.paths is None:
        assert split.arrays is not None
        digest.update(memoryview(split.arrays).cast("B"))
        return
    if not split.paths:
        return
    if split.stored is not None:
        for key, size in zip(split.stored.keys, split.stored.sizes(), strict=True):
            digest.update(f"{key} {size}\n".encode("utf-8", "surrogateescape"))
        return
    if isinstance(split.paths, Texts):  # as the list has them, relative to it
        for name, size in zip(split.paths.bare(), _sizes(split.paths), strict=True):
            digest.update(f"{name} {size}\n".encode("utf-8", "surrogateescape"))
        return
    ends = min(split.paths), max(split.paths)
    start = len(os.path.commonpath([Path(path).parent for path in ends]).rstrip(os.sep)) + 1
    for path, size in zip(split.paths, _sizes(split.paths), strict=True):
        digest.update(f"{path[start:]} {size}\n".encode("utf-8", "surrogateescape"))


def _sizes(paths: Sequence[str]) -> Iterable[int]:
    chunks = [paths[begin : begin + CHUNK] for begin in range(0, len(paths), CHUNK)]
    with ThreadPoolExecutor(min(THREADS, len(chunks))) as pool:
        for sizes in pool.map(_sizes_of, chunks):
            yield from sizes


def _sizes_of(paths: Sequence[str]) -> list[int]:
    return [_size(path) for path in paths]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 (a million paths: strings, not Path objects)
    except OSError:
        return 0
