"""`launch/shard.py`: shards made of any data that trains, verified, and unpacked."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from engine.config import command_line, require
from engine.config.byte_sizes import gib, parse_bytes
from engine.config.flag import Positional


@dataclass(frozen=True)
class ShardConfig:
    """What is done, with which data."""

    action: Annotated[Literal["make", "verify", "unpack"], Positional]
    """make: shards of DATA in OUTPUT; verify: the shards of DATA; unpack: DATA's images as class folders in OUTPUT."""
    data: Annotated[Path, Positional]
    """For make, images in any layout that --data.root takes; else a folder of shards, or one .tar."""
    output: Annotated[Path | None, Positional] = None
    """A new folder; one that was stopped goes on with the same command."""
    shard_size: str = "256MiB"
    """Bytes of a shard, about, as in 64MiB or 1GiB."""
    workers: int = 0
    """Threads; 0 is two a core, at most 16."""
    val_share: float = 0.2
    """Share of each class that is held out where the data has no val split."""
    split_seed: int = 0
    """Seed of that choice."""
    group_by: str = ""
    """Pattern whose first group (or whole match) in a path names the image's group, as in training."""
    columns: str = ""
    """Columns of a list by what they hold, as 'path=file,label=breed'; empty is guessed and said."""

    def __post_init__(self) -> None:
        require(self.workers >= 0, f"--workers must be 0 (two a core) or more, not {self.workers}")
        require(0 < self.val_share < 1, f"--val-share must be above 0 and below 1, not {self.val_share}")
        require(parse_bytes(self.shard_size) >= 1, f"--shard-size must be above 0, not {self.shard_size}")
        needs = self.action != "verify"
        require(not needs or self.output is not None, f"{self.action} needs DATA and OUTPUT, a new folder")

    @property
    def threads(self) -> int:
        """Threads to work with."""
        return self.workers or min(16, 2 * (os.cpu_count() or 1))


def parse(arguments: list[str] | None = None) -> ShardConfig:
    """What is asked for. Raises ConfigError as `command_line`."""
    return command_line(ShardConfig, arguments, "Make, verify or unpack tar shards of images.")


class Bar:
    """Progress in images or bytes on a terminal."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self._bar: Any = None

    def begin(self, total: int, done: int = 0) -> None:
        """The whole of it is known."""
        from tqdm import tqdm

        quiet = not sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=done, unit=self.unit, unit_scale=self.unit == "B", disable=quiet, leave=False
        )
        if done:
            print(f"going on after {done} of {total} images", flush=True)

    def advance(self, count: int) -> None:
        """So much more is done."""
        self._bar.update(count)

    def close(self) -> None:
        """Take it off the screen."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def shown(unit: str) -> Iterator[Bar]:
    """A bar that goes when the work ends."""
    bar = Bar(unit)
    try:
        yield bar
    finally:
        bar.close()


def run(config: ShardConfig) -> int:
    """Do it; returns the exit code, 1 where a verified shard is wrong. Raises DataError and CannotWrite."""
    return {"make": _make, "verify": _verify, "unpack": _unpack}[config.action](config)


def _make(config: ShardConfig) -> int:
    from engine.data.shards.write import make_shards
    from engine.data.sources.found import Wanted
    from engine.data.sources.open import open_source

    wanted = Wanted(config.val_share, config.split_seed, config.group_by, config.columns)
    source = open_source("folder", config.data, wanted=wanted)
    output = config.output
    assert output is not None  # checked with the flags
    with shown("img") as bar:
        made, bad = make_shards(source, output, parse_bytes(config.shard_size), config.threads, bar.begin, bar.advance)
    for path, reason in list(bad.items())[:10]:
        print(f"left out: {path} ({reason})")
    images, size = sum(one.images for one in made), sum(one.bytes for one in made)
    print(f"{images} images of {len(source.classes)} classes in {len(made)} shards, {gib(size)}, in {output}")
    print(f"left out, as they could not be read: {len(bad)}" if bad else f"train on them: --data.root {output}")
    return 0


def _verify(config: ShardConfig) -> int:
    from engine.data.shards.check import wrong_shards

    with shown("B") as bar:
        found = list(wrong_shards(config.data, config.threads, bar.begin, bar.advance))
    for line in found:
        print(f"wrong: {line}")
    print(f"{len(found)} wrong" if found else "all shards are whole")
    return int(bool(found))


def _unpack(config: ShardConfig) -> int:
    from engine.data.shards.read import read_shards, shards_in
    from engine.data.shards.unpack import unpack
    from engine.data.sources.source import DataError

    if not config.data.exists() or not shards_in(config.data):
        raise DataError(f"{config.data} holds no .tar shards")
    found = read_shards(config.data)
    output = config.output
    assert output is not None  # as above
    with shown("img") as bar:
        there = unpack(found, output, config.threads, bar.begin, bar.advance)
    count = sum(map(len, found.splits.values()))
    print(f"{count} images in {output}" + (f", {there} of them were there" if there else ""))
    return 0
