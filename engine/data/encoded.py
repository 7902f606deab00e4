"""Names and sizes of a split's encoded images, without opening them: the same wherever the data lies."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine.data.sources.source import Split
from engine.data.sources.texts import Texts

THREADS = 16
"""For sizes: on a network's disk each question waits for an answer."""
CHUNK = 1024


def relative_names(split: Split) -> Iterable[str]:
    """Of files below what all their folders have in common; a list's as they stand there; else the store's own keys."""
    if split.stored is not None:
        return split.stored.keys
    paths = split.paths or ()
    if isinstance(paths, Texts):
        return paths.bare()
    if not paths:
        return ()
    ends = min(paths), max(paths)
    start = len(os.path.commonpath([Path(path).parent for path in ends]).rstrip(os.sep)) + 1
    return (path[start:] for path in paths)


def encoded_sizes(split: Split) -> Iterable[int]:
    """Bytes of each image; 0 for a file that has gone: reading it will tell."""
    if split.stored is not None:
        return split.stored.sizes()
    return _stat_sizes(split.paths) if split.paths else ()


def _stat_sizes(paths: Sequence[str]) -> Iterator[int]:
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
