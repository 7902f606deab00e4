"""launch/train.py on devices of which one holds few images: torch's own out-of-memory exception, at chosen points.

Environment: OOM_RANK fails, from its OOM_CALL-th call on, where it has to hold more than OOM_IMAGES images at once;
OOM_IN is `forward`, `update`, `evaluation` or `setup`.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from archs.registry import register
from tests.launch.norm_free import NormFree


class Device:
    """Memory for so many images."""

    def __init__(self) -> None:
        failing = os.environ["OOM_RANK"] == os.environ.get("RANK", "0")
        self.images = int(os.environ["OOM_IMAGES"]) if failing else sys.maxsize
        self.first_call, self.calls, self.held = int(os.environ["OOM_CALL"]), 0, 0

    def use(self) -> None:
        """Raises torch.OutOfMemoryError where the images held are too many."""
        self.calls += 1
        if self.calls >= self.first_call and self.held > self.images:
            raise torch.OutOfMemoryError(f"CUDA out of memory. {self.held} images")


device = Device()


@register("short_of_memory", paper="none: for tests", year=2026, image_size=32, parameters=0, multiply_adds=0.0)
class ShortOfMemory(NormFree):
    """Takes memory for its images."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        device.held = 1
        if os.environ["OOM_IN"] == "setup":
            device.use()

    def forward(self, images):
        device.held = len(images)
        if os.environ["OOM_IN"] == ("forward" if self.training else "evaluation"):
            device.use()
        return super().forward(images)


if __name__ == "__main__":
    from engine.config import parse
    from engine.train.run import train

    if os.environ["OOM_IN"] == "update":
        register_optimizer_step_pre_hook(lambda *_: device.use())
    sys.exit(train(parse(), command=sys.orig_argv))
