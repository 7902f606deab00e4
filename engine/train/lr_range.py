"""`--find-lr LOW:HIGH:STEPS` on the command line: which learning rates are tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.config import ConfigError, require

FLAG = "--find-lr"


@dataclass(frozen=True)
class Range:
    """Which rates are tried: `--find-lr 1e-6:10:100`."""

    low: float = 1e-6
    high: float = 10.0
    steps: int = 100
    """Of each repetition."""

    @classmethod
    def parse(cls, text: str) -> Range:
        """LOW:HIGH or LOW:HIGH:STEPS; nothing is the usual. Raises ConfigError."""
        if not text:
            return cls()
        told = f"{FLAG} takes LOW:HIGH or LOW:HIGH:STEPS with 0 < LOW < HIGH and at least 20 steps, not {text}"
        try:
            low, high, *steps = text.split(":")
            found = cls(float(low), float(high), *map(int, steps))
        except (ValueError, TypeError):
            raise ConfigError(told) from None
        require(0 < found.low < found.high < 1e6 and 20 <= found.steps <= 10**6, told)
        return found


def asked(arguments: Sequence[str]) -> tuple[list[str], Range | None]:
    """(the arguments without --find-lr and its range, that range; None where it is not among them).

    Raises ConfigError for a range that cannot be meant.
    """
    rest, found, given = [], None, list(arguments)
    while given:
        name, _, value = given[0].partition("=")
        if name != FLAG:
            rest.append(given.pop(0))
            continue
        given.pop(0)
        if not value and given and not given[0].startswith("--"):
            value = given.pop(0)
        found = Range.parse(value)
    return rest, found
