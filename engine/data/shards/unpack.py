"""Shards as files again: SPLIT/CLASS/NAME, in parallel, each file whole or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine.data.shards.names import refuse_outside
from engine.data.sources.found import Found
from engine.data.sources.listing import is_aside
from engine.data.sources.reading import Unreadable
from engine.data.sources.source import DataError, Split
from engine.runs.door import atomic_file, writing
from engine.runs.output import refuse_folder

CHUNK = 64


def unpack(
    found: Found,
    output: Path,
    workers: int,
    begin: Callable[[int], None] = lambda images: None,
    advance: Callable[[int], None] = lambda images: None,
) -> int:
    """Write every image of `found` (engine.data.shards.read) below `output`; returns how many were there already.

    A file of the right size is left as it is, so that what was stopped goes on. Raises DataError for names that lead
    out of the folder, a class that is no folder's name, two images of one name, and an image that cannot be read;
    CannotWrite where the disk is full.
    """
    refuse_folder(output, "OUTPUT")
    for name in found.classes:
        refuse_outside(name, f"{found.root}, class")
        if "/" in name or is_aside(name):
            raise DataError(f"{found.root}: class {name!r} cannot be a folder's name")
    jobs = []
    for name, split in found.splits.items():
        targets = _targets(found, name if found.called else "", split)
        if len(set(targets)) < len(targets):
            twice = next(target for target in targets if targets.count(target) > 1)
            raise DataError(f"{found.root}: {twice} is there twice; unpacked, one would replace the other")
        jobs += [(split, targets, range(at, min(at + CHUNK, len(split)))) for at in range(0, len(split), CHUNK)]
    begin(sum(map(len, found.splits.values())))
    there, lock, stop = [0], threading.Lock(), threading.Event()

    def write(job: tuple[Split, list[str], range]) -> None:
        split, targets, places = job
        for place in places:
            if stop.is_set():
                return
            kept = _write(split, place, output / targets[place])
            with lock:
                there[0] += kept
            advance(1)

    with ThreadPoolExecutor(workers) as pool:
        try:
            for _ in pool.map(write, jobs):
                pass
        finally:
            stop.set()
    return there[0]


def _targets(found: Found, folder: str, split: Split) -> list[str]:
    """Where each image goes, relative to the output: below its class, whose name is not said twice."""
    assert split.stored is not None
    targets = []
    for key, label in zip(split.stored.keys, split.labels.tolist(), strict=True):
        refuse_outside(key, str(found.root))
        name = found.classes[label]
        inside = key if key.split("/")[0] == name and "/" in key else f"{name}/{key}"
        targets.append(f"{folder}/{inside}" if folder else inside)
    return targets


def _write(split: Split, place: int, path: Path) -> bool:
    """Write one image; True where it was there."""
    try:
        data = split.read(place)
    except Unreadable as error:
        raise DataError(f"{split.path(place)}: {error}") from None
    if path.is_file() and path.stat().st_size == len(data):
        return True
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)
    return False
