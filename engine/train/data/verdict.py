"""Which of the two an epoch waited for, the images or the step: one line at its end, and the knob that would help."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import torch

from engine.config import DataConfig
from engine.data.loader import worker_count
from engine.step.plan import Plan

BATCHES = 8
"""That are timed, behind one that is not: it starts the loader."""
MOST_SECONDS = 1.0
MOST_SHARE = 0.03
"""Of an epoch's time that measuring may take, where that is more."""
CLEAR = 1.1
"""By how much one side has to be faster."""


@dataclass
class Pace:
    """What this process saw of an epoch, less the first step of a session, which compiles and warms up."""

    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    begun: bool = False

    def add(self, images: int, seconds: float, waited: float) -> None:
        """A stretch between two log points: images of all ranks, seconds, seconds that the host waited for images."""
        if self.begun:
            self.images += images
            self.seconds += seconds
            self.waited += waited
        self.begun = True

    def restart(self) -> None:
        """A new epoch."""
        self.images, self.seconds, self.waited = 0, 0.0, 0.0


class Verdict:
    """Compares a loader that nobody holds up with the steps; the loader is timed once, after the first epoch."""

    def __init__(self, data: DataConfig, ranks: int, device: torch.device) -> None:
        self.data, self.ranks, self.device = data, ranks, device
        self.pace = Pace()
        self._ceiling: tuple[Any, float] | None = None

    def of_epoch(self, loader: Any, epoch: int, plan: Plan) -> tuple[dict[str, Any], str]:
        """(fields of the epoch's row, the line); nothing where an epoch was a single step. All ranks call this."""
        pace, size = self.pace, getattr(loader, "size", None)
        if pace.images <= 0 or pace.seconds <= 0:
            return {}, ""
        if self._ceiling is None or self._ceiling[0] != size:  # images that grow are another loader
            self._ceiling = size, self.ranks * ceiling(loader, epoch, self.device, MOST_SHARE * pace.seconds)
        if not self._ceiling[1]:
            return {}, ""
        step = pace.images / max(1e-9, pace.seconds - pace.waited)
        bound = bound_by(self._ceiling[1], step)
        row = {"loader_ceiling": round(self._ceiling[1], 1), "step_rate": round(step, 1), "bound": bound}
        knob = self._knob(bound, plan)
        said = {"compute": "compute-bound", "loader": "loader-bound", "both": "both are as fast"}[bound]
        line = f"loader ceiling {self._ceiling[1]:,.0f} img/s, step {step:,.0f} img/s: {said}"
        pace.restart()
        return row, line + (f"; {knob}" if knob else "")

    def _knob(self, bound: str, plan: Plan) -> str:
        if bound == "compute":
            if plan.policy.kind != "none":
                return "--recompute none where there is more --gpu-memory"
            if plan.device == "cuda" and plan.precision == "fp32":
                return "--precision bf16 or fp16 would help"
            return "--compile would help" if plan.device == "cuda" and not plan.compile else ""
        if bound == "both":
            return ""
        threads, cores = worker_count(self.data.workers), len(os.sched_getaffinity(0))
        if threads * self.ranks < cores:
            return f"--data.workers {cores // self.ranks} would help"
        if self.data.cache == "off":
            return "--data.cache ram or disk would help, unless it is --augment that takes the time"
        return "less --augment would help"


def bound_by(loader: float, step: float) -> str:
    """`compute`, `loader` or, where neither is clearly faster, `both`; from images a second of each alone."""
    if loader > CLEAR * step:
        return "compute"
    return "loader" if step > CLEAR * loader else "both"


def ceiling(loader: Any, epoch: int, device: torch.device, least_seconds: float) -> float:
    """Images a second of this rank that the loader gives where nothing else is done; 0 for an epoch of one batch.

    loader         its `epoch` can be asked for any epoch at any time; the batches are dropped
    least_seconds  that may be spent even above MOST_SECONDS
    """
    budget = max(MOST_SECONDS, least_seconds)
    began = spent = 0.0
    images, batches = 0, loader.epoch(epoch)
    for number, batch in enumerate(batches):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number == 0:
            began = time.perf_counter()
            continue
        images += len(batch.images)
        spent = time.perf_counter() - began
        if number == BATCHES or spent > budget:
            break
    batches.close()
    return images / max(1e-9, spent)
