"""What earlier runs measured against what was predicted, for each GPU and torch version, in the user's cache folder.

A run on a GPU adds measured ÷ predicted of torch's allocated peak; the next plan is made with the largest of the last
ones, at least 1: a prediction that was too high stays the safe one.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.runs.cache import cache_folder

logger = logging.getLogger("hcr")

KEPT = 20
"""Newest measurements kept for a GPU and a torch version."""
PLAUSIBLE = (0.5, 2.0)
"""A ratio outside is another process's or a broken file's, not the model's error."""


@dataclass(frozen=True)
class Correction:
    """What is known of one GPU under one torch version."""

    key: str
    ratios: tuple[float, ...] = ()
    """Measured over predicted allocated peak, oldest first."""

    @property
    def factor(self) -> float:
        """By what a prediction is multiplied: the largest ratio, and 1 where none is larger."""
        return max((1.0, *self.ratios))

    def describe(self) -> str:
        """For --explain."""
        if not self.ratios:
            return f"measured on {self.key}: nothing yet; predictions are used as they are"
        low, high = min(self.ratios), max(self.ratios)
        return (
            f"measured on {self.key}: {len(self.ratios)} runs, measured ÷ predicted {low:.3f}-{high:.3f}; "
            f"predictions are multiplied by {self.factor:.3f}"
        )


def calibration_file() -> Path:
    """Where measurements are kept: memory-calibration.json in $HCR_CACHE, or in ~/.cache/hcr."""
    return cache_folder() / "memory-calibration.json"


def key_of(gpu: str) -> str:
    """`NVIDIA H100, torch 2.15`: patch releases share their measurements."""
    return f"{gpu}, torch {'.'.join(torch.__version__.split('.')[:2])}"


def _read() -> dict[str, list[float]]:
    """All measurements; a file that is missing or damaged holds none."""
    try:
        found = json.loads(calibration_file().read_text(encoding="utf-8"))
        return {str(key): [float(ratio) for ratio in ratios] for key, ratios in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        logger.info("%s is left aside: it cannot be read (%s)", calibration_file(), error)
        return {}


def correction_for(gpu: str) -> Correction:
    """What earlier runs on a GPU of this name say."""
    key = key_of(gpu)
    low, high = PLAUSIBLE
    return Correction(key, tuple(ratio for ratio in _read().get(key, []) if low <= ratio <= high))


def add_measurement(gpu: str, predicted: int, measured: int, correction: float = 1.0) -> Correction:
    """Record a run's allocated peak, in bytes; returns what is known now.

    correction  by which the prediction had been multiplied already

    A folder that cannot be written to costs the measurement, not the run.
    """
    from engine.runs.door import atomic_file

    ratio = measured / predicted * correction
    if not PLAUSIBLE[0] <= ratio <= PLAUSIBLE[1]:
        return correction_for(gpu)
    known = _read()
    known[key_of(gpu)] = [*known.get(key_of(gpu), []), round(ratio, 4)][-KEPT:]
    path = calibration_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        logger.info("the measured peak is not kept: %s cannot be written (%s)", path, error)
    return correction_for(gpu)
