"""Batches of images that were decoded before, on a CPU: cut, resized and normalised by threads, without DALI.

Once nothing is decoded the resize is what an epoch takes. torch's own on uint8 is the one of Pillow (0.002 grey levels
in the mean, bilinear) and three times as fast as DALI's on a CPU, from which it differs by 0.2 in the mean and 2 at
most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch

from engine.config.pixels.image_size import sides
from engine.data.augment.threads import single_threads
from engine.data.bad_images import BadImage
from engine.data.graph import crops
from engine.data.loader import Batch, Loader, Position, Request, fill_bad_slots, worker_count
from engine.data.sources.reading import Unreadable

CHUNK = 4
"""Images that one task of a thread takes."""
FILTERS = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
}
"""What torch.nn.functional.interpolate calls, which cannot be told where to write: its result is in planes, and
putting the colours of a pixel side by side again took longer than the resize."""


@dataclass(frozen=True)
class Making:
    """A batch on its way."""

    request: Request
    images: np.ndarray
    """[m, height, width, C], uint8 or float32, written by the tasks."""
    tasks: list[Future]
    """Each gives why images cannot be used, by their slots."""


class DecodedLoader(Loader):
    """See Loader; for splits that are decoded and devices that are CPUs, in DALI's place."""

    backend = "torch"

    def __init__(self, *arguments, **settings) -> None:
        super().__init__(*arguments, **settings)
        self._threads = single_threads(worker_count(self.config.workers), "hcr-cut")
        self._flight: deque[Making] = deque()
        wanted = self.preprocessing
        self._size = sides(wanted.image_size)
        rows = [np.tile(np.float32(values), self._size[1]) for values in (wanted.mean, wanted.std)]
        self._mean, self._scale = (torch.from_numpy(one) for one in (255 * rows[0], 1 / (255 * rows[1])))  # of a row

    def close(self) -> None:
        """End the threads; harmless when repeated."""
        self._iterator_number += 1
        self._flight.clear()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def avoid(self, crashes: Mapping[str, str]) -> None:
        """Nothing: no decoder sees its images."""

    def _batch(self, position: Position) -> Batch:
        if not self._flight or self._flight[0].request.position != position:
            self._flight.clear()
            self._flight.append(self._start(position))
        self._look_ahead()
        making = self._flight.popleft()
        wrong = {slot: reason for task in making.tasks for slot, reason in task.result().items()}
        indices = making.request.share.indices
        bad = {int(indices[slot]): BadImage(self.data.path(int(indices[slot])), why) for slot, why in wrong.items()}
        self._report(bad)
        filling = fill_bad_slots(indices, bad)
        if filling is None:
            slots, good = np.arange(len(indices)), np.zeros(len(indices), dtype=bool)
        else:
            slots, good = filling
            if wrong:
                making.images[list(wrong)] = making.images[slots[list(wrong)]]
        self._look_ahead()
        images = torch.from_numpy(making.images).permute(0, 3, 1, 2)
        images = images if self.augmentation is not None else images.to(self.dtype)
        return self._assemble(making.request, images, indices[slots], good, bad)

    def _look_ahead(self) -> None:
        """Keep `prefetch` batches on their way."""
        while self._flight and len(self._flight) <= self.config.prefetch:
            following = self.schedule.following(self._flight[-1].request.position)
            if following is None:
                return
            self._flight.append(self._start(following))

    def _start(self, position: Position) -> Making:
        request = self.schedule.request(position)
        count = len(request.share.indices)
        shape = count, *self._size, self.preprocessing.channels
        images = np.empty(shape, np.float32 if self.augmentation is None else np.uint8)
        windows = self._windows(request) if len(request.draws) else None
        chunks = [range(begin, min(begin + CHUNK, count)) for begin in range(0, count, CHUNK)]
        return Making(
            request, images, [self._threads.submit(self._fill, request, images, windows, chunk) for chunk in chunks]
        )

    def _windows(self, request: Request) -> np.ndarray:
        """int64 [m, 4], top, left, height and width of each training window: cheaper together than one by one."""
        assert self.data.decoded is not None
        sizes = np.maximum(self.data.decoded.sizes[request.share.indices], 1)
        return np.concatenate(self.window(sizes, request.draws), axis=1)

    def _fill(
        self, request: Request, images: np.ndarray, windows: np.ndarray | None, slots: Sequence[int]
    ) -> dict[int, str]:
        """Make the images of these slots, in a thread; returns why some cannot be."""
        wrong = {}
        for slot in slots:
            try:
                pixels = self.data.pixels(int(request.share.indices[slot]), self.preprocessing.channels)
            except Unreadable as error:
                wrong[slot] = str(error)
                images[slot] = 0
                continue
            if windows is None:
                cut = self._centre(pixels)
            else:
                top, left, height, width = windows[slot].tolist()
                cut = resized(
                    pixels[top : top + height, left : left + width], self._size, self.preprocessing.interpolation
                )
                if self.flip and request.draws[slot, 4] < 0.5:
                    cut = mirrored(cut)
            self._finish(cut, images[slot])
        return wrong

    def _centre(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [height, width, C], what evaluation shows."""
        sizes, wanted = np.array([pixels.shape[:2]], np.float64), self.preprocessing
        height, width = crops.resized_sizes(sizes, wanted.image_size, wanted.eval_crop)[0]
        top, left = np.rint((np.array([height, width]) - self._size) / 2).astype(int)
        whole = resized(pixels, (int(height), int(width)), self.preprocessing.interpolation)
        return whole[top : top + self._size[0], left : left + self._size[1]]

    def _finish(self, cut: np.ndarray, into: np.ndarray) -> None:
        """Write `cut` there, normalised unless an augmentation does that."""
        if self.augmentation is not None:
            into[:] = cut
            return
        rows = torch.from_numpy(into.reshape(len(into), -1))  # long rows: three values to a pixel are not vectorised
        rows.copy_(torch.from_numpy(writable(cut).reshape(rows.shape))).sub_(self._mean).mul_(self._scale)


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
