"""Batches, and what every loader does whichever library decodes: sampling, positions, bad images.

Whichever decodes (engine.data.backend), the images are the same in the same order with the same crops; only the
decoder and the resize differ, by less than a grey level in the mean.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from engine.data import balance, sampling
from engine.data.bad_images import BadImage
from engine.data.decoding_watch import DecodingWatch
from engine.data.graph import crops
from engine.data.preprocessing import Preprocessing
from engine.data.sending import sent
from engine.data.sources.source import DataError, Source, Split

if TYPE_CHECKING:
    from engine.config import AugmentConfig, DataConfig
    from engine.data.augment.augmentation import Augmentation

logger = logging.getLogger("hcr")

Window = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From sizes and draws to the start and the shape of each image's training window (engine.data.graph.crops)."""
SplitName = Literal["train", "val", "test"]
MOST_WORKERS = 8
CROPS = 1
"""Stream of the crops of images that an epoch shows again."""
BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))
MANY = 8
"""Images from which on a share without one that decodes is no accident."""


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch, on the device, in memory of its own."""

    images: torch.Tensor
    """[N, C, H, W] channels-last in the compute dtype, normalised."""
    labels: torch.Tensor
    """int64 [N], or float32 [N, classes] where images were mixed."""
    weights: torch.Tensor
    """float32 [N], 0 where the image only fills the shape: a repeat in the last batch, or in place of a bad image."""
    global_count: int
    """Images of weight 1 in the whole global batch, before bad images are taken out."""
    count: int
    """The same, of this rank."""
    readable: int
    """Of these, how many could be read."""
    unread: tuple[BadImage, ...] = ()
    """The others."""

    @property
    def gone(self) -> bool:
        """Whether the disk gave none of this rank's share: its images are not there any more."""
        return self.count > 0 and not self.readable and any(bad.transient for bad in self.unread)

    @property
    def lost(self) -> bool:
        """Whether nothing of this rank's random share could be read, and chance is no explanation."""
        return self.gone or (self.count >= MANY and not self.readable)


@dataclass(frozen=True)
class Position:
    """A step of an epoch, both counted from 0."""

    epoch: int
    step: int


@dataclass(frozen=True)
class Request:
    """What a batch is made of: known from its position alone."""

    position: Position
    share: sampling.Share
    draws: np.ndarray
    """float32 [m, 5] uniform in [0, 1), as in sampling.draws; empty in evaluation."""
    numbers: np.ndarray
    """int64 [m], whose random numbers each image has: its own, and others where it stood earlier in this epoch."""


class Schedule:
    """Maps positions to requests for one rank; holds no state that a position does not determine."""

    def __init__(self, sampler: sampling.Sampler, chosen: np.ndarray, n: int) -> None:
        self.sampler, self.chosen, self.n = sampler, chosen, n
        self._draws: tuple[int, np.ndarray] | None = None

    def request(self, position: Position) -> Request:
        """The images of one batch, as indices into the split, with their random numbers."""
        share = self.sampler.share(position.epoch, position.step)
        share = replace(share, indices=self.chosen[share.indices])
        if not self.sampler.shuffle:
            return Request(position, share, np.empty((0, 5), dtype=np.float32), share.indices)
        if self._draws is None or self._draws[0] != position.epoch:
            self._draws = position.epoch, sampling.draws(self.n, self.sampler.seed, position.epoch)
        draws, numbers = self._draws[1][share.indices], share.indices
        if share.repeats is not None and share.repeats.any():
            numbers, again = share.indices + self.n * share.repeats, share.repeats > 0
            own = sampling.numbers_of(numbers[again], 5, self.sampler.seed, position.epoch, CROPS)
            draws[again] = np.minimum(own.astype(np.float32), BELOW_ONE)
        return Request(position, share, draws, numbers)

    def following(self, position: Position) -> Position | None:
        """The next position; after a training epoch the next epoch's first, after an evaluation none."""
        if position.step + 1 < self.sampler.steps_per_epoch:
            return Position(position.epoch, position.step + 1)
        return Position(position.epoch + 1, 0) if self.sampler.shuffle else None


class Loader(ABC):
    """Batches of one split for one rank, forever resumable at any (epoch, step).

    source         what to read; its train split is shuffled and augmented, the others are read in order
    config         the run's data settings (engine.config.DataConfig); the pixels are made as it says, else as the
                   source does
    global_batch   images a step over all ranks
    device, dtype  where the images go and what they become
    seed           of the order and the augmentation
    minimum_share  images that a rank's share is filled up to in the last batch; 2 in training, for BatchNorm
    augment        how training images are changed beside the crop and the mirror image; None is not at all
    epochs         of the run, which say where mixtures of images end
    only           int64 indices of the images of the split that there are; None is all, or `config.limit` of them

    Raises DataError for a batch that the ranks cannot share. `on_bad`, where set, is called with each bad image once;
    `watch` notes what is with the decoder.
    """

    backend: Literal["dali", "torchvision", "torch"]
    """Whose operators make the images; torch's own where nothing is to be decoded."""

    def __init__(
        self,
        source: Source,
        split: SplitName,
        *,
        config: DataConfig,
        global_batch: int,
        device: torch.device | str,
        rank: int = 0,
        world: int = 1,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        minimum_share: int | None = None,
        only: np.ndarray | None = None,
        augment: AugmentConfig | None = None,
        epochs: int = 0,
    ) -> None:
        self.source, self.config, self.device, self.dtype = source, config, torch.device(device), dtype
        self.train = split == "train"
        self.split = split
        self.data: Split = source.split(split)
        chosen = sampling.subset(len(self.data), config.limit if self.train else 0, seed) if only is None else only
        if minimum_share is None:
            minimum_share = 2 if self.train else 1
        drawn = self.data.labels[chosen] if self.train and config.balance == "sampler" else None
        try:
            repeated = augment.repeats if augment else 1
            sampler = sampling.Sampler(
                len(chosen), global_batch, rank, world, seed, self.train, minimum_share, drawn, repeated
            )
        except ValueError as error:
            raise DataError(str(error)) from None
        self.schedule = Schedule(sampler, chosen, len(self.data))
        self.steps_per_epoch = sampler.steps_per_epoch
        self.largest_share = sampler.largest_share
        self.flip = {"auto": source.flip, "on": True, "off": False}[config.flip] and self.train
        self.crop_scale = source.crop_scale if config.crop_scale is None else config.crop_scale
        self.preprocessing = Preprocessing.of(source, config)
        self.window: Window = partial(
            crops.training_window, scale=self.crop_scale, image_size=self.preprocessing.image_size
        )
        self.augmentation: Augmentation | None = None
        if augment is not None and self.train:
            if augment.resolved["crop"] == "fixed":
                self.window = partial(
                    crops.fixed_window, share=self.preprocessing.eval_crop, image_size=self.preprocessing.image_size
                )
            if augment.changes_pixels:
                from engine.data.augment.augmentation import Augmentation  # torchvision takes a second

                threads = worker_count(config.workers)
                self.augmentation = Augmentation(
                    augment, self.preprocessing, len(source.classes), seed, epochs, threads
                )
        self.bad_images: list[BadImage] = []
        self.on_bad: Callable[[BadImage], None] | None = None
        self.watch: DecodingWatch | None = None
        self._reported: set[int] = set()
        self._iterator_number = 0

    def __len__(self) -> int:
        """Images in an epoch, over all ranks."""
        return self.schedule.sampler.n

    @property
    def place(self) -> str:
        """Where its images are, for messages."""
        files = self.data.paths is not None and self.data.stored is None
        return self.data.place or (f"{self.split}/" if files else f"the {self.split} split of {self.source.name}")

    @property
    def class_counts(self) -> np.ndarray:
        """int64 [classes]: images of each class that there are in an epoch, before any balancing."""
        return balance.class_counts(self.data.labels, len(self.source.classes), self.schedule.chosen)

    def note(self, requests: Iterable[Request]) -> None:
        """Let the watch know which files are with the decoder."""
        if self.watch is not None and self.data.paths is not None:
            names = [self.data.path(int(index)) for request in requests for index in request.share.indices]
            self.watch.note(self.split, names)

    @abstractmethod
    def avoid(self, crashes: Mapping[str, str]) -> None:
        """Keep images, by name, from a decoder that crashes on them: bad for a reason, Pillow's where it is empty."""

    def unreadable_classes(self) -> list[str]:
        """Classes of which not one image could be read so far, by this process."""
        images = np.bincount(self.data.labels, minlength=len(self.source.classes))
        bad = np.bincount(self.data.labels[sorted(self._reported)], minlength=len(images))
        return [self.source.classes[label] for label in np.flatnonzero((images > 0) & (images == bad))]

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from `start_step` on; an iterator may be left at any point.

        Raises DataError in mode `error` at the first batch with a bad image, naming all of that batch, and
        RuntimeError for a step of an iterator after a newer one has been started on this loader.
        """
        self._iterator_number += 1
        number = self._iterator_number
        for step in range(start_step, self.steps_per_epoch):
            if number != self._iterator_number:
                raise RuntimeError("this epoch's iterator was left for a newer one of the same loader")
            yield self._batch(Position(epoch, step))

    @abstractmethod
    def _batch(self, position: Position) -> Batch:
        """The batch at `position`, while those that follow are prepared."""

    @abstractmethod
    def close(self) -> None:
        """Stop threads and processes and free what is held; the loader is not used afterwards."""

    def _report(self, bad: dict[int, BadImage]) -> None:
        """Record a delivered batch's bad images, by index; raises DataError in mode `error`."""
        if bad and self.config.on_bad_image == "error":
            listed = "\n".join(f"  {image.path}: {image.reason}" for image in bad.values())
            raise DataError(
                f"{len(bad)} image{'s' if len(bad) > 1 else ''} of this batch cannot be decoded:\n{listed}\n"
                "Repair or remove them, or let them be left out with --data.on-bad-image skip"
            )
        for index, image in bad.items():
            if index in self._reported:
                continue
            self._reported.add(index)
            self.bad_images.append(image)
            if self.on_bad is not None:
                self.on_bad(image)

    def _assemble(
        self, request: Request, images: torch.Tensor, filled: np.ndarray, good: np.ndarray, bad: dict[int, BadImage]
    ) -> Batch:
        """A batch from finished images; `filled` is the image shown in each slot, `good` whether it is its own.

        images  [m, C, H, W], finished, or uint8 where there is an augmentation
        bad     the images that could not be read, by index
        """
        share = request.share
        labels = sent(torch.from_numpy(self.data.labels[filled]), self.device)
        if self.augmentation is not None:
            position = request.position
            where = sampling.Where(position.epoch, position.step, np.where(good, request.numbers, filled), share.count)
            images, labels = self.augmentation(images, labels, where, self.dtype)
        return Batch(
            images=images,
            labels=labels,
            weights=sent(torch.from_numpy(share.weights * good.astype(np.float32)), self.device),
            global_count=share.global_count,
            count=share.count,
            readable=int((share.weights * good).sum()),
            unread=tuple(bad.values()),
        )


def fill_bad_slots(indices: np.ndarray, bad: Container[int]) -> tuple[np.ndarray, np.ndarray] | None:
    """Put the share's first good image into the slots of bad ones.

    returns  int64 [m] slot whose image is shown in each slot, and bool [m] whether that is its own; None if all are bad
    """
    good = np.array([index not in bad for index in indices.tolist()], dtype=bool)
    if not good.any():
        return None
    return np.where(good, np.arange(len(indices)), int(np.argmax(good))), good


def worker_count(configured: int) -> int:
    """Threads or processes to decode with; 0 is one for each core that this rank can have, at most 8."""
    if configured:
        return configured
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
