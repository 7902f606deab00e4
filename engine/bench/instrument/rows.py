"""A suite is a list of rows, the most valuable first; this measures them within a budget and goes on after a crash."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from engine.bench.instrument.measure import fair_settings, one_line, release_memory
from engine.bench.instrument.peers import NotAvailable
from engine.bench.instrument.record import Store

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Row:
    """One thing to measure."""

    key: str
    """Unique within the suite; the name of the row in the file and in the table."""
    settings: dict[str, Any]
    """All that defines the measurement; the same settings at the same commit are not measured twice."""
    measure: Callable[[float], dict[str, Any]]
    """From the `time.monotonic()` at which the budget ends to figures. Raises NotAvailable where it cannot be here,
    NotReached where time was too short."""
    seconds: float
    """Cost that is expected; `Pace` learns by how much it is off."""
    paced: bool = True
    """Whether its cost says something about the other rows'."""


class NotReached(Exception):
    """Raised by a row for which there was no time: nothing is known of it, and it is measured another time."""


def missing_row(key: str, reason: str) -> Row:
    """A row that says why there is nothing to measure."""

    def measure(deadline: float) -> dict[str, Any]:
        raise NotAvailable(reason)

    return Row(key, {}, measure, seconds=0.0)


@dataclass
class Outcome:
    """What became of a suite's rows, by key."""

    measured: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """In the file already."""
    failed: dict[str, str] = field(default_factory=dict)
    not_available: dict[str, str] = field(default_factory=dict)
    not_reached: list[str] = field(default_factory=list)


class Pace:
    """Real ÷ expected seconds of the rows so far: what is expected of the next is corrected by it."""

    def __init__(self) -> None:
        self.expected = self.real = 0.0

    def seconds(self, row: Row) -> float:
        """Expected of `row` on this machine."""
        return row.seconds * (self.real / self.expected if self.expected else 1.0)

    def learn(self, row: Row, seconds: float) -> None:
        """Take in what a row has cost."""
        self.expected += row.seconds
        self.real += seconds


def parse_budget(text: str) -> float:
    """Seconds of "8m", "90s", "1.5h" or "480". Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip().lower())
    if not found:
        raise ValueError(f"--budget {text}: give a time such as 8m, 90s or 1h")
    return float(found[1]) * UNITS[found[2]]


def run_rows(
    rows: Sequence[Row],
    store: Store,
    budget: float,
    fresh: bool = False,
    say: Callable[[str], None] = print,
    go_on: bool = False,
) -> Outcome:
    """Measure `rows` in order into `store` for at most `budget` seconds.

    A row that is not expected to end within the budget is not begun; cheaper ones after it are. What is in the store
    already, at this commit with these settings, is kept unless `fresh`; with `go_on` what failed so, too. A row that
    crashes becomes one with its error; where it takes the GPU away from this process, the rest is not begun ("lost").
    """
    deadline = time.monotonic() + budget
    outcome, pace = Outcome(), Pace()
    for note in store.notes:
        say(f"note: {note}")
    for row in rows:
        if not fresh and store.has(row.key, row.settings, go_on):
            outcome.kept.append(row.key)
        elif budget <= 0 or time.monotonic() + pace.seconds(row) > deadline:
            outcome.not_reached.append(row.key)
        else:
            _measure(row, store, deadline, outcome, pace, say)
            if row.key in outcome.failed and gpu_lost():
                store.document["lost"] = row.key
                say(f"the GPU is lost to this process after {row.key}: a new one has to go on")
                break
    store.document["not_reached"] = outcome.not_reached
    store.write()
    return outcome


def _measure(row: Row, store: Store, deadline: float, outcome: Outcome, pace: Pace, say: Callable[[str], None]) -> None:
    release_memory()
    store.begin(row.key, row.settings)
    began = time.monotonic()
    status, content = "measured", {}
    try:
        with fair_settings():
            content = {"figures": row.measure(deadline)}
        outcome.measured.append(row.key)
    except NotReached:
        store.give_up()
        outcome.not_reached.append(row.key)
        return
    except NotAvailable as error:
        status, content = "not available", {"reason": str(error)}
        outcome.not_available[row.key] = str(error)
    except Exception as error:  # the boundary of a row: the suite goes on, the row says what happened
        status, content = "error", {"error": one_line(error)}
        outcome.failed[row.key] = one_line(error)
    seconds = time.monotonic() - began
    if status == "measured" and row.paced:
        pace.learn(row, seconds)
    store.put(row.key, row.settings, status, seconds, content)
    told = {"measured": "", "not available": f": not available, {content.get('reason')}"}.get(
        status, f": {content.get('error')}"
    )
    say(f"{row.key}{told} ({seconds:.1f} s)")


def gpu_lost() -> bool:
    """Whether CUDA refuses everything in this process from now on: errors of kernels stay with their process."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def describe(outcome: Outcome, store: Store) -> str:
    """What happened, in sentences for the terminal."""
    parts = [f"{len(outcome.measured)} measured"]
    parts += [f"{len(outcome.kept)} kept from before (--fresh measures them again)"] if outcome.kept else []
    parts += [f"{len(outcome.failed)} failed"] if outcome.failed else []
    parts += [f"{len(outcome.not_available)} not available"] if outcome.not_available else []
    lines = [f"{store.suite}: {', '.join(parts)}; {store.path}"]
    if outcome.not_reached:
        lines.append(f"not reached within the budget: {', '.join(outcome.not_reached)}")
    return "\n".join(lines)
