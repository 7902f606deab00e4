"""The loop that a person would write: no metrics, no log, no stop signal, no weights for the tail, autocast by hand."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from engine.config import OptimConfig
from engine.data.loader import Batch
from engine.optim import build_optimizer

CLASSES = 10


class ReadyBatches:
    """The same batches in memory, again and again: what is timed is the loop."""

    backend = "memory"

    def __init__(self, steps: int, batch_size: int, image_size: int, dtype: torch.dtype, device: torch.device) -> None:
        torch.manual_seed(0)
        shape = (batch_size, 3, image_size, image_size)
        self.batches = [
            Batch(
                images=torch.randn(shape).to(device, dtype, memory_format=torch.channels_last),
                labels=torch.randint(CLASSES, (batch_size,), device=device),
                weights=torch.ones(batch_size, device=device),
                global_count=batch_size,
                count=batch_size,
            )
            for _ in range(min(steps, 4))
        ]
        self.device, self.dtype = device, dtype
        self.steps_per_epoch = steps
        self.bad_images: list = []
        self._images = steps * batch_size

    def __len__(self) -> int:
        return self._images

    def epoch(self, epoch: int, start_step: int = 0):
        """The steps of any epoch that are left."""
        for step in range(start_step, self.steps_per_epoch):
            yield self.batches[step % len(self.batches)]


def wait(device: torch.device) -> None:
    """Let the device finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bare_loop(model: nn.Module, batches: ReadyBatches, optim: OptimConfig) -> Callable[[], float]:
    """A function that trains `model` one epoch over `batches` and returns its images/s."""
    optimizer = build_optimizer(model, optim)
    device, dtype = batches.device, batches.dtype

    def run() -> float:
        wait(device)
        began = time.perf_counter()
        for batch in batches.epoch(0):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = F.cross_entropy(model(batch.images), batch.labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        wait(device)
        return len(batches) / (time.perf_counter() - began)

    return run
