"""A teacher's logits of each batch: kept on disk for the same images in the same draws, computed where they are not.

What an image is drawn as is a function of the seed, the epoch and the image, so a place in an epoch's order, under the
same data, augmentation and batch, names it. A file an epoch and rank; one that is damaged or half is none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.runs.door import CannotWrite, atomic_file
from engine.runs.weights_facts import CHECKSUM, checksum
from engine.step.standing import Progress

logger = logging.getLogger("hcr")
AUTO_BYTES = 1 << 30
"""Of a whole run, over all ranks: up to here they are kept without being asked for."""


class LogitsOf:
    """Computes a batch's logits, in pieces of the plan's micro-batch.

    load   makes the teacher, on the device; called when a batch is first needed
    micro  images of a piece, by now: a rescue may lower it
    """

    def __init__(
        self, load: Callable[[], torch.nn.Module], device: torch.device, dtype: torch.dtype, micro: Callable[[], int]
    ) -> None:
        self._load, self._device, self._dtype, self._micro = load, device, dtype, micro
        self._network: torch.nn.Module | None = None

    @torch.no_grad()
    def __call__(self, batch: Any) -> Tensor:
        """float32 [N, classes] on the device."""
        if self._network is None:
            self._network = self._load().to(self._device).to(memory_format=torch.channels_last)
        half = self._dtype != torch.float32
        with torch.autocast(self._device.type, self._dtype, enabled=half):
            return torch.cat([self._network(part) for part in batch.images.split(self._micro())])


class KeptLogits:
    """The same through a folder of files.

    compute   where there is no file
    folder    of this teacher, data, augmentation, seed, batch and rank
    progress  of the run: which epoch and step a batch is of
    steps, share, classes  of an epoch, of a whole batch, of the outputs
    """

    def __init__(
        self,
        compute: Callable[[Any], Tensor],
        folder: Path,
        progress: Progress,
        steps: int,
        share: int,
        classes: int,
        rank: int = 0,
    ) -> None:
        self.compute, self.folder, self.progress, self.rank = compute, folder, progress, rank
        self.shape = steps, share, classes
        self.read = 0
        """Batches that came from a file."""
        self._epoch = -1
        self._known: Tensor | None = None
        self._new: Tensor | None = None
        self._there: set[int] = set()

    def path(self, epoch: int) -> Path:
        """Of the epoch's file."""
        return self.folder / f"epoch-{epoch:05d}-rank-{self.rank}.safetensors"

    def __call__(self, batch: Any) -> Tensor:
        """float32 [N, classes] on the batch's device."""
        progress, count = self.progress, len(batch.images)
        if progress.epoch != self._epoch:
            self._begin(progress.epoch, batch.images.device)
        step = progress.step_in_epoch
        if self._known is not None:
            self.read += 1
            return self._known[step, :count].to(batch.images.device, non_blocking=True)
        logits = self.compute(batch)
        if self._new is not None:
            self._new[step, :count].copy_(logits, non_blocking=True)
            self._there.add(step)
            if len(self._there) == self.shape[0]:
                self._write(logits.device)
        return logits

    def _begin(self, epoch: int, device: torch.device) -> None:
        self._epoch, self._there, self._new = epoch, set(), None
        self._known = self._read(self.path(epoch))
        if self._known is None:
            self._new = torch.zeros(self.shape, pin_memory=device.type == "cuda")
        elif device.type == "cuda":
            self._known = self._known.pin_memory()

    def _read(self, path: Path) -> Tensor | None:
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                logits, said = file.get_tensor("logits"), file.metadata() or {}
        except (SafetensorError, OSError, ValueError):
            said, logits = {}, torch.empty(0)
        if tuple(logits.shape) == self.shape and said.get(CHECKSUM) == checksum({"logits": logits}):
            return logits
        logger.info("the teacher's logits in %s are damaged; they are computed anew", path)
        return None

    def _write(self, device: torch.device) -> None:
        """Keep the epoch; a disk that does not take it costs the file alone."""
        assert self._new is not None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        tensors, self._new = {"logits": self._new}, None
        with _said_once(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(self.path(self._epoch)) as temporary:
                save_file(tensors, temporary, metadata={CHECKSUM: checksum(tensors)})


@contextmanager
def _said_once(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, CannotWrite) as error:
        logger.info("the teacher's logits are not kept in %s: %s", folder, error)
