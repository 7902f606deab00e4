"""Fair comparison on a noisy machine: contenders take turns, and each round gives one ratio.

A machine that slows down slows both contenders of a round, so the ratio within a round holds where times do not.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """Rates by contender, one a round, and the ratio of the first contender to each other one."""

    rates: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Median rate of a contender."""
        return statistics.median(self.rates[name])

    def ratios(self, peer: str) -> list[float]:
        """First contender ÷ `peer`, a round each."""
        first = next(iter(self.rates))
        return [ours / theirs for ours, theirs in zip(self.rates[first], self.rates[peer], strict=True)]

    def as_dict(self) -> dict:
        """For JSON: rates, medians, ratios with their median, smallest and largest."""
        first, *peers = self.rates
        ratios = {peer: self.ratios(peer) for peer in peers}
        return {
            "rates": {name: [round(rate, 3) for rate in rates] for name, rates in self.rates.items()},
            "median": {name: round(self.median(name), 3) for name in self.rates},
            "ratio": {
                f"{first} / {peer}": {
                    "median": round(statistics.median(values), 4),
                    "min": round(min(values), 4),
                    "max": round(max(values), 4),
                    "rounds": [round(value, 4) for value in values],
                }
                for peer, values in ratios.items()
            },
        }


def interleave(contenders: dict[str, Callable[[], float]], rounds: int, warmup: int = 1) -> Comparison:
    """Run every contender `rounds` times in turn; each call returns a rate (higher is better).

    The order turns by one each round, so that no contender always runs after the same other one. `warmup` rounds are
    not counted.
    """
    names = list(contenders)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            rate = contenders[name]()
            if turn >= warmup:
                rates[name].append(rate)
    return Comparison(rates)
