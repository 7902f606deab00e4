"""Where labelled images come from: what a source is.

A source lists its images and says how they want to be treated; it decodes nothing. Encoded images are listed by name,
files or what lies in larger ones, and decoded by the loader; small published sets are held as uint8 arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from engine.data.sources.reading import read


class DataError(ValueError):
    """Data that is missing or cannot be meant; the message says what was looked for, where, and what to do."""


class Stored(Protocol):
    """Encoded images inside larger files: members of archives, rows of tables. Threads and processes share one."""

    keys: Sequence[str]
    """N names that are the same wherever the larger files lie."""

    def read(self, index: int) -> bytes:
        """One image's bytes. Raises Unreadable, or Unreachable for what may come back."""

    def sizes(self) -> Sequence[int]:
        """N sizes in bytes."""

    def take(self, places: np.ndarray) -> Stored:
        """Those at `places`, int64 [M]."""


class Pixels(Protocol):
    """Images of a split that were decoded before (engine.data.decoded)."""

    sizes: np.ndarray
    """int32 [N, 2], height and width; 0 of an image that cannot be used."""

    def image(self, index: int) -> np.ndarray:
        """uint8 [H, W, C], in the channels that they were decoded for. Raises Unreadable."""


@dataclass(frozen=True)
class Split:
    """Labelled images, encoded or as one array, never both."""

    labels: np.ndarray
    """int64 [N], an index into the source's classes."""
    paths: Sequence[str] | None = None
    """N names of encoded images: paths of files unless they are in `stored`."""
    arrays: np.ndarray | None = None
    """uint8 [N, H, W] (grey) or [N, H, W, 3] (RGB)."""
    stored: Stored | None = None
    """What the encoded images are read from; None where each is a file."""
    decoded: Pixels | None = None
    """The same images, decoded before; None where they are decoded as they are read."""
    place: str = ""
    """Where its images are, for messages, as `valid/`."""

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

    @property
    def encoded(self) -> bool:
        """Whether images have yet to be decoded."""
        return self.arrays is None and self.decoded is None

    def pixels(self, index: int, channels: int = 3) -> np.ndarray:
        """uint8 [H, W, channels], one image that is not encoded. Raises Unreadable where it could not be decoded."""
        if self.decoded is not None:
            return self.decoded.image(index)
        if channels == 3:
            return self.array(index)
        assert self.arrays is not None
        image = self.arrays[index]
        return image[:, :, None] if image.ndim == 2 else np.asarray(Image.fromarray(image).convert("L"))[:, :, None]

    def read(self, index: int) -> bytes:
        """Encoded bytes of one image. Raises Unreadable where there are none."""
        return read(self.path(index)) if self.stored is None else self.stored.read(index)

    def take(self, places: np.ndarray) -> Split:
        """The images at `places`, int64 [M], in that order."""
        paths: Any = self.paths
        if paths is not None:
            paths = [paths[place] for place in places.tolist()] if isinstance(paths, list) else paths.take(places)
        return Split(
            self.labels[places],
            paths,
            None if self.arrays is None else self.arrays[places],
            None if self.stored is None else self.stored.take(places),
            place=self.place,
        )


@dataclass(frozen=True)
class Source:
    """Splits of images with the same classes, and how they are augmented and normalised."""

    name: str
    classes: list[str]
    """Class names in label order; the order depends on nothing but the names."""
    train: Split
    val: Split
    """Evaluated after each epoch; it chooses the weights that are kept."""
    mean: tuple[float, ...]
    """Mean of each RGB channel, or of grey, on a scale where white is 1."""
    std: tuple[float, ...]
    """Standard deviation of each on the same scale."""
    flip: bool
    """Whether a mirrored image is still an image of its class; a mirrored digit is not."""
    crop_scale: tuple[float, float]
    """Smallest and largest share of the area that a training crop keeps."""
    eval_crop: float
    """Side of the centre crop over the shorter side in evaluation: 0.875 is 224 out of 256."""
    test: Split | None = None
    """Evaluated once, with the weights that are kept; None where there is none."""
    made: dict[str, Any] | None = None
    """How val was taken out of the training images, as split.json holds it; None where it was there."""

    def split(self, name: str) -> Split:
        """By its name. Raises DataError for a test split that is not there."""
        found: Split | None = {"train": self.train, "val": self.val, "test": self.test}[name]
        if found is None:
            raise DataError(f"{self.name} has no {name} split")
        return found
