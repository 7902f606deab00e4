"""What brings the images holds of the device, by the library that decodes and by what it reads.

DALI has memory of its own, outside torch's allocator; a small set lies on the device whole. torchvision's workers
decode on the CPU: of a batch only its forms on the way to the compute dtype are on the device, in torch's allocator and
before the passes begin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.config import DataConfig
from engine.config.pixels.image_size import ImageSize, pixels_of, sides
from engine.data.backend import chosen_backend
from engine.data.loader import worker_count
from engine.data.sources.source import Source

MIB = 1 << 20
DECODED_SIDE = 512
"""Pixels a side of the photographs that the loader's decoder is taken to hold; ImageNet's mean is about 470 × 390."""
DECODER_PADDING = 16 * MIB
"""A decoding thread's buffer: `device_memory_padding` of DALI's decoders, their default."""
GRAPHS = 2
"""Training and evaluation: both stay."""
MODULES = 128 * MIB
"""DALI's kernels, loaded where they are first used. Not measured."""
DECODER_MODULES = 64 * MIB
"""nvJPEG's and nvImageCodec's. Not measured."""
POOL = 64 * MIB
"""What DALI's memory pool holds beside what is in use. Not measured."""


@dataclass(frozen=True)
class Feed:
    """Where images come from."""

    backend: Literal["dali", "torchvision", "torch", "none"] = "dali"
    """torch is a set that lies on the device whole, none images that are made there."""
    encoded: bool = True
    """Files are decoded on the device; else they arrive as pixels."""
    side: int = DECODED_SIDE
    """Pixels a side of an image before it is resized."""
    threads: int = 8
    """That decode."""
    prefetch: int = 2
    """Batches in flight."""
    channels: int = 3
    """Of an image, decoded and on the device."""
    bits: int = 8
    """Of a decoded image's colour."""
    resident: int = 0
    """Bytes in torch's allocator of a set that lies on the device."""

    def device_bytes(self, share: int, image_size: ImageSize, half: bool) -> int:
        """Bytes outside torch's allocator for a rank's `share` of images."""
        if self.backend != "dali":
            return 0
        fixed = MODULES + POOL
        if self.encoded:
            fixed += DECODER_MODULES + GRAPHS * self.threads * DECODER_PADDING
        return fixed + loader_bytes(
            share, image_size, self.prefetch, half, self.side, self.channels, self.bits if self.encoded else 8
        )

    def staged_bytes(self, share: int, image_size: ImageSize, precision: str) -> list[int]:
        """Bytes of a batch's forms in torch's allocator before it is in the compute dtype; gone when it is."""
        pixels = share * self.channels * pixels_of(image_size)
        if self.backend == "torchvision":  # as uint8, less the mean, over the deviation
            return [
                pixels if self.bits == 8 or not self.encoded else 4 * pixels,
                4 * pixels,
                *([4 * pixels] if precision != "fp32" else []),
            ]
        if self.backend == "torch":  # resized along one side, along both, channels last
            return [4 * share * self.channels * self.side * max(sides(image_size)), 4 * pixels, 4 * pixels]
        return [4 * pixels] if precision == "bf16" else []  # DALI makes fp32 or fp16 by itself


def loader_bytes(
    share: int,
    image_size: ImageSize,
    prefetch: int,
    half: bool,
    side: int = DECODED_SIDE,
    channels: int = 3,
    bits: int = 8,
) -> int:
    """Device bytes of DALI's graph for a rank's `share` of images: decoded pixels, the resize's intermediate, outputs.

    The resize works in two passes, the first of which leaves fp32 rows; of 16 bits it leaves fp32 images as well.
    """
    decoded = side * side * channels * bits // 8
    intermediate = side * max(sides(image_size)) * channels * 4
    resized = pixels_of(image_size) * channels * 4 if bits == 16 else 0
    output = pixels_of(image_size) * channels * (2 if half else 4)
    return share * (decoded + intermediate + resized + (prefetch + 1) * output)


def feed_of(source: Source, config: DataConfig) -> Feed:
    """How a run's images come, before its loader is made."""
    backend, arrays, resident = chosen_backend(config.backend, source.train), source.train.arrays, 0
    side = DECODED_SIDE if arrays is None else max(arrays.shape[1:3])
    if backend == "torch":
        splits = [split.arrays for split in (source.train, source.val) if split.arrays is not None]
        resident = sum(images.nbytes for images in splits)
    encoded = arrays is None and config.cache in ("off", "auto")  # auto may come to off
    return Feed(
        backend,
        encoded,
        side,
        worker_count(config.workers),
        config.prefetch,
        config.channels,
        config.bits or 8,
        resident,
    )
