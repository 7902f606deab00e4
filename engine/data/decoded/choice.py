"""--data.cache: whether a run's images are decoded once and where they are kept, by the memory and disk there are."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import time
from pathlib import Path

import psutil

from engine.config import DataConfig
from engine.config.pixels.image_size import sides
from engine.data.decoded.store import Decoded, Measured, build, key_of, measure, one_at_a_time, opened
from engine.data.fingerprint import Fingerprint
from engine.data.graph.crops import resized_shorter_side
from engine.data.loader import worker_count
from engine.data.sources.source import DataError, Source, Split
from engine.runs.cache import cache_folder
from engine.runs.wording import gib

logger = logging.getLogger("hcr")

SHARED_MEMORY = Path("/dev/shm")
HOST_SHARE = 0.5
"""Of the memory that is free that decoded images may take."""
DETAIL = 2
"""Times the evaluation's shorter side that is kept of a larger image: 512 px for 224 out of 256."""
SPLITS = ("train", "val")


def cap_of(data: DataConfig, eval_crop: float) -> int:
    """Pixels of the shorter side from which on an image is shrunk in the cache."""
    return DETAIL * resized_shorter_side(max(sides(data.side)), eval_crop)


class Kept:
    """The source with its images decoded, and what holds them.

    source   to be read
    choice   what --data.cache came to: off, ram or disk
    """

    def __init__(self, source: Source, choice: str, files: list[Path]) -> None:
        self.source, self.choice, self._files = source, choice, files

    def forget(self) -> None:
        """Once every process has them open, images in memory need no name: they go with the last process."""
        for path in self._files:
            path.unlink(missing_ok=True)
        self._files = []

    def close(self) -> None:
        """At the end, or where a run ends before it began."""
        self.forget()


def decoded_source(source: Source, data: DataConfig, eval_crop: float, print_: Fingerprint) -> Kept:
    """`source` with its train and val images decoded where `data.cache` says so.

    Raises DataError where memory or disk do not suffice, or a file cannot be read.
    """
    if data.cache != "off" and source.train.paths is None:
        logger.info("no cache: %s's images are held decoded in memory anyway", source.name)
    if data.cache == "auto" and data.bits == 16:
        logger.info("no cache: it keeps 8 bits a colour, and these images have 16")
    if data.cache == "off" or source.train.paths is None or data.bits == 16:
        return Kept(source, "off", [])
    cap, threads = cap_of(data, eval_crop), worker_count(data.workers)
    splits = {name: source.split(name) for name in SPLITS}
    keys = {name: key_of(split, name, print_.digest, cap, data.channels) for name, split in splits.items()}
    disk = cache_folder() / "decoded"
    found = {name: opened(disk, key) for name, key in keys.items()} if data.cache != "ram" else {}
    if (
        found
        and all(found.values())
        and not (data.cache == "auto" and any(one.shrunk for one in found.values() if one))
    ):
        return Kept(_with(source, found), "disk", [])
    measured = {name: measure(split, cap, threads, data.channels) for name, split in splits.items()}
    choice = _chosen(data.cache, measured, disk, cap)
    if choice == "off":
        return Kept(source, "off", [])
    folder = disk if choice == "disk" else SHARED_MEMORY
    if choice == "ram":  # of this launch alone: processes of one launcher have one parent
        keys = {name: f"hcr-{os.getppid()}-{key}" for name, key in keys.items()}
    began = time.perf_counter()
    there = {name: _one(splits[name], measured[name], folder, keys[name], threads) for name in SPLITS}
    _tell(there, choice, folder, cap, time.perf_counter() - began)
    files = [folder / f"{key}{end}" for key in keys.values() for end in (".u8", ".npz", ".lock")]
    return Kept(_with(source, there), choice, files if choice == "ram" else [])


def _one(split: Split, measured: Measured, folder: Path, key: str, threads: int) -> Decoded:
    with one_at_a_time(folder, key):
        return opened(folder, key) or build(split, measured, folder, key, threads)


def _with(source: Source, decoded: dict) -> Source:
    changed = {name: dataclasses.replace(source.split(name), decoded=one) for name, one in decoded.items()}
    return dataclasses.replace(source, **changed)


def _chosen(asked: str, measured: dict[str, Measured], disk: Path, cap: int) -> str:
    """ram or disk as asked, where there is room; auto is whichever has, and off rather than other pixels."""
    needed = sum(one.bytes for one in measured.values())
    shrunk = sum(one.shrunk for one in measured.values())
    memory = min(HOST_SHARE * psutil.virtual_memory().available, _free(SHARED_MEMORY))
    room = _free(disk)
    if asked == "auto":
        if shrunk:
            logger.info(
                "no cache: %d images have a shorter side above %d px and would be shrunk to it, as --data.cache ram or "
                "disk does",
                shrunk,
                cap,
            )
            return "off"
        choice = "ram" if needed <= memory else "disk" if needed <= HOST_SHARE * room else "off"
        if choice == "off":
            logger.info("no cache: %s decoded, %s of memory and %s of disk", gib(needed), gib(memory), gib(room))
        return choice
    if asked == "ram" and needed > memory:
        raise DataError(
            f"--data.cache ram: the decoded images need {gib(needed)}, and {gib(memory)} are to be had (half of the "
            f"free memory, and what {SHARED_MEMORY} holds); use --data.cache disk, or off"
        )
    if asked == "disk" and needed > room:
        raise DataError(
            f"--data.cache disk: the decoded images need {gib(needed)} in {disk}, where {gib(room)} are free; make "
            "room, set HCR_CACHE to another disk, or use --data.cache off"
        )
    return asked


def _free(folder: Path) -> int:
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _tell(there: dict[str, Decoded], choice: str, folder: Path, cap: int, seconds: float) -> None:
    images = sum(len(one.sizes) for one in there.values())
    size, shrunk = sum(one.pixels.nbytes for one in there.values()), sum(one.shrunk for one in there.values())
    kept = (
        "as their files are" if not shrunk else f"{shrunk:,} of them shrunk to {cap} px: small crops show less detail"
    )
    where = "in memory" if choice == "ram" else f"in {folder}"
    logger.info("cache: %s images decoded %s, %s, %s (%.1f s)", f"{images:,}", where, gib(size), kept, seconds)
