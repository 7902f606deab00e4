"""Shards looked at again, whole: their bytes against shards.json, their headers against their index."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from engine.data.shards.index import index_of, scanned
from engine.data.shards.read import MANIFEST, read_manifest, shards_in
from engine.data.sources.source import DataError

CHUNK = 1 << 20


def wrong_shards(
    root: Path, workers: int, begin: Callable[[int], None], advance: Callable[[int], None]
) -> Iterator[str]:
    """What is wrong with each shard, in words; nothing where all are whole.

    begin, advance  told bytes: in all, and as they are read

    Raises DataError for a folder without shards, and a damaged shards.json.
    """
    shards, manifest = shards_in(root), read_manifest(root) if root.is_dir() else None
    if not shards:
        raise DataError(f"{root} holds no .tar shards")
    begin(sum(shard.stat().st_size for shard in shards))
    base = root if root.is_dir() else root.parent
    named = {} if manifest is None else manifest.shards
    there = {shard.relative_to(base).as_posix(): shard for shard in shards}
    for name in sorted(set(named) - set(there)):
        yield f"{base / name} is missing"
    if manifest is not None:
        for name in sorted(set(there) - set(named)):
            yield f"{base / name} is not in {MANIFEST}"

    def check(name: str) -> str | None:
        digest = hashlib.sha256()
        with there[name].open("rb") as file:
            while part := file.read(CHUNK):
                digest.update(part)
                advance(len(part))
        expected = named.get(name, {})
        if expected and digest.hexdigest() != expected["sha256"]:
            return f"{there[name]} has other bytes than {MANIFEST} says"
        try:
            found, kept = scanned(there[name]), index_of(there[name])
        except DataError as error:
            return str(error)
        same = list(found.members) == list(kept.members) and list(found.labels) == list(kept.labels)
        if not (same and np.array_equal(found.offsets, kept.offsets) and np.array_equal(found.sizes, kept.sizes)):
            return f"{there[name]} differs from its index; delete that, and it is made again"
        if expected and len(found) != expected["images"]:
            return f"{there[name]} holds {len(found)} images where {MANIFEST} says {expected['images']}"
        return None

    with ThreadPoolExecutor(workers) as pool:
        yield from filter(None, pool.map(check, sorted(there)))
