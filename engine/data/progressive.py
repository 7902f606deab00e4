"""Progressive learning: small images first, larger ones later (Tan and Le, 2021, arXiv:2104.00298, section 4).

The size is a function of the epoch alone, so a resumed run needs no state for it. The paper strengthens dropout and
augmentation along with the size; here the size alone grows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from engine.config import DataConfig
from engine.config.pixels.image_size import sides
from engine.data.bad_images import BadImage
from engine.data.decoding_watch import DecodingWatch
from engine.data.loader import Batch, Loader

MULTIPLE = 8
"""Sizes between the first and the last are rounded to a multiple of this, for even maps."""


def size_at(epoch: int, epochs: int, first: int, last: int, stages: int) -> int:
    """Side in pixels of the training images of a 0-based epoch: `stages` equal parts of the run, evenly growing.

    The paper's algorithm 1: S_i = S_0 + (S_e - S_0) · i / (stages - 1).
    """
    stages = min(stages, epochs)
    stage = min(stages - 1, epoch * stages // epochs)
    if stage == stages - 1:
        return last
    if stage == 0:
        return first
    return round((first + (last - first) * stage / (stages - 1)) / MULTIPLE) * MULTIPLE


class ProgressiveLoader:
    """A training loader whose images grow over the run; to the trainer it is a Loader.

    make    builds a loader for a DataConfig; the one of the current size is alive, no other
    config  the run's data settings: `progressive_from`, `progressive_stages`, `image_size`
    epochs  of the whole run
    """

    def __init__(self, make: Callable[[DataConfig], Loader], config: DataConfig, epochs: int) -> None:
        self._make, self.config, self._epochs = make, config, epochs
        self._on_bad: Callable[[BadImage], None] | None = None
        self._earlier: list[BadImage] = []
        self._watch: DecodingWatch | None = None
        self._crashes: Mapping[str, str] = {}
        self.size = self.size_of(0)
        self._loader = make(replace(config, image_size=self.size))

    def size_of(self, epoch: int) -> int:
        """Side in pixels of the images of a 0-based epoch."""
        config = self.config
        return size_at(epoch, self._epochs, config.progressive_from, max(sides(config.side)), config.progressive_stages)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from `start_step` on, at that epoch's size; see Loader.epoch."""
        if self.size_of(epoch) != self.size:
            self._earlier += self._new(self._loader.bad_images)
            self._loader.close()
            self.size = self.size_of(epoch)
            self._loader = self._make(replace(self.config, image_size=self.size))
            self._loader.on_bad, self._loader.watch = self._tell, self._watch
            self._loader.avoid(self._crashes)
        return self._loader.epoch(epoch, start_step)

    def _new(self, images: list[BadImage]) -> list[BadImage]:
        known = {image.path for image in self._earlier}
        return [image for image in images if image.path not in known]

    def _tell(self, image: BadImage) -> None:
        if self._on_bad is not None and self._new([image]):
            self._on_bad(image)

    @property
    def bad_images(self) -> list[BadImage]:
        """Every unreadable image so far, once, whatever the size at which it was met."""
        return self._earlier + self._new(self._loader.bad_images)

    @property
    def on_bad(self) -> Callable[[BadImage], None] | None:
        """Called with each bad image once."""
        return self._on_bad

    @on_bad.setter
    def on_bad(self, told: Callable[[BadImage], None] | None) -> None:
        self._on_bad = told
        self._loader.on_bad = self._tell

    @property
    def watch(self) -> DecodingWatch | None:
        """Notes what is with the decoder."""
        return self._watch

    @watch.setter
    def watch(self, watch: DecodingWatch | None) -> None:
        self._watch = self._loader.watch = watch

    def avoid(self, crashes: Mapping[str, str]) -> None:
        """Keep images by name from the decoder that crashes on them; see Loader.avoid."""
        self._crashes = crashes
        self._loader.avoid(crashes)

    @property
    def class_counts(self) -> np.ndarray:
        """See Loader.class_counts."""
        return self._loader.class_counts

    @property
    def place(self) -> str:
        """Where its images are, for messages."""
        return self._loader.place

    def unreadable_classes(self) -> list[str]:
        """Classes of which not one image could be read at the current size."""
        return self._loader.unreadable_classes()

    @property
    def backend(self) -> str:
        """Who decodes."""
        return self._loader.backend

    @property
    def steps_per_epoch(self) -> int:
        """Steps of every epoch: the size of the images does not change their number."""
        return self._loader.steps_per_epoch

    def __len__(self) -> int:
        return len(self._loader)

    def close(self) -> None:
        """Close the loader of the current size."""
        self._loader.close()
