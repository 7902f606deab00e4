"""Suite `loader`: images/s of our loader beside torchvision's transforms in a DataLoader, over the same files."""

from __future__ import annotations

import functools
import math
import tarfile
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from engine.bench.instrument.measure import Comparison, interleave, settle
from engine.bench.instrument.options import Options
from engine.bench.instrument.peers import NotAvailable, need
from engine.bench.instrument.rows import Row
from engine.config import AugmentConfig, DataConfig
from engine.data.backend import make_loader
from engine.data.sources.found import MEAN, STD
from engine.data.sources.source import Source, Split
from engine.runs.provenance import ROOT
from engine.step.plan import Hardware

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
NEARBY = ROOT.parent / "shared" / "data" / "photos.tar"
"""Photographs that may lie beside the source tree."""
AUGMENTED = {"policy": "randaugment", "operators": 2, "magnitude": 9, "erasing": 0.25}
"""RandAugment as torchvision has it, and random erasing."""


def rows(options: Options) -> Iterator[Row]:
    """Training crops, such with RandAugment and erasing, and evaluation crops to 224 px, with 2 workers and, on a
    machine with more, with 8."""
    tiny = options.dry_run
    for name, split in (("train", "train"), ("train RandAugment", "train"), ("val", "val")):
        for workers in (1,) if tiny else (2, 8) if _cores() >= 8 else (2,):
            settings = {
                "split": split,
                "image_size": options.image_size or (16 if tiny else 224),
                "batch_size": options.batch_size or (4 if tiny else 32),
                "workers": workers,
                "rounds": options.rounds or (1 if tiny else 9),
                "epochs": 1 if tiny else 4,
            }
            if name == "train RandAugment":
                settings |= {"augment": AUGMENTED}
            yield Row(f"{name} {workers} workers", settings, partial(measure, settings, options), seconds=20.0)


def _cores() -> int:
    from engine.bench.instrument.record import machine

    return machine()["cores"]


def measure(settings: dict[str, Any], options: Options, deadline: float) -> dict[str, Any]:
    """The comparison of one row. Raises NotAvailable without photographs, without DALI or without torchvision."""
    need("torchvision")
    need("nvidia.dali")
    folder = options.photos or (drawn_photos() if options.dry_run else nearby_photos())
    return loader_rate(folder, **settings, deadline=deadline).as_dict()


@functools.cache
def nearby_photos() -> Path:
    """NEARBY unpacked into a temporary folder. Raises NotAvailable where there is none."""
    if not NEARBY.is_file():
        raise NotAvailable("photographs are needed: --photos FOLDER")
    folder = Path(tempfile.mkdtemp(prefix="bench-photos-"))
    with tarfile.open(NEARBY) as archive:
        archive.extractall(folder, filter="data")
    return folder


@functools.cache
def drawn_photos() -> Path:
    """Six small pictures in a temporary folder, for a dry run."""
    from PIL import Image

    folder = Path(tempfile.mkdtemp(prefix="bench-photos-"))
    for number in range(6):
        Image.new("RGB", (40 + number, 30), (number, 90, 10)).save(folder / f"{number}.jpg")
    return folder


def photos(folder: Path) -> Source:
    """Every image below `folder` as one class: for rates, not for training."""
    paths = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"no images below {folder.resolve()}")
    split = Split(labels=np.zeros(len(paths), np.int64), paths=paths, arrays=None)
    return Source("photos", ["photo"], split, split, MEAN, STD, True, (0.08, 1.0), 0.875)


class Pictures(Dataset):
    """Pillow and torchvision's own transforms, as in torchvision's reference training; `augment` as AUGMENTED."""

    def __init__(self, paths: list[str], split: str, image_size: int, augment: dict[str, Any]) -> None:
        from torchvision.transforms import v2

        cut: list[Any] = [v2.RandomResizedCrop(image_size, antialias=True), v2.RandomHorizontalFlip()]
        if split == "val":
            cut = [v2.Resize(round(image_size / 0.875), antialias=True), v2.CenterCrop(image_size)]
        if augment:
            cut.append(v2.RandAugment(augment["operators"], augment["magnitude"]))
        erased = [v2.RandomErasing(augment["erasing"])] if augment else []
        self.paths = paths
        self.transform = v2.Compose(
            [*cut, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD), *erased]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        from PIL import Image

        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


def loader_rate(
    folder: Path,
    split: Literal["train", "val"],
    image_size: int,
    batch_size: int,
    rounds: int,
    workers: int = 2,
    epochs: int = 2,
    deadline: float = math.inf,
    augment: dict[str, Any] | None = None,
) -> Comparison:
    """Images/s of DALI through our loader and of a DataLoader with `workers` processes, `epochs` passes a round.

    augment  fields of `--augment`, of those that AUGMENTED has
    """
    source = photos(folder)
    paths = source.train.paths or []
    device = torch.device(Hardware.detect().type)
    config = DataConfig(name="folder", root=folder, image_size=image_size, backend="dali", workers=workers)
    ours = make_loader(
        source,
        split,
        config=config,
        global_batch=batch_size,
        device=device,
        augment=AugmentConfig(**augment) if augment else None,
    )
    theirs = DataLoader(
        Pictures(paths, split, image_size, augment or {}),
        batch_size,
        shuffle=split == "train",
        num_workers=workers,
        persistent_workers=True,
    )
    turn = iter(range(10**9))

    def dali() -> float:
        first = next(turn) * (epochs + 1)  # not an epoch that an earlier turn read ahead of, while the other was timed
        began, seen = time.perf_counter(), 0
        for epoch in range(first, first + epochs):
            for batch in ours.epoch(epoch):
                seen += batch.count
        rate = seen / (time.perf_counter() - began)
        settle()
        return rate

    def torchvision() -> float:
        began, seen = time.perf_counter(), 0
        for _ in range(epochs):
            for images in theirs:
                seen += len(images.to(device, memory_format=torch.channels_last))
        return seen / (time.perf_counter() - began)

    try:
        return interleave({"DALI": dali, "torchvision DataLoader": torchvision}, rounds, deadline=deadline)
    finally:
        ours.close()
