"""What a learning-rate sweep says: the loss by the rate, smoothed, and the rate that it suggests.

Smith 2015 (arXiv:1506.01186, section 3.3) raises the rate over a short run and reads two points off the loss: where it
begins to fall and where it stops. Here the sweep is repeated from the same weights with other images, each repetition
suggests a rate of its own, and how far these are from each other says how sure their geometric mean is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DIVERGED = 3.0
"""Times the lowest smoothed loss, beside the first one: from there on a sweep has nothing more to say."""
FELL = 0.97
"""A loss that never gets below this share of the first has not been lowered by any rate."""
RISES = 1.03
"""A loss above this share of the first has left where it began."""
STEADY, ROUGH = 2.0, 5.0
"""Largest over smallest suggestion of the repetitions up to which they are called so."""


@dataclass(frozen=True)
class Sweep:
    """One repetition: the losses of its steps at `rates`, as far as it came."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    """As many as steps were taken; the last one may be NaN."""

    @property
    def smoothed(self) -> np.ndarray:
        """Bias-corrected moving average [steps taken, without one that is not finite]."""
        losses = np.array(self.losses)
        return smooth(losses[np.isfinite(losses)], memory(len(self.rates)))

    @property
    def diverged(self) -> bool:
        """Whether it ended before its highest rate."""
        return len(self.losses) < len(self.rates) or not math.isfinite(self.losses[-1])

    @property
    def suggestion(self) -> float | None:
        """Geometric mean of where the loss has fallen by half and of where it is lowest; None where it never fell.

        The middle of the fall and not its steepest point, which the noise of single batches moves by decades.
        """
        curve = self.smoothed
        if len(curve) < 5:
            return None
        lowest = int(curve.argmin())
        start = float(np.median(curve[: max(1, lowest // 3)]))
        if lowest < 2 or curve[lowest] > FELL * start:
            return None
        half = int(np.flatnonzero(curve[: lowest + 1] > (start + curve[lowest]) / 2)[-1])
        return math.sqrt(self.rates[half] * self.rates[lowest])

    @property
    def edge(self) -> float | None:
        """A third of the rate from which on the loss stays above where it began; None where it does not diverge.

        For networks that no rate brings down in so few steps: it is the most that they bear.
        """
        curve = self.smoothed
        if not self.diverged or len(curve) < 10:
            return None
        start = float(np.median(curve[: len(curve) // 3]))
        below = np.flatnonzero(curve <= RISES * start)
        last = int(below[-1])
        return self.rates[last] / 3 if last >= len(curve) // 3 else None


@dataclass(frozen=True)
class Suggestion:
    """What all repetitions say together."""

    rate: float | None
    """Geometric mean of the repetitions' own; None where no more than half of them have one."""
    each: tuple[float, ...]
    diverged: bool
    """Whether any of them met a rate that is too high; else the range may end too early."""
    fell: bool = True
    """Whether the rate is from the loss's fall; else from where it rises (`Sweep.edge`), and never sure."""

    @property
    def factor(self) -> float:
        """The largest of the repetitions' rates over the smallest; 1 where they agree."""
        return max(self.each) / min(self.each) if self.each else math.inf

    @property
    def sureness(self) -> str:
        """`steady`, `rough` or `unsure`, by `factor`."""
        if not self.fell:
            return "unsure"
        return "steady" if self.factor <= STEADY else "rough" if self.factor <= ROUGH else "unsure"


def rates_between(low: float, high: float, steps: int) -> tuple[float, ...]:
    """`steps` rates from `low` to `high`, each the same factor above the one before."""
    return tuple(float(rate) for rate in np.geomspace(low, high, steps))


def memory(steps: int) -> float:
    """Decay of the average over the losses of a sweep of so many steps: it remembers about a twentieth of them."""
    return max(0.0, 1 - 20 / steps)


def smooth(losses: np.ndarray, decay: float) -> np.ndarray:
    """Moving average, corrected for its beginning at zero (Kingma & Ba 2014, arXiv:1412.6980, section 3)."""
    average, smoothed = 0.0, []
    for count, loss in enumerate(losses, start=1):
        average = decay * average + (1 - decay) * float(loss)
        smoothed.append(average / (1 - decay**count))
    return np.array(smoothed)


def has_diverged(losses: Sequence[float], steps: int) -> bool:
    """Whether a sweep that came to `losses` is to end: a loss is not finite, or far above what it was."""
    if not math.isfinite(losses[-1]):
        return True
    curve = smooth(np.array(losses), memory(steps))
    return bool(curve[-1] > max(DIVERGED * curve.min(), DIVERGED / 2 * curve[0]))


def suggest(sweeps: Sequence[Sweep]) -> Suggestion:
    """The rate that the repetitions suggest together."""
    diverged = any(sweep.diverged for sweep in sweeps)
    for fell in (True, False):
        own = [sweep.suggestion if fell else sweep.edge for sweep in sweeps]
        each = tuple(rate for rate in own if rate is not None)
        if 2 * len(each) > len(sweeps):
            return Suggestion(math.exp(sum(map(math.log, each)) / len(each)), each, diverged, fell)
    return Suggestion(None, (), diverged, False)
