"""Whether the images of a batch can be in memory at all, before anything is made for them."""

from __future__ import annotations

from engine.config import ConfigError
from engine.config.byte_sizes import gib
from engine.config.pixels.image_size import ImageSize, pixels_of, px
from engine.step.plan import Hardware


def refuse_batch(
    images: int, size: ImageSize, channels: int, origin: str = "", hardware: Hardware | None = None
) -> None:
    """Raise ConfigError where a batch of images alone, in fp32, takes more than all of the device's memory.

    origin    what the message begins with: who asks for that size; empty is nobody but the person
    hardware  None is what is here

    A network needs several times as much: that is the planner's affair, where there is one.
    """
    there = hardware or Hardware.detect()
    needed = 4 * images * channels * pixels_of(size)
    if not there.memory_bytes or needed <= there.memory_bytes:
        return
    where = "this machine has" if there.type == "cpu" else f"{there.name} has"
    raise ConfigError(
        f"{origin and f'{origin}: '}a batch of {images} images of {px(size)} is {gib(needed)}, and {where} "
        f"{gib(there.memory_bytes)}: give a smaller --batch-size{'' if origin else ' or --image-size'}"
    )
