"""The learning rate as a function of the step: warm-up, then one of SCHEDULES.

Every schedule is a pure function of the step and of the plateaus met, so a resumed run needs no state of its own. They
are torch's classes of the same names, in closed form (tests/engine/step/test_schedule.py holds them to each other).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from engine.config import OptimConfig


@dataclass(frozen=True)
class Moment:
    """A step of the schedule, counted from 0 behind the warm-up."""

    step: float
    steps: int
    """Of the whole schedule."""
    run_step: float
    """The same step, counted from the run's first."""
    steps_per_epoch: int
    falls: int = 0
    """How often a plateau was met."""

    @property
    def share(self) -> float:
        """Of the schedule that is behind it, from 0 to 1."""
        return min(1.0, self.step / max(1, self.steps))


def learning_rate(step: float, steps_per_epoch: int, config: OptimConfig, falls: int = 0) -> float:
    """Learning rate of the 0-based `step` of a run; with config.step_per_epoch that of its epoch's number as a step.

    step   a place between two steps where the schedule was refitted (Progress.place)
    falls  plateaus met so far
    """
    if config.step_per_epoch:
        step, steps_per_epoch = step // steps_per_epoch, 1
    warmup = config.warmup_steps or round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        if config.warmup == "constant":
            return config.warmup_lr
        return config.warmup_lr + (config.peak_lr - config.warmup_lr) * (step + 1) / warmup
    whole = config.schedule_steps or config.epochs * steps_per_epoch
    return SCHEDULES[config.schedule](Moment(step - warmup, whole - warmup, step, steps_per_epoch, falls), config)


def constant(at: Moment, config: OptimConfig) -> float:
    """The peak rate."""
    return config.peak_lr


def cosine(at: Moment, config: OptimConfig) -> float:
    """Half a cosine down to min_lr, once a cycle (Loshchilov & Hutter 2016, arXiv:1608.03983, equation 5)."""
    share = at.share if at.share == 1.0 else at.share * config.cycles % 1.0
    return config.min_lr + (config.peak_lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * share))


def linear(at: Moment, config: OptimConfig) -> float:
    """A straight line down to min_lr."""
    return config.peak_lr + (config.min_lr - config.peak_lr) * at.share


def polynomial(at: Moment, config: OptimConfig) -> float:
    """(1 - share)^power of the way down to min_lr."""
    return config.min_lr + (config.peak_lr - config.min_lr) * (1 - at.share) ** config.power


def exponential(at: Moment, config: OptimConfig) -> float:
    """Times gamma an epoch, a little every step, not below min_lr."""
    return max(config.min_lr, config.peak_lr * config.gamma ** (at.step / at.steps_per_epoch))


def step(at: Moment, config: OptimConfig) -> float:
    """Times gamma every step_epochs epochs of the run, not below min_lr."""
    falls = at.run_step // max(1, round(config.step_epochs * at.steps_per_epoch))
    return max(config.min_lr, config.peak_lr * config.gamma**falls)


def multistep(at: Moment, config: OptimConfig) -> float:
    """Times gamma at each of the milestones, in epochs of the run, not below min_lr."""
    falls = sum(at.run_step >= round(epoch * at.steps_per_epoch) for epoch in config.milestones)
    return max(config.min_lr, config.peak_lr * config.gamma**falls)


def one_cycle(at: Moment, config: OptimConfig) -> float:
    """From a 25th of the peak up over the first 30 % of the steps and down to min_lr, or to a 250,000th of the peak.

    Smith & Topin 2017, arXiv:1708.07120, with the cosines and shares of torch's OneCycleLR; the momentum stays.
    """
    start, peak = config.peak_lr / 25, config.peak_lr
    end = config.min_lr or start / 1e4
    top, last = 0.3 * at.steps - 1, at.steps - 1
    if at.step <= top:
        return _eased(start, peak, at.step / top if top > 0 else 1.0)
    return _eased(peak, end, min(1.0, (at.step - top) / max(1e-9, last - top)))


def _eased(first: float, second: float, share: float) -> float:
    return second + (first - second) / 2 * (1 + math.cos(math.pi * share))


def _cyclic(at: Moment, config: OptimConfig, shrink: Callable[[int], float]) -> float:
    """Smith 2015, arXiv:1506.01186: up from min_lr over cycle_steps[0] steps, down over cycle_steps[1].

    shrink  of a cycle's number, from 0: what is left of its height
    """
    up, down = config.cycle_steps
    cycle, place = divmod(at.step, up + down)
    height = place / up if place <= up else (up + down - place) / down
    return config.min_lr + (config.peak_lr - config.min_lr) * height * shrink(cycle)


def triangular(at: Moment, config: OptimConfig) -> float:
    """Up and down between min_lr and the peak."""
    return _cyclic(at, config, lambda cycle: 1.0)


def triangular2(at: Moment, config: OptimConfig) -> float:
    """The same at half the height each cycle."""
    return _cyclic(at, config, lambda cycle: 0.5**cycle)


def exp_range(at: Moment, config: OptimConfig) -> float:
    """The same at gamma^step of the height."""
    return _cyclic(at, config, lambda cycle: config.gamma**at.step)


def plateau(at: Moment, config: OptimConfig) -> float:
    """Times gamma at each plateau, not below min_lr."""
    return max(config.min_lr, config.peak_lr * config.gamma**at.falls)


SCHEDULES: dict[str, Callable[[Moment, OptimConfig], float]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "polynomial": polynomial,
    "exponential": exponential,
    "step": step,
    "multistep": multistep,
    "one-cycle": one_cycle,
    "triangular": triangular,
    "triangular2": triangular2,
    "exp-range": exp_range,
    "plateau": plateau,
}
"""By the names that `--optim.schedule` takes (engine.config.optim.SCHEDULES)."""
