"""When a run ends before its epochs do: the fields of the group `stop`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from engine.config.checks import require

METRICS = ("accuracy", "balanced", "macro_f1", "loss")
"""What an evaluation gives, as `--best` names it; of the loss less is better."""
MOST_HOURS = 100_000
"""Eleven years."""


@dataclass(frozen=True)
class StopConfig:
    """When a run ends before its epochs do."""

    metric: Literal[*METRICS] = "accuracy"
    """What patience and target look at, on the val images."""
    weights: Literal["kept", "raw"] = "kept"
    """Of which weights: those that are kept, with --optim.ema the average, or the raw ones, evaluated beside it."""
    patience: int = 0
    """Evaluations in a row without a better one, after which the run ends; 0 is off."""
    min_delta: float = 0.0
    """By more than this the metric has to be better to count."""
    target: float | None = None
    """Value of the metric at which the run ends."""
    hours: float = 0.0
    """Hours after which the run has ended, evaluation included; the schedule is refitted to end with it. 0 is off."""

    def __post_init__(self) -> None:
        require(self.patience >= 0, f"--stop.patience must be 0 (off) or evaluations, not {self.patience}")
        require(0 <= self.min_delta < math.inf, f"--stop.min-delta must be 0 or more, not {self.min_delta}")
        require(
            not self.min_delta or self.patience > 0, "--stop.min-delta has no effect without --stop.patience: give one"
        )
        require(0 <= self.hours <= MOST_HOURS, f"--stop.hours must be from 0 (off) to {MOST_HOURS:,}, not {self.hours}")
        shares = self.metric != "loss"
        within = self.target is None or (0 < self.target <= 1 if shares else self.target > 0)
        wanted = "a share in (0, 1], as 0.95" if shares else "a loss above 0"
        require(within, f"--stop.target of {self.metric} must be {wanted}, not {self.target}")
        raw = self.weights == "kept" or self.patience or self.target is not None
        require(bool(raw), "--stop.weights raw has no effect without --stop.patience or --stop.target")

    def refuse(self, epochs: int, ema: float) -> None:
        """Raise ConfigError for what has no effect in a run of so many epochs, with or without an average."""
        require(
            self.patience < epochs,
            f"--stop.patience {self.patience} cannot end a run of {epochs} epochs: there are not as many evaluations "
            "after the first; give fewer, or more --epochs",
        )
        require(self.weights == "kept" or ema > 0, "--stop.weights raw has no effect without --optim.ema")
