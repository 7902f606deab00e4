"""Suite `machine`: what this machine's arithmetic and memory reach, on which every floor stands."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from engine.bench.instrument.footprint import footprint
from engine.bench.instrument.options import Options
from engine.bench.instrument.peers import NotAvailable
from engine.bench.instrument.rates import copy_bytes, copy_rate, matmul_rate, matmul_sides, median_seconds
from engine.bench.instrument.record import machine
from engine.bench.instrument.rows import Row
from engine.runs.provenance import versions
from engine.step.plan import Hardware

TURNS = 15


def rows(options: Options) -> Iterator[Row]:
    """Facts, matrix products by precision, memory copies, what a process takes, and copies from the host."""
    device = torch.device(Hardware.detect().type)
    yield Row("facts", {}, lambda deadline: facts(), seconds=1.0)
    for precision in ("fp32", "tf32", "bf16", "fp16"):
        sides = matmul_sides(device, options.dry_run)
        settings = {"precision": precision, "sides": sides, "threads": torch.get_num_threads()}
        yield Row(f"matmul {precision}", settings, partial(_matmul, precision, sides, device), seconds=5.0)
    size = copy_bytes(device, options.dry_run)
    yield Row("copy", {"bytes": size}, partial(_copy, size, device), seconds=3.0)
    yield Row("footprint", {}, lambda deadline: footprint(), seconds=8.0, paced=False)
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


def from_host(size: int, device: torch.device) -> dict[str, Any]:
    """Bytes a second from pinned host memory. Raises NotAvailable without a GPU."""
    if device.type == "cpu":
        raise NotAvailable("there is no GPU to copy to")
    source = torch.ones(size // 4).pin_memory()
    target = torch.empty(size // 4, device=device)
    rate = size / median_seconds(lambda turn: target.copy_(source, non_blocking=True), device)
    return {"bytes_per_second": rate, "summary": f"{rate / 1e9:.1f} GB/s pinned"}


def _copy(size: int, device: torch.device, deadline: float) -> dict[str, Any]:
    rate = copy_rate(size, device)
    return {"bytes_per_second": rate, "summary": f"{rate / 1e9:.1f} GB/s read and written"}


def _matmul(precision: str, sides: list[int], device: torch.device, deadline: float) -> dict[str, Any]:
    rates = {side: matmul_rate(precision, side, device) for side in sides}
    best = max(rates.values())
    return {"flops_per_second": best, "by_side": rates, "summary": f"{best / 1e12:.3g} TFLOP/s"}
