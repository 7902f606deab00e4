"""Where kernels can run, and the block sizes that they share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_compiled_for: list[tuple[int, int]] = [(90, 0)]


@contextmanager
def compiling_for(architecture: int, multiprocessors: int = 0) -> Iterator[None]:
    """Within, launchers without a GPU choose their blocks as on that architecture (10 · major + minor).

    multiprocessors  that it has, for grids that walk their tiles; 0 is four programs whatever the kernel
    """
    _compiled_for.append((architecture, multiprocessors))
    try:
        yield
    finally:
        _compiled_for.pop()


def small_tiles(device: torch.device) -> bool:
    """Whether a GPU without bf16 and asynchronous copies (before sm_80) is at work: large matrix tiles spill there."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) < (8, 0)
    return _compiled_for[-1][0] < 80


def warpgroup_products(device: torch.device) -> bool:
    """Whether four warps multiply together from shared memory (sm_90): matrix tiles fit that spill elsewhere."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] == 9
    return _compiled_for[-1][0] // 10 == 9


def channel_block(channels: int, most: int) -> int:
    """Channels a program takes: a power of two from 16 to `most`, no wider than it must be."""
    return max(16, min(most, triton.next_power_of_2(channels)))


def vector_block(channels: int, dtype: torch.dtype, threads: int = 8) -> int:
    """Channels so that each of `threads` threads holds 16 bytes of them."""
    return channel_block(channels, threads * 16 // dtype.itemsize)


def programs(device: torch.device, a_multiprocessor: int) -> int:
    """Programs of a grid that walks its tiles: a fixed number, so that sums keep their order on one device."""
    if device.type != "cuda":
        return a_multiprocessor * _compiled_for[-1][1] or 4
    return a_multiprocessor * torch.cuda.get_device_properties(device).multi_processor_count


def or_dummy(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    """An argument for a pointer that the kernel's flags leave unread."""
    return stand_in if tensor is None else tensor
