"""MNIST from the four idx files of its authors (LeCun, Cortes & Burges 1998), in torchvision's layout."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from engine.data.sources.download import fetch_once
from engine.data.sources.source import DataError, Source, Split

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "val": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
MEAN = 0.1307
STD = 0.3081


def open_mnist(root: Path, *, download: bool = True) -> Source:
    """MNIST in root/MNIST/raw, plain or gzipped: 60,000 training and 10,000 test images of 28×28, the latter as val.

    Raises DataError, naming the folder, where files are missing and cannot be fetched, or are not what they should be.
    """
    raw = root / "MNIST" / "raw"

    def missing() -> list[str]:
        return [name for pair in FILES.values() for name in pair if not _path(raw, name).is_file()]

    if missing():
        expected = f"{raw} with the files {', '.join(name for pair in FILES.values() for name in pair)} (or .gz)"
        fetch_once("mnist", root, expected, _fetch, missing, download)
    splits = {}
    for split, (images_name, labels_name) in FILES.items():
        images = read_idx(_path(raw, images_name), dimensions=3)
        labels = read_idx(_path(raw, labels_name), dimensions=1)
        if len(images) != len(labels) or not len(images):
            raise DataError(f"{raw}: {images_name} has {len(images)} images and {labels_name} {len(labels)} labels")
        if labels.max() > 9:
            raise DataError(f"{raw / labels_name} has label {labels.max()}; MNIST's labels are 0 to 9")
        splits[split] = Split(labels=labels.astype(np.int64), arrays=images)
    return Source(
        name="mnist",
        classes=[str(digit) for digit in range(10)],
        train=splits["train"],
        val=splits["val"],
        mean=(MEAN,) * 3,
        std=(STD,) * 3,
        flip=False,
        crop_scale=(0.7, 1.0),
        eval_crop=1.0,
    )


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An idx file of unsigned bytes, plain or gzipped: header (0, 0, 8, dimensions, big-endian sizes), then data."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); delete it and fetch it again") from None
    header = 4 + 4 * dimensions
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) < header:
        raise DataError(f"{path} is no idx file of bytes with {dimensions} dimension{'s' if dimensions > 1 else ''}")
    sizes = np.frombuffer(data, dtype=">u4", count=dimensions, offset=4).astype(np.int64)
    if len(data) != header + sizes.prod():
        raise DataError(f"{path} holds {len(data) - header} bytes where its header says {sizes.prod()}; fetch it again")
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(sizes)


def _path(raw: Path, name: str) -> Path:
    """The plain file, or the gzipped one where there is no plain one."""
    return raw / name if (raw / name).is_file() else raw / f"{name}.gz"


def _fetch(root: Path) -> None:
    from torchvision.datasets import MNIST

    MNIST(str(root), download=True)
