"""Images/s of the loader beside torchvision's transforms in a PyTorch DataLoader, over the same files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from engine.bench.interleave import Comparison, interleave
from engine.config import DataConfig
from engine.data.folder import MEAN, STD
from engine.data.loader import make_loader
from engine.data.sources import Source, Split

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def photos(folder: Path) -> Source:
    """Every image below `folder` as one class: for rates, not for training."""
    paths = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"no images below {folder.resolve()}")
    split = Split(labels=np.zeros(len(paths), np.int64), paths=paths, arrays=None)
    return Source("photos", ["photo"], split, split, MEAN, STD, True, (0.08, 1.0), 0.875)


class Pictures(Dataset):
    """Pillow and torchvision's own transforms, as in torchvision's reference training."""

    def __init__(self, paths: list[str], split: str, image_size: int) -> None:
        cut = [v2.RandomResizedCrop(image_size, antialias=True), v2.RandomHorizontalFlip()]
        if split == "val":
            cut = [v2.Resize(round(image_size / 0.875), antialias=True), v2.CenterCrop(image_size)]
        self.paths = paths
        self.transform = v2.Compose(
            [*cut, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
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
) -> Comparison:
    """Images/s of DALI through our loader and of a DataLoader with `workers` processes, `epochs` passes a round."""
    source = photos(folder)
    paths = source.train.paths or []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = DataConfig(name="folder", root=folder, image_size=image_size, backend="dali", workers=workers)
    ours = make_loader(source, split, config=config, global_batch=batch_size, device=device, seed=0)
    theirs = DataLoader(
        Pictures(paths, split, image_size),
        batch_size,
        shuffle=split == "train",
        num_workers=workers,
        persistent_workers=True,
    )
    turn = iter(range(10**9))

    def dali() -> float:
        began, seen = time.perf_counter(), 0
        for _ in range(epochs):
            for batch in ours.epoch(next(turn)):
                seen += batch.count
        return seen / (time.perf_counter() - began)

    def torchvision() -> float:
        began, seen = time.perf_counter(), 0
        for _ in range(epochs):
            for images in theirs:
                seen += len(images.to(device, memory_format=torch.channels_last))
        return seen / (time.perf_counter() - began)

    try:
        return interleave({"DALI": dali, "torchvision DataLoader": torchvision}, rounds)
    finally:
        ours.close()
