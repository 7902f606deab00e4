"""The index of one shard: where each image's bytes lie, its name and label, beside the shard as NAME.tar.index.

It is a NumPy archive without pickles, made by reading the headers once. One that does not fit its shard (another size,
or older) is made again, and kept where the folder can be written.
"""

from __future__ import annotations

import json
import logging
import os
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from engine.data.shards.names import refuse_outside
from engine.data.sources.layouts.columns import NAMES, plain
from engine.data.sources.listing import EXTENSIONS, NOT_READ, is_aside
from engine.data.sources.source import DataError
from engine.data.sources.texts import Texts
from engine.runs.door import CannotWrite, atomic_file

logger = logging.getLogger("hcr")

ENDING = ".index"
BLOCK = 512
LABELS = ("cls", "json", "txt")
"""Members that say an image's label, the first before the others."""
MOST_LABEL_BYTES = 1 << 20


@dataclass(frozen=True)
class ShardIndex:
    """The images of one shard, in its order."""

    members: Texts
    labels: Texts
    """As text; the folder's name where no member says one, empty where there is no folder."""
    offsets: np.ndarray
    """int64 [N], of the bytes in the shard."""
    sizes: np.ndarray
    """int64 [N], bytes."""

    def __len__(self) -> int:
        return len(self.offsets)


def index_of(shard: Path) -> ShardIndex:
    """The index of a shard: that beside it, or a new one where there is none or it is not the shard's.

    Raises DataError for a shard that is cut, not a plain tar, or has a member that is refused or there twice.
    """
    found = _kept(shard)
    if found is not None:
        return found
    made = scanned(shard)
    with suppress(CannotWrite, OSError):  # a folder that is read only: it is made again next time
        write_index(shard, made)
    return made


def index_path(shard: Path) -> Path:
    """Where a shard's index lies."""
    return shard.with_name(shard.name + ENDING)


def write_index(shard: Path, index: ShardIndex) -> None:
    """Keep the index beside its shard. Raises CannotWrite."""
    arrays = {"offsets": index.offsets, "sizes": index.sizes, "tar_size": np.int64(shard.stat().st_size)}
    for name, texts in (("members", index.members), ("labels", index.labels)):
        arrays[name] = np.frombuffer(bytes(texts.blob), np.uint8)
        arrays[f"{name}_ends"] = texts.ends
    with atomic_file(index_path(shard)) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def _kept(shard: Path) -> ShardIndex | None:
    """What lies beside the shard; None where that is not there, damaged, or of another shard."""
    path = index_path(shard)
    try:
        about, tar = path.stat(), shard.stat()
    except OSError:
        return None
    try:
        with np.load(path, allow_pickle=False) as kept:
            if int(kept["tar_size"]) != tar.st_size or about.st_mtime_ns < tar.st_mtime_ns:
                logger.info("note: %s is older than %s, or of another one; it is made again", path, shard.name)
                return None
            members, labels = (_texts(kept, name) for name in ("members", "labels"))
            return ShardIndex(members, labels, kept["offsets"], kept["sizes"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        logger.info("note: %s cannot be read (%s); it is made again", path, error)
        return None


def _texts(kept: Any, name: str) -> Texts:
    ends = kept[f"{name}_ends"]
    return Texts(kept[name], np.concatenate([np.zeros(1, np.int64), ends[:-1]])[: len(ends)], ends)


# --- reading the headers -------------------------------------------------------------------------------------------


@dataclass
class Sample:
    """The members of one key."""

    image: tarfile.TarInfo | None = None
    label: tuple[int, tarfile.TarInfo] | None = None
    """Its place in LABELS, and the member."""


def scanned(shard: Path) -> ShardIndex:
    """The images of a shard, from its headers. Raises DataError as `index_of`."""
    try:
        with shard.open("rb") as file:
            members = list(_files(shard, file))
            grouped = any(_parts(member.name)[1] in ("cls", "json") for member in members)
            samples = _samples(shard, members) if grouped else _plain(shard, members)
            labels = [_label(shard, file, key, sample) for key, sample in samples.items()]
    except OSError as error:
        raise DataError(f"{shard} cannot be read: {error.strerror or error}") from None
    images = [sample.image for sample in samples.values() if sample.image is not None]
    if not images:
        raise DataError(f"{shard} holds no images (looked for members ending in {' '.join(EXTENSIONS)})")
    return ShardIndex(
        Texts.of(image.name for image in images),
        Texts.of(labels),
        np.array([image.offset_data for image in images], dtype=np.int64),
        np.array([image.size for image in images], dtype=np.int64),
    )


def _files(shard: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The members that are files, in order. Raises DataError where the shard is cut."""
    size, end = os.fstat(file.fileno()).st_size, 0
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
            for member in archive:
                refuse_outside(member.name, str(shard))
                end = archive.offset
                if member.isreg() and member.offset_data + member.size > size:
                    break
                if member.islnk() or member.issym():
                    raise DataError(f"{shard}: member {member.name!r} is a link; such an archive is not read")
                if member.isreg() and not any(is_aside(part) for part in member.name.split("/")[:-1]):
                    yield member
    except tarfile.TarError as error:
        if size == 0 or "unexpected end" not in str(error):
            known = "a compressed archive" if _is_compressed(file) else "no tar"
            raise DataError(f"{shard} is {known} ({error}); shards are plain .tar files") from None
        end = max(end, size + 1)
    if end > size:
        raise DataError(f"{shard} is cut: it has {size} bytes, and its last member goes on; fetch or make it again")
    file.seek(end)
    tail = file.read(BLOCK)
    if any(tail):  # tarfile takes a header that is cut or damaged for the archive's end
        kind = "cut" if len(tail) < BLOCK else "damaged"
        raise DataError(f"{shard} is {kind}: it has {size} bytes, and no member at byte {end}; fetch or make it again")
    if len(tail) < BLOCK:
        logger.info("note: %s has no mark at its end; it may be cut between two members", shard)


def _is_compressed(file: BinaryIO) -> bool:
    file.seek(0)
    return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))


def _parts(name: str) -> tuple[str, str]:
    """(key, ending in small letters) as WebDataset cuts a name: at the first dot of its last part."""
    folder, slash, file = name.rpartition("/")
    stem, _, ending = file.partition(".")
    return folder + slash + stem, ending.lower()


def _samples(shard: Path, members: list[tarfile.TarInfo]) -> dict[str, Sample]:
    samples: dict[str, Sample] = {}
    for member in members:
        key, ending = _parts(member.name)
        sample = samples.setdefault(key, Sample())
        if f".{ending}" in EXTENSIONS:
            if sample.image is not None:
                raise DataError(
                    f"{shard}: key {key!r} has two images, {sample.image.name} and {member.name}; which is meant?"
                )
            sample.image = member
        elif ending in LABELS:
            place = LABELS.index(ending)
            if sample.label is not None and sample.label[0] == place:
                raise DataError(f"{shard}: key {key!r} is there twice ({member.name})")
            if sample.label is None or place < sample.label[0]:
                sample.label = place, member
    return {key: sample for key, sample in samples.items() if sample.image is not None}


def _plain(shard: Path, members: list[tarfile.TarInfo]) -> dict[str, Sample]:
    """An archive of class folders: every image counts, whatever its name."""
    samples: dict[str, Sample] = {}
    for member in members:
        ending = os.path.splitext(member.name)[1].lower()  # noqa: PTH122 (a name, not a path here)
        if member.name.rpartition("/")[2].startswith(".") or ending not in EXTENSIONS or ending in NOT_READ:
            continue
        if member.name in samples:
            raise DataError(f"{shard}: {member.name!r} is there twice")
        samples[member.name] = Sample(member)
    return samples


def _label(shard: Path, file: BinaryIO, key: str, sample: Sample) -> str:
    """Of the sample's own member, else its folder's name; empty where there is neither."""
    if sample.label is None:
        return key.rpartition("/")[0].rpartition("/")[2]
    place, member = sample.label
    if member.size > MOST_LABEL_BYTES:
        raise DataError(f"{shard}: {member.name} has {member.size} bytes, which is no label")
    file.seek(member.offset_data)
    data = file.read(member.size)
    text = data.decode("utf-8", "surrogateescape").strip()
    if LABELS[place] == "json":
        text = _json_label(shard, member.name, text)
    if not text:
        raise DataError(f"{shard}: {member.name} is empty; expected a class")
    return text


def _json_label(shard: Path, name: str, text: str) -> str:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise DataError(f"{shard}: {name} is no JSON ({error})") from None
    values = {key: value for key, value in row.items() if plain(key) in NAMES["label"]} if isinstance(row, dict) else {}
    values = {key: value for key, value in values.items() if isinstance(value, int | str)}
    if len(values) != 1:
        there = f"{' and '.join(values)} could each be the label" if values else "it has no label"
        raise DataError(f"{shard}: {name}: {there}")
    return str(next(iter(values.values())))
