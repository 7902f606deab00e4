"""Shards of a source: tar files of some size each, made in parallel, whole or not at all, gone on with after a stop.

An image is a member with its bytes as they are, and one with its class's number (.cls), as WebDataset reads it. The
same source and size give the same bytes. Beside each shard lies its index, beside all of them shards.json.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.config.byte_sizes import gib
from engine.data.encoded import encoded_sizes, relative_names
from engine.data.fingerprint import fingerprint_of
from engine.data.shards.index import BLOCK, ShardIndex, index_path, write_index
from engine.data.shards.names import members_of
from engine.data.shards.read import MANIFEST
from engine.data.sources.reading import Unreadable
from engine.data.sources.source import DataError, Source, Split
from engine.data.sources.texts import Texts
from engine.runs.door import CannotWrite, atomic_file, writing
from engine.runs.output import refuse_folder

logger = logging.getLogger("hcr")

JOURNAL = ".making.jsonl"
SPLITS = ("train", "val", "test")
OVERHEAD = 4 * BLOCK
"""Bytes of an image's headers, of its class and of what fills its last block, at the most."""


class Stopped(Exception):
    """Another shard failed, or the person stopped the work."""


@dataclass(frozen=True)
class Piece:
    """A shard that is to be made."""

    file: str
    split: str
    places: np.ndarray
    """int64 [N], of the images of its split."""
    bytes: int
    """At the most."""


@dataclass(frozen=True)
class Made:
    """A shard that was made, as shards.json names it."""

    file: str
    images: int
    bytes: int
    sha256: str


def pieces_of(source: Source, shard_bytes: int) -> list[Piece]:
    """The shards of each split, in order, each of about `shard_bytes` and of at least one image.

    Raises DataError for a source of arrays.
    """
    pieces = []
    for name in SPLITS:
        split = source.test if name == "test" else source.split(name)
        if split is None:
            continue
        if split.paths is None:
            raise DataError(f"{source.name} is held as arrays, which need no shards")
        sizes = np.fromiter(encoded_sizes(split), np.int64, len(split)) + OVERHEAD
        ends = np.cumsum(sizes)
        number, first = 0, 0
        while first < len(sizes):
            before = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + shard_bytes, side="right")))
            size = int(ends[last - 1]) - before + 2 * BLOCK
            pieces.append(Piece(f"{name}-{number:06d}.tar", name, np.arange(first, last), size))
            number, first = number + 1, last
    return pieces


def make_shards(
    source: Source,
    output: Path,
    shard_bytes: int,
    workers: int,
    begin: Callable[[int, int], None] = lambda total, done: None,
    advance: Callable[[int], None] = lambda images: None,
) -> tuple[list[Made], dict[str, str]]:
    """Write the shards of `source` into `output`; returns them, and the images that could not be read, with why.

    begin    told the images in all, and those that an earlier start left done
    advance  told images as they are written; from several threads

    Raises DataError for an output that holds something else, and CannotWrite, with the bytes that are still needed,
    where the disk is full; no half shard is left, and the same call goes on.
    """
    pieces = pieces_of(source, shard_bytes)
    job = hashlib.sha256(json.dumps([asdict(fingerprint_of(source)), shard_bytes]).encode()).hexdigest()
    done, bad = _begun(output, job)
    left = [piece for piece in pieces if piece.file not in done]
    _refuse_small_disk(output, sum(piece.bytes for piece in left))
    total = sum(len(piece.places) for piece in pieces)
    begin(total, total - sum(len(piece.places) for piece in left))
    members = {name: Texts.of(members_of(relative_names(source.split(name)))) for name in {p.split for p in left}}
    lock, stop = threading.Lock(), threading.Event()

    def make(piece: Piece) -> None:
        try:
            made, unreadable = _make(source.split(piece.split), members[piece.split], piece, output, stop, advance)
        except Stopped:
            return
        with lock, (output / JOURNAL).open("a", encoding="utf-8") as journal:
            done[piece.file] = made
            bad.update(unreadable)
            journal.write(json.dumps({**asdict(made), "unreadable": unreadable}) + "\n")

    with ThreadPoolExecutor(workers, thread_name_prefix="hcr-shard") as pool:
        futures = [pool.submit(make, piece) for piece in left]
        try:
            finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
        except OSError as error:
            stop.set()
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                needed = sum(piece.bytes for piece in left if piece.file not in done)
                raise CannotWrite(
                    error.errno or 0,
                    f"{error}; the shards that are left need {needed:,} bytes ({gib(needed)}) in {output}",
                ) from error
            raise
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    made = [done[piece.file] for piece in pieces if done[piece.file].images]
    manifest = {"version": 1, "classes": source.classes, "job": job, "shards": [asdict(one) for one in made]}
    with atomic_file(output / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    (output / JOURNAL).unlink(missing_ok=True)
    return made, bad


def _begun(output: Path, job: str) -> tuple[dict[str, Made], dict[str, str]]:
    """What an earlier start of the same job has made. Raises DataError for another job's folder."""
    refuse_folder(output, "OUTPUT")
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    manifest, journal = output / MANIFEST, output / JOURNAL
    if manifest.is_file():
        raise DataError(f"{output} holds finished shards ({MANIFEST}); verify them, or give another folder")
    if not journal.is_file():
        if any(output.iterdir()):
            raise DataError(f"{output} is not empty; give a new folder for the shards")
        journal.write_text(json.dumps({"job": job}) + "\n", encoding="utf-8")
        return {}, {}
    rows = list(_rows(journal))
    if not rows or rows[0].get("job") != job:
        raise DataError(
            f"{output} holds shards half made of other images or of another size; give another folder, or delete it"
        )
    for stray in output.glob(".*.tmp"):
        stray.unlink(missing_ok=True)
    done, bad = {}, {}
    for row in rows[1:]:
        bad_here = row.pop("unreadable", {})
        made = Made(**row)
        path = output / made.file
        if not made.images or (path.is_file() and path.stat().st_size == made.bytes and index_path(path).is_file()):
            done[made.file] = made
            bad |= bad_here
    return done, bad


def _rows(journal: Path) -> Iterator[dict[str, Any]]:
    """The journal's rows; a last one that is torn is none."""
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


def _refuse_small_disk(output: Path, needed: int) -> None:
    free = shutil.disk_usage(output).free
    if needed > free:
        raise DataError(
            f"the shards that are left need {needed:,} bytes ({gib(needed)}), and {free:,} ({gib(free)}) are free in "
            f"{output}"
        )


def _make(
    split: Split, members: Texts, piece: Piece, output: Path, stop: threading.Event, advance: Callable[[int], None]
) -> tuple[Made, dict[str, str]]:
    """One shard and its index, and the images that could not be read. Raises Stopped."""
    kept: list[int] = []
    offsets, sizes = [], []
    bad: dict[str, str] = {}
    digest, position = hashlib.sha256(), 0
    path = output / piece.file
    with atomic_file(path) as temporary:
        with temporary.open("wb") as file:

            def put(name: str, data: bytes) -> int:
                nonlocal position
                info = tarfile.TarInfo(name)
                info.size, info.mode = len(data), 0o644
                head = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
                for part in (head, data, b"\0" * (-len(data) % BLOCK)):
                    file.write(part)
                    digest.update(part)
                start = position + len(head)
                position = start + len(data) + -len(data) % BLOCK
                return start

            for place in piece.places.tolist():
                if stop.is_set():
                    raise Stopped
                try:
                    data = split.read(place)
                except Unreadable as error:
                    bad[split.path(place)] = str(error)
                else:
                    member = members[place]
                    offsets.append(put(member, data))
                    sizes.append(len(data))
                    put(f"{member[: member.index('.', member.rfind('/') + 1)]}.cls", b"%d" % split.labels[place])
                    kept.append(place)
                advance(1)
            end = b"\0" * (2 * BLOCK)
            file.write(end)
            digest.update(end)
        size = position + len(end)
    if not kept:
        path.unlink()
        return Made(piece.file, 0, 0, ""), bad
    labels = Texts.of(str(label) for label in split.labels[kept].tolist())
    index = ShardIndex(
        Texts.of(members.take(np.array(kept))), labels, np.array(offsets, np.int64), np.array(sizes, np.int64)
    )
    write_index(path, index)
    return Made(piece.file, len(kept), size, digest.hexdigest()), bad
