"""The one way in which this project measures: contenders take turns, and each round gives one ratio.

A machine that slows down slows all contenders of a round, so the ratio within a round holds where times do not. Every
suite and the regression tests compare through `interleave`; what is a step again and again is timed by `Steps`.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

CONFIDENCE = 0.95
FEWEST_ROUNDS = 9
"""Rounds before a tolerance may end a comparison."""
MOST_STEPS = 500
"""Steps of one turn at most."""
PAUSE, RESTING = 0.05, 0.1
"""Seconds between two looks at the processor time, and the share of one core below which nothing computes."""


@dataclass(frozen=True)
class Estimate:
    """A median and the interval that holds the true one."""

    median: float
    low: float
    high: float
    coverage: float
    """Probability that the interval holds the true median, whatever the distribution."""
    n: int

    def as_dict(self) -> dict[str, float]:
        """For JSON, four digits behind the point."""
        return {
            "median": round(self.median, 4),
            "low": round(self.low, 4),
            "high": round(self.high, 4),
            "n": self.n,
        } | {"coverage": round(self.coverage, 4)}


def estimate(values: Sequence[float]) -> Estimate:
    """Median with the narrowest symmetric interval of order statistics that covers it with at least 95 %.

    The sign test's interval (Hahn & Meeker 1991, Statistical Intervals, section 5.2): it assumes independent rounds and
    nothing of their distribution. Fewer than 6 values cannot reach 95 %: then it is their range, with its own coverage.
    Raises ValueError for no values.
    """
    if not values:
        raise ValueError("no rounds were measured")
    ordered, n = sorted(values), len(values)
    cut, tail = 0, 0.5**n  # tail: probability that the true median lies below the value at `cut`
    while cut < n // 2:
        wider = tail + math.comb(n, cut + 1) * 0.5**n
        if 1 - 2 * wider < CONFIDENCE:
            break
        cut, tail = cut + 1, wider
    return Estimate(statistics.median(ordered), ordered[cut], ordered[n - 1 - cut], max(0.0, 1 - 2 * tail), n)


@dataclass(frozen=True)
class Comparison:
    """Rates by contender, one a round, and the ratio of the first contender to each other one."""

    rates: dict[str, list[float]]
    errors: dict[str, str] = field(default_factory=dict)
    """Contenders that failed, and how; they have no rates."""
    first: str = ""
    """The contender that the others are compared with."""

    def median(self, name: str) -> float:
        """Median rate of a contender."""
        return statistics.median(self.rates[name])

    def ratios(self, peer: str) -> list[float]:
        """First contender ÷ `peer`, a round each."""
        first = self.first or next(iter(self.rates))
        return [ours / theirs for ours, theirs in zip(self.rates[first], self.rates[peer], strict=True)]

    def ratio(self, peer: str) -> Estimate:
        """First contender ÷ `peer` with its interval."""
        return estimate(self.ratios(peer))

    def as_dict(self) -> dict[str, Any]:
        """For JSON: rates of the rounds, medians with intervals, ratios with intervals, what failed."""
        first = self.first or next(iter(self.rates), "")
        figures: dict[str, Any] = {
            "rates": {name: [round(rate, 3) for rate in rates] for name, rates in self.rates.items()},
            "median": {name: round(self.median(name), 3) for name in self.rates},
            "ratio": {
                f"{first} / {peer}": self.ratio(peer).as_dict()
                for peer in self.rates
                if first in self.rates and peer != first
            },
        }
        return figures | ({"errors": self.errors} if self.errors else {})


class Race:
    """Contenders by name that take turns; each call of one returns a rate (higher is better).

    The order turns by one each round, so that no contender always runs after the same other one. A contender that
    raises is left out from then on and its error told; the others go on.
    """

    def __init__(self, contenders: dict[str, Callable[[], float]]) -> None:
        self._contenders = contenders
        self._first = next(iter(contenders))
        self._names = list(contenders)
        self._turns = 0
        self.rates: dict[str, list[float]] = {name: [] for name in contenders}
        self.errors: dict[str, str] = {}

    def round(self, counted: bool = True) -> None:
        """One turn of everybody; one that is not `counted` warms up."""
        start = self._turns % max(1, len(self._names))
        self._turns += 1
        for name in self._names[start:] + self._names[:start]:
            try:
                rate = self._contenders[name]()
            except Exception as error:  # the boundary of a contender: it failed, the others are still worth measuring
                self.errors[name] = one_line(error)
                self._names = [other for other in self._names if other != name]
                del self._contenders[name], self.rates[name]
                del error
                release_memory()
                continue
            if counted:
                self.rates[name].append(rate)

    def comparison(self) -> Comparison:
        """What the rounds so far tell."""
        return Comparison({name: self.rates[name] for name in self._names}, self.errors, self._first)

    def settled(self, tolerance: float) -> bool:
        """Whether each ratio's interval reaches no further than this share of its median to either side."""
        if self._first not in self._names:
            return False
        found = [self.comparison().ratio(peer) for peer in self._names if peer != self._first]
        return all(max(one.high - one.median, one.median - one.low) <= tolerance * one.median for one in found)


def interleave(
    contenders: dict[str, Callable[[], float]],
    rounds: int,
    warmup: int = 1,
    deadline: float = math.inf,
    tolerance: float = 0.0,
) -> Comparison:
    """`rounds` rounds of a Race after `warmup` rounds that are not counted.

    deadline   a `time.monotonic()` after which no new round begins, once there have been three
    tolerance  above 0: no new round either once `Race.settled`. Looking at the interval in every round makes it cover
               a little less than it says.
    """
    race = Race(contenders)
    for _ in range(warmup):
        race.round(counted=False)
    for done in range(rounds):
        if done >= 3 and time.monotonic() > deadline:
            break
        if tolerance and done >= FEWEST_ROUNDS and race.settled(tolerance):
            break
        race.round()
    return race.comparison()


def processor_ratio(ours: Steps, theirs: Steps) -> Estimate | None:
    """ours ÷ theirs in images a second of processor time over their common turns, the first (warm-up) left out.

    Beside the ratio in wall clock: on a machine that others use, it says whether a difference is theirs. None on a GPU.
    """
    pairs = list(zip(ours.processor_rates, theirs.processor_rates, strict=False))[1:]
    return estimate([mine / other for mine, other in pairs]) if pairs else None


def one_line(error: BaseException) -> str:
    """An error for a table: its type and the first line of what it says."""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text[:200]}"


def release_memory() -> None:
    """Give back what dead contenders held, and start the allocator's peak anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@contextmanager
def fair_settings() -> Iterator[None]:
    """The same switches for all sides: cuDNN may search its algorithms, a GPU takes fp32 products in TF32 as a run does
    by default, a CPU does not crawl through denormals.

    What is to be compiled is: all modules that `nn.Module.compile` compiles share one code object and its limit of 8
    graphs (torch._dynamo.config.recompile_limit), and beyond it they would run eager, with a line in a log. So what was
    compiled before is forgotten, and to meet the limit is an error.
    """
    import torch._dynamo  # here: it takes seconds to load, and much that imports this file compiles nothing

    before, rounded = torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = True
    torch.set_flush_denormal(True)
    torch._dynamo.reset()
    try:
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            yield
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32 = before, rounded
        torch.set_flush_denormal(False)


def wait(device: torch.device) -> None:
    """Let the device finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step_seconds(step: Callable[[int], object], device: torch.device, first: int, count: int) -> list[float]:
    """Seconds of each of `count` steps, `step(first)` and on: CUDA events, or perf_counter on a CPU.

    Events are recorded in the stream of the work and read after the last step: the host never waits between steps.
    """
    wait(device)
    if device.type != "cuda":
        return cpu_seconds(step, first, count)[0]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for place, number in enumerate(range(first, first + count)):
        step(number)
        events[place + 1].record()
    events[-1].synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in pairwise(events)]


def cpu_seconds(step: Callable[[int], object], first: int, count: int) -> tuple[list[float], list[float]]:
    """(wall clock, processor time of this process's threads) of each of `count` steps on a CPU, in seconds."""
    marks = [(time.perf_counter(), time.process_time())]
    for number in range(first, first + count):
        step(number)
        marks.append((time.perf_counter(), time.process_time()))
    pairs = list(pairwise(marks))
    return [after[0] - before[0] for before, after in pairs], [after[1] - before[1] for before, after in pairs]


class Steps:
    """A contender that takes the same step again and again; a call is one turn and returns items/s.

    step     called with the step's number, by which it picks its input: inputs rotate, so that caches do not flatter
    items    images of a step
    seconds  that a turn should take; the first call finds out how many steps that is, and warms up

    A turn's rate is that of its median step: what another program takes from a few steps does not count.
    `energy`, where given, returns joules since some start: what the turns took is summed in `joules`.
    """

    def __init__(
        self,
        step: Callable[[int], object],
        items: int,
        device: torch.device,
        seconds: float = 0.3,
        *,
        warmup: int = 3,
        held_bytes: Callable[[], int] | None = None,
        energy: Callable[[], float | None] | None = None,
    ) -> None:
        self.step, self.items, self.device, self.seconds, self.warmup = step, items, device, seconds, warmup
        self.first_step_seconds: float | None = None
        """Of the very first step: kernels are loaded and chosen, and a compiled network is compiled."""
        self.peak_bytes: int | None = None
        """Most that this contender held on the GPU at once; None on a CPU, whose allocator does not count."""
        self.joules: float | None = None
        self.items_measured = 0
        self.processor_rates: list[float] = []
        """Items a second of processor time, a turn each, on a CPU: what waiting for a core does not change."""
        self._held_bytes, self._energy = held_bytes, energy
        self._steps, self._taken = 0, 0

    def __call__(self) -> float:
        """Take one turn."""
        if not self._steps:
            self._start()
        base = self._reset_peak()
        joules = self._energy() if self._energy else None
        times = self._take(self._steps)
        self._add_energy(joules, self._steps)
        self._read_peak(base)
        return self.items / statistics.median(times)

    def facts(self) -> dict[str, Any]:
        """For JSON: step time is with the rates; here what one turn does not tell."""
        per_image = None if self.joules is None or not self.items_measured else self.joules / self.items_measured
        return {
            "first_step_seconds": None if self.first_step_seconds is None else round(self.first_step_seconds, 3),
            "peak_bytes": self.peak_bytes,
            "joules_per_image": None if per_image is None else round(per_image, 6),
            "steps_per_turn": self._steps,
        }

    def _take(self, count: int) -> list[float]:
        if self.device.type == "cuda":
            times = step_seconds(self.step, self.device, self._taken, count)
        else:
            times, processor = cpu_seconds(self.step, self._taken, count)
            self.processor_rates.append(self.items / max(1e-9, statistics.median(processor)))
        self._taken += count
        return times

    def _start(self) -> None:
        began = time.perf_counter()
        self._take(1)
        wait(self.device)
        self.first_step_seconds = time.perf_counter() - began
        fastest = min(self._take(max(1, self.warmup)))
        self.processor_rates.clear()
        self._steps = max(1, min(MOST_STEPS, round(self.seconds / max(fastest, 1e-6))))

    def _reset_peak(self) -> int:
        if self.device.type != "cuda":
            return 0
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)

    def _read_peak(self, base: int) -> None:
        """The turn's peak above what lay there before it, and this contender's own part of that."""
        if self.device.type == "cuda":
            above = torch.cuda.max_memory_allocated(self.device) - base
            peak = above + (self._held_bytes() if self._held_bytes else 0)
            self.peak_bytes = max(peak, self.peak_bytes or 0)

    def _add_energy(self, before: float | None, steps: int) -> None:
        after = self._energy() if self._energy else None
        if before is not None and after is not None:
            self.joules = (self.joules or 0.0) + after - before
            self.items_measured += steps * self.items


def settle() -> None:
    """Wait until this process computes nothing: threads that read ahead would take the next turn's time."""
    used = -1.0
    while (now := time.process_time()) - used > RESTING * PAUSE:
        used = now
        time.sleep(PAUSE)
