"""The loop that a person would write: no metrics, no log, no stop signal, no weights for the tail, autocast by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.bench.instrument.measure import wait
from engine.config import OptimConfig
from engine.data.loader import Batch
from engine.step.optim import build_optimizer

CLASSES = 10
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ROTATED = 4
"""Batches that take turns: the next step's images are not the ones that the caches still hold."""
AUXILIARY_WEIGHT = 0.3
"""Of each auxiliary head's loss where the network does not say (Szegedy et al. 2014, arXiv:1409.4842, section 5)."""


class ReadyBatches:
    """The same batches in memory, again and again: what is timed is the loop."""

    backend = "memory"

    def __init__(
        self,
        steps: int,
        batch_size: int,
        image_size: int,
        dtype: torch.dtype,
        device: torch.device,
        channels_last: bool = True,
    ) -> None:
        torch.manual_seed(0)
        shape = (batch_size, 3, image_size, image_size)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.batches = [
            Batch(
                images=torch.randn(shape).to(device, dtype, memory_format=layout),
                labels=torch.randint(CLASSES, (batch_size,), device=device),
                weights=torch.ones(batch_size, device=device),
                global_count=batch_size,
                count=batch_size,
                readable=batch_size,
            )
            for _ in range(min(steps, ROTATED))
        ]
        self.device, self.dtype = device, dtype
        self.steps_per_epoch = steps
        self.bad_images: list = []
        self._images = steps * batch_size

    def __len__(self) -> int:
        return self._images

    def batch(self, step: int) -> Batch:
        """The images of the 0-based `step`."""
        return self.batches[step % len(self.batches)]

    def epoch(self, epoch: int, start_step: int = 0):
        """The steps of any epoch that are left."""
        for step in range(start_step, self.steps_per_epoch):
            yield self.batch(step)


def loss_of(output: Any, labels: Tensor) -> Tensor:
    """Mean cross entropy of logits [N, classes], or of a tuple of the main head's and the auxiliary heads' logits."""
    if isinstance(output, Tensor):
        return F.cross_entropy(output, labels)
    main, *others = output
    loss = F.cross_entropy(main, labels)
    if others and isinstance(others[0], tuple):  # ours: (logits, (auxiliary, ...), (weight, ...))
        pairs = zip(others[0], others[1], strict=True)
    else:  # torchvision's: (logits, auxiliary, ...)
        pairs = ((auxiliary, AUXILIARY_WEIGHT) for auxiliary in others)
    for auxiliary, weight in pairs:
        loss = loss + weight * F.cross_entropy(auxiliary, labels)
    return loss


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: ReadyBatches, autocast: torch.dtype
) -> Callable[[int], None]:
    """A function that takes the step of a number: forward under autocast, backward, update."""
    device, enabled = batches.device.type, autocast != torch.float32

    def step(number: int) -> None:
        batch = batches.batch(number)
        with torch.autocast(device, autocast, enabled=enabled):
            loss = loss_of(model(batch.images), batch.labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference_step(model: nn.Module, batches: ReadyBatches, autocast: torch.dtype) -> Callable[[int], Tensor]:
    """A function that computes the logits of the batch of a number, without gradients; `model` is in evaluation."""
    device, enabled = batches.device.type, autocast != torch.float32

    def step(number: int) -> Tensor:
        with torch.inference_mode(), torch.autocast(device, autocast, enabled=enabled):
            return model(batches.batch(number).images)

    return step


def bare_loop(model: nn.Module, batches: ReadyBatches, optim: OptimConfig) -> Callable[[], float]:
    """A function that trains `model` one epoch over `batches` and returns its images/s."""
    step = training_step(model, build_optimizer(model, optim), batches, batches.dtype)

    def run() -> float:
        wait(batches.device)
        began = time.perf_counter()
        for number in range(batches.steps_per_epoch):
            step(number)
        wait(batches.device)
        return len(batches) / (time.perf_counter() - began)

    return run
