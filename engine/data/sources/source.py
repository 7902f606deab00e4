"""Where labelled images come from: what a source is, and the one function that opens any of them.

A source lists its images and says how they want to be treated; it decodes nothing. Files are listed by path and
decoded by the loader; small sets that are published as arrays are held as uint8 arrays.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class DataError(ValueError):
    """Data that is missing or cannot be meant; the message says what was looked for, where, and what to do."""


@dataclass(frozen=True)
class Split:
    """Labelled images, as paths of encoded files or as one array, never both."""

    labels: np.ndarray
    """int64 [N], an index into the source's classes."""
    paths: list[str] | None = None
    """N paths of encoded images."""
    arrays: np.ndarray | None = None
    """uint8 [N, H, W] (grey) or [N, H, W, 3] (RGB)."""

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Path of one image of a split of files; raises TypeError for a split that is held as an array."""
        if self.paths is None:
            raise TypeError("this split is held as an array")
        return self.paths[index]

    def array(self, index: int) -> np.ndarray:
        """uint8 [H, W, 3], one image of a split that is held as an array; raises TypeError for a split of files."""
        if self.arrays is None:
            raise TypeError("this split is a list of files")
        image = self.arrays[index]
        return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)


@dataclass(frozen=True)
class Source:
    """Two splits of images with the same classes, and how they are augmented and normalised."""

    name: str
    classes: list[str]
    """Class names in label order; the order depends on nothing but the names."""
    train: Split
    val: Split
    mean: tuple[float, float, float]
    """Mean of each RGB channel, on a scale where white is 1."""
    std: tuple[float, float, float]
    """Standard deviation of each RGB channel on the same scale."""
    flip: bool
    """Whether a mirrored image is still an image of its class; a mirrored digit is not."""
    crop_scale: tuple[float, float]
    """Smallest and largest share of the area that a training crop keeps."""
    eval_crop: float
    """Side of the centre crop over the shorter side in evaluation: 0.875 is 224 out of 256."""


def cache_folder(cache: Path | str | None = None) -> Path:
    """The folder for what is made or downloaded once: `cache`, or $HCR_CACHE, or ~/.cache/hcr."""
    return Path(cache or os.environ.get("HCR_CACHE") or Path.home() / ".cache" / "hcr").expanduser()


def open_source(
    name: str, root: Path | str | None = None, *, download: bool = True, cache: Path | str | None = None
) -> Source:
    """Open `digits`, `mnist`, `cifar10` or `folder`; `auto` is folder where a root is given and digits where none is.

    root      the data: train/ and val/ for folder, torchvision's layout for mnist and cifar10 (none: the cache)
    download  let mnist and cifar10 be fetched where they are missing
    cache     folder for what is made or fetched once; none is $HCR_CACHE, or ~/.cache/hcr

    Raises DataError for an unknown name, and for data that is missing, incomplete or malformed.
    """
    if name == "auto":
        name = "digits" if root is None else "folder"
    if name not in _OPENERS:
        raise DataError(f"there is no source {name!r}; there are {', '.join(_OPENERS)}")
    return _OPENERS[name](None if root is None else Path(root).expanduser(), download, cache_folder(cache))


def _digits(root: Path | None, download: bool, cache: Path) -> Source:
    from engine.data.digits import open_digits

    if root is not None:
        raise DataError(f"digits come with scikit-learn and take no root, but {root} was given; name folder to use it")
    return open_digits(cache)


def _mnist(root: Path | None, download: bool, cache: Path) -> Source:
    from engine.data.mnist import open_mnist

    return open_mnist(root or cache, download=download)


def _cifar10(root: Path | None, download: bool, cache: Path) -> Source:
    from engine.data.cifar10 import open_cifar10

    return open_cifar10(root or cache, download=download)


def _folder(root: Path | None, download: bool, cache: Path) -> Source:
    from engine.data.folder import open_folder

    if root is None:
        raise DataError("folder needs --data.root: a folder with train/ and val/, each with one folder a class")
    return open_folder(root)


_OPENERS: dict[str, Callable[[Path | None, bool, Path], Source]] = {
    "digits": _digits,
    "mnist": _mnist,
    "cifar10": _cifar10,
    "folder": _folder,
}
