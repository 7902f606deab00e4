"""The torchvision twin of the DALI loader: Pillow decodes, torchvision resizes, a DataLoader's workers do it.

It runs wherever torch does, and it is the referee of the DALI graph in tests: the same schedule and the same training
windows, but its own decoding, and torchvision's own Resize and CenterCrop in evaluation.
"""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional

from engine.config.pixels.image_size import sides
from engine.data.bad_images import BadImage, decode
from engine.data.decoding_watch import DecoderDied
from engine.data.graph import crops
from engine.data.loader import Batch, Loader, Position, Request, Schedule, Window, fill_bad_slots, worker_count
from engine.data.preprocessing import Preprocessing
from engine.data.sixteen_bits import decode_sixteen
from engine.data.sources.reading import Unreachable, Unreadable
from engine.data.sources.source import Split

WORKER_DIED = "DataLoader worker"
"""In the RuntimeError of torch.utils.data for a worker that a signal ended; it has no type of its own."""


class TorchvisionLoader(Loader):
    """See Loader. Worker processes decode; the device normalises."""

    backend = "torchvision"

    def __init__(self, *arguments, **settings) -> None:
        super().__init__(*arguments, **settings)
        config = self.config
        self._pictures = Pictures(self.data, self.schedule, self.preprocessing, self.window, self.flip)
        self._positions = Positions(self.schedule)
        workers = worker_count(config.workers)
        self._loader: DataLoader | None = DataLoader(
            self._pictures,
            sampler=self._positions,
            batch_size=None,  # an item is a batch already
            collate_fn=unchanged,
            num_workers=workers,
            prefetch_factor=max(1, -(-config.prefetch // workers)),
            persistent_workers=True,
            worker_init_fn=leave_signals_to_the_run,
            pin_memory=self.device.type == "cuda",
        )
        self._iterator: Iterator | None = None
        self._next: Position | None = None
        self._mean = 255 * torch.tensor(self.preprocessing.mean, device=self.device).view(-1, 1, 1)
        self._std = 255 * torch.tensor(self.preprocessing.std, device=self.device).view(-1, 1, 1)

    def close(self) -> None:
        """End the workers; harmless when repeated."""
        self._iterator_number += 1
        self._iterator = None
        self._loader = None

    def avoid(self, crashes: Mapping[str, str]) -> None:
        if self.data.paths is not None:  # the workers begin with the first batch, and take this with them
            known = {index: crashes[path] for index, path in enumerate(self.data.paths) if path in crashes}
            self._pictures.crashing |= known

    def _batch(self, position: Position) -> Batch:
        if self._loader is None:
            raise RuntimeError("this loader is closed")
        if self._iterator is None or position != self._next:
            self._positions.start = position
            if self._iterator is None:
                gc.collect()  # a DALI graph that is garbage when workers fork would hang the one that collects it
            self._iterator = iter(self._loader)  # the workers stay, what they had prepared is dropped
        self.note(self._ahead(position))
        try:
            images, slots, good, found = next(self._iterator)
        except RuntimeError as error:
            if WORKER_DIED not in str(error):
                raise
            signal = str(error).partition("by signal: ")[2].partition(".")[0].strip() or "ended without a word"
            if self.watch is not None:
                self.watch.worker_died(signal)
            raise DecoderDied(
                f"a process that decodes images died ({signal}); go on with --resume RUN_FOLDER, "
                "which tries the images that it had, one by one, and leaves out what crashes"
            ) from None
        self._next = self.schedule.following(position)
        request = self.schedule.request(position)
        bad = {int(request.share.indices[slot]): image for slot, image in found.items()}
        self._report(bad)
        images = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        if self.augmentation is None:
            images = ((images - self._mean) / self._std).to(self.dtype)
        return self._assemble(request, images, request.share.indices[slots], good, bad)

    def _ahead(self, position: Position) -> Iterator[Request]:
        """What the workers may have: the batch at `position` and those that are prepared behind it."""
        assert self._loader is not None
        following: Position | None = position
        for _ in range(1 + self._loader.num_workers * (self._loader.prefetch_factor or 1)):
            if following is not None:
                yield self.schedule.request(following)
                following = self.schedule.following(following)


class Positions:
    """Positions from `start` on, as a sampler that a DataLoader asks anew at every restart."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.start = Position(0, 0)

    def __iter__(self) -> Iterator[Position]:
        position: Position | None = self.start
        while position is not None:
            yield position
            position = self.schedule.following(position)


def leave_signals_to_the_run(worker: int) -> None:
    """Ignore stop signals in a worker: they reach the whole process group or job, and the run finishes its step first.

    torch's own handler would end the worker, and with it the run (DataLoader/signal handling). A worker ends when the
    loader says so, or within seconds of the run's process.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def unchanged(item: Any) -> Any:
    """In place of DataLoader's own conversion, which would turn arrays into tensors."""
    return item


class Pictures(Dataset):
    """Finished batches by position, before normalisation; runs in the workers."""

    def __init__(
        self,
        data: Split,
        schedule: Schedule,
        preprocessing: Preprocessing,
        window: Window,
        flip: bool,
    ) -> None:
        self.data, self.schedule, self.preprocessing = data, schedule, preprocessing
        self.window, self.flip = window, flip
        self.crashing: dict[int, str] = {}
        """Images on which a decoder crashed before, with the reason; empty where Pillow decodes them, as here."""

    def __getitem__(self, position: Position) -> tuple[torch.Tensor, np.ndarray, np.ndarray, dict[int, BadImage]]:
        """The batch at `position`.

        returns  uint8 [m, height, width, C], or float32 of 0 to 255 where 16 bits are kept; int64 [m] slot whose image
                 is shown in each slot; bool [m] whether that is its own; the bad images by slot
        """
        request = self.schedule.request(position)
        indices = request.share.indices
        pictures: list[torch.Tensor | None] = []
        bad: dict[int, BadImage] = {}
        for slot, index in enumerate(indices.tolist()):
            try:
                picture = self._load(index)
            except Unreadable as error:
                bad[slot] = BadImage(self.data.path(index), str(error), isinstance(error, Unreachable))
                pictures.append(None)
            else:
                pictures.append(self._cut(picture, request.draws[slot] if len(request.draws) else None))
        filling = fill_bad_slots(indices, {int(indices[slot]) for slot in bad})
        if filling is None:
            shape = len(indices), *sides(self.preprocessing.image_size), self.preprocessing.channels
            black = torch.zeros(shape, dtype=torch.float32 if self.deep else torch.uint8)
            return black, np.arange(len(indices)), np.zeros(len(indices), dtype=bool), bad
        slots, good = filling
        return torch.stack([pictures[slot] for slot in slots.tolist()]), slots, good, bad

    @property
    def deep(self) -> bool:
        """Whether 16 bits are kept."""
        return self.data.encoded and self.preprocessing.bits == 16

    def _load(self, index: int) -> Image.Image | torch.Tensor:
        """Pillow's, or where 16 bits are kept float32 [C, H, W] of 0 to 255."""
        channels = self.preprocessing.channels
        if not self.data.encoded:
            pixels = self.data.pixels(index, channels)
            return Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
        if reason := self.crashing.get(index):
            raise Unreadable(reason)
        if self.deep:
            pixels = decode_sixteen(self.data.read(index), channels)
            return torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32)) / 257
        return decode(self.data.read(index), channels)

    def _cut(self, picture: Image.Image | torch.Tensor, draws: np.ndarray | None) -> torch.Tensor:
        """[height, width, C] of what the network sees, mirrored or not."""
        cut = self._window_of(picture, draws)
        if isinstance(cut, torch.Tensor):
            return cut.permute(1, 2, 0).clamp(0, 255)
        return torch.from_numpy(np.array(cut, copy=True).reshape(*cut.size[::-1], -1))

    def _window_of(self, picture: Image.Image | torch.Tensor, draws: np.ndarray | None) -> Any:
        wanted = self.preprocessing
        sizes = np.array([functional.get_size(picture)])
        size, filtered = list(sides(wanted.image_size)), functional.InterpolationMode(wanted.interpolation)
        if draws is None:
            if isinstance(wanted.image_size, int):
                resized = [crops.resized_shorter_side(wanted.image_size, wanted.eval_crop)]
            else:
                source = sizes.astype(np.float64)
                resized = crops.resized_sizes(source, wanted.image_size, wanted.eval_crop)[0].astype(int).tolist()
            return functional.center_crop(functional.resize(picture, resized, filtered, antialias=True), size)
        start, shape = self.window(sizes, draws[None])
        picture = functional.resized_crop(
            picture, *start[0].tolist(), *shape[0].tolist(), size, filtered, antialias=True
        )
        return functional.horizontal_flip(picture) if self.flip and draws[4] < 0.5 else picture
