"""Examines a source, all of it or a quick part, and keeps the whole result by the data's fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.data.doctor.findings import Findings, add_up, readable, splits_of
from engine.data.doctor.look import Seen, look_at
from engine.data.fingerprint import Fingerprint
from engine.data.loader import worker_count
from engine.data.sources.source import Source, Split
from engine.runs.cache import cache_folder
from engine.runs.door import atomic_file

QUICK = 256
"""Files a split that a run looks at before it starts: a second at the most."""
SIZED = 50_000
"""Files up to which a quick look asks each for its size."""
VERSION = 1
"""Of what is kept: another one is examined anew."""


def examine(source: Source, threads: int = 0) -> Findings:
    """Every image of every split. Memory: 4 KiB an image.

    threads  that decode; 0 is one a core, at most 8
    """
    threads = worker_count(threads)
    seen = {name: look_at(split, range(len(split)), threads) for name, split in splits_of(source).items()}
    there = readable(seen)
    if len(there) < 2:
        return add_up(source, seen, [], near=True)
    from engine.data.doctor.near import near_duplicates  # torch and scipy take a second

    unlike = _first_of_each(there)
    small = np.stack([there[place][1].small for place in unlike])
    pairs = [(unlike[one], unlike[other], score) for one, other, score in near_duplicates(small, threads)]
    return add_up(source, seen, pairs, near=True)


def _first_of_each(there: list[tuple[str, Seen]]) -> list[int]:
    """Places of images of different content: of exact copies the first stands for all."""
    known: dict[bytes, int] = {}
    for place, (_, one) in enumerate(there):
        known.setdefault(one.digest, place)
    return sorted(known.values())


def glance(source: Source, seed: int = 0) -> Findings:
    """A quick part: files that share their size in bytes with another, as copies do, then a seeded choice.

    Headers and content are read, pixels only where a file's end is missing; near duplicates are not looked for.
    Images that are no files are all compared.
    """
    splits = splits_of(source)
    sized = _sizes(splits)
    seen = {}
    for name, split in splits.items():
        if split.paths is None:
            chosen = np.arange(len(split))
        else:
            alike = np.array([index for index, size in enumerate(sized[name]) if size], dtype=np.int64)[:QUICK]
            others = np.random.default_rng(seed).permutation(len(split))
            chosen = np.sort(np.concatenate([alike, others[~np.isin(others, alike)][: QUICK - len(alike)]]))
        seen[name] = look_at(split, chosen, worker_count(0), small=False)
    return add_up(source, seen, [], near=False)


def _sizes(splits: dict[str, Split]) -> dict[str, list[bool]]:
    """Of each file, whether another one has as many bytes."""
    if sum(map(len, splits.values())) > SIZED:
        return {name: [] for name in splits}
    found = {name: _sizes_of(split) for name, split in splits.items()}
    times = Counter(size for sizes in found.values() for size in sizes)
    return {name: [size >= 0 and times[size] > 1 for size in sizes] for name, sizes in found.items()}


def _sizes_of(split: Split) -> Sequence[int]:
    """Bytes of each encoded image; none of an array."""
    if split.stored is not None:
        return split.stored.sizes()
    return [_size(path) for path in split.paths or ()]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 (many paths: strings, not Path objects)
    except OSError:
        return -1


def kept(source: Source, data: Fingerprint) -> Findings | None:
    """What an earlier examination of this very data found; None where there was none, or it cannot be read."""
    try:
        values = json.loads(_place(source, data).read_text(encoding="utf-8", errors="surrogateescape"))
        return Findings.from_dict(values["findings"]) if values["version"] == VERSION else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(source: Source, data: Fingerprint, findings: Findings) -> None:
    """Write findings down for later runs. A cache that cannot be written is not needed."""
    place = _place(source, data)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(place) as temporary:
            text = json.dumps({"version": VERSION, "findings": findings.as_dict()}, ensure_ascii=False)
            temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
    except OSError:
        return


def _place(source: Source, data: Fingerprint) -> Path:
    """By the fingerprint, and by where the data lies: findings name their files."""
    first = "" if source.train.paths is None else source.train.paths[0]
    where = hashlib.blake2b(os.fsencode(first), digest_size=4).hexdigest()
    return cache_folder() / "data-checks" / f"{data.digest}-{where}.json"
