"""What follows the cut of training images on a CPU: resized, mirrored and normalised by threads, without DALI.

torch's antialiasing resize on uint8 is Pillow's (0.002 grey levels in the mean, bilinear). DALI's on a CPU differs by
0.2 in the mean and a few at most, and an epoch with it took half as long again: `python -m engine.bench.cache_rate`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.config.pixels.image_size import sides
from engine.data.augment.threads import single_threads
from engine.data.preprocessing import Preprocessing

CHUNK = 4
"""Images that one task of a thread takes."""
FILTERS = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
}
"""What torch.nn.functional.interpolate calls, which cannot be told where to write: its result is in planes, and
putting the colours of a pixel side by side again took longer than the resize."""


class Finishing:
    """From windows of any size to the network's.

    raw  leave them as grey levels, for an augmentation that normalises
    """

    def __init__(self, wanted: Preprocessing, raw: bool) -> None:
        self.wanted, self.raw, self.size = wanted, raw, sides(wanted.image_size)
        rows = [np.tile(np.float32(values), self.size[1]) for values in (wanted.mean, wanted.std)]
        self._mean, self._scale = (torch.from_numpy(one) for one in (255 * rows[0], 1 / (255 * rows[1])))  # of a row

    def empty(self, count: int) -> np.ndarray:
        """Room for so many images, [count, height, width, C]: uint8 where they stay raw, else float32."""
        return np.empty((count, *self.size, self.wanted.channels), np.uint8 if self.raw else np.float32)

    def write(self, window: np.ndarray, mirror: bool, into: np.ndarray) -> None:
        """Make an image of a window, uint8 [H, W, C], in one of the places of `empty`."""
        cut = resized(window, self.size, self.wanted.interpolation)
        self.write_cut(mirrored(cut) if mirror else cut, into)

    def write_cut(self, cut: np.ndarray, into: np.ndarray) -> None:
        """The same of an image, uint8 [height, width, C], that has its size."""
        if self.raw:
            into[:] = cut
            return
        rows = torch.from_numpy(into.reshape(len(into), -1))  # long rows: three values to a pixel are not vectorised
        rows.copy_(torch.from_numpy(writable(cut).reshape(rows.shape))).sub_(self._mean).mul_(self._scale)


class FinishingThreads:
    """Finishes batches, some images to a thread."""

    def __init__(self, finishing: Finishing, threads: int) -> None:
        self.finishing, self._threads = finishing, single_threads(threads, "hcr-finish")

    def close(self) -> None:
        """End the threads; harmless when repeated."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __call__(self, windows: Sequence[np.ndarray], mirror: np.ndarray) -> Tensor:
        """[m, C, height, width], channels-last, of m windows, uint8 [H, W, C], and whether each is mirrored."""
        made = self.finishing.empty(len(windows))

        def some(begin: int) -> None:
            for place in range(begin, min(begin + CHUNK, len(windows))):
                self.finishing.write(windows[place], bool(mirror[place]), made[place])

        list(self._threads.map(some, range(0, len(windows), CHUNK)))
        return torch.from_numpy(made).permute(0, 3, 1, 2)


def resized(pixels: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """uint8 [*size, C] of uint8 [H, W, C], by an antialiasing filter, "bilinear" or "bicubic"."""
    if pixels.shape[:2] == size:
        return pixels
    made = np.empty((*size, pixels.shape[2]), np.uint8)
    planes, into = (torch.from_numpy(one).permute(2, 0, 1)[None] for one in (writable(pixels), made))
    FILTERS[interpolation](planes, size, align_corners=False, out=into)
    return made


def writable(pixels: np.ndarray) -> np.ndarray:
    """`pixels` as torch takes them: one after the other, in memory that may be written to."""
    return np.require(pixels, requirements=("C", "W"))


def mirrored(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, C] with left and right exchanged, in memory of its own."""
    return torch.from_numpy(writable(pixels)).flip(1).numpy()
