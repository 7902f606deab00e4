"""Which runs of a network's units to recompute as one, for the lowest peak: a dynamic program over the chain.

While a segment is recomputed, everything within it is live beside the inputs of all segments. So the peak is about the
sum of the segments' outputs plus the largest segment's inside. For a bound on the largest inside, the cheapest cut is a
shortest path; the bound is swept. Equal √n segments (Chen et al. 2016, arXiv:1604.06174) are 1.05-2.3 times worse on
convolutional networks, whose first units hold most of the bytes.

This is a proposal: what a segmentation needs is simulated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from engine.plan.memory.trace import Unit
from engine.step.recompute import Policy

BOUNDS = 48
"""Bounds on a segment's inside that are tried."""


def inside(units: Sequence[Unit]) -> np.ndarray:
    """float64 [n, n + 1]: bytes an image live within a segment [start, stop) while it is recomputed."""
    n = len(units)
    table = np.full((n, n + 1), math.inf)
    for start in range(n):
        total = 0.0
        for stop in range(start + 1, n + 1):
            total += units[stop - 1].inner + (units[stop - 2].output if stop - 1 > start else 0.0)
            table[start, stop] = total
            if units[stop - 1].tapped:
                break  # what reads this output outside the chain needs it as a segment's output
    return table


def cheapest_cut(units: Sequence[Unit], costs: np.ndarray, bound: float) -> tuple[float, list[tuple[int, int]]] | None:
    """(sum of the segments' outputs, segments) with no inside above `bound`, or None."""
    n = len(units)
    best, came_from = [0.0] + [math.inf] * n, [0] * (n + 1)
    for stop in range(1, n + 1):
        for start in range(stop - 1, -1, -1):
            if costs[start, stop] > bound:
                break  # an earlier start has more inside
            if best[start] + units[stop - 1].output < best[stop]:
                best[stop], came_from[stop] = best[start] + units[stop - 1].output, start
    if math.isinf(best[n]):
        return None
    segments, stop = [], n
    while stop:
        segments.append((came_from[stop], stop))
        stop = came_from[stop]
    return best[n], segments[::-1]


def best_segments(units: Sequence[Unit]) -> Policy:
    """The segmentation with the least outputs + largest inside; raises ValueError for a network without units."""
    if not units:
        raise ValueError("a network without units cannot be cut into segments")
    costs = inside(units)
    candidates = np.unique(costs[np.isfinite(costs)])
    if len(candidates) > BOUNDS:
        candidates = np.quantile(candidates, np.linspace(0, 1, BOUNDS), method="higher")
    best: tuple[float, list[tuple[int, int]]] | None = None
    for bound in candidates:
        found = cheapest_cut(units, costs, bound)
        if found is None:
            continue
        peak = found[0] + max(costs[start, stop] for start, stop in found[1])
        if best is None or peak < best[0]:
            best = peak, found[1]
    assert best is not None  # every unit by itself is a cut
    return Policy("segments", tuple(best[1]))
