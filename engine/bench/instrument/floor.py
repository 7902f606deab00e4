"""The least time that a step can take here, from what it computes and moves and what this machine's best rates are.

floor = max(operations ÷ matmul rate, bytes ÷ copy bandwidth): both run at once on a perfect machine. Operations are
counted (counts.py). The bytes are the least there is to move however well kernels are fused: every activation that is
kept is written once and read once; parameters are read forward and backward, their gradients written and read, the
optimizer's state and the parameters read and written.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.bench.instrument import rates
from engine.bench.instrument.peers import NotAvailable
from engine.bench.instrument.record import PROFILES, load, machine
from engine.config.optimizers import OPTIMIZERS


@dataclass(frozen=True)
class Rates:
    """What the `machine` suite measured."""

    flops_per_second: dict[str, float]
    """By precision."""
    bytes_per_second: float
    """Read and written by a copy."""

    def unit(self, precision: str) -> str:
        """The arithmetic that a network in `precision` may run in: cuDNN takes fp32 convolutions in tf32 by default."""
        return "tf32" if precision == "fp32" and "tf32" in self.flops_per_second else precision


@dataclass(frozen=True)
class Work:
    """What one step has to do."""

    flops: float
    bytes: float

    def floor(self, rates: Rates, precision: str) -> dict[str, Any]:
        """Seconds of the two bounds, the floor, and which of them it is."""
        unit = rates.unit(precision)
        compute, traffic = self.flops / rates.flops_per_second[unit], self.bytes / rates.bytes_per_second
        return {
            "flops": self.flops,
            "bytes": self.bytes,
            "compute_seconds": compute,
            "traffic_seconds": traffic,
            "floor_seconds": max(compute, traffic),
            "bound": "compute" if compute >= traffic else "traffic",
            "arithmetic": unit,
        }


def training_work(batch: int, forward_flops: float, saved_bytes: float, parameters: int, optimizer: str) -> Work:
    """A training step: 3 forward passes' operations. `forward_flops` and `saved_bytes` are of one image."""
    # read twice; gradient written and read; written and read; states
    per_parameter = 2 + 2 + 2 + 2 * OPTIMIZERS[optimizer].states
    return Work(3 * batch * forward_flops, 2 * batch * saved_bytes + 4 * per_parameter * parameters)


def inference_work(batch: int, forward_flops: float, parameters: int) -> Work:
    """A forward pass that keeps nothing: its bytes are the parameters', read once."""
    return Work(batch * forward_flops, 4 * parameters)


def rates_here(output: Path | None = None, tiny: bool = False) -> Rates:
    """The rates that the `machine` suite wrote for this machine, else measured now."""
    path = (output or PROFILES) / machine()["key"] / "machine.json"
    document, _ = load(path) if path.is_file() else (None, "")
    found = {key: row["figures"] for key, row in (document or {"rows": {}})["rows"].items() if "figures" in row}
    flops = {
        key.removeprefix("matmul "): figures["flops_per_second"] for key, figures in found.items() if "matmul" in key
    }
    if flops and "copy" in found:
        return Rates(flops, found["copy"]["bytes_per_second"])
    return _measured(tiny)


@functools.cache
def _measured(tiny: bool) -> Rates:
    device = torch.device("cuda" if machine().get("gpu") else "cpu")
    flops = {}
    for precision in ("fp32", "tf32", "bf16", "fp16"):
        try:
            sides = rates.matmul_sides(device, tiny)
            flops[precision] = max(rates.matmul_rate(precision, side, device) for side in sides)
        except NotAvailable:
            continue
    return Rates(flops, rates.copy_rate(rates.copy_bytes(device, tiny), device))
