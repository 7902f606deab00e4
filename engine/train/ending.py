"""When a run ends before its epochs do, and where its schedule is by then.

All that it goes by is in Progress, hence in every checkpoint. Times are the first rank's, for all.
"""

from __future__ import annotations

import math
from typing import Any

from engine.config import RunConfig
from engine.step.standing import Progress

HOUR = 3600.0
FORWARD = 1 / 3
"""Of a training step's time: what an evaluation's is taken for before one was measured."""


def is_better(value: float, best: float | None, less: bool, delta: float = 0.0) -> bool:
    """Whether `value` is better than `best` by more than `delta`; what is no number never is.

    less  the smaller the better
    """
    if math.isnan(value):
        return False
    if best is None:
        return True
    return value < best - delta if less else value > best + delta


class Ending:
    """Watches a run. `val_steps` are those of an evaluation."""

    def __init__(self, config: RunConfig, progress: Progress, steps_per_epoch: int, val_steps: int) -> None:
        self.config, self.progress, self.steps_per_epoch, self.val_steps = config, progress, steps_per_epoch, val_steps
        self._timed = [0.0, 0]
        """Seconds and steps of this process, without its first."""

    @property
    def reason(self) -> str | None:
        """Why the run is over before its epochs are, in a word; None where it is not."""
        stop, progress = self.config.stop, self.progress
        if progress.epoch >= self.config.optim.epochs:
            return None
        if stop.patience and progress.stop_bad >= stop.patience:
            return "patience"
        if stop.target is not None and progress.stop_top is not None:
            sign = -1 if stop.metric == "loss" else 1
            if sign * progress.stop_top >= sign * stop.target:
                return "target"
        return "hours" if stop.hours and self._out_of_time else None

    @property
    def _out_of_time(self) -> bool:
        return 0 < self.progress.end_step <= self.progress.in_steps_of(self.steps_per_epoch)

    @property
    def mid_epoch(self) -> bool:
        """Whether the epoch at hand is to be finished now, for want of time."""
        return bool(self.config.stop.hours) and self._out_of_time

    def is_last(self) -> bool:
        """Whether the step just made is its epoch's last."""
        return self.progress.step_in_epoch == self.steps_per_epoch or self.mid_epoch

    def resumed(self) -> None:
        """A run that ended for want of time, and has more of it now, goes on."""
        if self.config.stop.hours * HOUR > 1.05 * self.progress.spent or not self.config.stop.hours:
            self.progress.end_step = 0

    def estimate(self, seconds: float, steps: int, first: bool) -> int:
        """Note the time of so many steps; returns the step at which time will be up by this rank's clock, 0: unknown.

        first  one of them was this process's first, which compiles and tunes
        """
        progress, stop = self.progress, self.config.stop
        progress.spent += seconds
        if not first:
            self._timed[0] += seconds
            self._timed[1] += steps
        if not stop.hours or not self._timed[1]:
            return progress.end_step
        step = self._timed[0] / self._timed[1]
        evaluation = progress.evaluation_seconds or FORWARD * self.val_steps * step
        left = stop.hours * HOUR - progress.spent - evaluation
        more = math.floor(left / max(1e-9, step + evaluation / self.steps_per_epoch))
        return max(1, progress.in_steps_of(self.steps_per_epoch) + max(0, more))

    def settle(self, end_step: int) -> None:
        """End at that step, or with the epochs if they are sooner, and fit what is left of the schedule to it."""
        if not self.config.stop.hours or not end_step:
            return
        progress = self.progress
        now, planned = progress.in_steps_of(self.steps_per_epoch), self.config.optim.epochs * self.steps_per_epoch
        progress.end_step = min(end_step, planned)
        if progress.end_step > now:
            place = progress.place(now)
            progress.fit_step, progress.fit_place = now, place
            progress.fit_slope = (planned - place) / (progress.end_step - now)

    def evaluated(self, kept: Any, raw: Any, seconds: float) -> None:
        """Take in an epoch's evaluation (of the raw weights too, where they are asked for), which took so long."""
        stop, optim, progress = self.config.stop, self.config.optim, self.progress
        progress.spent += seconds
        progress.evaluation_seconds = seconds
        less = stop.metric == "loss"
        value = _figure(raw if stop.weights == "raw" else kept, stop.metric)
        looked_at = f"{stop.metric} {stop.weights}"
        if progress.stop_of != looked_at:  # a resumed run may look at another
            progress.stop_of, progress.stop_best, progress.stop_top, progress.stop_bad = looked_at, None, None, 0
        if is_better(value, progress.stop_top, less):
            progress.stop_top = value
        if is_better(value, progress.stop_best, less, stop.min_delta):
            progress.stop_best, progress.stop_bad = value, 0
        else:
            progress.stop_bad += 1
        if optim.plateau_metric is not None:
            self._plateau(_figure(kept, optim.plateau_metric), optim.plateau_metric == "loss")

    def _plateau(self, value: float, less: bool) -> None:
        """As torch's ReduceLROnPlateau with a threshold of 0."""
        progress = self.progress
        if is_better(value, progress.plateau_best, less):
            progress.plateau_best, progress.plateau_bad = value, 0
            return
        progress.plateau_bad += 1
        if progress.plateau_bad > self.config.optim.plateau_patience:
            progress.falls, progress.plateau_bad = progress.falls + 1, 0

    def row(self) -> dict[str, Any]:
        """What metrics.jsonl says of an early end."""
        stop, progress = self.config.stop, self.progress
        row = {"event": "ended_early", "reason": self.reason, "step": progress.step, "epoch": progress.epoch}
        if self.reason == "hours":
            return row | {"hours": round(progress.spent / HOUR, 4)}
        return row | {"metric": stop.metric, "weights": stop.weights, "best": progress.stop_top}

    def told(self) -> str:
        """The same for a person."""
        stop, progress = self.config.stop, self.progress
        named = stop.metric.replace("_", " ") + (" of the raw weights" if stop.weights == "raw" else "")
        if self.reason == "hours":
            return f"ended early: {stop.hours:g} hours are up"
        if self.reason == "target":
            return f"ended early: {named} {progress.stop_top:.4g} reached the target of {stop.target:g}"
        best = "a number" if progress.stop_best is None else f"{progress.stop_best:.4g}"
        return f"ended early: no better {named} than {best} in {stop.patience} evaluations"


def _figure(evaluation: Any, metric: str) -> float:
    """A metric in its own sign."""
    return -evaluation.score(metric) if metric == "loss" else evaluation.score(metric)
