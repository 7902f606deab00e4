"""Suite `machine`: what this machine's arithmetic and memory reach, on which every floor stands."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from engine.bench.bare_loop import DTYPES
from engine.bench.measure import step_seconds
from engine.bench.options import Options
from engine.bench.peers import NotAvailable
from engine.bench.record import machine, versions
from engine.bench.rows import Row
from engine.planner import Hardware

TURNS = 15


def rows(options: Options) -> Iterator[Row]:
    """Facts, matrix products by precision, memory copies, and copies from the host."""
    device = torch.device(Hardware.detect().type)
    yield Row("facts", {}, lambda deadline: facts(), seconds=1.0)
    for precision in ("fp32", "tf32", "bf16", "fp16"):
        sides = matmul_sides(device, options.dry_run)
        settings = {"precision": precision, "sides": sides, "threads": torch.get_num_threads()}
        yield Row(f"matmul {precision}", settings, partial(_matmul, precision, sides, device), seconds=5.0)
    size = copy_bytes(device, options.dry_run)
    yield Row("copy", {"bytes": size}, partial(_copy, size, device), seconds=3.0)
    yield Row("host to device", {"bytes": size}, lambda deadline: from_host(size, device), seconds=3.0)


def facts() -> dict[str, Any]:
    """The machine, its free memory and the versions of what computes."""
    found = machine() | {"versions": versions(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available() and Hardware.detect().type == "cuda":
        free, total = torch.cuda.mem_get_info()
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        found |= {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": total,
            "free_bytes": free,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "cuda_matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
            "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        }
    return found | {"summary": ", ".join(f"{key} {value}" for key, value in machine().items() if key != "key")}


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
        return 2 * side**3 / _median(lambda turn: torch.mm(*pairs[turn % 3], out=result), device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def copy_rate(size: int, device: torch.device) -> float:
    """Bytes read and written a second by a copy of `size` bytes within the device's memory."""
    source, target = (torch.ones(size // 4, device=device) for _ in range(2))
    return 2 * size / _median(lambda turn: target.copy_(source), device)


def from_host(size: int, device: torch.device) -> dict[str, Any]:
    """Bytes a second from pinned host memory. Raises NotAvailable without a GPU."""
    if device.type == "cpu":
        raise NotAvailable("there is no GPU to copy to")
    source = torch.ones(size // 4).pin_memory()
    target = torch.empty(size // 4, device=device)
    rate = size / _median(lambda turn: target.copy_(source, non_blocking=True), device)
    return {"bytes_per_second": rate, "summary": f"{rate / 1e9:.1f} GB/s pinned"}


def _copy(size: int, device: torch.device, deadline: float) -> dict[str, Any]:
    rate = copy_rate(size, device)
    return {"bytes_per_second": rate, "summary": f"{rate / 1e9:.1f} GB/s read and written"}


def _matmul(precision: str, sides: list[int], device: torch.device, deadline: float) -> dict[str, Any]:
    rates = {side: matmul_rate(precision, side, device) for side in sides}
    best = max(rates.values())
    return {"flops_per_second": best, "by_side": rates, "summary": f"{best / 1e12:.3g} TFLOP/s"}


def _median(step: Callable[[int], object], device: torch.device) -> float:
    step_seconds(step, device, 0, 3)
    return statistics.median(step_seconds(step, device, 3, TURNS))
