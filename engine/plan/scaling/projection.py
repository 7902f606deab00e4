"""A step of data-parallel training on many GPUs: the passes, and the gradient's buckets that are added up meanwhile.

DDP hands buckets to the network in the order in which the backward pass ends with them, and they follow each other
there. What the last one is late behind the backward pass is what the step becomes longer. Left out: other traffic on
the network, GPUs that differ, the images' way in, an exchange that slows the passes down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.config import require
from engine.plan.scaling.network import Cluster, over_machines

FIRST_BUCKET, BUCKET = 1 << 20, 25 << 20
"""Bytes of DDP's first bucket and of the others (torch/nn/parallel/distributed.py)."""
BACKWARD = 2 / 3
"""Share of a step's passes: two products for each one of the forward pass."""


@dataclass(frozen=True)
class Projected:
    """One number of GPUs."""

    gpus: int
    seconds: float
    exposed: float
    """Seconds of the exchange that no pass hides."""
    efficiency: float
    """Images a second and GPU, over those of one GPU alone."""


def buckets(sizes: Sequence[int]) -> list[tuple[int, float]]:
    """(bytes, share of the backward pass after which it is ready) of DDP's buckets.

    sizes  bytes of the parameters' gradients, in the order of the forward pass; each takes an equal part of the pass
    """
    found: list[tuple[int, float]] = []
    held, limit = 0, FIRST_BUCKET
    for place, size in enumerate(reversed(sizes), start=1):
        held += size
        if held >= limit or place == len(sizes):
            found.append((held, place / len(sizes)))
            held, limit = 0, BUCKET
    return found


def step_seconds(passes: float, parts: Sequence[tuple[int, float]], exchange: Callable[[int], float]) -> float:
    """Seconds of a step whose passes take `passes`: the last bucket's end, or theirs.

    exchange  seconds that so many bytes take
    """
    begins, free = passes * (1 - BACKWARD), 0.0
    for size, ready in parts:
        free = max(free, begins + passes * BACKWARD * ready) + exchange(size)
    return max(passes, free)


def project(passes: float, sizes: Sequence[int], gpus: Sequence[int], cluster: Cluster) -> list[Projected]:
    """Steps whose passes take `passes` seconds on each GPU, whatever their number: the share of one stays the same."""
    parts, found = buckets(sizes), []
    for count in gpus:
        total = step_seconds(passes, parts, lambda size, count=count: over_machines(size, count, cluster))
        found.append(Projected(count, total, total - passes, passes / total))
    return found


def gpu_counts(text: str) -> list[int]:
    """`8..1024`: 8, 16, … 1024; `8,12`: those. Raises ConfigError."""
    first, dots, last = text.partition("..")
    ends = [first, last] if dots else text.split(",")
    require(
        all(end.strip().isdecimal() and 0 < int(end) <= 2**20 for end in ends), f"--gpus {text}: as in 8..1024, or 8,12"
    )
    if not dots:
        return [int(end) for end in ends]
    low, high = map(int, ends)
    require(low <= high, f"--gpus {text}: from the smaller to the larger")
    found = [low]
    while found[-1] * 2 <= high:
        found.append(found[-1] * 2)
    return found if found[-1] == high else [*found, high]
