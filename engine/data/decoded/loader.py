"""Batches of images that were decoded before, on a CPU: cut, resized and normalised by threads, without DALI.

They are made as those that DALI decodes on a CPU, and the bytes are the same where the decoders' are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch

from engine.data.augment.threads import single_threads
from engine.data.bad_images import BadImage
from engine.data.graph import crops
from engine.data.graph.finishing import CHUNK, Finishing, resized
from engine.data.loader import Batch, Loader, Position, Request, fill_bad_slots, worker_count
from engine.data.sources.reading import Unreadable


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
        self._finishing = Finishing(wanted, raw=self.augmentation is not None)
        self._size = self._finishing.size

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
        images = self._finishing.empty(count)
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
                self._finishing.write_cut(self._centre(pixels), images[slot])
                continue
            top, left, height, width = windows[slot].tolist()
            mirror = self.flip and request.draws[slot, 4] < 0.5
            self._finishing.write(pixels[top : top + height, left : left + width], mirror, images[slot])
        return wrong

    def _centre(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [height, width, C], what evaluation shows."""
        sizes, wanted = np.array([pixels.shape[:2]], np.float64), self.preprocessing
        size = crops.resized_sizes(sizes, wanted.image_size, wanted.eval_crop)[0]
        top, left = np.rint((size - self._size) / 2).astype(int)
        whole = resized(pixels, (int(size[0]), int(size[1])), wanted.interpolation)
        return whole[top : top + self._size[0], left : left + self._size[1]]
