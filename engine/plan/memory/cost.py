"""What a step costs in time, relative to others: a roofline over its operators.

An operator takes the longer of its arithmetic and its traffic (Williams et al. 2009, "Roofline",
doi:10.1145/1498765.1498785), and at least a launch. The rates are one nominal card's; only ratios are shown. Recompute
needs no rule of its own: its operators are in the record.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.plan.memory.trace import Operators


@dataclass(frozen=True)
class Rates:
    """What a nominal card reaches in training, in FLOP/s, bytes/s and seconds."""

    fp32: float = 20e12
    half: float = 80e12
    memory: float = 0.8e12
    launch: float = 5e-6
    host: float = 12e9
    """Over PCIe to pinned memory."""
    network: float = 10e9
    """Between GPUs, one way."""
    collective: float = 40e-6
    """The least that an exchange between GPUs takes."""


NOMINAL = Rates()


def seconds(operators: Operators, micro: int, accumulation: int, half: bool, rates: Rates = NOMINAL) -> float:
    """Seconds of a step of `accumulation` micro-batches of `micro` images."""
    rate = rates.half if half else rates.fp32
    times = np.maximum(operators.flops.at(micro) / rate, operators.traffic.at(micro) / rates.memory)
    times = np.maximum(times, rates.launch)
    return float(times[~operators.once].sum() * accumulation + times[operators.once].sum())
