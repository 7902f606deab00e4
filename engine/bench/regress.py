"""Baselines of what is watched (engine/bench/watched.py), and when a new run is worse than one.

    python -m engine.bench.regress --runs 8      takes the baseline of this machine: profiles/<machine>/baseline.json

Noise model: the baseline is several runs in processes of their own. Their medians scatter by what a run cannot know of
itself (memory layout, neighbours, clock), and that spread sets how much slower a run must be to mean something.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from engine.bench.instrument.measure import Estimate
from engine.bench.instrument.record import Store
from engine.bench.watched import CLOCKS, COUNTED, REFERENCE, StepRace, subject
from engine.runs.provenance import ROOT, commit

LEAST_MARGIN = 0.05
"""A step this much slower than the baseline means something, where the machine is quiet enough to tell."""
SPREADS = 3.0
"""Margin in standard deviations of the baseline's runs."""
COUNT_SLACK = 0.01
"""Share by which a counted quantity may grow: another torch version rounds allocations otherwise."""
MOST_SECONDS = 60.0
CONFIRMATIONS = 2
"""Races that must agree with the one that found a slowdown."""
FEWEST_ROUNDS = 15
SUITE = "baseline"


class NoBaseline(Exception):
    """This machine, or this torch, has none; the message says how to take one."""


@dataclass(frozen=True)
class Baseline:
    """What the runs of a machine gave, by quantity."""

    runs: dict[str, list[float]]
    commit: str
    date: str

    def centre(self, name: str) -> float:
        """Median of the runs."""
        return statistics.median(self.runs[name])

    def margin(self, clock: str) -> float:
        """Share by which a ratio must lie under the centre: LEAST_MARGIN, more where runs scatter more."""
        logs = [math.log(value) for value in self.runs[clock]]
        return max(LEAST_MARGIN, SPREADS * (statistics.stdev(logs) if len(logs) > 1 else 0.0))

    def limit(self, clock: str) -> float:
        """The ratio under which a step is slower for certain."""
        return self.centre(clock) * (1 - self.margin(clock))


def read_baseline(output: Path | None = None) -> Baseline:
    """This machine's baseline. Raises NoBaseline where there is none, or it is of another torch or subject."""
    how = "take one on a quiet machine: python -m engine.bench.regress --runs 8"
    row = Store(SUITE, output).rows.get(SUITE)
    if row is None or row["status"] != "measured":
        raise NoBaseline(f"this machine has no baseline; {how}")
    identity = row["identity"]
    if identity["torch"] != torch.__version__:
        raise NoBaseline(f"the baseline was taken with torch {identity['torch']}, not {torch.__version__}; {how}")
    if identity["settings"] != settings():
        raise NoBaseline(f"the baseline is of {identity['settings']}, this run of {settings()}; {how}")
    return Baseline(row["figures"]["runs"], identity["commit"], row["date"])


def settings() -> dict[str, Any]:
    """What a baseline holds for: the watched trainer, what it is compared with, and the threads of both."""
    return subject() | {"reference": REFERENCE, "threads": torch.get_num_threads()}


def take_baseline(runs: int, seconds: float, output: Path | None = None) -> Store:
    """Measure `runs` times, each in a new process, and write the baseline."""
    store = Store(SUITE, output)
    began = time.monotonic()
    found: dict[str, list[float]] = {}
    for _ in range(runs):
        command = [sys.executable, "-m", "engine.bench.watched", str(seconds)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        for name, value in json.loads(done.stdout.splitlines()[-1]).items():
            found.setdefault(name, []).append(value)
    store.put(SUITE, settings(), "measured", time.monotonic() - began, {"figures": {"runs": found}})
    return store


def worse_counts(counts: dict[str, float], baseline: Baseline, names: tuple[str, ...] = COUNTED) -> list[str]:
    """A sentence for each counted quantity of `names` that has grown."""
    told = []
    for name in names:
        before, now = baseline.centre(name), counts[name]
        if now > before * (1 + COUNT_SLACK):
            growth = f"+{100 * (now / before - 1):.1f} %" if before else f"+{now:g}"
            told.append(f"{name}: {now:g}, was {before:g} at {baseline.commit} ({growth})")
    return told


Verdict = Literal["slower", "fine", "undecided"]


def verdict(ratio: Estimate, limit: float) -> Verdict:
    """Slower where the whole interval lies under the limit, fine where it lies above, undecided while it holds it."""
    if ratio.high < limit:
        return "slower"
    return "fine" if ratio.low > limit else "undecided"


def watch_step(new_race: Callable[[], StepRace], baseline: Baseline) -> dict[str, str]:
    """Race until every clock has a verdict; returns a sentence for each clock whose step is slower.

    One clock is enough: processor time does not see a step that waits, wall clock is blurred on a busy machine. An
    alarm is confirmed by CONFIRMATIONS more races with a trainer and a reference built anew; what they do not all find
    is not the code's. What is undecided after MOST_SECONDS is no alarm: this run's noise hides a slowdown of the
    margin's size.
    """
    slower: dict[str, str] = {}
    for attempt in range(1 + CONFIRMATIONS):
        found = race_until_decided(new_race(), baseline)
        slower = {clock: text for clock, text in found.items() if attempt == 0 or clock in slower}
        if not slower:
            break
    return slower


def race_until_decided(race: StepRace, baseline: Baseline) -> dict[str, str]:
    """One race: a sentence for each clock that is slower than its limit with the whole interval."""
    ends = time.monotonic() + MOST_SECONDS
    for _ in range(FEWEST_ROUNDS):
        race.round()
    while True:
        found = {clock: ratio for clock, ratio in race.ratios().items() if clock in baseline.runs}
        verdicts = {clock: verdict(ratio, baseline.limit(clock)) for clock, ratio in found.items()}
        if "undecided" not in verdicts.values() or time.monotonic() > ends:
            break
        for _ in range(5):
            race.round()
    return {clock: slower_sentence(clock, found[clock], baseline) for clock, one in verdicts.items() if one == "slower"}


def slower_sentence(clock: str, ratio: Estimate, baseline: Baseline) -> str:
    """By how much, against what, since when."""
    centre = baseline.centre(clock)
    return (
        f"the trainer's step is {100 * (1 - ratio.median / centre):.1f} % slower in {clock} time: {ratio.median:.4f} "
        f"({ratio.low:.4f}-{ratio.high:.4f}) of the reference's rate, was {centre:.4f} at {baseline.commit}, "
        f"{baseline.date}"
    )


def main() -> None:
    """Take the baseline of this machine and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=8, help="processes that measure one after the other")
    parser.add_argument("--seconds", type=float, default=20.0, help="of racing in each")
    parser.add_argument("--output", type=Path, help="folder in place of profiles/")
    given = parser.parse_args()
    store = take_baseline(given.runs, given.seconds, given.output)
    baseline = read_baseline(given.output)
    for name in (*COUNTED, *(clock for clock in CLOCKS if clock in baseline.runs)):
        spread = f"  margin {100 * baseline.margin(name):.1f} %" if name in CLOCKS else ""
        print(f"{name:20} {baseline.centre(name):.6g}{spread}")
    print(f"written to {store.path} at {commit()}")


if __name__ == "__main__":
    main()
