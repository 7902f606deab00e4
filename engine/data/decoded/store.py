"""The file of decoded images: uint8 RGB or grey, one after the other, at the size that crops are cut from.

An image whose shorter side is at most `cap` is as its file is. A larger one is shrunk to it (cubic, antialiased), so a
training crop of few of its pixels shows less detail than without the cache; how many were shrunk is said.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from engine.data.bad_images import decode, look
from engine.data.sources.reading import Unreachable, Unreadable
from engine.data.sources.source import DataError, Split
from engine.runs.wording import gib

CHUNK = 64
VERSION = 1
T = TypeVar("T")


@dataclass(frozen=True)
class Decoded:
    """A split's decoded images; threads and forked processes share it."""

    pixels: np.ndarray
    """uint8 [bytes], mapped from the file."""
    sizes: np.ndarray
    """int32 [N, 2], height and width; 0 of an image that cannot be used."""
    offsets: np.ndarray
    """int64 [N]."""
    wrong: dict[int, str]
    """Why images cannot be used."""
    shrunk: int
    """Images that are smaller than their files."""
    channels: int = 3

    def image(self, index: int) -> np.ndarray:
        """uint8 [H, W, channels]. Raises Unreadable, as reading the file did."""
        if index in self.wrong:
            raise Unreadable(self.wrong[index])
        height, width = self.sizes[index].tolist()
        begin = int(self.offsets[index])
        shape = height, width, self.channels
        return self.pixels[begin : begin + height * width * self.channels].reshape(shape)


@dataclass(frozen=True)
class Measured:
    """What decoding a split will take, from its headers."""

    sizes: np.ndarray
    """int32 [N, 2], as kept."""
    wrong: dict[int, str]
    shrunk: int
    channels: int = 3

    @property
    def bytes(self) -> int:
        """Of all images decoded."""
        return int(self.sizes.astype(np.int64).prod(axis=1).sum()) * self.channels


def measure(split: Split, cap: int, threads: int, channels: int = 3) -> Measured:
    """Read every header. Raises DataError for a file that the disk does not give: it may be there later."""
    sizes, wrong, shrunk = np.zeros((len(split), 2), np.int32), {}, 0

    def sized(index: int) -> None:
        nonlocal shrunk
        if (header := _usable(split, index, look, wrong)) is None:
            return
        sizes[index] = kept_size(header.height, header.width, cap)
        shrunk += int(min(header.height, header.width) > cap)

    _each(len(split), sized, threads)
    return Measured(sizes, wrong, shrunk, channels)


def _usable(split: Split, index: int, work: Callable[[bytes], T], wrong: dict[int, str]) -> T | None:
    """What `work` makes of an image's bytes; none, and why in `wrong`, where it cannot be used. Raises DataError for a
    file that the disk does not give."""
    try:
        return work(split.read(index))
    except Unreachable as error:
        raise DataError(f"{split.path(index)} cannot be read ({error}), and would be missing in the cache") from None
    except Unreadable as error:
        wrong[index] = str(error)
        return None


def kept_size(height: int, width: int, cap: int) -> tuple[int, int]:
    """Height and width with the shorter side at most `cap`."""
    shorter = min(height, width)
    if shorter <= cap:
        return height, width
    return max(cap, round(height * cap / shorter)), max(cap, round(width * cap / shorter))


def key_of(split: Split, name: str, digest: str, cap: int, channels: int = 3) -> str:
    """A file's name: of the data, the split and how it is kept."""
    labels = hashlib.blake2b(split.labels.tobytes(), digest_size=4).hexdigest()
    grey = "-grey" if channels == 1 else ""
    return f"{digest}-{name}-{labels}-{cap}{grey}-v{VERSION}"


def opened(folder: Path, key: str) -> Decoded | None:
    """What lies in `folder` under that key; None where it is not whole."""
    try:
        with np.load(folder / f"{key}.npz") as index:
            sizes, wrong, reasons = index["sizes"], index["wrong"], index["reasons"]
            shrunk, total = int(index["shrunk"]), int(index["bytes"])
            channels = int(index["channels"]) if "channels" in index else 3
        path = folder / f"{key}.u8"
        if path.stat().st_size != total:
            return None
        pixels = np.asarray(np.memmap(path, np.uint8, "r")) if total else np.zeros(0, np.uint8)
    except (OSError, ValueError, KeyError):
        return None
    reasons_of = dict(zip(wrong.tolist(), reasons.tolist(), strict=True))
    return Decoded(pixels, sizes, _offsets(sizes, channels), reasons_of, shrunk, channels)


def build(split: Split, measured: Measured, folder: Path, key: str, threads: int) -> Decoded:
    """Decode a split into `folder`, whole or not at all.

    Raises DataError where the disk has not the bytes; what was written is removed.
    """
    path = folder / f"{key}.u8"
    drafts = [path.with_suffix(".u8.tmp"), path.with_suffix(".tmp.npz")]
    needed = measured.bytes
    try:
        with drafts[0].open("w+b") as file:
            if needed:  # asked for at once: a mapped page that finds no room would end the process
                os.posix_fallocate(file.fileno(), 0, needed)
                pixels = np.memmap(file, np.uint8, "r+", shape=(needed,))
                wrong = _fill(split, measured, pixels, threads)
                pixels.flush()
                del pixels
            else:
                wrong = measured.wrong
            os.fsync(file.fileno())
        listed = sorted(wrong)
        np.savez(
            drafts[1],
            sizes=measured.sizes,
            wrong=np.array(listed, np.int64),
            reasons=np.array([wrong[index] for index in listed], dtype=str),
            shrunk=measured.shrunk,
            bytes=needed,
            channels=measured.channels,
        )
        drafts[0].replace(path)
        drafts[1].replace(folder / f"{key}.npz")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        free = shutil.disk_usage(folder).free
        raise DataError(
            f"the decoded images need {gib(needed)} in {folder}, where {gib(free)} are free; make room, set HCR_CACHE "
            "to another disk, or use --data.cache off"
        ) from None
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)
    found = opened(folder, key)
    if found is None:
        raise DataError(f"the decoded images in {folder} are gone, just written")
    return found


def _fill(split: Split, measured: Measured, pixels: np.ndarray, threads: int) -> dict[int, str]:
    """Decode every image into its place; returns why images cannot be used."""
    wrong, channels = dict(measured.wrong), measured.channels
    offsets = _offsets(measured.sizes, channels)

    def filled(index: int) -> None:
        if index in wrong:
            return
        if (image := _usable(split, index, lambda data: decode(data, channels), wrong)) is None:
            return
        height, width = measured.sizes[index].tolist()
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        begin = int(offsets[index])
        pixels[begin : begin + height * width * channels] = np.asarray(image).ravel()

    _each(len(split), filled, threads)
    return wrong


def _each(count: int, work: Callable[[int], None], threads: int) -> None:
    def part(begin: int) -> None:
        for index in range(begin, min(begin + CHUNK, count)):
            work(index)

    with ThreadPoolExecutor(max(1, threads)) as pool:
        for _ in pool.map(part, range(0, count, CHUNK)):
            pass


def _offsets(sizes: np.ndarray, channels: int) -> np.ndarray:
    lengths = sizes.astype(np.int64).prod(axis=1) * channels
    return np.cumsum(lengths) - lengths


@contextmanager
def one_at_a_time(folder: Path, key: str) -> Iterator[None]:
    """Inside, no other process of this machine is: the first one builds, the others find it built."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
