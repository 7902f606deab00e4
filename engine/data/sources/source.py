"""Where labelled images come from: what a source is.

A source lists its images and says how they want to be treated; it decodes nothing. Files are listed by path and
decoded by the loader; small sets that are published as arrays are held as uint8 arrays.
"""

from dataclasses import dataclass

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
