"""Where kernels can run, and the block sizes that they share."""

from __future__ import annotations

import os

import torch
import triton
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def channel_block(channels: int, most: int) -> int:
    """Channels a program takes: a power of two from 16 to `most`, no wider than it must be."""
    return max(16, min(most, triton.next_power_of_2(channels)))


def vector_block(channels: int, dtype: torch.dtype, threads: int = 8) -> int:
    """Channels so that each of `threads` threads holds 16 bytes of them."""
    return channel_block(channels, threads * 16 // dtype.itemsize)


def programs(device: torch.device, a_multiprocessor: int) -> int:
    """Programs of a grid that walks its tiles: a fixed number, so that sums keep their order on one device."""
    if device.type != "cuda":
        return 4
    return a_multiprocessor * torch.cuda.get_device_properties(device).multi_processor_count


def or_dummy(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    """An argument for a pointer that the kernel's flags leave unread."""
    return stand_in if tensor is None else tensor
