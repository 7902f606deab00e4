"""What a device's arithmetic and memory reach: matrix products and copies."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from engine.bench.instrument.bare_loop import DTYPES
from engine.bench.instrument.measure import step_seconds
from engine.bench.instrument.peers import NotAvailable

TURNS = 15


def matmul_sides(device: torch.device, tiny: bool) -> list[int]:
    """Sides of the square matrices that are tried; the fastest counts."""
    if tiny:
        return [64]
    return [4096, 8192] if device.type == "cuda" else [512, 1024, 2048]


def copy_bytes(device: torch.device, tiny: bool) -> int:
    """Bytes of a copied buffer: far more than any cache."""
    return 2**20 if tiny else 2**30 if device.type == "cuda" else 2**28


def matmul_rate(precision: str, side: int, device: torch.device) -> float:
    """Floating-point operations a second, 2 a multiply-add, of a square product in the median of TURNS.

    Raises NotAvailable for a precision that the device does not have.
    """
    if precision in ("tf32", "fp16") and device.type == "cpu":
        raise NotAvailable(f"{precision} is a GPU's precision")
    if precision == "tf32" and torch.cuda.get_device_capability() < (8, 0):
        raise NotAvailable("tf32 needs an Ampere GPU or a newer one")
    dtype = torch.float32 if precision == "tf32" else DTYPES[precision]
    pairs = [[torch.randn(side, side, device=device).to(dtype) for _ in range(2)] for _ in range(3)]
    result = torch.empty(side, side, device=device, dtype=dtype)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        return 2 * side**3 / median_seconds(lambda turn: torch.mm(*pairs[turn % 3], out=result), device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def copy_rate(size: int, device: torch.device) -> float:
    """Bytes read and written a second by a copy of `size` bytes within the device's memory."""
    source, target = (torch.ones(size // 4, device=device) for _ in range(2))
    return 2 * size / median_seconds(lambda turn: target.copy_(source), device)


def median_seconds(step: Callable[[int], object], device: torch.device) -> float:
    """Seconds of one call of `step`, which is given the turn: the median of TURNS."""
    step_seconds(step, device, 0, 3)
    return statistics.median(step_seconds(step, device, 3, TURNS))
